//! The server's side of a session: what a client sent goes in, events and replies come out.
//!
//! [`Session::handle`] takes one step. A step ends with an [`Event`]; some events are owed an
//! answer, which the caller gives with [`Session::accept`] or [`Session::answer`] at once or
//! whenever it has found out. Everything that needs no decision (syntax, sequence, limits, NOOP) is
//! answered by the session itself. Replies are appended to `out` in the order of the commands.
//!
//! Two rules come from how mail is abused. Content must have CRLF line ends (see [`crate::data`]).
//! And a client must not talk out of turn: what arrives before a reply it has to wait for (RFC
//! 2920, 3.1) was written without reading, and ends the session. "Before" is not a matter of how
//! reads are split: until the caller says [`Session::flushed`], no reply can have been read.
//!
//! The session is a few dozen octets, because most sessions are idle and there are many. Rejected:
//! a type per state, which would need a box or a copy at every step, and an event queue: at most
//! one thing happens per step.

mod command;
mod content;
mod event;
mod line;
mod settings;

pub use event::{Abuse, Blame, CommandError, Event, Step, Verb};
pub use settings::{LongLines, Settings};

use crate::data::{Decoder, Fault, Framing};
use crate::reply::{EnhancedCode, Reply};
use command::Taken;
use line::{Frame, Framer};
use settings::write_hello;

/// Where a session stands. The command table says what is allowed in which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not greeted yet.
    Silent,
    /// The greeting is written and cannot have been read.
    Greeting,
    /// Greeted with a refusal: only QUIT is taken (RFC 5321, 3.1).
    Refused,
    /// Greeted; no EHLO yet.
    Fresh,
    /// Between transactions.
    Ready,
    /// MAIL was accepted.
    Envelope,
    /// Within the content of DATA.
    Data,
    /// Within a chunk.
    Chunk,
    /// Between the chunks of a message.
    Chunks,
    /// The last reply is written; [`Event::Abort`], or [`Event::Quit`], is still to be given.
    Ending(Option<Abuse>),
    /// That was all.
    Ended,
}

/// The answer that the caller owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    Hello {
        extended: bool,
    },
    Mail,
    /// As many as `recipients_owed` says.
    Rcpt,
    Data,
    FirstChunk,
    MessageEnd,
}

/// Why commands of a group cannot succeed, through no further fault of the client: it sent them
/// before it knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doom {
    /// MAIL, or the first BDAT, was refused.
    Refused,
    /// The message is given up.
    Fault(Fault),
}

/// One session with a client. See the [module](self).
#[derive(Clone, Debug)]
pub struct Session {
    phase: Phase,
    owed: Owed,
    doom: Option<Doom>,
    framer: Framer,
    /// EHLO, not HELO.
    extended: bool,
    /// EHLO was answered with DSN. Should the settings change meanwhile, the session still has what
    /// it was offered.
    dsn: bool,
    /// MAIL had SMTPUTF8.
    smtputf8: bool,
    /// The client has to wait for a reply that it cannot have read yet.
    exclusive: bool,
    /// It did not wait; once the session is over: something came behind its last command.
    premature: bool,
    chunk_last: bool,
    /// Commands of the present group that need not be waited for.
    asides: u8,
    /// Errors of the client in the whole session.
    errors: u32,
    /// How many of them were made up for by a message that was accepted.
    errors_forgiven: u32,
    /// Recipients that do not exist, less one for each message that was accepted.
    recipients_unknown: u32,
    transactions: u32,
    recipients: u32,
    recipients_owed: u32,
    /// Octets of a chunk that are to come: content in [`Phase::Chunk`], swallowed in any other.
    chunk_left: u64,
    decoder: Decoder,
}

const _: () = assert!(
    size_of::<Session>() <= 64,
    "a hundred thousand idle sessions pay for every octet"
);

