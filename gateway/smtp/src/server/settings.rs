//! What the sessions of a listener are held to, and what they are offered.

use crate::data::Bounds;
use crate::reply::push_decimal;

/// RFC 9422, 4: a limit has at most six digits. Clients that count no further lose nothing.
const LIMIT_MAX: u32 = 999_999;

/// RFC 5321, 4.5.3.1.6, without CRLF.
const TEXT_LINE_LENGTH_MAX: u32 = 998;

/// What all sessions of a listener have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name in the greeting and in the reply to EHLO.
    pub hostname: String,
    /// Octets of content (RFC 1870).
    pub message_size_max: u64,
    /// Accepted recipients of one transaction.
    pub recipients_max: u32,
    /// Transactions of one session.
    pub transactions_max: u32,
    /// With this many errors since the last accepted message the session is ended.
    pub errors_max: u32,
    /// Recipients that do not exist, in one session; one more ends it. RFC 5321, 4.5.3.1.8 wants
    /// 100 recipients to be possible.
    pub recipients_unknown_max: u32,
    /// Octets of a command line with CRLF. RFC 5321 asks for 512, and the extensions for more (a
    /// RCPT with ORCPT: 1012).
    pub command_length_max: usize,
    /// What becomes of lines of more than 998 octets in a message.
    pub long_lines: LongLines,
    /// DSN is offered (RFC 3461): what its parameters ask for is passed on, or done.
    pub dsn: bool,
}

impl Settings {
    /// Settings that suit a server on the open network.
    #[must_use]
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            message_size_max: 50_000_000,
            recipients_max: 1000,
            transactions_max: 1000,
            errors_max: 20,
            recipients_unknown_max: 100,
            command_length_max: 2048,
            long_lines: LongLines::Pass,
            dsn: true,
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let line_length_max = match self.long_lines {
            LongLines::Pass => u32::MAX,
            LongLines::Refuse => TEXT_LINE_LENGTH_MAX,
        };
        Bounds {
            size_max: self.message_size_max,
            line_length_max,
        }
    }
}

/// What becomes of a message with a line of more than 998 octets. Lines are never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongLines {
    /// It is passed on as it is.
    Pass,
    /// It is refused.
    Refuse,
}

/// The reply to EHLO or HELO (RFC 5321, 4.1.1.1), with all that is offered.
pub(super) fn write_hello(extended: bool, settings: &Settings, out: &mut Vec<u8>) {
    let hostname = settings.hostname.as_bytes();
    if !extended {
        out.extend_from_slice(b"250 ");
        out.extend_from_slice(hostname);
        out.extend_from_slice(b"\r\n");
        return;
    }
    out.extend_from_slice(b"250-");
    out.extend_from_slice(hostname);
    out.extend_from_slice(b"\r\n250-PIPELINING\r\n250-SIZE ");
    push_decimal(out, settings.message_size_max, 1);
    out.extend_from_slice(b"\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n");
    if settings.dsn {
        out.extend_from_slice(b"250-DSN\r\n");
    }
    out.extend_from_slice(b"250-ENHANCEDSTATUSCODES\r\n250-LIMITS RCPTMAX=");
    push_decimal(out, settings.recipients_max.min(LIMIT_MAX).into(), 1);
    out.extend_from_slice(b" MAILMAX=");
    push_decimal(out, settings.transactions_max.min(LIMIT_MAX).into(), 1);
    out.extend_from_slice(b"\r\n250 HELP\r\n");
}
