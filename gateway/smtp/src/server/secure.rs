//! STARTTLS (RFC 3207), AUTH (RFC 4954) and XCLIENT: the commands after which a client is another.
//!
//! Neither the handshake nor the check of a password happens here: the session hands them to its
//! caller and waits. Input that comes before the reply to one of these ends the session as it does
//! for every command that has to be waited for. So of what was written in the clear behind STARTTLS
//! nothing is left to be read as part of the session under TLS.

use super::command::Handled;
use super::line::Frame;
use super::settings::Offer;
use super::{CommandError, Event, Owed, Phase, Session, Settings, Verb};
use crate::reply::{EnhancedCode, Reply};
use crate::sasl::{self, Encoded, Mechanism};
use crate::xclient::Xclient;

pub(super) static READY_FOR_TLS: Reply<'static> =
    Reply::fixed(220, EnhancedCode(2, 0, 0), "Ready to start TLS");
pub(super) static AUTHENTICATED: Reply<'static> =
    Reply::fixed(235, EnhancedCode(2, 7, 0), "Authentication successful");

/// For a refused [`Event::StartTls`]: this server cannot do a handshake now (RFC 3207, 4).
pub static TLS_UNAVAILABLE: Reply<'static> = Reply::fixed(
    454,
    EnhancedCode(4, 7, 0),
    "TLS is not available at the moment",
);
/// For a refused [`Event::Auth`]: the credentials are wrong (RFC 4954, 6).
pub static AUTH_FAILED: Reply<'static> = Reply::fixed(
    535,
    EnhancedCode(5, 7, 8),
    "Authentication credentials invalid",
);
/// For a refused [`Event::Auth`]: they cannot be checked now (RFC 4954, 6).
pub static AUTH_UNAVAILABLE: Reply<'static> = Reply::fixed(
    454,
    EnhancedCode(4, 7, 0),
    "Temporary authentication failure",
);
/// For a refused [`Event::Auth`]: this user may not use this mechanism (RFC 4954, 6).
pub static AUTH_TOO_WEAK: Reply<'static> = Reply::fixed(
    534,
    EnhancedCode(5, 7, 9),
    "Authentication mechanism is too weak",
);

static TLS_ACTIVE: Reply<'static> =
    Reply::fixed(503, EnhancedCode(5, 5, 1), "TLS is active already");
static TLS_FIRST: Reply<'static> = Reply::fixed(
    530,
    EnhancedCode(5, 7, 0),
    "Must issue a STARTTLS command first",
);
static AUTH_FIRST: Reply<'static> =
    Reply::fixed(530, EnhancedCode(5, 7, 0), "Authentication required");
static AUTH_NEEDS_TLS: Reply<'static> = Reply::fixed(
    538,
    EnhancedCode(5, 7, 11),
    "Encryption required for requested authentication mechanism",
);
static AUTH_TWICE: Reply<'static> =
    Reply::fixed(503, EnhancedCode(5, 5, 1), "Already authenticated");
static AUTH_ARGUMENTS: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 5, 4),
    "AUTH mechanism [initial-response] expected",
);
static AUTH_MECHANISM: Reply<'static> = Reply::fixed(
    504,
    EnhancedCode(5, 5, 4),
    "Authentication mechanism not offered",
);
static NOT_BASE64: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 5, 2), "Cannot decode BASE64");
static CANCELLED: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 7, 0), "Authentication cancelled");
static AUTH_LINE_TOO_LONG: Reply<'static> = Reply::fixed(
    500,
    EnhancedCode(5, 5, 6),
    "Authentication exchange line is too long",
);
static NO_FRONT: Reply<'static> =
    Reply::fixed(550, EnhancedCode(5, 7, 0), "Insufficient authorization");
static XCLIENT_ARGUMENTS: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 5, 4),
    "Bad XCLIENT attribute: NAME=value expected",
);

impl Session {
    /// The connection is under TLS now.
    ///
    /// After [`Event::Handshake`] the session is as new, but for the greeting, which is not sent
    /// again (RFC 3207, 4.2). The counts of its limits go on: a client has one session to make its
    /// errors in. Before the greeting this is implicit TLS (RFC 8314). At any other time it does
    /// nothing.
    pub fn secured(&mut self) {
        match self.phase {
            Phase::Connected => self.tls = true,
            Phase::Handshake => {
                *self = Self {
                    phase: Phase::Greeted,
                    tls: true,
                    errors: self.errors,
                    errors_at_last_message: self.errors_at_last_message,
                    recipients_unknown: self.recipients_unknown,
                    transactions: self.transactions,
                    ..Self::new()
                }
            }
            _ => {}
        }
    }

    /// The caller knows who the client is by something else than AUTH, such as a certificate. AUTH
    /// is not offered any more.
    pub fn set_authenticated(&mut self) {
        self.authenticated = true;
    }

    /// The client is not whom it has proved to be any more: its user is gone. It may authenticate
    /// anew.
    pub fn forget_authentication(&mut self) {
        self.authenticated = false;
    }

    /// The connection is under TLS.
    #[must_use]
    pub const fn is_secured(&self) -> bool {
        self.tls
    }

    /// The client has authenticated itself.
    #[must_use]
    pub const fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Octets of the next line, CRLF included. It is longer within an authentication.
    #[must_use]
    pub const fn line_length_max(&self, settings: &Settings) -> usize {
        match self.phase {
            Phase::Authenticating => sasl::LINE_LENGTH_MAX + 2,
            _ => settings.command_length_max,
        }
    }

