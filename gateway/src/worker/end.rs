//! How a client's session ends: by which rule, with which last words, and how its connection is
//! closed. Whatever the session waits for, this is carried out to its end.

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::server::Abuse;

use super::connection::Ending;
use crate::policy::{self, Rule};

static TIMEOUT: Reply<'static> = Reply::fixed(
    421,
    EnhancedCode(4, 4, 2),
    "Timeout, closing the connection",
);

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The client has gone, or its connection is broken.
    Gone,
    /// QUIT was answered. `talks_on`: something came behind it.
    Quit { talks_on: bool },
    /// It was not let in; the refusal is written in place of the greeting.
    Refused(Rule),
    /// The SMTP engine has ended it, and has said why.
    Abuse(Abuse),
    /// It was not to have TLS, or TLS failed, for this reason.
    Tls(Rule),
    /// It took too long.
    Timeout,
    /// The gate stops.
    Stopping,
}

impl End {
    /// The rule that ended the session; `None` if the client did.
    pub(super) fn rule(&self) -> Option<Rule> {
        match self {
            Self::Gone | Self::Quit { .. } => None,
            Self::Refused(rule) | Self::Tls(rule) => Some(*rule),
            Self::Abuse(abuse) => Some((*abuse).into()),
            Self::Timeout => Some(Rule::TIMEOUT),
            Self::Stopping => Some(Rule::STOPPING),
        }
    }

    /// Our last words, where they are not said yet.
    pub(super) fn last_words(&self) -> Option<&'static Reply<'static>> {
        static STOPPING: Reply<'static> = policy::STOPPING;
        match self {
            Self::Timeout => Some(&TIMEOUT),
            Self::Stopping => Some(&STOPPING),
            Self::Gone | Self::Quit { .. } | Self::Refused(_) | Self::Abuse(_) | Self::Tls(_) => {
                None
            }
        }
    }

    pub(super) fn ending(&self) -> Ending {
        match self {
            Self::Gone | Self::Quit { talks_on: false } => Ending::Quiet,
            // A client that was told to come later has said nothing yet, and is not to hold a slot
            // for long.
            Self::Refused(_) => Ending::HangUp,
            Self::Quit { talks_on: true }
            | Self::Abuse(_)
            | Self::Tls(_)
            | Self::Timeout
            | Self::Stopping => Ending::Linger,
        }
    }
}
