//! What a worker counts, for `/metrics`: written by one worker, read by the control plane whenever
//! it likes.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

use crate::relay::pool::HopState;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The next hop has the message.
    Accepted,
    /// A permanent refusal, ours or the next hop's.
    Refused,
    /// The client may try again: a temporary refusal, ours or the next hop's.
    Deferred,
    /// The client gave it up, or its connection broke.
    Abandoned,
}

impl Outcome {
    /// The word for it in the log and in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The counters of one worker.
#[derive(Default)]
pub struct Counters {
    /// Connections taken.
    pub sessions_total: AtomicU64,
    /// Sessions open now.
    pub sessions_open: AtomicU64,
    /// Octets of message content taken from clients.
    pub octets_total: AtomicU64,
    /// How often a receive found no free buffer.
    pub starved_total: AtomicU64,
    sessions: Mutex<FxHashMap<Cow<'static, str>, u64>>,
    recipients: Mutex<FxHashMap<Cow<'static, str>, u64>>,
    transactions: Mutex<FxHashMap<(Outcome, Cow<'static, str>), u64>>,
    hops: Mutex<Vec<HopState>>,
}

impl Counters {
    pub(super) fn session_opened(&self) {
        self.sessions_total.fetch_add(1, Ordering::Relaxed);
        self.sessions_open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_closed(&self) {
        self.sessions_open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A session that was ended by a rule, not by the client.
    pub(super) fn session_ended(&self, rule: Cow<'static, str>) {
        *self
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(rule)
            .or_default() += 1;
    }

    pub(super) fn transaction(&self, outcome: Outcome, rule: Cow<'static, str>, octets: u64) {
        self.octets_total.fetch_add(octets, Ordering::Relaxed);
        let mut transactions = self
            .transactions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *transactions.entry((outcome, rule)).or_default() += 1;
    }

    /// A recipient that was refused, by us or by the next hop.
    pub(super) fn recipient_refused(&self, rule: Cow<'static, str>) {
        *self
            .recipients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(rule)
            .or_default() += 1;
    }

    pub(super) fn publish_hops(&self, states: Vec<HopState>) {
        *self.hops.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    /// Sessions that a rule ended, by rule.
    pub fn sessions_by_rule(&self) -> Vec<(Cow<'static, str>, u64)> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .iter()
            .map(|(rule, count)| (rule.clone(), *count))
            .collect()
    }

    /// Recipients refused, by rule.
    pub fn recipients_by_rule(&self) -> Vec<(Cow<'static, str>, u64)> {
        let recipients = self
            .recipients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        recipients
            .iter()
            .map(|(rule, count)| (rule.clone(), *count))
            .collect()
    }

    /// Transactions by outcome and by the rule that decided.
    pub fn transactions_by_rule(&self) -> Vec<((Outcome, Cow<'static, str>), u64)> {
        let transactions = self
            .transactions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        transactions
            .iter()
            .map(|(key, count)| (key.clone(), *count))
            .collect()
    }

    /// The state of this worker's next hops, at most a second old while there is traffic.
    pub fn hops(&self) -> Vec<HopState> {
        self.hops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
