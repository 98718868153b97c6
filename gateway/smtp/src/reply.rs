//! Replies: a code, optionally an enhanced status code, and text.
//!
//! The text of a reply may come from another server or contain what a client sent. So the writer
//! makes it safe: nothing in the text can end a line, and no line is longer than RFC 5321 allows.

use std::borrow::Cow;
use std::fmt;

/// RFC 5321, 4.5.3.1.5: the code, the text and CRLF.
const REPLY_LINE_LENGTH_MAX: usize = 512;

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl EnhancedCode {
    /// The enhanced code `x.0.0` for a reply code (RFC 3463, 3.1: other undefined status).
    pub(crate) fn undefined(code: u16) -> Option<Self> {
        let class = u8::try_from(code / 100).ok()?;
        matches!(class, 2 | 4 | 5).then_some(Self(class, 0, 0))
    }

    /// Splits the enhanced code off the front of a reply's text. Returns both.
    pub(crate) fn split_from(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut numbers = word.splitn(3, '.');
        let class = number(numbers.next()?, 1)?;
        let code = Self(
            u8::try_from(class).ok()?,
            number(numbers.next()?, 3)?,
            number(numbers.next()?, 3)?,
        );
        matches!(code.0, 2 | 4 | 5).then_some((code, rest))
    }
}

/// One to `digits_max` digits and nothing else.
fn number(text: &str, digits_max: usize) -> Option<u16> {
    let digits = (1..=digits_max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// A reply (RFC 5321, 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The three digits.
    pub code: u16,
    /// The enhanced code; it goes in front of the text of every line.
    pub enhanced: Option<EnhancedCode>,
    /// The text; `'\n'` separates lines.
    pub text: Cow<'a, str>,
}

impl Reply<'static> {
    /// A reply with a fixed text.
    #[must_use]
    pub const fn fixed(code: u16, enhanced: EnhancedCode, text: &'static str) -> Self {
        Self {
            code,
            enhanced: Some(enhanced),
            text: Cow::Borrowed(text),
        }
    }
}

impl<'a> Reply<'a> {
    /// A reply with a text from run time, owned or borrowed.
    #[must_use]
    pub fn new(code: u16, enhanced: Option<EnhancedCode>, text: impl Into<Cow<'a, str>>) -> Self {
        Self {
            code,
            enhanced,
            text: text.into(),
        }
    }

    /// 2xx or 3xx: the command was accepted.
    #[must_use]
    pub const fn is_positive(&self) -> bool {
        matches!(self.code, 200..=399)
    }

    /// 4xx: it may work later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.code, 400..=499)
    }

    /// 5xx: it will not work later.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(self.code, 500..=599)
    }

    /// The same reply with another enhanced code; borrows the text.
    pub(crate) fn borrowed(&self, enhanced: Option<EnhancedCode>) -> Reply<'_> {
        Reply::new(self.code, enhanced, &*self.text)
    }

    /// The same reply with an owned text.
    #[must_use]
    pub fn into_owned(self) -> Reply<'static> {
        Reply {
            code: self.code,
            enhanced: self.enhanced,
            text: Cow::Owned(self.text.into_owned()),
        }
    }

    /// Appends the reply in wire format.
    ///
    /// Control characters become spaces, and lines are cut at 512 octets: any text is safe to pass
    /// on.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = self.text.trim_end_matches(['\r', '\n']);
        let mut lines = text.split('\n').peekable();
        while let Some(line) = lines.next() {
            self.write_line(line, lines.peek().is_none(), out);
        }
    }

    fn write_line(&self, line: &str, last: bool, out: &mut Vec<u8>) {
        let begin = out.len();
        push_decimal(out, self.code.into(), 3);
        let mut separator = if last { b' ' } else { b'-' };
        if let Some(EnhancedCode(class, subject, detail)) = self.enhanced {
            out.push(std::mem::replace(&mut separator, b' '));
            push_decimal(out, class.into(), 1);
            out.push(b'.');
            push_decimal(out, subject.into(), 1);
            out.push(b'.');
            push_decimal(out, detail.into(), 1);
        }
        let line = line.strip_suffix('\r').unwrap_or(line);
        // A hyphen is needed even before an empty text; a space is not.
        if !line.is_empty() || separator == b'-' {
            out.push(separator);
        }
        let room = REPLY_LINE_LENGTH_MAX - 2 - (out.len() - begin);
        push_printable(out, &line[..line.floor_char_boundary(room)]);
        out.extend_from_slice(b"\r\n");
    }
}

impl fmt::Display for Reply<'_> {
    /// On one line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for part in self
            .text
            .split(char::is_control)
            .filter(|part| !part.is_empty())
        {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

/// Appends the text and replaces every control character by a space.
fn push_printable(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let mut room = [0; 4];
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        out.extend_from_slice(c.encode_utf8(&mut room).as_bytes());
    }
}

/// Appends a decimal number with at least `width` digits.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut begin = digits.len();
    while number > 0 || digits.len() - begin < width {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits[begin..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(reply: &Reply<'_>) -> String {
        let mut out = Vec::new();
        reply.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_line_carries_code_and_enhanced_code() {
        let reply = Reply::new(550, Some(EnhancedCode(5, 7, 1)), "listed\nask us");
        assert_eq!(written(&reply), "550-5.7.1 listed\r\n550 5.7.1 ask us\r\n");
    }

    #[test]
    fn text_cannot_smuggle_a_line() {
        let reply = Reply::new(250, None, "a\r\rb\u{85}c\u{7f}\0d\r\nline two\r\n");
        assert_eq!(written(&reply), "250-a  b c  d\r\n250 line two\r\n");
    }

    #[test]
    fn empty_text_leaves_no_trailing_space() {
        assert_eq!(written(&Reply::new(250, None, "")), "250\r\n");
        assert_eq!(
            written(&Reply::new(250, Some(EnhancedCode(2, 0, 0)), "")),
            "250 2.0.0\r\n"
        );
        assert_eq!(written(&Reply::new(250, None, "\nx")), "250-\r\n250 x\r\n");
    }

    #[test]
    fn lines_are_cut_at_512_octets_between_characters() {
        let reply = Reply::new(550, Some(EnhancedCode(5, 0, 0)), "ä".repeat(600));
        let text = written(&reply);
        assert!(text.len() <= REPLY_LINE_LENGTH_MAX && text.len() > REPLY_LINE_LENGTH_MAX - 2);
    }

    #[test]
    fn enhanced_codes_are_told_from_text() {
        assert_eq!(
            EnhancedCode::split_from("2.1.5 Ok"),
            Some((EnhancedCode(2, 1, 5), "Ok"))
        );
        assert_eq!(
            EnhancedCode::split_from("5.7.26"),
            Some((EnhancedCode(5, 7, 26), ""))
        );
        for text in [
            "3.1.5 x",
            "2.1 x",
            "2.1.5.6 x",
            "2.1.1234 x",
            "2..5 x",
            "+2.1.5",
            "192.0.2.1",
            "",
        ] {
            assert_eq!(EnhancedCode::split_from(text), None, "{text}");
        }
    }
}
