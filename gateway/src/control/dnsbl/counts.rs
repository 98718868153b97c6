//! What is counted of DNS lists: answers by zone and by what they meant, and what was not asked.
//!
//! Answers from the cache are counted apart: by zone stands what a zone really said, so that one that has fallen silent shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::policy::dnsbl::Meaning;

/// The counters.
#[derive(Debug, Default)]
pub(in crate::control) struct Counts {
    zones: Mutex<BTreeMap<Arc<str>, Answers>>,
    cache_hits: AtomicU64,
    outstanding: AtomicU64,
    unasked: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    listed: u64,
    not_listed: u64,
    silent: u64,
    ignored: u64,
}

/// DNS lists, as they are told about.
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
    /// Answers that never count: an error told by the list's operator, or an address that no list gives.
    pub(in crate::control) ignored: u64,
}

impl Counts {
    pub(super) fn answered(&self, zone: &Arc<str>, meaning: Meaning) {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = zones.entry(Arc::clone(zone)).or_default();
        *match meaning {
            Meaning::Listed => &mut answers.listed,
            Meaning::NotListed => &mut answers.not_listed,
            Meaning::Silent => &mut answers.silent,
            Meaning::Ignored(_) => &mut answers.ignored,
        } += 1;
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

    /// What was counted so far.
    pub(in crate::control) fn told(&self) -> Dnsbl {
        let zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        Dnsbl {
            zones: zones
                .iter()
                .map(|(zone, answers)| Zone {
                    zone: zone.to_string(),
                    listed: answers.listed,
                    not_listed: answers.not_listed,
                    silent: answers.silent,
                    ignored: answers.ignored,
                })
                .collect(),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            outstanding: self.outstanding.load(Ordering::Relaxed),
            unasked: self.unasked.load(Ordering::Relaxed),
        }
    }
}
