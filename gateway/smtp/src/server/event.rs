//! The events of a session, for its caller.

use std::fmt;

use crate::data::Fault;
use crate::envelope::{Mail, Rcpt};
use crate::reply::{EnhancedCode, Reply};
use crate::sasl::{Encoded, Mechanism};
use crate::xclient::Xclient;

/// One step of a [`Session`](super::Session).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Octets of the input that are consumed. The caller must not pass them again.
    pub consumed: usize,
    /// The event that ended the step.
    pub event: Event<'a>,
}

/// What happened, for the caller to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// All complete input is consumed. The caller passes the rest again, with more. It is always
    /// shorter than [`line_length_max`](super::Session::line_length_max).
    NeedInput,
    /// The session consumes nothing before the caller answers.
    AwaitingAnswer,
    /// EHLO (`extended`) or HELO. An answer is owed.
    Hello {
        /// EHLO rather than HELO.
        extended: bool,
        /// The name that the client claims: well-formed, but not verified.
        name: &'a str,
    },
    /// MAIL. An answer is owed.
    Mail(Mail<'a>),
    /// RCPT. An answer is owed. More RCPTs may come before it; answers are given in the same order.
    Rcpt(Rcpt<'a>),
    /// DATA, or the first BDAT of a message. An answer is owed.
    ///
    /// After a positive answer the content follows. Any other ends the transaction, and the session
    /// discards the chunk of BDAT.
    Message,
    /// Content: decoded, with CRLF line ends and no other CR or LF.
    Body(&'a [u8]),
    /// The message is refused. The session discards the rest of it and then answers by itself.
    MessageFault(Fault),
    /// The message is complete. An answer is owed. Every answer ends the transaction.
    MessageEnd {
        /// Octets of content.
        size: u64,
    },
    /// RSET, or EHLO or HELO in a transaction: the transaction is over. No answer is owed.
    Reset,
    /// STARTTLS (RFC 3207). An answer is owed. After a positive one [`Event::Handshake`] follows.
    ///
    /// A transaction is over before this event, with a [`Event::Reset`] of its own.
    StartTls,
    /// The reply to STARTTLS is sent: what comes next belongs to TLS. No octet is consumed, and no
    /// other event comes, before the caller calls [`secured`](super::Session::secured).
    Handshake,
    /// AUTH (RFC 4954). An answer is owed: [`challenge`](super::Session::challenge), or one that
    /// ends the exchange. A refusal by the session itself that ends the exchange has
    /// [`Verb::Auth`].
    Auth {
        /// One of those in the settings.
        mechanism: Mechanism,
        /// The initial response. None is something else than an empty one, which is written `=`.
        initial: Option<Encoded<'a>>,
    },
    /// The response to a challenge. An answer is owed, as to [`Event::Auth`].
    AuthResponse(Encoded<'a>),
    /// XCLIENT. An answer is owed: the greeting to the client that it names. After a positive one
    /// the session is as new; after a refusal that client may only QUIT.
    Xclient(Xclient<'a>),
    /// The session has refused a command by itself, and the reply is written. No answer is owed.
    Refused {
        /// Which command it was.
        verb: Verb,
        /// What is wrong with it.
        error: CommandError,
        /// The reply that the client gets.
        reply: &'static Reply<'static>,
    },
    /// The 221, or a 421 from the caller, is written. The caller closes when it is sent.
    Quit,
    /// The session ends because of what the client did. The reply, if any, is written. The caller
    /// closes when it is sent.
    Abort(Abuse),
}

/// What a refused command would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Begun a transaction.
    Mail,
    /// Added a recipient to the transaction.
    Rcpt,
    /// Begun the content of the transaction: DATA, or the first BDAT.
    Content,
    /// Begun an authentication, or gone on with one. There is none any more: the caller forgets
    /// what it knows of the exchange.
    Auth,
    /// Anything else, or any of these where it cannot come.
    Other,
}

/// What is wrong with a command that the session refuses by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandError {
    /// 501: an argument is malformed or missing.
    Syntax,
    /// 555: a parameter of MAIL or RCPT that is not offered.
    Parameter,
    /// 500: no such command.
    UnknownCommand,
    /// 500: longer than [`command_length_max`](super::Settings::command_length_max).
    CommandLength,
    /// 500: a line feed without a carriage return in the command line.
    BareLineFeed,
    /// 502: known and not offered.
    NotImplemented,
    /// 503: at a wrong time.
    Sequence,
    /// 452: [`recipients_max`](super::Settings::recipients_max) was reached.
    Recipients,
    /// 554: there is no recipient to send a message to.
    NoRecipients,
    /// 530, 538: the command needs TLS.
    TlsRequired,
    /// 530: MAIL needs an authenticated client.
    AuthRequired,
    /// 504: AUTH with a mechanism that is not offered.
    AuthMechanism,
    /// 500: longer than [`LINE_LENGTH_MAX`](crate::sasl::LINE_LENGTH_MAX), in an authentication.
    AuthLength,
    /// 501: the client has cancelled the authentication.
    AuthCancelled,
    /// 550: XCLIENT, from another peer than a trusted front.
    Xclient,
    /// 552: MAIL declares more than [`message_size_max`](super::Settings::message_size_max).
    MessageSize,
}

impl CommandError {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Syntax,
        Self::Parameter,
        Self::UnknownCommand,
        Self::CommandLength,
        Self::BareLineFeed,
        Self::NotImplemented,
        Self::Sequence,
        Self::Recipients,
        Self::NoRecipients,
        Self::TlsRequired,
        Self::AuthRequired,
        Self::AuthMechanism,
        Self::AuthLength,
        Self::AuthCancelled,
        Self::Xclient,
        Self::MessageSize,
    ];

    /// A short name that does not change, for logs and metrics. What is also a
    /// [fault](Fault::rule) of a message has the same name there.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Parameter => "parameter",
            Self::UnknownCommand => "unknown-command",
            Self::CommandLength => "command-length",
            Self::BareLineFeed => "bare-lf",
            Self::NotImplemented => "not-implemented",
            Self::Sequence => "sequence",
            Self::Recipients => "recipients",
            Self::NoRecipients => "no-recipients",
            Self::TlsRequired => "tls-required",
            Self::AuthRequired => "auth-required",
            Self::AuthMechanism => "auth-mechanism",
            Self::AuthLength => "auth-length",
            Self::AuthCancelled => "auth-cancelled",
            Self::Xclient => "xclient",
            Self::MessageSize => "message-size",
        }
    }

    /// What a reply says that refuses the arguments of a command.
    pub(super) const fn of_arguments(reply: &Reply<'_>) -> Self {
        match reply.code {
            555 => Self::Parameter,
            _ => Self::Syntax,
        }
    }
}

