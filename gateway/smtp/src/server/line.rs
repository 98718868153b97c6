//! Splits the input into command lines.
//!
//! A line ends with CRLF only. The caller keeps the front of a line until the rest has come, so the
//! framer stores nothing. Of a line that is too long nothing is kept. A bare LF is refused as soon
//! as it comes: a user who types with the wrong tool learns why, instead of waiting. What follows
//! it up to CRLF still belongs to the refused line.

use memchr::{memchr, memchr_iter};

/// The part of a line that the framer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// A line that may still become a command.
    Line,
    /// A line that is too long; its end is reported. `cr`: its last octet so far is a CR.
    LongLine { cr: bool },
    /// The rest of a line with a bare LF, which is reported already.
    RefusedLine { cr: bool },
}

/// Finds the lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framer(Within);

/// One step of a [`Framer`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// There is no complete line. The input that was not used is the front of one.
    NeedInput,
    /// A line, without its CRLF.
    Line(&'a [u8]),
    /// The end of a line that is too long.
    TooLong,
    /// A LF with no CR before it.
    BareLineFeed,
    /// The end of a line with a bare LF.
    RefusedLineEnd,
}

impl Framer {
    pub(super) const fn new() -> Self {
        Self(Within::Line)
    }

    /// Takes one step. Returns the number of octets used, and what they were. `length_max` includes
    /// CRLF.
    pub(super) fn next<'a>(&mut self, length_max: usize, input: &'a [u8]) -> (usize, Frame<'a>) {
        if self.0 == Within::Line {
            let front = &input[..input.len().min(length_max)];
            match memchr(b'\n', front) {
                Some(lf) if front[..lf].ends_with(b"\r") => {
                    return (lf + 1, Frame::Line(&front[..lf - 1]));
                }
                Some(lf) => {
                    self.0 = Within::RefusedLine { cr: false };
                    return (lf + 1, Frame::BareLineFeed);
                }
                None if input.len() < length_max => return (0, Frame::NeedInput),
                None => self.0 = Within::LongLine { cr: false },
            }
        }
        self.discard(input)
    }

    fn discard<'a>(&mut self, input: &'a [u8]) -> (usize, Frame<'a>) {
        let (Within::LongLine { cr } | Within::RefusedLine { cr }) = &mut self.0 else {
            return (0, Frame::NeedInput);
        };
        let after_cr = |lf: usize| if lf == 0 { *cr } else { input[lf - 1] == b'\r' };
        if let Some(lf) = memchr_iter(b'\n', input).find(|&lf| after_cr(lf)) {
            let long = matches!(self.0, Within::LongLine { .. });
            self.0 = Within::Line;
            return (
                lf + 1,
                if long {
                    Frame::TooLong
                } else {
                    Frame::RefusedLineEnd
                },
            );
        }
        if let Some(last) = input.last() {
            *cr = *last == b'\r';
        }
        (input.len(), Frame::NeedInput)
    }
}
