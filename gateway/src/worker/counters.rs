//! What a worker counts, for `/metrics`: written by one worker, read by the control plane whenever
//! it likes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::auth::AuthResult;
pub use super::header_result::HeaderResult;
use crate::auth::exchange::Mechanism;
use crate::policy::{RULES_MAX, Rule};
use crate::relay::pool::HopState;
use crate::tls::FaultKind;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransactionOutcome {
    /// The next hop has the message.
    Accepted,
    /// A permanent refusal, ours or the next hop's.
    Refused,
    /// The client may try again: a temporary refusal, ours or the next hop's.
    Deferred,
    /// The client gave it up, or its connection broke.
    Abandoned,
}

impl TransactionOutcome {
    const ALL: [Self; 4] = [
        Self::Accepted,
        Self::Refused,
        Self::Deferred,
        Self::Abandoned,
    ];

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

/// How a TLS handshake with a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HandshakeResult {
    /// A new session.
    Complete,
    /// A session of before goes on.
    Resumed,
    /// It took longer than `tls.handshake_timeout`.
    Timeout,
    /// The client has closed the connection.
    Gone,
    /// What came is no TLS.
    NotTls,
    /// There is no version, cipher suite or signature that both know.
    Incompatible,
    /// The client's certificate is missing or not good.
    Certificate,
    /// The client gave up with an alert.
    Alert,
    /// The client broke the protocol.
    Protocol,
    /// The client sent more than a handshake has.
    TooLarge,
    /// The gate failed.
    Internal,
}

impl HandshakeResult {
    const ALL: [Self; 11] = [
        Self::Complete,
        Self::Resumed,
        Self::Timeout,
        Self::Gone,
        Self::NotTls,
        Self::Incompatible,
        Self::Certificate,
        Self::Alert,
        Self::Protocol,
        Self::TooLarge,
        Self::Internal,
    ];

    /// The word for it in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Resumed => "resumed",
            Self::Timeout => "timeout",
            Self::Gone => "gone",
            Self::NotTls => "not-tls",
            Self::Incompatible => "incompatible",
            Self::Certificate => "certificate",
            Self::Alert => "alert",
            Self::Protocol => "protocol",
            Self::TooLarge => "too-large",
            Self::Internal => "internal",
        }
    }
}

impl From<FaultKind> for HandshakeResult {
    fn from(kind: FaultKind) -> Self {
        match kind {
            FaultKind::NotTls => Self::NotTls,
            FaultKind::Incompatible => Self::Incompatible,
            FaultKind::Certificate => Self::Certificate,
            FaultKind::Alert => Self::Alert,
            FaultKind::Protocol => Self::Protocol,
            FaultKind::Truncated => Self::Gone,
            FaultKind::TooLarge => Self::TooLarge,
            FaultKind::Internal => Self::Internal,
        }
    }
}

/// What one rule has decided.
#[derive(Default)]
struct RuleCounters {
    sessions: AtomicU64,
    recipients: AtomicU64,
    commands: AtomicU64,
    /// In the order of [`TransactionOutcome::ALL`].
    transactions: [AtomicU64; TransactionOutcome::ALL.len()],
}

