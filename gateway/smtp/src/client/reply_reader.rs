//! A reply of a next hop, line by line.
//!
//! A next hop is trusted with mail, not with our memory: the text kept of a reply is bounded, and
//! a line that no reply can have is an error. Lines may end with LF alone, which is harmless in
//! replies. Within a session the number of lines has no limit: the reply to an accepted message
//! must not get lost because it is long.

use crate::reply::{EnhancedCode, Reply};

/// Octets of text kept of one reply.
const TEXT_LENGTH_MAX: usize = 1024;
/// Lines of a greeting or a reply to EHLO, kept or not.
const LINES_MAX: u32 = 200;

/// The line cannot be part of a reply.
#[derive(Debug)]
pub(super) struct NotAReply;

/// One parsed line.
pub(super) struct ReplyLine<'a> {
    pub(super) code: u16,
    pub(super) last: bool,
    pub(super) text: &'a [u8],
}

impl<'a> ReplyLine<'a> {
    /// Parses a line without its CRLF.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, NotAReply> {
        let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else {
            return Err(NotAReply);
        };
        let digit = |byte: u8| u16::from(byte - b'0');
        let code = digit(*a) * 100 + digit(*b) * 10 + digit(*c);
        match rest {
            [] => Ok(Self {
                code,
                last: true,
                text: b"",
            }),
            [b' ', text @ ..] => Ok(Self {
                code,
                last: true,
                text,
            }),
            [b'-', text @ ..] => Ok(Self {
                code,
                last: false,
                text,
            }),
            // Another octet where the space should be; but not a digit, which would make the code
            // a longer number.
            [other, ..] if !other.is_ascii_digit() => Ok(Self {
                code,
                last: true,
                text: rest,
            }),
            _ => Err(NotAReply),
        }
    }
}

/// Joins the lines of a reply. Its memory is reused for the next reply.
#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    code: u16,
    enhanced: Option<EnhancedCode>,
    text: String,
    /// Lines read of the current reply; 0: the next line begins a reply.
    lines: u32,
}

impl ReplyReader {
    /// The next line begins a reply.
    pub(super) fn is_at_start(&self) -> bool {
        self.lines == 0
    }

    /// Adds a line. `within_session` is false for the greeting and the replies to EHLO and HELO:
    /// they never have an enhanced code (RFC 2034, 3), and more than [`LINES_MAX`] lines are an
    /// error.
    pub(super) fn take(
        &mut self,
        line: &ReplyLine<'_>,
        within_session: bool,
    ) -> Result<(), NotAReply> {
        if self.lines == 0 {
            self.code = line.code;
            self.enhanced = None;
            self.text.clear();
        } else if line.code != self.code || (self.lines >= LINES_MAX && !within_session) {
            return Err(NotAReply);
        } else {
            self.push('\n');
        }
        let text = String::from_utf8_lossy(line.text);
        let mut text = &*text;
        if within_session
            && let Some((enhanced, rest)) = EnhancedCode::split_from(text)
            && u16::from(enhanced.0) == line.code / 100
        {
            self.enhanced.get_or_insert(enhanced);
            text = rest;
        }
        text.chars()
            .for_each(|c| self.push(if c.is_control() { ' ' } else { c }));
        self.lines = if line.last {
            0
        } else {
            self.lines.saturating_add(1)
        };
        Ok(())
    }

    fn push(&mut self, c: char) {
        if self.text.len() + c.len_utf8() <= TEXT_LENGTH_MAX {
            self.text.push(c);
        }
    }

    /// The reply that was completed last.
    pub(super) fn reply(&self) -> Reply<'_> {
        Reply::new(self.code, self.enhanced, &*self.text)
    }
}
