//! What the log says: one line per session, one per transaction, and nothing per command.
//!
//! The fields have the same names in text and in JSON, and the rule is the one that
//! `portcullis explain` names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::counters::{Counters, Outcome};
use super::passage::{Id, Told};
use crate::policy::Rule;

/// Where a message went.
#[derive(Clone, Copy)]
pub(super) enum Destination {
    /// It did not come to that.
    None,
    Discard,
    NextHop(SocketAddr),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Discard => f.write_str("discard"),
            Self::NextHop(address) => address.fmt(f),
        }
    }
}

/// The end of a transaction.
pub(super) struct TransactionRecord<'a> {
    pub(super) id: Id,
    pub(super) client: IpAddr,
    /// The last word to the client; `None` if it went away before there was one.
    pub(super) told: Option<&'a Told>,
    pub(super) sender: &'a str,
    /// The first recipient that nobody refused, or the one that was refused.
    pub(super) recipient: &'a str,
    /// How many nobody refused.
    pub(super) recipients: usize,
    pub(super) refused: u32,
    pub(super) next_hop: Destination,
    pub(super) octets: u64,
    pub(super) time: Duration,
}

impl<'a> TransactionRecord<'a> {
    /// That a MAIL was refused before its sender was known.
    pub(super) fn refused(id: Id, client: IpAddr, told: &'a Told) -> Self {
        Self {
            id,
            client,
            told: Some(told),
            sender: "",
            recipient: "",
            recipients: 0,
            refused: 0,
            next_hop: Destination::None,
            octets: 0,
            time: Duration::ZERO,
        }
    }

    /// Writes the line and counts the transaction.
    pub(super) fn write(self, counters: &Counters) {
        let outcome = self.told.map_or(Outcome::Abandoned, Told::outcome);
        let rule = self.told.map_or(Rule::CLIENT, |told| told.rule);
        tracing::info!(
            target: "transaction",
            id = %self.id,
            client = %self.client,
            decision = outcome.name(),
            rule = %rule,
            from = self.sender,
            to = self.recipient,
            recipients = self.recipients,
            refused = self.refused,
            next_hop = %self.next_hop,
            bytes = self.octets,
            ms = self.time.as_millis() as u64,
            reply = self.told.map(|told| told.reply.to_string()),
        );
        counters.transaction(outcome, rule, self.octets);
    }
}

/// The end of a session.
pub(super) struct SessionRecord<'a> {
    pub(super) id: Id,
    pub(super) client: IpAddr,
    pub(super) helo: &'a str,
    pub(super) decision: &'static str,
    pub(super) rule: Rule,
    /// Messages accepted, recipients refused by us or by the next hop, and the client's own errors.
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) errors: u32,
    pub(super) octets: u64,
    pub(super) time: Duration,
}

impl SessionRecord<'_> {
    /// Writes the line.
    pub(super) fn write(&self) {
        tracing::info!(
            target: "session",
            id = %self.id,
            client = %self.client,
            helo = self.helo,
            decision = self.decision,
            rule = %self.rule,
            accepted = self.accepted,
            refused = self.refused,
            errors = self.errors,
            bytes = self.octets,
            ms = self.time.as_millis() as u64,
        );
    }
}
