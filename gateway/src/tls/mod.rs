//! TLS as a transport, over rustls' unbuffered interface: octets in, octets out, no socket and no
//! thread.
//!
//! A [`ServerTls`] holds what one listener needs, a [`ClientTls`] what one route needs; both are
//! immutable and shared. Either makes a [`Tls`] for each connection. Certificates are files that
//! [`Identity`] reads and checks; [`Certificates`] are exchanged while the worker runs.
//!
//! Rejected: rustls' buffered connection, which keeps buffers of its own (7.5 KiB for each idle
//! session, against 3.3 KiB here) and copies every octet once more; and kernel TLS, which needs a
//! module that not every kernel has.
//!
//! This is the only module that knows rustls.

mod certificates;
mod client;
mod connection;
mod fault;
mod identity;
mod load_error;
mod server;
#[cfg(test)]
pub(crate) mod test_pki;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::hash::Output;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::version::{TLS12 as TLS12_VERSION, TLS13 as TLS13_VERSION};

pub use certificates::Certificates;
pub use client::{ClientSettings, ClientTls, NextHopTls, Trust, Verification};
pub use connection::{Cipher, Peer, Step, Tls};
pub use fault::{Fault, FaultKind};
pub use identity::{Doubt, Identity, KeyFiles};
pub use load_error::LoadError;
pub use server::{ClientCertificates, ServerSettings, ServerTls, Tickets};

/// SHA-256 of a certificate in DER: how a certificate is pinned.
pub type Fingerprint = [u8; 32];

/// The least version of TLS that is spoken. Nothing below 1.2 is: RFC 8996.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
}

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13_VERSION, &TLS12_VERSION];
static TLS13: &[&SupportedProtocolVersion] = &[&TLS13_VERSION];

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => BOTH,
            Self::Tls13 => TLS13,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// The fingerprint of a certificate in DER.
fn fingerprint(certificate: &[u8]) -> Fingerprint {
    sha256(certificate)
}

/// By the hash of a cipher suite, so that no second implementation of it is linked.
fn sha256(octets: &[u8]) -> Fingerprint {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let suite = suite.expect("the suite is one of TLS 1.3 by its name");
    let output: Output = suite.common.hash_provider.hash(octets);
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(output.as_ref());
    fingerprint
}
