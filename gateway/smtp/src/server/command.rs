//! The commands: a table, and what each one does.

use super::line::Frame;
use super::{Abuse, CommandError, Doom, Event, Owed, Phase, Session, Settings, Verb};
use crate::data::{Decoder, Framing};
use crate::envelope::{Mail, Rcpt};
use crate::path::is_client_name;
use crate::reply::{EnhancedCode, Reply};

/// What became of a command.
pub(super) enum Taken<'a> {
    /// It is answered, or will be in its place.
    Answered,
    /// It is refused, and the reply is written.
    Refused(Verb, CommandError, &'static Reply<'static>),
    /// It is for the caller to know.
    Event(Event<'a>),
    /// Something else is for the caller to know first; the command is still to be taken.
    NotYet(Event<'a>),
}

type Handler = for<'a> fn(&mut Session, &Settings, &'a [u8], &mut Vec<u8>) -> Taken<'a>;

struct Command {
    verb: &'static str,
    /// Where it may come. In other phases it gets a 503.
    phases: &'static [Phase],
    /// When its reply has to be waited for.
    waits: Waits,
    /// Its arguments may be any octets at first, because its handler looks at each of them.
    any_octets: bool,
    handler: Handler,
}

/// When the reply to a command has to be waited for before more is sent. What is sent too early
/// ends the session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Even with PIPELINING: the reply decides how to go on, or what the next octets mean (RFC
    /// 2920, 3.1).
    Always,
    /// Unless PIPELINING was offered.
    Alone,
    /// Not at first. RFC 2920 has these at the end of a group too, but clients put them elsewhere,
    /// their replies change nothing, and what comes behind them gets its answer in order. A client
    /// that sends hundreds of them at once reads no answers.
    Rarely,
}

/// Commands that need not be waited for, in one group: the reply to the last of them is waited for.
const ASIDES_MAX: u8 = 200;

/// The phases in which there is a command line at all and the client is welcome.
const ANY: &[Phase] = &[Phase::Fresh, Phase::Ready, Phase::Envelope, Phase::Chunks];
const ANY_OR_REFUSED: &[Phase] = &[
    Phase::Refused,
    Phase::Fresh,
    Phase::Ready,
    Phase::Envelope,
    Phase::Chunks,
];

/// The frequent ones first. STARTTLS and AUTH are known, so that they are refused by name.
#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    Command { verb: "RCPT",     phases: &[Phase::Envelope], waits: Waits::Alone,  any_octets: true,  handler: Session::rcpt },
    Command { verb: "MAIL",     phases: &[Phase::Ready],    waits: Waits::Alone,  any_octets: true,  handler: Session::mail },
    Command { verb: "DATA",     phases: &[Phase::Envelope], waits: Waits::Always, any_octets: false, handler: Session::data_command },
    // BDAT looks at the phase itself: what follows it must be swallowed even when it comes at a
    // wrong time.
    Command { verb: "BDAT",     phases: ANY_OR_REFUSED,     waits: Waits::Alone,  any_octets: true,  handler: Session::bdat },
    Command { verb: "EHLO",     phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::ehlo },
    Command { verb: "HELO",     phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::helo },
    Command { verb: "QUIT",     phases: ANY_OR_REFUSED,     waits: Waits::Always, any_octets: false, handler: Session::quit },
    Command { verb: "RSET",     phases: ANY,                waits: Waits::Alone,  any_octets: false, handler: Session::rset },
    Command { verb: "NOOP",     phases: ANY,                waits: Waits::Rarely, any_octets: false, handler: Session::noop },
    Command { verb: "VRFY",     phases: ANY,                waits: Waits::Rarely, any_octets: false, handler: Session::vrfy },
    Command { verb: "HELP",     phases: ANY,                waits: Waits::Rarely, any_octets: false, handler: Session::help },
    Command { verb: "EXPN",     phases: ANY,                waits: Waits::Rarely, any_octets: false, handler: Session::not_implemented },
    Command { verb: "TURN",     phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::not_implemented },
    Command { verb: "ETRN",     phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::not_implemented },
    Command { verb: "AUTH",     phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::not_implemented },
    Command { verb: "STARTTLS", phases: ANY,                waits: Waits::Always, any_octets: false, handler: Session::not_implemented },
];

