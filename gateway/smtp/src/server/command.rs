//! The commands: one table, and a handler for each.

use super::line::Frame;
use super::{Abuse, CommandError, Event, Failure, Owed, Phase, Session, Settings, Verb};
use crate::data::{Decoder, Framing};
use crate::envelope::{Mail, Rcpt};
use crate::path::is_client_name;
use crate::reply::{EnhancedCode, Reply};

/// How a command was handled.
pub(super) enum Handled<'a> {
    /// The session has answered it, or will when its chunk is over.
    Answered,
    /// It is refused, and the reply is written.
    Refused(Verb, CommandError, &'static Reply<'static>),
    /// It becomes an event for the caller.
    Event(Event<'a>),
    /// The caller gets another event first; the command stays in the input.
    NotYet(Event<'a>),
}

type Handler = for<'a> fn(&mut Session, &Settings, &'a [u8], &mut Vec<u8>) -> Handled<'a>;

struct Command {
    verb: &'static str,
    /// The phases in which it may come. In any other the reply is 503.
    phases: &'static [Phase],
    /// When the client has to wait for its reply.
    waits: Waits,
    /// Its arguments may hold any octets: the handler checks them itself.
    any_octets: bool,
    handler: Handler,
}

impl Command {
    const fn new(
        verb: &'static str,
        phases: &'static [Phase],
        waits: Waits,
        handler: Handler,
    ) -> Self {
        Self {
            verb,
            phases,
            waits,
            any_octets: false,
            handler,
        }
    }

    const fn any_octets(self) -> Self {
        Self {
            any_octets: true,
            ..self
        }
    }
}

/// When a client has to wait for the reply to a command before it sends more. Input that comes too
/// early ends the session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Even with PIPELINING: the reply decides what comes next, or what the next octets mean (RFC
    /// 2920, 3.1).
    Always,
    /// Unless PIPELINING was offered.
    UnlessPipelining,
    /// Only after [`UNWAITED_MAX`] of them. RFC 2920 allows these only at the end of a group, but
    /// clients send them elsewhere too. That is harmless: their replies change nothing, and all
    /// replies come in order. A client that sends hundreds of them at once reads no replies.
    PerGroup,
}

/// Commands with [`Waits::PerGroup`] in one group. The client has to wait for the reply to the last
/// of them.
const UNWAITED_MAX: u8 = 200;

const READY: &[Phase] = &[Phase::Ready];
const IN_ENVELOPE: &[Phase] = &[Phase::Envelope];
/// All phases with command lines, except that of a client whose greeting was a refusal.
const ANY: &[Phase] = &[
    Phase::Greeted,
    Phase::Ready,
    Phase::Envelope,
    Phase::BetweenChunks,
];
const ANY_OR_REFUSED: &[Phase] = &[
    Phase::Refused,
    Phase::Greeted,
    Phase::Ready,
    Phase::Envelope,
    Phase::BetweenChunks,
];

/// The frequent ones first. A command that is not offered is in the table to get a 502 and not a
/// 500.
#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    Command::new("RCPT", IN_ENVELOPE, Waits::UnlessPipelining, Session::rcpt).any_octets(),
    Command::new("MAIL", READY, Waits::UnlessPipelining, Session::mail).any_octets(),
    Command::new("DATA", IN_ENVELOPE, Waits::Always, Session::data_command),
    // BDAT checks the phase itself: its chunk must be discarded even in a wrong phase.
    Command::new("BDAT", ANY_OR_REFUSED, Waits::UnlessPipelining, Session::bdat).any_octets(),
    Command::new("EHLO", ANY, Waits::Always, Session::ehlo),
    Command::new("HELO", ANY, Waits::Always, Session::helo),
    Command::new("QUIT", ANY_OR_REFUSED, Waits::Always, Session::quit),
    Command::new("RSET", ANY, Waits::UnlessPipelining, Session::rset),
    Command::new("NOOP", ANY, Waits::PerGroup, Session::noop),
    Command::new("VRFY", ANY, Waits::PerGroup, Session::vrfy),
    Command::new("HELP", ANY, Waits::PerGroup, Session::help),
    Command::new("EXPN", ANY, Waits::PerGroup, Session::not_implemented),
    Command::new("TURN", ANY, Waits::Always, Session::not_implemented),
    Command::new("ETRN", ANY, Waits::Always, Session::not_implemented),
    Command::new("AUTH", ANY, Waits::Always, Session::auth),
    Command::new("STARTTLS", ANY, Waits::Always, Session::starttls),
    Command::new("XCLIENT", ANY, Waits::Always, Session::xclient),
];

