//! A transaction on its way through the gate: which client, which next hop, what is owed to whom.
//!
//! [`crate::relay::transaction`] knows what to say; this knows to which connection, and finds one.
//! A transaction has one next hop: a recipient that needs another one is deferred (451 4.5.3), so
//! that the client sends it again.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::envelope::Mail;
use portcullis_smtp::reply::Reply;

use super::Gate;
use super::connection::Role;
use super::counters::Outcome;
use super::log::{Destination, TransactionRecord};
use super::session::ClientSession;
use crate::config::{Limits, NextHop, Route};
use crate::driver::Conn;
use crate::policy::Rule;
use crate::relay::transaction::{Envelope, Transaction};

/// Names a session or a transaction in the log and in the `Received:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0)
    }
}

/// Where the message is to go.
pub(super) enum Target {
    /// The first recipient decides.
    Undecided,
    Discard,
    NextHops(Vec<SocketAddr>),
}

/// What the client was told, and by which rule.
pub(super) struct Told {
    pub(super) rule: Rule,
    pub(super) reply: Reply<'static>,
    /// Whom it is about, if it is about one recipient.
    pub(super) recipient: String,
}

impl Told {
    /// A word about the whole message, or the whole transaction.
    pub(super) fn of_message(rule: Rule, reply: Reply<'static>) -> Self {
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
    /// The next hops that its first recipient has given it, by name.
    pub(super) next_hops: Option<Arc<str>>,
    pub(super) id: Id,
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
    /// The rule that let the first recipient in.
    pub(super) rule: Rule,
    /// The next hop that was spoken to, for the log.
    pub(super) next_hop: Option<SocketAddr>,
    /// The latest refusal; what the log names if nothing comes of the transaction.
    pub(super) refusal: Option<Told>,
    /// What the client was told in the end.
    pub(super) verdict: Option<Told>,
}

impl Passage {
    pub(super) fn new(mail: &Mail<'_>, id: Id, since: Duration) -> Self {
        Self {
            relay: Transaction::new(Envelope::new(mail)),
            target: Target::Undecided,
            next_hops: None,
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
            rule: Rule::CLIENT,
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
    pub(super) fn refuse(&mut self, rule: Rule, recipient: &str, reply: Reply<'static>) {
        self.refused += u32::from(!recipient.is_empty());
        let recipient = recipient.to_owned();
        self.refusal = Some(Told {
            rule,
            reply,
            recipient,
        });
    }

    /// Gives the transaction the way of its first recipient; `rule` is what let that in.
    pub(super) fn direct(&mut self, route: &Route, rule: Rule) {
        if self.next_hops.is_some() {
            return;
        }
        self.next_hops = Some(Arc::clone(&route.target));
        self.rule = rule;
        if route.next_hops.contains(&NextHop::Discard) {
            self.target = Target::Discard;
            self.relay.discard();
        } else {
            let addresses = route.next_hops.iter().flat_map(NextHop::addresses);
            self.target = Target::NextHops(addresses.copied().collect());
        }
    }

    pub(super) fn reached(&self) -> Rule {
        if self.next_hop.is_some() {
            Rule::NEXT_HOP
        } else {
            Rule::NEXT_HOP_UNAVAILABLE
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

    /// Ends the client's transaction, if there is one, and writes its line into the log.
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
        let envelope = &passage.relay.envelope;
        let recipients = envelope.recipients().len();
        let told = passage
            .verdict
            .or(passage.refusal.filter(|_| recipients == 0));
        let refused = told.as_ref().map_or("", |told| told.recipient.as_str());
        let record = TransactionRecord {
            id: passage.id,
            client,
            told: told.as_ref(),
            sender: &envelope.sender,
            recipient: envelope.recipients().next().unwrap_or(refused),
            recipients,
            refused: passage.refused,
            next_hop: match (&passage.target, passage.next_hop) {
                (Target::Discard, _) => Destination::Discard,
                (_, Some(address)) => Destination::NextHop(address),
                _ => Destination::None,
            },
            octets: passage.octets,
            time: self.now.saturating_sub(passage.since),
        };
        record.write(&self.counters);
        if self.draining {
            self.resume.push(conn);
        }
    }
}