/// Browsers and proxies that were talked into connecting to port 25 begin with one of these.
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
static ARGUMENT: Reply<'static> =
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
    /// Takes one line, without CRLF.
    pub(super) fn command<'a>(
        &mut self,
        settings: &Settings,
        line: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        let (verb, arguments) = split_verb(line);
        let Some(command) = COMMANDS
            .iter()
            .find(|c| verb.eq_ignore_ascii_case(c.verb.as_bytes()))
        else {
            let taken = self.unknown(settings, verb, out);
            self.exclusive |= !self.extended;
            return taken;
        };
        let taken = if !command.phases.contains(&self.phase) {
            self.out_of_sequence(settings, out)
        } else if !command.any_octets && !arguments.iter().all(|b| matches!(b, b' '..=b'~')) {
            self.refuse_syntax(settings, &NOT_PRINTABLE, out)
        } else {
            (command.handler)(self, settings, arguments, out)
        };
        if !matches!(taken, Taken::NotYet(_)) {
            self.exclusive |= match command.waits {
                Waits::Always => true,
                Waits::Alone => !self.extended,
                Waits::Rarely => {
                    self.asides = self.asides.saturating_add(1);
                    self.asides >= ASIDES_MAX
                }
            };
        }
        taken
    }

    /// Refuses the arguments of a command that is neither MAIL nor RCPT.
    fn refuse_syntax<'a>(
        &mut self,
        settings: &Settings,
        reply: &'static Reply<'static>,
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        self.fail(settings, reply, out);
        Taken::Refused(Verb::Other, CommandError::Syntax, reply)
    }

    fn unknown<'a>(&mut self, settings: &Settings, verb: &[u8], out: &mut Vec<u8>) -> Taken<'a> {
        let is_http = HTTP_METHODS.iter().any(|method| verb == method.as_bytes());
        if is_http && self.phase == Phase::Fresh {
            self.abort(Abuse::Http, out);
            return Taken::Answered;
        }
        self.fail(settings, &UNKNOWN, out);
        Taken::Refused(Verb::Other, CommandError::UnknownCommand, &UNKNOWN)
    }

    /// What a pipelining client could not know yet is not held against it.
    fn out_of_sequence<'a>(&mut self, settings: &Settings, out: &mut Vec<u8>) -> Taken<'a> {
        let reply = match self.phase {
            Phase::Refused => &NO_SERVICE,
            Phase::Fresh => &HELLO_FIRST,
            Phase::Envelope => &TRANSACTION_OPEN,
            Phase::Chunks => &CHUNKS_OPEN,
            _ if self.doom.is_some() => &MAIL_REFUSED,
            _ => &MAIL_FIRST,
        };
        reply.write(out);
        if self.doom.is_none() {
            self.count_error(settings, out);
        }
        Taken::Refused(Verb::Other, CommandError::Sequence, reply)
    }

    fn ehlo<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        self.hello(true, settings, arguments, out)
    }

    fn helo<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        self.hello(false, settings, arguments, out)
    }

    fn hello<'a>(
        &mut self,
        extended: bool,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        let Some(name) = str::from_utf8(arguments)
            .ok()
            .filter(|name| is_client_name(name))
        else {
            return self.refuse_syntax(settings, &CLIENT_NAME, out);
        };
        // RFC 5321, 4.1.4: it resets as RSET does.
        if self.in_transaction() {
            self.end_transaction();
            return Taken::NotYet(Event::Reset);
        }
        self.doom = None;
        self.owed = Owed::Hello { extended };
        Taken::Event(Event::Hello { extended, name })
    }

    fn mail<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        if self.transactions >= settings.transactions_max {
            self.abort(Abuse::TooManyTransactions, out);
            return Taken::Answered;
        }
        self.doom = Some(Doom::Refused);
        match Mail::parse(arguments, self.dsn || settings.dsn) {
            Err(reply) => {
                self.fail(settings, reply, out);
                Taken::Refused(Verb::Mail, CommandError::of_arguments(reply), reply)
            }
            Ok(mail)
                if mail
                    .size
                    .is_some_and(|size| size > settings.message_size_max) =>
            {
                SIZE.write(out);
                // It is no error, but has a bound all the same (RFC 9422, 5 counts MAIL commands).
                self.transactions = self.transactions.saturating_add(1);
                Taken::Refused(Verb::Mail, CommandError::MessageSize, &SIZE)
            }
            Ok(mail) => {
                self.doom = None;
                self.smtputf8 = mail.smtputf8;
                self.owed = Owed::Mail;
                Taken::Event(Event::Mail(mail))
            }
        }
    }

    fn rcpt<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        match Rcpt::parse(arguments, self.smtputf8, self.dsn || settings.dsn) {
            Err(reply) => {
                self.fail(settings, reply, out);
                Taken::Refused(Verb::Rcpt, CommandError::of_arguments(reply), reply)
            }
            Ok(_) if self.recipients >= settings.recipients_max => {
                RECIPIENTS.write(out);
                Taken::Refused(Verb::Rcpt, CommandError::Recipients, &RECIPIENTS)
            }
            Ok(rcpt) => {
                self.owed = Owed::Rcpt;
                self.recipients_owed = 1;
                Taken::Event(Event::Rcpt(rcpt))
            }
        }
    }

    /// Takes one more RCPT while earlier ones wait for their answers, if what comes is one and
    /// nothing is wrong with it.
    pub(super) fn another_recipient<'a>(
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
    ) -> Taken<'a> {
        if !arguments.is_empty() {
            self.refuse_syntax(settings, &ARGUMENT, out)
        } else if self.recipients == 0 {
            NO_RECIPIENTS.write(out);
            Taken::Refused(Verb::Content, CommandError::NoRecipients, &NO_RECIPIENTS)
        } else {
            self.decoder = Decoder::new(Framing::Dots);
            self.owed = Owed::Data;
            Taken::Event(Event::Message)
        }
    }

    /// RFC 3030. The octets of a chunk that is refused are left in `chunk_left`, and swallowed.
    fn bdat<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        let Some((size, last)) = parse_chunk(arguments) else {
            self.abort(Abuse::ChunkSize, out);
            return Taken::Answered;
        };
        self.chunk_left = size;
        self.chunk_last = last;
        let mut taken = Taken::Answered;
        match (self.phase, self.doom) {
            (Phase::Chunks, _) => self.phase = Phase::Chunk,
            (Phase::Envelope, _) if self.extended && self.recipients > 0 => {
                self.decoder = Decoder::new(Framing::Chunks);
                self.owed = Owed::FirstChunk;
                return Taken::Event(Event::Message);
            }
            (Phase::Envelope, _) if self.extended => {
                NO_RECIPIENTS.write(out);
                taken = Taken::Refused(Verb::Content, CommandError::NoRecipients, &NO_RECIPIENTS);
            }
            (_, Some(Doom::Fault(fault))) => fault.reply().write(out),
            _ => taken = self.out_of_sequence(settings, out),
        }
        if last {
            self.doom = None;
        }
        taken
    }

    fn rset<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        if !arguments.is_empty() {
            return self.refuse_syntax(settings, &ARGUMENT, out);
        }
        RESET_OK.write(out);
        self.doom = None;
        if self.in_transaction() {
            self.end_transaction();
            return Taken::Event(Event::Reset);
        }
        Taken::Answered
    }

    fn quit<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        if !arguments.is_empty() {
            return self.refuse_syntax(settings, &ARGUMENT, out);
        }
        BYE.write(out);
        self.phase = Phase::Ending(None);
        Taken::Answered
    }

    fn noop<'a>(&mut self, _: &Settings, _: &'a [u8], out: &mut Vec<u8>) -> Taken<'a> {
        NOOP_OK.write(out);
        Taken::Answered
    }

    fn vrfy<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        if arguments.is_empty() {
            return self.refuse_syntax(settings, &NO_ARGUMENT, out);
        }
        NOT_VERIFIED.write(out);
        Taken::Answered
    }

    fn help<'a>(&mut self, _: &Settings, _: &'a [u8], out: &mut Vec<u8>) -> Taken<'a> {
        HELP.write(out);
        Taken::Answered
    }

    fn not_implemented<'a>(
        &mut self,
        settings: &Settings,
        _: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Taken<'a> {
        self.fail(settings, &NOT_IMPLEMENTED, out);
        Taken::Refused(Verb::Other, CommandError::NotImplemented, &NOT_IMPLEMENTED)
    }
}

/// The verb, and what follows it without the spaces around it.
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
