//! The server's side of a session: the input of a client goes in, events and replies come out.
//!
//! [`Session::handle`] takes one step. A step ends with an [`Event`]. Some events need an answer:
//! the caller gives it with [`Session::accept`] or [`Session::answer`], at once or later. The
//! session itself answers everything that needs no decision (syntax, sequence, limits, NOOP).
//! Replies are appended to `out` in the order of the commands.
//!
//! Two rules are there against abuse. Content must have CRLF line ends (see [`crate::data`]). And a
//! client must wait for the replies that it has to wait for (RFC 2920, 3.1): input that arrives
//! before such a reply was written without reading it, and ends the session. How reads are split
//! does not matter: until the caller calls [`Session::flushed`], no reply can have been read.
//!
//! The session is a few dozen bytes, because most sessions are idle and there are many. Rejected: a
//! type per state, which would need a box or a copy at every step; and an event queue, because at
//! most one event happens per step.

mod command;
mod content;
mod event;
mod line;
mod secure;
mod settings;

pub use event::{Abuse, Blame, CommandError, Event, Step, Verb};
pub use secure::{AUTH_FAILED, AUTH_TOO_WEAK, AUTH_UNAVAILABLE, TLS_UNAVAILABLE};
pub use settings::{LongLines, Settings};

use crate::data::{Decoder, Fault, Framing};
use crate::reply::{EnhancedCode, Reply};
use command::Handled;
use line::{Frame, Framer};
use settings::{write_greeting, write_hello};

/// The phase of a session. The command table says which commands each phase allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No greeting yet.
    Connected,
    /// The greeting is written; the client cannot have read it yet.
    Greeting,
    /// The greeting was a refusal: only QUIT is allowed (RFC 5321, 3.1).
    Refused,
    /// The greeting is sent; no EHLO yet.
    Greeted,
    /// Between transactions.
    Ready,
    /// MAIL was accepted.
    Envelope,
    /// Within the content of DATA.
    Data,
    /// Within a chunk.
    WithinChunk,
    /// Between the chunks of a message.
    BetweenChunks,
    /// STARTTLS was accepted: the handshake comes next.
    Handshake,
    /// A challenge was written: the response to it comes next.
    Authenticating,
    /// The last reply is written; the next event is [`Event::Abort`] or [`Event::Quit`].
    Ending(Option<Abuse>),
    /// The session is over.
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
    StartTls,
    Auth,
    Xclient,
}

/// Why the later commands of a group cannot succeed. That is no further error of the client: it
/// sent them before it could know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// MAIL, or the first BDAT, was refused.
    Refused,
    /// The message has a fault.
    Fault(Fault),
}

/// One session with a client. See the [module](self).
#[derive(Clone, Debug)]
pub struct Session {
    phase: Phase,
    owed: Owed,
    failure: Option<Failure>,
    framer: Framer,
    /// EHLO, not HELO.
    extended: bool,
    /// The reply to EHLO offered DSN. The session keeps it even if the settings change.
    dsn: bool,
    /// MAIL had SMTPUTF8.
    smtputf8: bool,
    /// The connection is under TLS.
    tls: bool,
    /// The client has said who it is, and proved it.
    authenticated: bool,
    /// The client has to wait for a reply that it cannot have read yet.
    must_wait: bool,
    /// The client did not wait. After the end of the session: input came after the last command.
    early_input: bool,
    chunk_last: bool,
    /// Commands with `Waits::PerGroup` since the last flush.
    unwaited: u8,
    /// Errors of the client in the whole session.
    errors: u32,
    /// `errors` when the last message was accepted: only later ones count toward the limit.
    errors_at_last_message: u32,
    /// Recipients that do not exist, less one for each message that was accepted.
    recipients_unknown: u32,
    transactions: u32,
    recipients: u32,
    recipients_owed: u32,
    /// Octets of a chunk that are still to come: content in [`Phase::WithinChunk`], discarded in
    /// any other.
    chunk_left: u64,
    decoder: Decoder,
}

