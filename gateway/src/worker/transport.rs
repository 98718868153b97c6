//! What lies between the octets of the driver and those of a session, in both directions.
//!
//! A session reads and writes plain SMTP, whatever its connection does to it. TLS is a second case
//! here, and nothing above changes: [`Transport::open`] then gives what was deciphered, and
//! [`Transport::seal`] what is to go out, handshake included.

use std::borrow::Cow;

/// How the octets of a connection are carried.
#[derive(Debug, Default)]
pub(super) enum Transport {
    /// As they are.
    #[default]
    Plain,
}

impl Transport {
    /// What the session reads of octets that came from the driver.
    pub(super) fn open<'a>(&mut self, received: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Self::Plain => Cow::Borrowed(received),
        }
    }

    /// What the driver sends of octets that the session wrote. It may be empty for now.
    pub(super) fn seal(&mut self, written: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Plain => written,
        }
    }

    /// Whether what goes over the network can be read there.
    pub(super) fn is_encrypted(&self) -> bool {
        match self {
            Self::Plain => false,
        }
    }
}
