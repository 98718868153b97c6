//! Why a TLS connection failed, in words for the log and in kinds for the metrics.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a connection failed. It is final: nothing more is opened or sealed after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: FaultKind,
    detail: String,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// What came is no TLS record: plain SMTP, a scanner, garbage.
    NotTls,
    /// No version, cipher suite or signature that both know.
    Incompatible,
    /// The certificate of the peer is missing, expired, of an unknown authority, of another name.
    Certificate,
    /// The peer gave up, and sent an alert that says so.
    Alert,
    /// The peer broke the protocol.
    Protocol,
    /// The connection ended without close_notify, so what came may have been cut off
    /// (RFC 8446 section 6.1).
    Truncated,
    /// A record or a handshake is longer than is taken.
    TooLarge,
    /// This side failed: no random octets, no memory.
    Internal,
}

impl FaultKind {
    /// The kind as the value of a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::Certificate => "certificate",
            Self::Alert => "alert",
            Self::Protocol => "protocol",
            Self::Truncated => "truncated",
            Self::TooLarge => "too_large",
            Self::Internal => "internal",
        }
    }
}

impl Fault {
    pub(super) fn new(kind: FaultKind, detail: impl Into<String>) -> Fault {
        Fault {
            kind,
            detail: detail.into(),
        }
    }

    pub(super) fn truncated() -> Fault {
        Fault::new(
            FaultKind::Truncated,
            "the connection ended without close_notify",
        )
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        self.kind
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let kind = match &error {
            Error::InvalidMessage(InvalidMessage::MessageTooLarge)
            | Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge)
            | Error::PeerSentOversizedRecord => FaultKind::TooLarge,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => FaultKind::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => FaultKind::Incompatible,
            Error::NoCertificatesPresented | Error::InvalidCertificate(_) => FaultKind::Certificate,
            Error::AlertReceived(_) => FaultKind::Alert,
            Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::EncryptError
            | Error::General(_) => FaultKind::Internal,
            _ => FaultKind::Protocol,
        };
        Fault::new(kind, detail(&error))
    }
}

/// What failed, in words; those of rustls where they are plain enough.
fn detail(error: &Error) -> String {
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what came is not TLS".to_owned()
        }
        Error::NoCertificatesPresented => "the peer has no certificate".to_owned(),
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the certificate of the peer is expired".to_owned(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate of the peer is of an authority that is not trusted".to_owned()
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "the peer does not trust the authority of the certificate (alert unknown_ca)".to_owned()
        }
        Error::AlertReceived(alert) => match alert.as_str() {
            Some(name) => format!("the peer gave up (alert {name})"),
            None => format!("the peer gave up (alert {})", u8::from(*alert)),
        },
        other => other.to_string(),
    }
}