/// The counters of one worker.
pub struct Counters {
    /// Connections taken.
    pub sessions_total: AtomicU64,
    /// Sessions open now.
    pub sessions_open: AtomicU64,
    /// Bytes of message content taken from clients.
    pub octets_total: AtomicU64,
    /// How often a receive found no free buffer.
    pub starved_total: AtomicU64,
    /// XCLIENT that named a client.
    pub xclient_total: AtomicU64,
    /// XCLIENT that left it open which client it is.
    pub xclient_unknown_total: AtomicU64,
    /// In the order of [`HeaderResult::ALL`].
    proxy_headers: [AtomicU64; HeaderResult::ALL.len()],
    /// TLS handshakes with clients that go on now.
    pub handshakes_open: AtomicU64,
    /// In the order of [`HandshakeResult::ALL`].
    handshakes: [AtomicU64; HandshakeResult::ALL.len()],
    /// Attempts to authenticate: in the order of [`Mechanism::ALL`], and in that of
    /// [`AuthResult::ALL`].
    auth: [[AtomicU64; AuthResult::ALL.len()]; Mechanism::ALL.len()],
    /// By the [index](Rule::index) of the rule. As many as there can be rules, because one may
    /// come with any reload.
    rules: Box<[RuleCounters]>,
    hops: Mutex<Vec<HopState>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sessions_total: AtomicU64::new(0),
            sessions_open: AtomicU64::new(0),
            octets_total: AtomicU64::new(0),
            starved_total: AtomicU64::new(0),
            xclient_total: AtomicU64::new(0),
            xclient_unknown_total: AtomicU64::new(0),
            proxy_headers: Default::default(),
            handshakes_open: AtomicU64::new(0),
            handshakes: std::array::from_fn(|_| AtomicU64::new(0)),
            auth: Default::default(),
            rules: (0..RULES_MAX).map(|_| RuleCounters::default()).collect(),
            hops: Mutex::default(),
        }
    }
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
    pub(super) fn session_ended(&self, rule: Rule) {
        self.rules[rule.index()]
            .sessions
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn transaction(&self, outcome: TransactionOutcome, rule: Rule, octets: u64) {
        self.octets_total.fetch_add(octets, Ordering::Relaxed);
        self.rules[rule.index()].transactions[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A recipient that was refused, by us or by the next hop.
    pub(super) fn recipient_refused(&self, rule: Rule) {
        self.rules[rule.index()]
            .recipients
            .fetch_add(1, Ordering::Relaxed);
    }

    /// A command that was refused and is neither a transaction nor a recipient.
    pub(super) fn command_refused(&self, rule: Rule) {
        self.rules[rule.index()]
            .commands
            .fetch_add(1, Ordering::Relaxed);
    }

    /// A connection of a trusted front has sent its PROXY header, or none.
    pub(super) fn proxy_header(&self, result: HeaderResult) {
        self.proxy_headers[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// XCLIENT was taken.
    pub(super) fn xclient(&self, is_known: bool) {
        let counter = if is_known {
            &self.xclient_total
        } else {
            &self.xclient_unknown_total
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that have to begin with a PROXY header, by what they began with.
    pub fn proxy_headers(&self) -> impl Iterator<Item = (HeaderResult, u64)> {
        let count =
            |result: HeaderResult| self.proxy_headers[result as usize].load(Ordering::Relaxed);
        HeaderResult::ALL
            .into_iter()
            .map(move |result| (result, count(result)))
    }

    pub(super) fn handshake_begun(&self) {
        self.handshakes_open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handshake_over(&self) {
        self.handshakes_open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A handshake with a client has come to this end.
    pub(super) fn handshake(&self, result: HandshakeResult) {
        self.handshakes[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// TLS handshakes with clients, by how they ended.
    pub fn handshakes(&self) -> impl Iterator<Item = (HandshakeResult, u64)> {
        let count = |result: HandshakeResult| {
            let count = self.handshakes[result as usize].load(Ordering::Relaxed);
            (result, count)
        };
        HandshakeResult::ALL.into_iter().map(count)
    }

    /// An attempt to authenticate, at its end.
    pub(super) fn authenticated(&self, mechanism: Mechanism, result: AuthResult) {
        self.auth[mechanism as usize][result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Attempts to authenticate, by mechanism and result.
    pub fn auth(&self) -> Vec<(Mechanism, AuthResult, u64)> {
        let of = |mechanism: Mechanism| {
            AuthResult::ALL.map(|result| {
                let count = &self.auth[mechanism as usize][result as usize];
                (mechanism, result, count.load(Ordering::Relaxed))
            })
        };
        Mechanism::ALL.into_iter().flat_map(of).collect()
    }

    pub(super) fn publish_hops(&self, states: Vec<HopState>) {
        *self.hops.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    /// Sessions that a rule ended, by rule.
    pub fn sessions_by_rule(&self) -> Vec<(Rule, u64)> {
        self.by_rule(|counters| &counters.sessions)
    }

    /// Recipients refused, by rule.
    pub fn recipients_by_rule(&self) -> Vec<(Rule, u64)> {
        self.by_rule(|counters| &counters.recipients)
    }

    /// Other commands refused, by rule.
    pub fn commands_by_rule(&self) -> Vec<(Rule, u64)> {
        self.by_rule(|counters| &counters.commands)
    }

    /// Transactions by outcome and by the rule that decided.
    pub fn transactions_by_rule(&self) -> Vec<((TransactionOutcome, Rule), u64)> {
        let of = |outcome: TransactionOutcome| {
            let counts = self.by_rule(|counters| &counters.transactions[outcome as usize]);
            counts
                .into_iter()
                .map(move |(rule, count)| ((outcome, rule), count))
        };
        TransactionOutcome::ALL.into_iter().flat_map(of).collect()
    }

    /// The rules that have counted something, and what.
    fn by_rule(&self, counter: impl Fn(&RuleCounters) -> &AtomicU64) -> Vec<(Rule, u64)> {
        let count = |rule: Rule| counter(&self.rules[rule.index()]).load(Ordering::Relaxed);
        let counts = Rule::all().into_iter().map(|rule| (rule, count(rule)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// The state of this worker's next hops, at most a second old while there is traffic.
    pub fn hops(&self) -> Vec<HopState> {
        self.hops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for (number, outcome) in (1..).zip(TransactionOutcome::ALL) {
            for _ in 0..number {
                counters.transaction(outcome, Rule::CLIENT, 0);
            }
        }
        counters.transaction(
            TransactionOutcome::Refused,
            Rule::of_zone("counted.example"),
            5,
        );
        let expected = [
            ((TransactionOutcome::Accepted, Rule::CLIENT), 1),
            ((TransactionOutcome::Refused, Rule::CLIENT), 2),
            (
                (
                    TransactionOutcome::Refused,
                    Rule::of_zone("counted.example"),
                ),
                1,
            ),
            ((TransactionOutcome::Deferred, Rule::CLIENT), 3),
            ((TransactionOutcome::Abandoned, Rule::CLIENT), 4),
        ];
        assert_eq!(counters.transactions_by_rule(), expected);
        assert_eq!(counters.sessions_by_rule(), []);
    }
}
