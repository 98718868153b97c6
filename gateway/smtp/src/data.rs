//! Message content on the wire: dot-stuffing both ways, and the rule that a line ends with CRLF
//! only.
//!
//! The decoder reads the content of DATA (ended by CRLF . CRLF) and of BDAT (counted). When a piece
//! of input ends within a CRLF or an end of data, the decoder remembers that itself: the caller
//! keeps no octets, and the output does not depend on how the input was split. It returns the
//! longest runs it can: one search per line, no copy.
//!
//! A bare CR or LF is never passed on and never ends a line here. SMTP smuggling works between
//! servers that disagree on what ends a message; a message on which they could disagree is refused
//! as a whole.

use std::fmt;

use memchr::{memchr_iter, memchr2};

use crate::reply::{EnhancedCode, Reply};

/// Why a message is refused while it is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A CR that no LF follows.
    BareCarriageReturn,
    /// A LF that no CR precedes.
    BareLineFeed,
    /// More octets than the listener accepts.
    TooBig,
    /// A line longer than 998 octets, if the settings refuse those.
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

    /// A short, stable name for logs and metrics.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::BareCarriageReturn => "bare-cr",
            Self::BareLineFeed => "bare-lf",
            Self::TooBig => "message-size",
            Self::LineTooLong => "line-length",
        }
    }

    /// The reply to the client after it has sent the whole message.
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

/// The limits that a [`Decoder`] checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Octets of content, line ends included and dot-stuffing not.
    pub size_max: u64,
    /// Octets of one line without its end; `u32::MAX` for any length.
    pub line_length_max: u32,
}

/// How the end of the content is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// DATA: by a line of one dot; a dot that begins a line is doubled (RFC 5321, 4.5.2).
    Dots,
    /// BDAT: the caller counts the octets, and passes content only (RFC 3030, 2).
    Chunks,
}

/// One step of a [`Decoder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// All input is used.
    NeedInput,
    /// Content. No piece begins or ends within a CRLF.
    Content(&'a [u8]),
    /// The message is refused. From here on the decoder only looks for its end.
    Fault(Fault),
    /// The end of data. What follows is not content.
    End,
}

/// Where in a line the decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// After a dot at the start of a line: dot-stuffing or the end of data.
    Dot,
    /// After a dot and a CR.
    DotCr,
    WithinLine,
    /// After a CR that has not been returned yet.
    Cr,
}

/// Decodes message content, in pieces of any size.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    framing: Framing,
    at: At,
    /// After a fault: the decoder only looks for the end.
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

    /// Octets of content returned so far.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Decodes one step. Returns the number of octets of the input used, and what they were.
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
                        // The octet at fault stays in the input for the next step.
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

    /// Ends the input ([`Framing::Chunks`]). A CR that still waits for its LF is a bare CR.
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

    /// The longest run of content at the front of the input. The decoder is within a line, or at
    /// the start of a line that does not begin with a dot.
    fn run(&self, bounds: &Bounds, input: &[u8]) -> Run {
        let run = self.run_of_any_size(bounds, input);
        let room = usize::try_from(bounds.size_max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if run.content <= room || self.discarding {
            return run;
        }
        // No cut within a CRLF.
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
                // At the front of the input, the octet at fault is used with the fault. Otherwise
                // it stays in the input for the next step.
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
    /// Octets used: the content, and perhaps a CR that waits or an octet at fault.
    used: usize,
    at: At,
    line_length: u32,
    /// The fault right after the content.
    fault: Option<Fault>,
}

/// Encodes message content for DATA, in pieces of any size.
///
/// The content must have CRLF line ends only, as a [`Decoder`] returns it.
#[derive(Clone, Copy, Debug)]
pub struct Stuffer {
    last: Last,
}

/// The last octet written.
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

    /// Appends content and doubles every dot at the start of a line.
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

    /// Completes the last line and appends the end of data. The stuffer is then ready for another
    /// message.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.last {
            Last::LineEnd => b".\r\n",
            Last::Cr => b"\n.\r\n",
            Last::Other => b"\r\n.\r\n",
        });
        self.last = Last::LineEnd;
    }
}
