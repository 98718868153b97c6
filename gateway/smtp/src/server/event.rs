//! The events of a session, for its caller.

use std::fmt;

use crate::data::Fault;
use crate::envelope::{Mail, Rcpt};
use crate::reply::{EnhancedCode, Reply};

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
    /// shorter than `command_length_max`.
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
    /// The 221, or a 421 from the caller, is written. The caller closes when it is sent.
    Quit,
    /// The session ends because of what the client did. The reply, if any, is written. The caller
    /// closes when it is sent.
    Abort(Abuse),
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
