//! Message content on the wire: dot-stuffing both ways, and the rule that line ends are CRLF and
//! nothing else.
//!
//! The decoder takes the content of DATA (ended by CRLF . CRLF) and of BDAT (counted). It remembers
//! the one or two octets that may still turn out either way when a piece of input ends, so that it
//! never asks the caller to keep any, and what it gives out does not depend on how the input was
//! split. It gives out the longest runs it can: one search per line, no copy.
//!
//! A bare CR or LF is never passed on and never ends a line here. Servers that disagree on what
//! ends a message are how one message is smuggled inside another; a message on which they could
//! disagree is given up as a whole.

use std::fmt;

use memchr::{memchr_iter, memchr2};

use crate::reply::{EnhancedCode, Reply};

/// Why a message is given up while it is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A CR that no LF follows.
    BareCarriageReturn,
    /// A LF that no CR precedes.
    BareLineFeed,
    /// More octets than the session takes.
    TooBig,
    /// A line longer than 998 octets, where those are refused.
    LineTooLong,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::BareCarriageReturn,
        Self::BareLineFeed,
        Self::TooBig,
        Self::LineTooLong,
    ];

    /// A short name that does not change, for logs and metrics.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::BareCarriageReturn => "bare-cr",
            Self::BareLineFeed => "bare-lf",
            Self::TooBig => "message-size",
            Self::LineTooLong => "line-length",
        }
    }

    /// What the client is told once it has sent all of the message.
    #[must_use]
    pub fn reply(self) -> &'static Reply<'static> {
        static BARE_CR: Reply<'static> = Reply::fixed(
            554,
            EnhancedCode(5, 6, 11),
            "Message refused: carriage return without line feed",
        );
        static BARE_LF: Reply<'static> = Reply::fixed(
            554,
            EnhancedCode(5, 6, 11),
            "Message refused: line feed without carriage return",
        );
        static TOO_BIG: Reply<'static> = Reply::fixed(
            552,
            EnhancedCode(5, 3, 4),
            "Message is bigger than this server takes",
        );
        static LONG_LINE: Reply<'static> = Reply::fixed(
            554,
            EnhancedCode(5, 6, 0),
            "Message refused: line longer than 998 octets",
        );
        match self {
            Self::BareCarriageReturn => &BARE_CR,
            Self::BareLineFeed => &BARE_LF,
            Self::TooBig => &TOO_BIG,
            Self::LineTooLong => &LONG_LINE,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reply().text)
    }
}

/// What a [`Decoder`] holds a message to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Octets of content, line ends included and dot-stuffing not.
    pub size_max: u64,
    /// Octets of one line without its end; `u32::MAX` for any length.
    pub line_length_max: u32,
}

/// How the end of the content is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// DATA: by a line with a dot alone; a dot that begins a line is doubled (RFC 5321, 4.5.2).
    Dots,
    /// BDAT: the caller counts, and passes nothing but content (RFC 3030, 2).
    Chunks,
}

/// One step of a [`Decoder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// All of the input is taken.
    NeedInput,
    /// Content. No piece ends or begins within a CRLF.
    Content(&'a [u8]),
    /// The message is given up. From here on the decoder only looks for the end.
    Fault(Fault),
    /// The dot. What follows is no longer content.
    End,
}

/// Where in a line the decoder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// After a dot at the start of a line, which is either stuffing or the end.
    Dot,
    /// After a dot and a CR.
    DotCr,
    WithinLine,
    /// After a CR that has not been given out.
    Cr,
}

/// Takes message content apart, in pieces of any size.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    framing: Framing,
    at: At,
    /// Given up: only the end matters now.
    discarding: bool,
    line_length: u32,
    size: u64,
}