const _: () = assert!(
    size_of::<Session>() <= 64,
    "a hundred thousand idle sessions pay for every byte"
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
            phase: Phase::Connected,
            owed: Owed::Nothing,
            failure: None,
            framer: Framer::new(),
            extended: false,
            dsn: false,
            smtputf8: false,
            tls: false,
            authenticated: false,
            must_wait: false,
            early_input: false,
            chunk_last: false,
            unwaited: 0,
            errors: 0,
            errors_at_last_message: 0,
            recipients_unknown: 0,
            transactions: 0,
            recipients: 0,
            recipients_owed: 0,
            chunk_left: 0,
            decoder: Decoder::new(Framing::Dots),
        }
    }

    /// Writes the usual greeting. [`answer`](Self::answer) writes another one instead; after a
    /// refusal the client may only QUIT.
    pub fn greet(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        if self.phase == Phase::Connected {
            write_greeting(settings, out);
            self.phase = Phase::Greeting;
        }
    }

    /// Consumes input up to the next event.
    ///
    /// The caller calls it again with the input that was not consumed, unless more input
    /// ([`Event::NeedInput`]) or an answer ([`Event::AwaitingAnswer`]) is needed first. It also
    /// calls it once after every answer, even with no input.
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
                write_hello(extended.then(|| self.offer(settings)), settings, out);
            }
            Owed::Mail => SENDER_OK.write(out),
            Owed::Rcpt => RECIPIENT_OK.write(out),
            Owed::Data => out.extend_from_slice(b"354 End data with <CR><LF>.<CR><LF>\r\n"),
            Owed::MessageEnd => MESSAGE_OK.write(out),
            Owed::StartTls => secure::READY_FOR_TLS.write(out),
            Owed::Auth => secure::AUTHENTICATED.write(out),
            Owed::Xclient => write_greeting(settings, out),
        }
        self.settle(settings, true, Blame::None, out);
    }

    /// Gives this reply to the oldest event that waits for one.
    ///
    /// A positive reply accepts, as [`accept`](Self::accept) does. A 421 ends the session. Before
    /// the greeting, the reply is the greeting. A refusal counts toward no limit.
    pub fn answer(&mut self, settings: &Settings, reply: &Reply<'_>, out: &mut Vec<u8>) {
        self.refuse(settings, reply, Blame::None, out);
    }

    /// Answers as [`answer`](Self::answer) does. A refusal counts toward the limit that `blame`
    /// names.
    pub fn refuse(
        &mut self,
        settings: &Settings,
        reply: &Reply<'_>,
        blame: Blame,
        out: &mut Vec<u8>,
    ) {
        // A challenge is no success.
        let positive = reply.is_positive() && !(self.owed == Owed::Auth && reply.code >= 300);
        match self.owed {
            Owed::Nothing if self.phase != Phase::Connected => return,
            // BDAT is answered when its chunk is complete.
            Owed::FirstChunk if positive => {}
            // RFC 2034, 3: neither the greeting nor the reply to EHLO has an enhanced code.
            Owed::Nothing | Owed::Hello { .. } | Owed::Xclient if positive => {
                reply.borrowed(None).write(out);
            }
            Owed::Nothing | Owed::Hello { .. } | Owed::Xclient => reply.write(out),
            // All other replies have one, because ENHANCEDSTATUSCODES is offered. A next hop that
            // does not offer it sends none; then it is added here.
            _ if reply.enhanced.is_none() && reply.code != 354 => {
                reply
                    .borrowed(EnhancedCode::undefined(reply.code))
                    .write(out);
            }
            _ => reply.write(out),
        }
        if self.phase == Phase::Connected {
            self.phase = if positive {
                Phase::Greeting
            } else {
                Phase::Refused
            };
            self.must_wait = !positive;
        }
        if reply.code == 421 {
            self.phase = Phase::Ending(None);
            self.owed = Owed::Nothing;
        } else {
            self.settle(settings, positive, blame, out);
        }
    }

    /// The caller has given everything in `out` to the kernel: input from now on comes after our
    /// replies.
    pub fn flushed(&mut self) {
        self.unwaited = 0;
        if self.phase == Phase::Greeting {
            self.phase = Phase::Greeted;
        }
        if self.owed == Owed::Nothing && !self.early_input {
            self.must_wait = false;
        }
    }

    /// MAIL was accepted, and the transaction is not over.
    #[must_use]
    pub const fn in_transaction(&self) -> bool {
        matches!(
            self.phase,
            Phase::Envelope | Phase::Data | Phase::WithinChunk | Phase::BetweenChunks
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
            && (matches!(self.phase, Phase::Data | Phase::WithinChunk) || self.chunk_left > 0)
    }

    /// An answer is owed by the caller.
    #[must_use]
    pub const fn is_awaiting_answer(&self) -> bool {
        !matches!(self.owed, Owed::Nothing)
    }

    /// The session is over: it ignores all further input.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ending(_) | Phase::Ended)
    }

    /// Input came after the command that ended the session. The client may still be sending, and a
    /// close with unread input would be a RST, which can destroy the last reply before the client
    /// reads it.
    #[must_use]
    pub const fn has_unread_input(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.early_input
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

    /// Errors of the client in this session; refusals of a next hop are not among them.
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
                self.early_input = !input.is_empty();
                return (input.len(), Some(abuse.map_or(Event::Quit, Event::Abort)));
            }
            Phase::Ended => return (input.len(), Some(Event::NeedInput)),
            Phase::Connected | Phase::Greeting if input.is_empty() => {
                return (0, Some(Event::NeedInput));
            }
            Phase::Connected | Phase::Greeting => {
                self.abort(Abuse::EarlyTalker, out);
                return (input.len(), None);
            }
            _ => {}
        }
        if self.owed != Owed::Nothing {
            self.early_input |= self.must_wait && !input.is_empty();
            let more_recipients = self.owed == Owed::Rcpt && !self.must_wait;
            return if more_recipients {
                self.next_recipient(settings, input)
            } else {
                (0, Some(Event::AwaitingAnswer))
            };
        }
        if self.chunk_left > 0 && self.phase != Phase::WithinChunk {
            return self.discard_chunk(input);
        }
        if self.early_input || self.must_wait && !input.is_empty() {
            self.abort(Abuse::PipeliningViolation, out);
            return (input.len(), None);
        }
        match self.phase {
            Phase::Data => self.data(settings, input, out),
            Phase::WithinChunk => self.chunk(settings, input, out),
            Phase::Authenticating => self.auth_line(settings, input, out),
            // Not before the reply to STARTTLS is on its way.
            Phase::Handshake if self.must_wait => (0, Some(Event::NeedInput)),
            Phase::Handshake => (0, Some(Event::Handshake)),
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
                Handled::Answered => (used, None),
                Handled::Event(event) => (used, Some(event)),
                Handled::Refused(verb, error, reply) => {
                    let refused = Event::Refused { verb, error, reply };
                    (used, Some(refused))
                }
                Handled::NotYet(event) => (0, Some(event)),
            },
            Frame::TooLong => {
                let error = CommandError::CommandLength;
                (
                    used,
                    Some(self.fail_framing(settings, error, &LINE_TOO_LONG, out)),
                )
            }
            Frame::BareLineFeed => {
                let error = CommandError::BareLineFeed;
                (
                    used,
                    Some(self.fail_framing(settings, error, &BARE_LINE_FEED, out)),
                )
            }
        }
    }

    /// Updates the state after an answer was written.
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
                self.failure = Some(Failure::Refused);
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
            (Owed::FirstChunk, true) => self.phase = Phase::WithinChunk,
            (Owed::FirstChunk, false) => {
                self.end_transaction();
                self.failure = (!self.chunk_last).then_some(Failure::Refused);
            }
            (Owed::MessageEnd, true) => {
                self.message_accepted();
                self.end_transaction();
            }
            (Owed::Data | Owed::MessageEnd, false) => self.end_transaction(),
            (Owed::StartTls, true) => self.phase = Phase::Handshake,
            (Owed::Auth, true) => self.authenticated = true,
            (Owed::Xclient, true) => self.begin_again(),
            (Owed::Xclient, false) => self.phase = Phase::Refused,
            (Owed::StartTls | Owed::Auth, false) => self.count_refusal(settings, blame, out),
        }
    }

    fn end_transaction(&mut self) {
        self.phase = Phase::Ready;
        self.failure = None;
        self.recipients = 0;
        self.smtputf8 = false;
    }

    /// Answers an error of the client.
    fn fail(&mut self, settings: &Settings, reply: &Reply<'_>, out: &mut Vec<u8>) {
        reply.write(out);
        self.count_error(settings, out);
    }

    /// Answers a line with a framing error.
    fn fail_framing(
        &mut self,
        settings: &Settings,
        error: CommandError,
        reply: &'static Reply<'static>,
        out: &mut Vec<u8>,
    ) -> Event<'static> {
        self.fail(settings, reply, out);
        self.must_wait |= !self.extended;
        Event::Refused {
            verb: Verb::Other,
            error,
            reply,
        }
    }

    fn count_error(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        self.errors = self.errors.saturating_add(1);
        if self.errors - self.errors_at_last_message >= settings.errors_max {
            self.abort(Abuse::TooManyErrors, out);
        }
    }

    /// Counts a refusal of the caller.
    fn count_refusal(&mut self, settings: &Settings, blame: Blame, out: &mut Vec<u8>) {
        match blame {
            Blame::None => {}
            Blame::Client => self.count_error(settings, out),
            Blame::UnknownRecipient => {
                self.recipients_unknown = self.recipients_unknown.saturating_add(1);
                if self.recipients_unknown > settings.recipients_unknown_max {
                    self.abort(Abuse::TooManyUnknownRecipients, out);
                }
            }
        }
    }

    /// A message was accepted, so the client does send mail. The errors start again at zero. Only
    /// one unknown recipient is taken off: otherwise each accepted message would allow as many
    /// guesses as the limit.
    fn message_accepted(&mut self) {
        self.errors_at_last_message = self.errors;
        self.recipients_unknown = self.recipients_unknown.saturating_sub(1);
    }

    /// Writes the last reply; the event follows with the next step. No answer is owed any more.
    fn abort(&mut self, abuse: Abuse, out: &mut Vec<u8>) {
        if let Some(reply) = abuse.reply() {
            reply.write(out);
        }
        self.phase = Phase::Ending(Some(abuse));
        self.owed = Owed::Nothing;
    }
}