    /// Answers [`Event::Auth`] or [`Event::AuthResponse`] with 334 and a challenge, which may be
    /// empty. The client's response is the next event.
    pub fn challenge(&mut self, challenge: &[u8], out: &mut Vec<u8>) {
        if self.owed == Owed::Auth {
            out.extend_from_slice(b"334 ");
            sasl::encode(challenge, out);
            out.extend_from_slice(b"\r\n");
            self.owed = Owed::Nothing;
            self.phase = Phase::Authenticating;
        }
    }

    /// What EHLO offers in this state.
    pub(super) const fn offer(&self, settings: &Settings) -> Offer {
        Offer {
            starttls: settings.starttls && !self.tls,
            auth: !settings.mechanisms.is_empty()
                && !self.authenticated
                && (self.tls || settings.auth_without_tls),
        }
    }

    pub(super) fn starttls<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if !settings.starttls {
            return self.not_implemented(settings, arguments, out);
        }
        if self.tls {
            return self.refuse_command(settings, CommandError::Sequence, &TLS_ACTIVE, out);
        }
        if !arguments.is_empty() {
            return self.refuse_command(
                settings,
                CommandError::Syntax,
                &super::command::ARGUMENT,
                out,
            );
        }
        if self.in_transaction() {
            self.end_transaction();
            return Handled::NotYet(Event::Reset);
        }
        self.failure = None;
        self.owed = Owed::StartTls;
        Handled::Event(Event::StartTls)
    }

    pub(super) fn auth<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if settings.mechanisms.is_empty() {
            return self.not_implemented(settings, arguments, out);
        }
        if self.phase != Phase::Ready {
            return self.out_of_sequence(settings, out);
        }
        match self.parse_auth(settings, arguments) {
            Err((error, reply)) => {
                self.fail(settings, reply, out);
                Handled::Refused(Verb::Auth, error, reply)
            }
            Ok((mechanism, initial)) => {
                self.failure = None;
                self.owed = Owed::Auth;
                Handled::Event(Event::Auth { mechanism, initial })
            }
        }
    }

    fn parse_auth<'a>(
        &self,
        settings: &Settings,
        arguments: &'a [u8],
    ) -> Result<(Mechanism, Option<Encoded<'a>>), (CommandError, &'static Reply<'static>)> {
        if self.authenticated {
            return Err((CommandError::Sequence, &AUTH_TWICE));
        }
        if !self.tls && !settings.auth_without_tls {
            return Err((CommandError::TlsRequired, &AUTH_NEEDS_TLS));
        }
        let mut words = arguments.split(|&b| b == b' ').filter(|w| !w.is_empty());
        let (Some(name), initial, None) = (words.next(), words.next(), words.next()) else {
            return Err((CommandError::Syntax, &AUTH_ARGUMENTS));
        };
        let mechanism = Mechanism::from_name(name)
            .filter(|mechanism| settings.mechanisms.contains(*mechanism))
            .ok_or((CommandError::AuthMechanism, &AUTH_MECHANISM))?;
        let initial = match initial {
            None => None,
            Some(b"=") => Some(Encoded::EMPTY),
            Some(text) => {
                let initial = Encoded::parse(text);
                Some(initial.ok_or((CommandError::Syntax, &NOT_BASE64))?)
            }
        };
        Ok((mechanism, initial))
    }

    /// XCLIENT comes before a transaction, with or without EHLO before it.
    pub(super) fn xclient<'a>(
        &mut self,
        settings: &Settings,
        arguments: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        if !settings.xclient {
            return self.refuse_command(settings, CommandError::Xclient, &NO_FRONT, out);
        }
        if self.in_transaction() {
            return self.out_of_sequence(settings, out);
        }
        let Some(xclient) = Xclient::parse(arguments) else {
            let error = CommandError::Syntax;
            return self.refuse_command(settings, error, &XCLIENT_ARGUMENTS, out);
        };
        self.failure = None;
        self.owed = Owed::Xclient;
        Handled::Event(Event::Xclient(xclient))
    }

    /// The session of another client, on the same connection. Its counts begin at zero: the errors
    /// of one client are not those of the next.
    pub(super) fn begin_again(&mut self) {
        *self = Self {
            phase: Phase::Greeted,
            tls: self.tls,
            must_wait: self.must_wait,
            early_input: self.early_input,
            ..Self::new()
        };
    }

    /// One line of an authentication that has begun.
    pub(super) fn auth_line<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        let (used, frame) = self.framer.next(self.line_length_max(settings), input);
        let (error, reply) = match frame {
            Frame::NeedInput => return (used, Some(Event::NeedInput)),
            Frame::RefusedLineEnd => return (used, None),
            Frame::Line(b"*") => (CommandError::AuthCancelled, &CANCELLED),
            Frame::Line(line) => match Encoded::parse(line) {
                Some(response) => {
                    self.must_wait = true;
                    self.phase = Phase::Ready;
                    self.owed = Owed::Auth;
                    return (used, Some(Event::AuthResponse(response)));
                }
                None => (CommandError::Syntax, &NOT_BASE64),
            },
            Frame::TooLong => (CommandError::AuthLength, &AUTH_LINE_TOO_LONG),
            Frame::BareLineFeed => (CommandError::BareLineFeed, &super::BARE_LINE_FEED),
        };
        self.must_wait = true;
        self.phase = Phase::Ready;
        self.fail(settings, reply, out);
        let verb = Verb::Auth;
        (used, Some(Event::Refused { verb, error, reply }))
    }

    /// Why this client may not send mail: TLS or its authentication is missing.
    pub(super) const fn lacks(
        &self,
        settings: &Settings,
    ) -> Option<(CommandError, &'static Reply<'static>)> {
        if !settings.auth_required || self.authenticated {
            None
        } else if settings.starttls && !self.tls && !settings.auth_without_tls {
            Some((CommandError::TlsRequired, &TLS_FIRST))
        } else {
            Some((CommandError::AuthRequired, &AUTH_FIRST))
        }
    }
}
