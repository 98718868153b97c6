//! What the log says: one line per session, one per transaction, and nothing per command.
//!
//! The fields have the same names in text and in JSON, and the rule is the one that `portcullis explain` names.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use super::counters::{Counters, Outcome};

/// The end of a transaction.
pub(super) struct TransactionRecord<'a> {
    pub(super) id: &'a str,
    pub(super) client: IpAddr,
    pub(super) outcome: Outcome,
    pub(super) rule: Cow<'static, str>,
    pub(super) sender: &'a str,
    /// The first recipient, and how many there were that nobody refused.
    pub(super) recipient: &'a str,
    pub(super) recipients: usize,
    pub(super) refused: u32,
    pub(super) next_hop: &'a str,
    pub(super) octets: u64,
    pub(super) time: Duration,
    pub(super) reply: &'a str,
}

impl TransactionRecord<'_> {
    /// Writes the line and counts the transaction.
    pub(super) fn write(self, counters: &Counters) {
        tracing::info!(
            target: "transaction",
            id = self.id,
            client = %self.client,
            decision = self.outcome.name(),
            rule = %self.rule,
            from = self.sender,
            to = self.recipient,
            recipients = self.recipients,
            refused = self.refused,
            next_hop = self.next_hop,
            bytes = self.octets,
            ms = self.time.as_millis() as u64,
            reply = self.reply,
        );
        counters.transaction(self.outcome, self.rule, self.octets);
    }
}

/// The end of a session.
pub(super) struct SessionRecord<'a> {
    pub(super) id: &'a str,
    pub(super) client: IpAddr,
    pub(super) helo: &'a str,
    pub(super) decision: &'static str,
    pub(super) rule: Cow<'static, str>,
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) octets: u64,
    pub(super) time: Duration,
}

impl SessionRecord<'_> {
    /// Writes the line.
    pub(super) fn write(&self) {
        tracing::info!(
            target: "session",
            id = self.id,
            client = %self.client,
            helo = self.helo,
            decision = self.decision,
            rule = %self.rule,
            accepted = self.accepted,
            refused = self.refused,
            bytes = self.octets,
            ms = self.time.as_millis() as u64,
        );
    }
}