/// A browser or a proxy that was tricked into connecting to port 25 begins with one of these.
const HTTP_METHODS: &[&str] = &[
    "GET", "POST", "CONNECT", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE",
];

static RESET_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok");
static NOOP_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok");
static BYE: Reply<'static> = Reply::fixed(221, EnhancedCode(2, 0, 0), "Bye");
static HELP: Reply<'static> = Reply::fixed(214, EnhancedCode(2, 0, 0), "See RFC 5321");
static NOT_VERIFIED: Reply<'static> = Reply::fixed(
    252,
    EnhancedCode(2, 0, 0),
    "Not verified; send a message and see",
);
static UNKNOWN: Reply<'static> = Reply::fixed(500, EnhancedCode(5, 5, 1), "Command unknown");
static NOT_IMPLEMENTED: Reply<'static> =
    Reply::fixed(502, EnhancedCode(5, 5, 1), "Command not implemented");
static NOT_PRINTABLE: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 5, 4),
    "Argument is not printable ASCII",
);
static NO_ARGUMENT: Reply<'static> = Reply::fixed(501, EnhancedCode(5, 5, 4), "Argument missing");
pub(super) static ARGUMENT: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 5, 4), "Command takes no argument");
static CLIENT_NAME: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 5, 4),
    "A host name or an address literal expected",
);
static SIZE: Reply<'static> = Reply::fixed(
    552,
    EnhancedCode(5, 3, 4),
    "Message is bigger than this server takes",
);
static RECIPIENTS: Reply<'static> = Reply::fixed(452, EnhancedCode(4, 5, 3), "Too many recipients");
static NO_RECIPIENTS: Reply<'static> =
    Reply::fixed(554, EnhancedCode(5, 5, 1), "No valid recipients");

