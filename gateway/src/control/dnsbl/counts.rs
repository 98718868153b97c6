//! What is counted of DNS lists and reported about them: answers by zone and by what they meant,
//! what was not asked, which zones are in use, and which name servers answer for them.
//!
//! Answers from the cache are counted apart: by zone stands what a zone really said, so that one
//! that has fallen silent shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::test_entries::{Family, Trust};
use crate::policy::dnsbl::Meaning;

/// The counters.
#[derive(Debug, Default)]
pub(in crate::control) struct Counts {
    zones: Mutex<BTreeMap<Arc<str>, Known>>,
    cache_hits: AtomicU64,
    outstanding: AtomicU64,
    unasked: AtomicU64,
}

/// What is known of a zone.
#[derive(Clone, Debug, Default)]
struct Known {
    answers: Answers,
    ipv4: Trust,
    ipv6: Trust,
    test_entry: Option<bool>,
    servers: BTreeMap<SocketAddr, Answering>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    listed: u64,
    not_listed: u64,
    silent: u64,
    ignored: u64,
}

/// How a name server does for a zone.
#[derive(Clone, Copy, Debug, Default)]
struct Answering {
    answers: bool,
    failures: u64,
}

/// DNS lists, as they are reported.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::control) struct Dnsbl {
    pub(in crate::control) zones: Vec<Zone>,
    pub(in crate::control) cache_hits: u64,
    /// Sources that are being asked about.
    pub(in crate::control) outstanding: u64,
    /// Questions that were one too many, and count as silence.
    pub(in crate::control) unasked: u64,
}

/// What a zone has answered.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::control) struct Zone {
    pub(in crate::control) zone: String,
    pub(in crate::control) listed: u64,
    pub(in crate::control) not_listed: u64,
    pub(in crate::control) silent: u64,
    /// Answers that never count: an error of the list's operator, or an address that no list
    /// gives.
    pub(in crate::control) ignored: u64,
    /// Whether what it says about IPv4 addresses counts.
    pub(in crate::control) ipv4: Trust,
    /// The same for IPv6 addresses.
    pub(in crate::control) ipv6: Trust,
    /// Whether it lists 127.0.0.2, as RFC 5782 wants it. `None`: it has not said.
    pub(in crate::control) lists_test_entry: Option<bool>,
    pub(in crate::control) servers: Vec<Server>,
}

/// A name server that was asked about a zone.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(in crate::control) struct Server {
    pub(in crate::control) server: SocketAddr,
    /// Whether it has answered last.
    pub(in crate::control) answers: bool,
    pub(in crate::control) failures: u64,
}

impl Counts {
    pub(super) fn answered(&self, zone: &Arc<str>, meaning: Meaning) {
        self.change(zone, |known| {
            let answers = &mut known.answers;
            *match meaning {
                Meaning::Listed => &mut answers.listed,
                Meaning::NotListed => &mut answers.not_listed,
                Meaning::Silent => &mut answers.silent,
                Meaning::Ignored(_) => &mut answers.ignored,
                // It is not asked.
                Meaning::SwitchedOff => return,
            } += 1;
        });
    }

    pub(super) fn trust(&self, zone: &Arc<str>, family: Family, trust: Trust) {
        self.change(zone, |known| match family {
            Family::Ipv4 => known.ipv4 = trust,
            Family::Ipv6 => known.ipv6 = trust,
        });
    }

    pub(super) fn test_entry(&self, zone: &Arc<str>, is_listed: bool) {
        self.change(zone, |known| known.test_entry = Some(is_listed));
    }

    pub(super) fn server_answered(&self, zone: &Arc<str>, server: SocketAddr) {
        self.change(zone, |known| {
            known.servers.entry(server).or_default().answers = true;
        });
    }

    pub(super) fn server_failed(&self, zone: &Arc<str>, server: SocketAddr) {
        self.change(zone, |known| {
            let answering = known.servers.entry(server).or_default();
            answering.answers = false;
            answering.failures += 1;
        });
    }

    /// Other name servers are asked from now on.
    pub(super) fn forget_servers(&self) {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        zones.values_mut().for_each(|known| known.servers.clear());
    }

    /// Nothing but these zones is asked from now on.
    pub(super) fn keep_zones(&self, is_kept: impl Fn(&str) -> bool) {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        zones.retain(|zone, _| is_kept(zone));
    }

    fn change(&self, zone: &Arc<str>, change: impl FnOnce(&mut Known)) {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        change(zones.entry(Arc::clone(zone)).or_default());
    }

    pub(super) fn hit(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unasked(&self) {
        self.unasked.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn outstanding(&self, sources: usize) {
        self.outstanding.store(sources as u64, Ordering::Relaxed);
    }

    /// What was counted so far; `unasked` were one too many before they came here.
    pub(in crate::control) fn snapshot(&self, unasked: u64) -> Dnsbl {
        let zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        Dnsbl {
            zones: zones
                .iter()
                .map(|(zone, known)| Zone {
                    zone: zone.to_string(),
                    listed: known.answers.listed,
                    not_listed: known.answers.not_listed,
                    silent: known.answers.silent,
                    ignored: known.answers.ignored,
                    ipv4: known.ipv4,
                    ipv6: known.ipv6,
                    lists_test_entry: known.test_entry,
                    servers: known.servers.iter().map(server).collect(),
                })
                .collect(),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            outstanding: self.outstanding.load(Ordering::Relaxed),
            unasked: unasked + self.unasked.load(Ordering::Relaxed),
        }
    }
}

fn server((server, known): (&SocketAddr, &Answering)) -> Server {
    Server {
        server: *server,
        answers: known.answers,
        failures: known.failures,
    }
}
