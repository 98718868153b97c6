//! What the log says: one line per session, one per transaction, and nothing per command.
//!
//! The fields have the same names in text and in JSON, and the rule is the one that `portcullis
//! explain` names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_smtp::reply::Reply;

use super::counters::{Counters, Outcome};
use super::transaction::{Notes, OpenTransaction};
use crate::policy::Rule;
use crate::relay::destination::Destination;
use crate::relay::transaction::Transaction;

/// Names a session or a transaction in the log and in the `Received:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0)
    }
}

/// What the client was told, and by which rule.
pub(super) struct LoggedReply {
    pub(super) rule: Rule,
    pub(super) reply: Reply<'static>,
    /// Whom it is about, if it is about one recipient.
    pub(super) recipient: String,
}

impl LoggedReply {
    /// A word about the whole message, or the whole transaction.
    pub(super) fn of_message(rule: Rule, reply: &Reply<'_>) -> Self {
        Self::of_recipient(rule, reply, "")
    }

    /// A word about this recipient.
    pub(super) fn of_recipient(rule: Rule, reply: &Reply<'_>, recipient: &str) -> Self {
        Self {
            rule,
            reply: reply.clone().into_owned(),
            recipient: recipient.to_owned(),
        }
    }

    /// How a transaction ends in which this is the last word.
    fn outcome(&self) -> Outcome {
        if self.reply.is_positive() {
            Outcome::Accepted
        } else if self.reply.is_permanent() {
            Outcome::Refused
        } else {
            Outcome::Deferred
        }
    }
}

/// Where a message went.
#[derive(Clone, Copy)]
enum WentTo {
    /// It did not come to that.
    Nowhere,
    Discard,
    NextHop(SocketAddr),
}

impl fmt::Display for WentTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::Discard => f.write_str("discard"),
            Self::NextHop(address) => address.fmt(f),
        }
    }
}

/// The end of a transaction.
pub(super) struct TransactionRecord<'a> {
    id: Id,
    client: IpAddr,
    /// The last word to the client; `None` if it went away before there was one.
    last: Option<&'a LoggedReply>,
    sender: &'a str,
    /// The first recipient that was not refused, or the one that was.
    recipient: &'a str,
    /// How many were not refused.
    recipients: usize,
    refused: u32,
    next_hop: WentTo,
    octets: u64,
    time: Duration,
}

impl<'a> TransactionRecord<'a> {
    /// The record of a transaction that is over, and took so long.
    pub(super) fn new(
        transaction: &OpenTransaction,
        client: IpAddr,
        state: &'a Transaction,
        notes: &'a Notes,
        time: Duration,
    ) -> Self {
        let recipients = state.envelope.recipients().len();
        let refusal = notes.refusal.as_ref().filter(|_| recipients == 0);
        let last = notes.verdict.as_ref().or(refusal);
        let refused = last.map_or("", |last| last.recipient.as_str());
        Self {
            id: transaction.id,
            client,
            last,
            sender: state.envelope.sender(),
            recipient: state.envelope.recipients().next().unwrap_or(refused),
            recipients,
            refused: notes.refused,
            next_hop: match (&state.destination, transaction.next_hop.get()) {
                (Destination::Discard, _) => WentTo::Discard,
                (_, Some(address)) => WentTo::NextHop(address),
                _ => WentTo::Nowhere,
            },
            octets: notes.octets,
            time,
        }
    }

    /// Writes the line and counts the transaction.
    pub(super) fn write(self, counters: &Counters) {
        let outcome = self.last.map_or(Outcome::Abandoned, LoggedReply::outcome);
        let rule = self.last.map_or(Rule::CLIENT, |last| last.rule);
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
            reply = self.last.map(|last| last.reply.to_string()),
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