static SENDER_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 1, 0), "Ok");
static RECIPIENT_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 1, 5), "Ok");
static MESSAGE_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok");
static LINE_TOO_LONG: Reply<'static> = Reply::fixed(500, EnhancedCode(5, 5, 2), "Line too long");
static BARE_LINE_FEED: Reply<'static> = Reply::fixed(
    500,
    EnhancedCode(5, 5, 2),
    "Line feed without carriage return: lines end with both",
);

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session on a connection that was just accepted.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: Phase::Silent,
            owed: Owed::Nothing,
            doom: None,
            framer: Framer::new(),
            extended: false,
            dsn: false,
            smtputf8: false,
            exclusive: false,
            premature: false,
            chunk_last: false,
            asides: 0,
            errors: 0,
            errors_forgiven: 0,
            recipients_unknown: 0,
            transactions: 0,
            recipients: 0,
            recipients_owed: 0,
            chunk_left: 0,
            decoder: Decoder::new(Framing::Dots),
        }
    }

    /// Greets the client. [`answer`](Self::answer) greets it with another text, or with a refusal:
    /// then the client may only QUIT.
    pub fn greet(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        if self.phase == Phase::Silent {
            out.extend_from_slice(b"220 ");
            out.extend_from_slice(settings.hostname.as_bytes());
            out.extend_from_slice(b" ESMTP Portcullis\r\n");
            self.phase = Phase::Greeting;
        }
    }

    /// Takes input up to the next event. To be called again with what was not consumed, unless more
    /// input ([`Event::NeedInput`]) or an answer ([`Event::AwaitingAnswer`]) is needed first; and
    /// once after every answer, even with no input.
    pub fn handle<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Step<'a> {
        let mut consumed = 0;
        loop {
            let (used, event) = self.step(settings, &input[consumed..], out);
            consumed += used;
            if let Some(event) = event {
                return Step { consumed, event };
            }
        }
    }

    /// Gives the usual positive answer to the oldest event that waits for one.
    pub fn accept(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        match self.owed {
            Owed::Nothing | Owed::FirstChunk => {}
            Owed::Hello { extended } => {
                self.dsn = extended && settings.dsn;
                write_hello(extended, settings, out);
            }
            Owed::Mail => SENDER_OK.write(out),
            Owed::Rcpt => RECIPIENT_OK.write(out),
            Owed::Data => out.extend_from_slice(b"354 End data with <CR><LF>.<CR><LF>\r\n"),
            Owed::MessageEnd => MESSAGE_OK.write(out),
        }
        self.settle(settings, true, Blame::Nobody, out);
    }

    /// Answers the oldest event that waits for it. A positive reply does what
    /// [`accept`](Self::accept) does, in other words; a reply with the code 421 ends the session.
    /// Before the greeting, it is the greeting. A refusal counts against nobody.
    pub fn answer(&mut self, settings: &Settings, reply: &Reply<'_>, out: &mut Vec<u8>) {
        self.refuse(settings, reply, Blame::Nobody, out);
    }

    /// Answers as [`answer`](Self::answer) does, and counts the reply, if it is a refusal, against
    /// what `blame` says.
    pub fn refuse(
        &mut self,
        settings: &Settings,
        reply: &Reply<'_>,
        blame: Blame,
        out: &mut Vec<u8>,
    ) {
        let positive = reply.is_positive();
        match self.owed {
            Owed::Nothing if self.phase != Phase::Silent => return,
            // The answer to BDAT is given when the chunk has come.
            Owed::FirstChunk if positive => {}
            // RFC 2034, 3: neither the greeting nor the reply to EHLO has an enhanced code.
            Owed::Nothing | Owed::Hello { .. } if positive => reply.borrowed(None).write(out),
            Owed::Nothing | Owed::Hello { .. } => reply.write(out),
            // Everything else has one, since it is offered; also what a next hop said that does not
            // offer it.
            _ if reply.enhanced.is_none() && reply.code != 354 => {
                reply
                    .borrowed(EnhancedCode::undefined(reply.code))
                    .write(out);
            }
            _ => reply.write(out),
        }
        if self.phase == Phase::Silent {
            self.phase = if positive {
                Phase::Greeting
            } else {
                Phase::Refused
            };
            self.exclusive = !positive;
        }
        if reply.code == 421 {
            self.phase = Phase::Ending(None);
            self.owed = Owed::Nothing;
        } else {
            self.settle(settings, positive, blame, out);
        }
    }

    /// Says that everything in `out` was handed to the kernel: what arrives from now on came after
    /// our replies.
    pub fn flushed(&mut self) {
        self.asides = 0;
        if self.phase == Phase::Greeting {
            self.phase = Phase::Fresh;
        }
        if self.owed == Owed::Nothing && !self.premature {
            self.exclusive = false;
        }
    }

    /// MAIL was accepted, and the transaction is not over.
    #[must_use]
    pub const fn in_transaction(&self) -> bool {
        matches!(
            self.phase,
            Phase::Envelope | Phase::Data | Phase::Chunk | Phase::Chunks
        )
    }

    /// The client said EHLO, not HELO.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.extended
    }

    /// What comes next is content of a message, not a command.
    #[must_use]
    pub const fn is_receiving_content(&self) -> bool {
        matches!(self.owed, Owed::Nothing)
            && (matches!(self.phase, Phase::Data | Phase::Chunk) || self.chunk_left > 0)
    }

    /// An answer is owed by the caller.
    #[must_use]
    pub const fn is_awaiting_answer(&self) -> bool {
        !matches!(self.owed, Owed::Nothing)
    }

    /// The session is over: nothing that arrives matters any more.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ending(_) | Phase::Ended)
    }

    /// Something came behind the command that ended the session, which is not read by anyone. A
    /// client that may still be talking has to be let down gently.
    #[must_use]
    pub const fn talks_on(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.premature
    }

    /// Recipients accepted in this transaction.
    #[must_use]
    pub const fn recipients(&self) -> u32 {
        self.recipients
    }

    /// Transactions begun in this session.
    #[must_use]
    pub const fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Errors of the client in this session: its own, not those of the next hop that it hears of.
    #[must_use]
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    fn step<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        match self.phase {
            Phase::Ending(abuse) => {
                self.phase = Phase::Ended;
                self.premature = !input.is_empty();
                return (input.len(), Some(abuse.map_or(Event::Quit, Event::Abort)));
            }
            Phase::Ended => return (input.len(), Some(Event::NeedInput)),
            Phase::Silent | Phase::Greeting if input.is_empty() => {
                return (0, Some(Event::NeedInput));
            }
            Phase::Silent | Phase::Greeting => {
                self.abort(Abuse::EarlyTalker, out);
                return (input.len(), None);
            }
            _ => {}
        }
        if self.owed != Owed::Nothing {
            self.premature |= self.exclusive && !input.is_empty();
            let more_recipients = self.owed == Owed::Rcpt && !self.exclusive;
            return if more_recipients {
                self.another_recipient(settings, input)
            } else {
                (0, Some(Event::AwaitingAnswer))
            };
        }
        if self.chunk_left > 0 && self.phase != Phase::Chunk {
            return self.swallow_chunk(input);
        }
        if self.premature || self.exclusive && !input.is_empty() {
            self.abort(Abuse::PipeliningViolation, out);
            return (input.len(), None);
        }
        match self.phase {
            Phase::Data => self.data(settings, input, out),
            Phase::Chunk => self.chunk(settings, input, out),
            _ => self.command_line(settings, input, out),
        }
    }

    fn command_line<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        let (used, frame) = self.framer.next(settings.command_length_max, input);
        match frame {
            Frame::NeedInput => (used, Some(Event::NeedInput)),
            Frame::RefusedLineEnd => (used, None),
            Frame::Line(line) => match self.command(settings, line, out) {
                Taken::Answered => (used, None),
                Taken::Event(event) => (used, Some(event)),
                Taken::Refused(verb, error, reply) => {
                    let refused = Event::Refused { verb, error, reply };
                    (used, Some(refused))
                }
                Taken::NotYet(event) => (0, Some(event)),
            },
            Frame::TooLong => {
                let error = CommandError::CommandLength;
                (
                    used,
                    Some(self.fail_line(settings, error, &LINE_TOO_LONG, out)),
                )
            }
            Frame::BareLineFeed => {
                let error = CommandError::BareLineFeed;
                (
                    used,
                    Some(self.fail_line(settings, error, &BARE_LINE_FEED, out)),
                )
            }
        }
    }

    /// The state after an answer was written.
    fn settle(&mut self, settings: &Settings, positive: bool, blame: Blame, out: &mut Vec<u8>) {
        let owed = std::mem::replace(&mut self.owed, Owed::Nothing);
        match (owed, positive) {
            (Owed::Nothing, _) => {}
            (Owed::Hello { extended }, true) => {
                self.extended = extended;
                self.phase = Phase::Ready;
            }
            (Owed::Hello { .. }, false) => self.count_refusal(settings, blame, out),
            (Owed::Mail, true) => {
                self.phase = Phase::Envelope;
                self.transactions = self.transactions.saturating_add(1);
            }
            (Owed::Mail, false) => {
                self.doom = Some(Doom::Refused);
                self.count_refusal(settings, blame, out);
            }
            (Owed::Rcpt, _) => {
                self.recipients_owed -= 1;
                if self.recipients_owed > 0 {
                    self.owed = Owed::Rcpt;
                }
                if positive {
                    self.recipients += 1;
                } else {
                    self.count_refusal(settings, blame, out);
                }
            }
            (Owed::Data, true) => self.phase = Phase::Data,
            (Owed::FirstChunk, true) => self.phase = Phase::Chunk,
            (Owed::FirstChunk, false) => {
                self.end_transaction();
                self.doom = (!self.chunk_last).then_some(Doom::Refused);
            }
            (Owed::MessageEnd, true) => {
                self.forgive();
                self.end_transaction();
            }
            (Owed::Data | Owed::MessageEnd, false) => self.end_transaction(),
        }
    }

    fn end_transaction(&mut self) {
        self.phase = Phase::Ready;
        self.doom = None;
        self.recipients = 0;
        self.smtputf8 = false;
    }

    /// Answers an error of the client.
    fn fail(&mut self, settings: &Settings, reply: &Reply<'_>, out: &mut Vec<u8>) {
        reply.write(out);
        self.count_error(settings, out);
    }

    /// Answers what is no command line.
    fn fail_line(
        &mut self,
        settings: &Settings,
        error: CommandError,
        reply: &'static Reply<'static>,
        out: &mut Vec<u8>,
    ) -> Event<'static> {
        self.fail(settings, reply, out);
        self.exclusive |= !self.extended;
        Event::Refused {
            verb: Verb::Other,
            error,
            reply,
        }
    }

    fn count_error(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        self.errors = self.errors.saturating_add(1);
        if self.errors - self.errors_forgiven >= settings.errors_max {
            self.abort(Abuse::TooManyErrors, out);
        }
    }

    /// Counts a refusal that the caller has answered with.
    fn count_refusal(&mut self, settings: &Settings, blame: Blame, out: &mut Vec<u8>) {
        match blame {
            Blame::Nobody => {}
            Blame::Client => self.count_error(settings, out),
            Blame::UnknownRecipient => {
                self.recipients_unknown = self.recipients_unknown.saturating_add(1);
                if self.recipients_unknown > settings.recipients_unknown_max {
                    self.abort(Abuse::TooManyUnknownRecipients, out);
                }
            }
        }
    }

    /// A message was accepted: the client sends mail, and does not only try things. That takes back
    /// all its errors, but one guessed address only, or each accepted message would buy as many
    /// guesses as the limit allows.
    fn forgive(&mut self) {
        self.errors_forgiven = self.errors;
        self.recipients_unknown = self.recipients_unknown.saturating_sub(1);
    }

    /// Writes the last reply; the event follows with the next step. Answers that are still owed are
    /// no longer taken.
    fn abort(&mut self, abuse: Abuse, out: &mut Vec<u8>) {
        if let Some(reply) = abuse.reply() {
            reply.write(out);
        }
        self.phase = Phase::Ending(Some(abuse));
        self.owed = Owed::Nothing;
    }
}