const fn out_of_sequence(text: &'static str) -> Reply<'static> {
    Reply::fixed(503, EnhancedCode(5, 5, 1), text)
}
static NO_SERVICE: Reply<'static> = out_of_sequence("No service here");
static HELLO_FIRST: Reply<'static> = out_of_sequence("EHLO or HELO first");
static TRANSACTION_OPEN: Reply<'static> = out_of_sequence("A transaction is open already");
static CHUNKS_OPEN: Reply<'static> = out_of_sequence("BDAT was begun and goes on with BDAT");
static MAIL_REFUSED: Reply<'static> = out_of_sequence("MAIL was refused");
static MAIL_FIRST: Reply<'static> = out_of_sequence("MAIL first");

impl Session {
    /// Handles one line, without CRLF.
    pub(super) fn command<'a>(
        &mut self,
        settings: &Settings,
        line: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let (verb, arguments) = split_verb(line);
        let Some(command) = COMMANDS
            .iter()
            .find(|c| verb.eq_ignore_ascii_case(c.verb.as_bytes()))
        else {
            let handled = self.unknown(settings, verb, out);
            self.must_wait |= !self.extended;
            return handled;
        };
        let handled = if !command.phases.contains(&self.phase) {
            self.out_of_sequence(settings, out)
        } else if !command.any_octets && !arguments.iter().all(|b| matches!(b, b' '..=b'~')) {
            self.refuse_syntax(settings, &NOT_PRINTABLE, out)
        } else {
            (command.handler)(self, settings, arguments, out)
        };
        if !matches!(handled, Handled::NotYet(_)) {
            self.must_wait |= match command.waits {
                Waits::Always => true,
                Waits::UnlessPipelining => !self.extended,
                Waits::PerGroup => {
                    self.unwaited = self.unwaited.saturating_add(1);
                    self.unwaited >= UNWAITED_MAX
                }
            };
        }
        handled
    }

    /// Refuses the arguments of a command that is neither MAIL nor RCPT.
    fn refuse_syntax<'a>(
        &mut self,
        settings: &Settings,
        reply: &'static Reply<'static>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        self.refuse_command(settings, CommandError::Syntax, reply, out)
    }

    /// Refuses a command, as an error of the client.
    pub(super) fn refuse_command<'a>(
        &mut self,
        settings: &Settings,
        error: CommandError,
        reply: &'static Reply<'static>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        self.fail(settings, reply, out);
        Handled::Refused(Verb::Other, error, reply)
    }

    fn unknown<'a>(&mut self, settings: &Settings, verb: &[u8], out: &mut Vec<u8>) -> Handled<'a> {
        let is_http = HTTP_METHODS.iter().any(|method| verb == method.as_bytes());
        if is_http && self.phase == Phase::Greeted {
            self.abort(Abuse::Http, out);
            return Handled::Answered;
        }
        self.fail(settings, &UNKNOWN, out);
        Handled::Refused(Verb::Other, CommandError::UnknownCommand, &UNKNOWN)
    }

    /// Answers 503. If an earlier command of the group failed, that is no error of the client.
    pub(super) fn out_of_sequence<'a>(
        &mut self,
        settings: &Settings,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let reply = match self.phase {
            Phase::Refused => &NO_SERVICE,
            Phase::Greeted => &HELLO_FIRST,
            Phase::Envelope => &TRANSACTION_OPEN,
            Phase::BetweenChunks => &CHUNKS_OPEN,
            _ if self.failure.is_some() => &MAIL_REFUSED,
            _ => &MAIL_FIRST,
        };
        reply.write(out);
        if self.failure.is_none() {
            self.count_error(settings, out);
        }
        Handled::Refused(Verb::Other, CommandError::Sequence, reply)
    }

    fn ehlo<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        self.hello(true, settings, arguments, out)
    }

    fn helo<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        self.hello(false, settings, arguments, out)
    }

    fn hello<'a>(
        &mut self,
        extended: bool,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let Some(name) = str::from_utf8(arguments)
            .ok()
            .filter(|name| is_client_name(name))
        else {
            return self.refuse_syntax(settings, &CLIENT_NAME, out);
        };
        // RFC 5321, 4.1.4: EHLO and HELO reset the session as RSET does.
        if self.in_transaction() {
            self.end_transaction();
            return Handled::NotYet(Event::Reset);
        }
        self.failure = None;
        self.owed = Owed::Hello { extended };
        Handled::Event(Event::Hello { extended, name })
    }

    fn mail<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if self.transactions >= settings.transactions_max {
            self.abort(Abuse::TooManyTransactions, out);
            return Handled::Answered;
        }
        self.failure = Some(Failure::Refused);
        if let Some((error, reply)) = self.lacks(settings) {
            self.fail(settings, reply, out);
            return Handled::Refused(Verb::Mail, error, reply);
        }
        let has_auth = !settings.mechanisms.is_empty();
        match Mail::parse(arguments, self.dsn || settings.dsn, has_auth) {
            Err(reply) => {
                self.fail(settings, reply, out);
                Handled::Refused(Verb::Mail, CommandError::of_arguments(reply), reply)
            }
            Ok(mail)
                if mail
                    .size
                    .is_some_and(|size| size > settings.message_size_max) =>
            {
                SIZE.write(out);
                // It is no error, but has a bound all the same (RFC 9422, 5 counts MAIL commands).
                self.transactions = self.transactions.saturating_add(1);
                Handled::Refused(Verb::Mail, CommandError::MessageSize, &SIZE)
            }
            Ok(mail) => {
                self.failure = None;
                self.smtputf8 = mail.smtputf8;
                self.owed = Owed::Mail;
                Handled::Event(Event::Mail(mail))
            }
        }
    }

    fn rcpt<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        match Rcpt::parse(arguments, self.smtputf8, self.dsn || settings.dsn) {
            Err(reply) => {
                self.fail(settings, reply, out);
                Handled::Refused(Verb::Rcpt, CommandError::of_arguments(reply), reply)
            }
            Ok(_) if self.recipients >= settings.recipients_max => {
                RECIPIENTS.write(out);
                Handled::Refused(Verb::Rcpt, CommandError::Recipients, &RECIPIENTS)
            }
            Ok(rcpt) => {
                self.owed = Owed::Rcpt;
                self.recipients_owed = 1;
                Handled::Event(Event::Rcpt(rcpt))
            }
        }
    }

    /// Handles one more RCPT while earlier ones wait for their answers. Any other command, and a
    /// RCPT that the session refuses, waits until all answers are given.
    pub(super) fn next_recipient<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
    ) -> (usize, Option<Event<'a>>) {
        let mut framer = self.framer;
        let (used, frame) = framer.next(settings.command_length_max, input);
        let event = match frame {
            Frame::NeedInput if used == 0 => Event::NeedInput,
            Frame::Line(line)
                if self.recipients.saturating_add(self.recipients_owed)
                    < settings.recipients_max =>
            {
                let (verb, arguments) = split_verb(line);
                let is_rcpt = verb.eq_ignore_ascii_case(b"RCPT");
                match Rcpt::parse(arguments, self.smtputf8, self.dsn || settings.dsn) {
                    Ok(rcpt) if is_rcpt => {
                        self.recipients_owed += 1;
                        return (used, Some(Event::Rcpt(rcpt)));
                    }
                    _ => Event::AwaitingAnswer,
                }
            }
            _ => Event::AwaitingAnswer,
        };
        (0, Some(event))
    }

    fn data_command<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if !arguments.is_empty() {
            self.refuse_syntax(settings, &ARGUMENT, out)
        } else if self.recipients == 0 {
            NO_RECIPIENTS.write(out);
            Handled::Refused(Verb::Content, CommandError::NoRecipients, &NO_RECIPIENTS)
        } else {
            self.decoder = Decoder::new(Framing::Dots);
            self.owed = Owed::Data;
            Handled::Event(Event::Message)
        }
    }

    /// RFC 3030. If the chunk is refused, its length stays in `chunk_left`, and it is discarded.
    fn bdat<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let Some((size, last)) = parse_chunk(arguments) else {
            self.abort(Abuse::ChunkSize, out);
            return Handled::Answered;
        };
        self.chunk_left = size;
        self.chunk_last = last;
        let mut handled = Handled::Answered;
        match (self.phase, self.failure) {
            (Phase::BetweenChunks, _) => self.phase = Phase::WithinChunk,
            (Phase::Envelope, _) if self.extended && self.recipients > 0 => {
                self.decoder = Decoder::new(Framing::Chunks);
                self.owed = Owed::FirstChunk;
                return Handled::Event(Event::Message);
            }
            (Phase::Envelope, _) if self.extended => {
                NO_RECIPIENTS.write(out);
                handled =
                    Handled::Refused(Verb::Content, CommandError::NoRecipients, &NO_RECIPIENTS);
            }
            (_, Some(Failure::Fault(fault))) => fault.reply().write(out),
            _ => handled = self.out_of_sequence(settings, out),
        }
        if last {
            self.failure = None;
        }
        handled
    }

    fn rset<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if !arguments.is_empty() {
            return self.refuse_syntax(settings, &ARGUMENT, out);
        }
        RESET_OK.write(out);
        self.failure = None;
        if self.in_transaction() {
            self.end_transaction();
            return Handled::Event(Event::Reset);
        }
        Handled::Answered
    }

    fn quit<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if !arguments.is_empty() {
            return self.refuse_syntax(settings, &ARGUMENT, out);
        }
        BYE.write(out);
        self.phase = Phase::Ending(None);
        Handled::Answered
    }

    fn noop<'a>(&mut self, _: &Settings, _: &'a [u8], out: &mut Vec<u8>) -> Handled<'a> {
        NOOP_OK.write(out);
        Handled::Answered
    }

    fn vrfy<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if arguments.is_empty() {
            return self.refuse_syntax(settings, &NO_ARGUMENT, out);
        }
        NOT_VERIFIED.write(out);
        Handled::Answered
    }

    fn help<'a>(&mut self, _: &Settings, _: &'a [u8], out: &mut Vec<u8>) -> Handled<'a> {
        HELP.write(out);
        Handled::Answered
    }

    pub(super) fn not_implemented<'a>(
        &mut self,
        settings: &Settings,
        _: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        self.fail(settings, &NOT_IMPLEMENTED, out);
        Handled::Refused(Verb::Other, CommandError::NotImplemented, &NOT_IMPLEMENTED)
    }
}

/// The verb, and the arguments without the spaces around them.
fn split_verb(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|&b| b == b' ').unwrap_or(line.len());
    let (verb, arguments) = line.split_at(end);
    let begin = arguments
        .iter()
        .position(|&b| b != b' ')
        .unwrap_or(arguments.len());
    let end = arguments
        .iter()
        .rposition(|&b| b != b' ')
        .map_or(begin, |last| last + 1);
    (verb, &arguments[begin..end])
}

/// `size [LAST]`.
fn parse_chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let arguments = str::from_utf8(arguments).ok()?;
    let (size, last) = match arguments.split_once(' ') {
        Some((size, word)) if word.trim_start().eq_ignore_ascii_case("LAST") => (size, true),
        Some(_) => return None,
        None => (arguments, false),
    };
    let digits = size.bytes().all(|b| b.is_ascii_digit());
    if digits {
        Some((size.parse().ok()?, last))
    } else {
        None
    }
}
