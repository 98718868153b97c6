//! A transaction on its way through the gate: which client, which next hop, what is owed to whom.
//!
//! [`crate::relay::transaction`] knows what to say; this knows to which connection, and finds one.
//! A transaction has one next hop: a recipient that needs another one is deferred (451 4.5.3), so
//! that the client sends it again.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_smtp::envelope::Mail;
use portcullis_smtp::reply::Reply;

use super::Gate;
use super::connection::Role;
use super::counters::Outcome;
use super::records::{Reached, Record, TraceId, TransactionRecord, TransactionTexts};
use super::session::ClientSession;
use crate::config::{Config, Limits, NextHop};
use crate::driver::Conn;
use crate::policy::Rule;
use crate::relay::transaction::{Envelope, Transaction};

/// Where the message is to go.
pub(super) enum Target {
    /// The first recipient decides.
    Undecided,
    Discard,
    NextHops(Vec<SocketAddr>),
}

/// What the client was told, and by which rule.
pub(super) struct Told {
    pub(super) rule: Cow<'static, str>,
    pub(super) reply: Reply<'static>,
    /// Whom it is about, if it is about one recipient.
    pub(super) recipient: String,
}

/// The stable name of a rule, kept beyond the configuration it comes from.
pub(super) fn rule_name(config: &Config, rule: Rule) -> Cow<'static, str> {
    Cow::Owned(config.policy.rule_name(rule).to_owned())
}

impl Told {
    /// A word about the whole message, or the whole transaction.
    pub(super) fn of_message(rule: Cow<'static, str>, reply: Reply<'static>) -> Self {
        Self {
            rule,
            reply,
            recipient: String::new(),
        }
    }

    /// How a transaction ends in which this is the last word.
    pub(super) fn outcome(&self) -> Outcome {
        if self.reply.is_positive() {
            Outcome::Accepted
        } else if self.reply.is_permanent() {
            Outcome::Refused
        } else {
            Outcome::Deferred
        }
    }
}

/// A client's transaction in progress.
pub(super) struct Passage {
    pub(super) relay: Transaction,
    pub(super) target: Target,
    pub(super) id: TraceId,
    pub(super) since: Duration,
    /// The connection it has, or that is being opened for it.
    pub(super) hop: Option<Conn>,
    /// It waits for a connection to this next hop.
    pub(super) queued: Option<SocketAddr>,
    /// How long it may wait for one.
    pub(super) queue_due: Option<Duration>,
    /// Next hops that have failed it.
    pub(super) tried: Vec<SocketAddr>,
    /// A connection that was taken from the pool turned out to be dead: the next one is to be new.
    pub(super) fresh: bool,
    /// It has waited for a connection in vain: no next hop that is not known to work is to cost it
    /// more time.
    pub(super) hurried: bool,
    /// A connection of its own broke, and was replaced once.
    pub(super) replaced: bool,
    /// What the next hop said when it ended a connection, or took none.
    pub(super) said: Option<Reply<'static>>,
    /// A kept connection deferred the sender: what the client hears if there is no other
    /// connection.
    pub(super) deferral: Option<Reply<'static>>,
    /// The next hop takes the content more slowly than the client sends it.
    pub(super) congested: bool,
    /// DATA or BDAT, or the end of the message, waits for its answer.
    pub(super) asked: bool,
    /// While the message comes: when the client has to have sent more of it.
    pub(super) content_due: Option<Duration>,
    pub(super) octets: u64,
    pub(super) refused: u32,
    /// The rule by which our policy refused a recipient, the last one if there were several.
    pub(super) recipient_refused_by: Option<Cow<'static, str>>,
    /// The rule that let the first recipient in.
    pub(super) rule: Cow<'static, str>,
    /// The next hop that was spoken to, for the log.
    pub(super) next_hop: Option<SocketAddr>,
    /// The latest refusal; what the log names if nothing comes of the transaction.
    pub(super) refusal: Option<Told>,
    /// What the client was told in the end.
    pub(super) verdict: Option<Told>,
}

impl Passage {
    pub(super) fn new(mail: &Mail<'_>, id: TraceId, since: Duration) -> Self {
        Self {
            relay: Transaction::new(Envelope::new(mail)),
            target: Target::Undecided,
            id,
            since,
            hop: None,
            queued: None,
            queue_due: None,
            tried: Vec::new(),
            fresh: false,
            hurried: false,
            replaced: false,
            said: None,
            deferral: None,
            congested: false,
            asked: false,
            content_due: None,
            octets: 0,
            refused: 0,
            recipient_refused_by: None,
            rule: Cow::Borrowed(""),
            next_hop: None,
            refusal: None,
            verdict: None,
        }
    }

