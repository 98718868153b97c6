//! The certificates that clients are shown: chosen by the name that the client asks for, and
//! exchanged by a reload while sessions go on.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::identity::Identity;

/// The certificates in force. Shared by all listeners; a handshake takes what is in force when its
/// ClientHello comes.
#[derive(Debug)]
pub struct Certificates {
    chosen: ArcSwap<ByName>,
}

/// Certificates in the order of the configuration, by name and by place.
#[derive(Debug)]
struct ByName {
    all: Vec<Arc<CertifiedKey>>,
    by_name: HashMap<String, Vec<usize>>,
}

impl Certificates {
    /// The first identity is shown to clients that name no host, or one that no certificate is
    /// for: most mail servers do not verify it, and a handshake that fails would keep their mail.
    #[must_use]
    pub fn new(first: Identity, others: Vec<Identity>) -> Certificates {
        Certificates {
            chosen: ArcSwap::from_pointee(ByName::new(first, others)),
        }
    }

    /// Puts others in force. Sessions that are there keep what they have; the next handshake takes
    /// the new ones.
    pub fn replace(&self, first: Identity, others: Vec<Identity>) {
        self.chosen.store(Arc::new(ByName::new(first, others)));
    }
}

impl ByName {
    fn new(first: Identity, others: Vec<Identity>) -> ByName {
        let (mut all, mut by_name) = (Vec::new(), HashMap::<String, Vec<usize>>::new());
        for identity in std::iter::once(first).chain(others) {
            for name in identity.names() {
                by_name.entry(name.clone()).or_default().push(all.len());
            }
            all.push(identity.certified);
        }
        ByName { all, by_name }
    }

    /// The certificates for a name in lower case: those for the name itself, else those for
    /// `*.parent` (one label, RFC 9525 section 6.3), else the default.
    fn places(&self, name: &str) -> &[usize] {
        if let Some(places) = self.by_name.get(name) {
            return places;
        }
        let wildcard = name
            .split_once('.')
            .map(|(_, parent)| format!("*.{parent}"));
        let places = wildcard.and_then(|wildcard| self.by_name.get(&wildcard));
        places.map_or(&[0], Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.chosen.load();
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let places = name.map_or(&[0][..], |name| chosen.places(&name));
        let candidates = || places.iter().filter_map(|&place| chosen.all.get(place));
        // Two for one name: an RSA key for clients that know nothing else.
        let schemes = hello.signature_schemes();
        let usable = candidates().find(|candidate| candidate.key.choose_scheme(schemes).is_some());
        usable.or_else(|| candidates().next()).map(Arc::clone)
    }
}
