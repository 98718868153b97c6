//! Escapes control characters in text from outside, before it goes to a terminal or into the log.
//!
//! Others write the notes, the names of lists, interfaces and processes, and the replies of
//! servers. JSON output needs no escapes: its encoding has them.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text with escapes in place of control characters, invisible characters, and characters that
/// change the direction of text.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if needs_escape(character) {
            // Writing to a string does not fail.
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

fn needs_escape(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_invisible_characters_are_escaped() {
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