impl Decoder {
    /// A decoder at the beginning of a message.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        Self {
            framing,
            at: At::LineStart,
            discarding: false,
            line_length: 0,
            size: 0,
        }
    }

    /// Octets of content given out so far.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Takes one step: how many octets of the input are used up, and what they were.
    pub fn decode<'a>(&mut self, bounds: &Bounds, input: &'a [u8]) -> (usize, Decoded<'a>) {
        let mut used = 0;
        while let Some(&next) = input.get(used) {
            match (self.at, next) {
                (At::LineStart, b'.') if self.framing == Framing::Dots => {
                    used += 1;
                    self.at = At::Dot;
                }
                (At::LineStart | At::WithinLine, _) => {
                    let run = self.run(bounds, &input[used..]);
                    let content = &input[used..used + run.content];
                    used += run.used;
                    self.at = run.at;
                    self.line_length = run.line_length;
                    if self.discarding {
                        continue;
                    }
                    self.size += content.len() as u64;
                    match run.fault {
                        // The octet at fault is still in the input and will be met again.
                        _ if !content.is_empty() => return (used, Decoded::Content(content)),
                        Some(fault) => return (used, self.give_up(fault)),
                        None => {}
                    }
                }
                (At::Cr, b'\n') => {
                    used += 1;
                    self.at = At::LineStart;
                    self.line_length = 0;
                    if self.discarding {
                        continue;
                    }
                    if bounds.size_max.saturating_sub(self.size) < 2 {
                        return (used, self.give_up(Fault::TooBig));
                    }
                    self.size += 2;
                    return (used, Decoded::Content(b"\r\n"));
                }
                (At::Dot, b'\r') => {
                    used += 1;
                    self.at = At::DotCr;
                }
                (At::Dot, _) => self.at = At::WithinLine,
                (At::DotCr, b'\n') => return (used + 1, Decoded::End),
                (At::Cr | At::DotCr, _) => {
                    self.at = At::WithinLine;
                    if !self.discarding {
                        return (used, self.give_up(Fault::BareCarriageReturn));
                    }
                }
            }
        }
        (used, Decoded::NeedInput)
    }

    /// Says that there is no more input ([`Framing::Chunks`]): a CR that still waits for its LF is
    /// a bare one.
    #[must_use]
    pub fn finish(&mut self) -> Option<Fault> {
        let bare = self.at == At::Cr && !self.discarding;
        self.discarding |= bare;
        bare.then_some(Fault::BareCarriageReturn)
    }

    fn give_up(&mut self, fault: Fault) -> Decoded<'static> {
        self.discarding = true;
        Decoded::Fault(fault)
    }

    /// The longest run of content at the front of the input, from within a line or a start of line
    /// with no dot.
    fn run(&self, bounds: &Bounds, input: &[u8]) -> Run {
        let run = self.run_of_any_size(bounds, input);
        let room = usize::try_from(bounds.size_max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if run.content <= room || self.discarding {
            return run;
        }
        // A CRLF is not cut in two.
        let content = if room > 0 && input[room - 1] == b'\r' {
            room - 1
        } else {
            room
        };
        let at = if content > 0 && input[content - 1] == b'\n' {
            At::LineStart
        } else {
            At::WithinLine
        };
        Run {
            content,
            used: content,
            at,
            line_length: 0,
            fault: Some(Fault::TooBig),
        }
    }

    fn run_of_any_size(&self, bounds: &Bounds, input: &[u8]) -> Run {
        let mut line_length = self.line_length;
        let mut begin = 0;
        loop {
            let found = memchr2(b'\r', b'\n', &input[begin..]).map_or(input.len(), |i| begin + i);
            let room = bounds.line_length_max.saturating_sub(line_length) as usize;
            let stop = |content, used, at, fault| {
                let line_length =
                    line_length.saturating_add(u32::try_from(content - begin).unwrap_or(u32::MAX));
                Run {
                    content,
                    used,
                    at,
                    line_length,
                    fault,
                }
            };
            if found - begin > room && !self.discarding {
                let content = begin + room;
                return stop(content, content, At::WithinLine, Some(Fault::LineTooLong));
            }
            let fault = match (input.get(found), input.get(found + 1)) {
                (None, _) => return stop(found, found, At::WithinLine, None),
                (Some(b'\r'), None) => return stop(found, found + 1, At::Cr, None),
                (Some(b'\r'), Some(b'\n')) => {
                    begin = found + 2;
                    line_length = 0;
                    let dot = self.framing == Framing::Dots && input.get(begin) == Some(&b'.');
                    if dot || begin == input.len() {
                        return Run {
                            content: begin,
                            used: begin,
                            at: At::LineStart,
                            line_length,
                            fault: None,
                        };
                    }
                    continue;
                }
                (Some(b'\r'), Some(_)) => Fault::BareCarriageReturn,
                (Some(_), _) => Fault::BareLineFeed,
            };
            if !self.discarding {
                // Found first thing, the octet at fault is used up with the fault; else it is met
                // again.
                let used = found + usize::from(found == 0);
                return stop(found, used, At::WithinLine, Some(fault));
            }
            begin = found + 1;
        }
    }
}

/// What [`Decoder::run`] found, and the state after it.
struct Run {
    /// Octets of content.
    content: usize,
    /// Octets used up: the content, and perhaps a CR that waits or an octet at fault.
    used: usize,
    at: At,
    line_length: u32,
    /// What comes right after the content.
    fault: Option<Fault>,
}

/// Puts message content into the form that DATA wants, in pieces of any size.
///
/// The content must have CRLF line ends only, which is what a [`Decoder`] gives out.
#[derive(Clone, Copy, Debug)]
pub struct Stuffer {
    last: Last,
}

/// The last octet written, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// LF, or nothing yet.
    LineEnd,
    Cr,
    Other,
}

impl Default for Stuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Stuffer {
    /// At the beginning of a message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            last: Last::LineEnd,
        }
    }

    /// Appends content, with every dot at the start of a line doubled.
    pub fn write(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let Some(&last) = body.last() else {
            return;
        };
        if self.last == Last::LineEnd && body[0] == b'.' {
            out.push(b'.');
        }
        let mut begin = 0;
        for line_end in memchr_iter(b'\n', body) {
            if body.get(line_end + 1) == Some(&b'.') {
                out.extend_from_slice(&body[begin..=line_end]);
                out.push(b'.');
                begin = line_end + 1;
            }
        }
        out.extend_from_slice(&body[begin..]);
        self.last = match last {
            b'\n' => Last::LineEnd,
            b'\r' => Last::Cr,
            _ => Last::Other,
        };
    }

    /// Appends the end of the message, completing its last line first. Ready for another message
    /// afterwards.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.last {
            Last::LineEnd => b".\r\n",
            Last::Cr => b"\n.\r\n",
            Last::Other => b"\r\n.\r\n",
        });
        self.last = Last::LineEnd;
    }
}
