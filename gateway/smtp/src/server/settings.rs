//! The limits and the extensions of the sessions of a listener.

use crate::data::Bounds;
use crate::reply::push_decimal;
use crate::sasl::Mechanisms;
use crate::xclient;

/// RFC 9422, 4: a limit has at most six digits. A larger one is offered as this.
const LIMIT_MAX: u32 = 999_999;

/// RFC 5321, 4.5.3.1.6, without CRLF.
const TEXT_LINE_LENGTH_MAX: u32 = 998;

/// The settings that all sessions of a listener share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name in the greeting and in the reply to EHLO.
    pub hostname: String,
    /// The maximum content of a message, in octets (RFC 1870).
    pub message_size_max: u64,
    /// Accepted recipients in one transaction.
    pub recipients_max: u32,
    /// Transactions in one session.
    pub transactions_max: u32,
    /// This many errors since the last accepted message end the session.
    pub errors_max: u32,
    /// Recipients that do not exist, in one session; one more ends it. RFC 5321, 4.5.3.1.8 requires
    /// that 100 recipients are possible.
    pub recipients_unknown_max: u32,
    /// Octets of a command line, CRLF included. RFC 5321 requires 512, the extensions more (a RCPT
    /// with ORCPT: 1012).
    pub command_length_max: usize,
    /// What to do with a message that has a line of more than 998 octets.
    pub long_lines: LongLines,
    /// DSN is offered (RFC 3461): its parameters are accepted and passed on.
    pub dsn: bool,
    /// STARTTLS is offered to sessions without TLS (RFC 3207).
    pub starttls: bool,
    /// The mechanisms of AUTH (RFC 4954). It is offered if there are any.
    pub mechanisms: Mechanisms,
    /// AUTH is offered even without TLS.
    pub auth_without_tls: bool,
    /// MAIL is refused before the client is authenticated.
    pub auth_required: bool,
    /// XCLIENT is offered: the peer is a trusted front.
    pub xclient: bool,
}

impl Settings {
    /// Defaults for a server on the Internet.
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
            starttls: false,
            mechanisms: Mechanisms::default(),
            auth_without_tls: false,
            auth_required: false,
            xclient: false,
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

/// What to do with a message that has a line of more than 998 octets. Lines are never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongLines {
    /// It is passed on as it is.
    Pass,
    /// It is refused.
    Refuse,
}

/// What the reply to EHLO offers depending on the state of the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) starttls: bool,
    pub(super) auth: bool,
}

/// Writes the positive reply to EHLO (RFC 5321, 4.1.1.1), with the extensions offered, or the one
/// to HELO (`offer` is none).
pub(super) fn write_hello(offer: Option<Offer>, settings: &Settings, out: &mut Vec<u8>) {
    let hostname = settings.hostname.as_bytes();
    let Some(Offer { starttls, auth }) = offer else {
        out.extend_from_slice(b"250 ");
        out.extend_from_slice(hostname);
        out.extend_from_slice(b"\r\n");
        return;
    };
    out.extend_from_slice(b"250-");
    out.extend_from_slice(hostname);
    out.extend_from_slice(b"\r\n250-PIPELINING\r\n250-SIZE ");
    push_decimal(out, settings.message_size_max, 1);
    out.extend_from_slice(b"\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n");
    if settings.dsn {
        out.extend_from_slice(b"250-DSN\r\n");
    }
    if starttls {
        out.extend_from_slice(b"250-STARTTLS\r\n");
    }
    if auth {
        out.extend_from_slice(b"250-AUTH");
        for mechanism in settings.mechanisms.iter() {
            out.push(b' ');
            out.extend_from_slice(mechanism.name().as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    if settings.xclient {
        out.extend_from_slice(b"250-");
        out.extend_from_slice(xclient::OFFER.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"250-ENHANCEDSTATUSCODES\r\n250-LIMITS RCPTMAX=");
    push_decimal(out, settings.recipients_max.min(LIMIT_MAX).into(), 1);
    out.extend_from_slice(b" MAILMAX=");
    push_decimal(out, settings.transactions_max.min(LIMIT_MAX).into(), 1);
    out.extend_from_slice(b"\r\n250 HELP\r\n");
}

/// Writes the usual greeting.
pub(super) fn write_greeting(settings: &Settings, out: &mut Vec<u8>) {
    out.extend_from_slice(b"220 ");
    out.extend_from_slice(settings.hostname.as_bytes());
    out.extend_from_slice(b" ESMTP Portcullis\r\n");
}