    /// Whether the client waits for us, not we for it.
    pub(super) fn owes_answer(&self) -> bool {
        self.asked || self.relay.unanswered() > 0
    }

    pub(super) fn waits_in_queue(&self) -> bool {
        self.queued.is_some()
    }

    pub(super) fn in_content(&self) -> bool {
        self.content_due.is_some() && !self.asked
    }

    /// When the client has to have sent more of the message.
    pub(super) fn content_deadline(&self) -> Duration {
        self.content_due.unwrap_or(self.since)
    }

    /// Moves the deadline on by what arrived, at the least rate that is allowed. A timeout that
    /// each octet renewed would let a slow drip go on for ever.
    pub(super) fn earn_time(&mut self, octets: usize, now: Duration, limits: &Limits) {
        let earned = Duration::from_secs_f64(octets as f64 / limits.data_rate_min as f64);
        self.content_due = self
            .content_due
            .map(|due| (due + earned).min(now + limits.data_timeout));
    }

    /// Notes a refusal: of this recipient, or of the sender or the message when there is none.
    pub(super) fn refuse(
        &mut self,
        rule: Cow<'static, str>,
        recipient: &str,
        reply: Reply<'static>,
    ) {
        self.refused += u32::from(!recipient.is_empty());
        let recipient = recipient.to_owned();
        self.refusal = Some(Told {
            rule,
            reply,
            recipient,
        });
    }

    /// Fits a recipient's route to the transaction; the first recipient decides for all, and `rule`
    /// is what let it in.
    pub(super) fn direct(&mut self, next_hops: &[NextHop], rule: Cow<'static, str>) -> bool {
        let discard = next_hops.contains(&NextHop::Discard);
        let mut addresses = next_hops.iter().flat_map(NextHop::addresses).copied();
        match &self.target {
            Target::Undecided => {
                self.rule = rule;
                self.target = if discard {
                    Target::Discard
                } else {
                    Target::NextHops(addresses.collect())
                };
                if discard {
                    self.relay.discard();
                }
                true
            }
            Target::Discard => discard,
            Target::NextHops(chosen) => !discard && addresses.by_ref().eq(chosen.iter().copied()),
        }
    }

    /// What is recorded of it at its end.
    fn into_record(self, client: IpAddr, now: Duration) -> TransactionRecord {
        let envelope = &self.relay.envelope;
        let recipients = envelope.recipients().len();
        let told = self.verdict.or(self.refusal.filter(|_| recipients == 0));
        let refused = told.as_ref().map_or("", |told| told.recipient.as_str());
        let recipient = envelope.recipients().next().unwrap_or(refused);
        let reply = told.as_ref().map(|told| &told.reply);
        TransactionRecord {
            id: self.id,
            client,
            texts: TransactionTexts::new(&envelope.sender, recipient, reply),
            outcome: told.as_ref().map_or(Outcome::Abandoned, Told::outcome),
            rule: told.map_or("client".into(), |told| told.rule),
            recipient_refused_by: self.recipient_refused_by,
            recipients: recipients as u32,
            refused: self.refused,
            reached: match (&self.target, self.next_hop) {
                (Target::Discard, _) => Reached::Discard,
                (_, Some(address)) => Reached::NextHop(address),
                _ => Reached::Nothing,
            },
            octets: self.octets,
            time: now.saturating_sub(self.since),
        }
    }

    pub(super) fn reached(&self) -> Cow<'static, str> {
        if self.next_hop.is_some() {
            "next-hop".into()
        } else {
            "next-hop-unavailable".into()
        }
    }
}

impl Gate {
    pub(super) fn session(&mut self, conn: Conn) -> Option<&mut ClientSession> {
        match &mut self.table[conn].role {
            Role::Client(session) => Some(session),
            _ => None,
        }
    }

    pub(super) fn passage(&mut self, conn: Conn) -> Option<&mut Passage> {
        self.session(conn)?.passage.as_deref_mut()
    }

    /// Ends the client's transaction, if there is one, counts and records it.
    pub(super) fn end_passage(&mut self, conn: Conn) {
        self.detach(conn);
        let Some(session) = self.session(conn) else {
            return;
        };
        session.withheld = None;
        session.held = None;
        let Some(passage) = session.passage.take() else {
            return;
        };
        let client = session.client.address;
        let record = passage.into_record(client, self.now);
        self.counters
            .transaction(record.outcome, record.rule.clone(), record.octets);
        self.records.push(Record::Transaction(record));
        if self.draining {
            self.resume.push(conn);
        }
    }
}