/// Which limit a refusal of the caller counts toward. A refusal of the session itself is an error
/// of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// None: the reason is in this server or in a next hop.
    None,
    /// The errors of the client ([`errors_max`](super::Settings::errors_max)).
    Client,
    /// The recipients that do not exist
    /// ([`recipients_unknown_max`](super::Settings::recipients_unknown_max)).
    UnknownRecipient,
}

/// Why this server ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abuse {
    /// Input came before the client could have read the greeting.
    EarlyTalker,
    /// Input came before the client could have read a reply that it had to wait for.
    PipeliningViolation,
    /// `errors_max` was reached.
    TooManyErrors,
    /// More than `recipients_unknown_max` recipients did not exist.
    TooManyUnknownRecipients,
    /// `transactions_max` was reached.
    TooManyTransactions,
    /// A BDAT with an invalid size: the session cannot know where the next command begins.
    ChunkSize,
    /// An HTTP request.
    Http,
}

impl Abuse {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::EarlyTalker,
        Self::PipeliningViolation,
        Self::TooManyErrors,
        Self::TooManyUnknownRecipients,
        Self::TooManyTransactions,
        Self::ChunkSize,
        Self::Http,
    ];

    /// A short, stable name for logs, metrics and configuration.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::EarlyTalker => "early-talker",
            Self::PipeliningViolation => "pipelining",
            Self::TooManyErrors => "errors",
            Self::TooManyUnknownRecipients => "unknown-recipients",
            Self::TooManyTransactions => "transactions",
            Self::ChunkSize => "chunk-size",
            Self::Http => "http",
        }
    }

    /// The last reply. HTTP gets none: a script in a browser would read it, not a mail system.
    pub(super) fn reply(self) -> Option<Reply<'static>> {
        Some(match self {
            Self::EarlyTalker => {
                Reply::fixed(554, EnhancedCode(5, 5, 0), "Talked before the greeting")
            }
            Self::PipeliningViolation => Reply::fixed(
                554,
                EnhancedCode(5, 5, 0),
                "Improper pipelining: did not wait for a reply",
            ),
            Self::TooManyErrors => Reply::fixed(421, EnhancedCode(4, 7, 0), "Too many errors"),
            Self::TooManyUnknownRecipients => {
                Reply::fixed(421, EnhancedCode(4, 7, 0), "Too many unknown recipients")
            }
            Self::TooManyTransactions => Reply::fixed(
                421,
                EnhancedCode(4, 7, 0),
                "Too many transactions in one session",
            ),
            Self::ChunkSize => {
                Reply::fixed(554, EnhancedCode(5, 5, 4), "BDAT size [LAST] expected")
            }
            Self::Http => return None,
        })
    }
}

impl fmt::Display for Abuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EarlyTalker => "talked before the greeting",
            Self::PipeliningViolation => "did not wait for a reply",
            Self::TooManyErrors => "too many errors",
            Self::TooManyUnknownRecipients => "too many unknown recipients",
            Self::TooManyTransactions => "too many transactions",
            Self::ChunkSize => "unreadable chunk size",
            Self::Http => "speaks HTTP",
        })
    }
}
