//! Text from outside on its way to a terminal or into a line of a log: what either would obey is
//! shown instead.
//!
//! Notes, names of lists, interfaces and processes, and what servers say are written by others. The
//! JSON forms need none of this.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text with control characters, and those that change the direction of what follows or are not
/// seen, written as escapes.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_obeyed(character) {
            // Writing to a string does not fail.
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_or_a_log_would_obey() {
        let cases = [
            ("ticket 4711, \"é\" C:\\x", "ticket 4711, \"é\" C:\\x"),
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("two\nlines\r\tx", "two\\nlines\\r\\tx"),
            ("\u{9b}31m \u{7f}", "\\u{9b}31m \\u{7f}"),
            ("moc.\u{202e}elpmaxe", "moc.\\u{202e}elpmaxe"),
        ];
        for (text, shown) in cases {
            assert_eq!(printable(text), shown);
        }
    }
}
