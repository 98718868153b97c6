//! A transaction on its way through the gate: which client, which next hop, what is owed to whom.
//!
//! [`crate::relay::transaction`] knows what to say; this knows to which connection, and finds one. A transaction has one next hop:
//! a recipient that needs another one is deferred (451 4.5.3), so that the client sends it again.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::data::Fault;
use portcullis_smtp::envelope::{Mail, Rcpt};
use portcullis_smtp::reply::{EnhancedCode, Reply};

use super::Gate;
use super::connection::Role;
use super::counters::Outcome;
use super::log::TransactionRecord;
use super::session::{ClientSession, Flow};
use crate::config::{Config, Limits, NextHop};
use crate::driver::Conn;
use crate::policy::{Rule, Verdict};
use crate::relay::pool::Lease;
use crate::relay::received::Received;
use crate::relay::transaction::{Answer, Envelope, Lost, Transaction, UNAVAILABLE};

/// Names a session or a transaction in the log and in the `Received:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0)
    }
}

/// Where the message is to go.
enum Target {
    /// The first recipient decides.
    Undecided,
    Discard,
    NextHops(Vec<SocketAddr>),
}

/// A client's transaction in progress.
pub(super) struct Passage {
    relay: Transaction,
    target: Target,
    id: Id,
    since: Duration,
    /// The connection it has, or that is being opened for it.
    pub(super) hop: Option<Conn>,
    /// It waits for a connection to this next hop.
    queued: Option<SocketAddr>,
    /// Next hops that have failed it.
    tried: Vec<SocketAddr>,
    /// A connection that was taken from the pool turned out to be dead: the next one is to be new.
    fresh: bool,
    /// The next hop takes the content more slowly than the client sends it.
    pub(super) congested: bool,
    /// DATA or BDAT, or the end of the message, waits for its answer.
    asked: bool,
    /// While the message comes: when the client has to have sent more of it.
    content_due: Option<Duration>,
    octets: u64,
    refused: u32,
    /// The rule that let the first recipient in.
    rule: Cow<'static, str>,
    /// The next hop that was spoken to, for the log.
    next_hop: Option<SocketAddr>,
    /// The latest refusal; what the log names if nothing comes of the transaction.
    refusal: Option<(Outcome, Cow<'static, str>, String)>,
    /// What the client was told in the end.
    verdict: Option<(Outcome, Cow<'static, str>, String)>,
}

/// More octets than this waiting for the next hop stop the client's receive.
const CONGESTION_HIGH: usize = 256 << 10;
/// Fewer than this let it go on.
const CONGESTION_LOW: usize = 64 << 10;

const OTHER_NEXT_HOP: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 5, 3),
    "This recipient needs a transaction of its own, please send it again",
);
const NO_SLOT: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 3, 2),
    "Too many connections, please try again later",
);

impl Passage {
    fn new(mail: &Mail<'_>, id: Id, since: Duration) -> Self {
        Self {
            relay: Transaction::new(Envelope::new(mail)),
            target: Target::Undecided,
            id,
            since,
            hop: None,
            queued: None,
            tried: Vec::new(),
            fresh: false,
            congested: false,
            asked: false,
            content_due: None,
            octets: 0,
            refused: 0,
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

    /// Moves the deadline on by what arrived, at the least rate that is allowed. A timeout that each octet renewed would
    /// let a slow drip go on for ever.
    fn earn_time(&mut self, octets: usize, now: Duration, limits: &Limits) {
        let earned = Duration::from_secs_f64(octets as f64 / limits.data_rate_min as f64);
        self.content_due = self
            .content_due
            .map(|due| (due + earned).min(now + limits.data_timeout));
    }

    /// The transaction as the relay sees it.
    pub(super) fn relay(&mut self) -> &mut Transaction {
        &mut self.relay
    }

    fn refuse(&mut self, rule: Cow<'static, str>, reply: &Reply<'_>) {
        self.refused += 1;
        self.refusal = Some((outcome(reply), rule, reply.to_string()));
    }

    /// Fits a recipient's route to the transaction; the first recipient decides for all, and `rule` is what let it in.
    fn direct(&mut self, next_hops: &[NextHop], rule: Cow<'static, str>) -> bool {
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

    fn reached(&self) -> Cow<'static, str> {
        if self.next_hop.is_some() {
            "next-hop".into()
        } else {
            "next-hop-unavailable".into()
        }
    }
}

/// How a transaction ends that gets this reply.
fn outcome(reply: &Reply<'_>) -> Outcome {
    if reply.is_positive() {
        Outcome::Accepted
    } else if reply.is_permanent() {
        Outcome::Refused
    } else {
        Outcome::Deferred
    }
}

impl Gate {
    fn session(&mut self, conn: Conn) -> Option<&mut ClientSession> {
        match &mut self.table[conn].role {
            Role::Client(session) => Some(session),
            _ => None,
        }
    }

    pub(super) fn passage(&mut self, conn: Conn) -> Option<&mut Passage> {
        self.session(conn)?.passage.as_deref_mut()
    }

    pub(super) fn mail(&mut self, conn: Conn, mail: &Mail<'_>) {
        self.end_passage(conn);
        let (id, now) = (self.next_id(), self.now);
        let config = Arc::clone(&self.config);
        let policy = &config.policy;
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        // A new configuration may see this client with other eyes.
        session.client = policy.client(session.client.address);
        let decision = policy.mail(&session.client, mail);
        let rule = Cow::Owned(policy.rule_name(decision.rule).to_owned());
        let mut passage = Box::new(Passage::new(mail, id, now));
        if let Verdict::Refuse(reply) = &decision.verdict {
            passage.refuse(rule, reply);
        }
        let refused = matches!(decision.verdict, Verdict::Refuse(_));
        session.passage = Some(passage);
        self.answer_decision(conn, decision);
        if refused {
            self.end_passage(conn);
        }
    }

    pub(super) fn rcpt(&mut self, conn: Conn, rcpt: &Rcpt<'_>) -> Flow {
        let config = Arc::clone(&self.config);
        let Role::Client(session) = &mut self.table[conn].role else {
            return Flow::Wait;
        };
        let mut decision = config.policy.recipient(&session.client, rcpt);
        let Some(passage) = session.passage.as_deref_mut() else {
            return Flow::Wait;
        };
        let mut fits = true;
        if decision.is_accept() {
            match config.route(&rcpt.path.mailbox) {
                Ok(route) => {
                    fits = passage.direct(
                        &config.routes[route].next_hops,
                        name_of(&config, decision.rule),
                    )
                }
                Err(no_route) => decision = no_route,
            }
        }
        let rule = name_of(&config, decision.rule);
        match decision.verdict {
            Verdict::Refuse(reply) => self.refuse_recipient(conn, rule, reply),
            Verdict::Accept if !fits => {
                self.refuse_recipient(conn, "other-next-hop".into(), OTHER_NEXT_HOP)
            }
            Verdict::Accept => {
                passage.relay.recipient(rcpt);
                self.pass_on(conn);
                self.deliver_answers(conn);
                Flow::Next
            }
        }
    }

    /// Refuses a recipient, once those before it have their answers.
    fn refuse_recipient(
        &mut self,
        conn: Conn,
        rule: Cow<'static, str>,
        reply: Reply<'static>,
    ) -> Flow {
        self.counters.recipient_refused(rule.clone());
        let Some(session) = self.session(conn) else {
            return Flow::Wait;
        };
        session.refused += 1;
        let Some(passage) = session.passage.as_deref_mut() else {
            return Flow::Wait;
        };
        passage.refuse(rule, &reply);
        if passage.relay.unanswered() > 0 {
            session.withheld = Some(reply);
            return Flow::Wait;
        }
        self.answer(conn, &reply);
        Flow::Next
    }

    /// Tells the next hop what is new, finding a connection first if there is none.
    fn pass_on(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        if !matches!(passage.target, Target::NextHops(_))
            || passage.waits_in_queue()
            || passage.relay.is_settled()
        {
            return;
        }
        match passage.hop {
            None => self.lease(conn),
            Some(hop) => self.advance(conn, hop),
        }
    }

    /// Finds a connection for the client's transaction, or settles it.
    pub(super) fn lease(&mut self, conn: Conn) {
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let Target::NextHops(addresses) = &passage.target else {
            return;
        };
        let addresses = addresses.iter().copied();
        match self
            .pool
            .lease(conn, addresses, &passage.tried, passage.fresh, self.now)
        {
            Lease::Pooled(hop) => self.attach(conn, hop),
            Lease::Connect(address) => {
                let opened = self.open_next_hop(address, conn);
                let Some(passage) = self.passage(conn) else {
                    return;
                };
                match opened {
                    Some(hop) => {
                        passage.hop = Some(hop);
                        // If this one is lost too, it is not for having been idle too long.
                        passage.fresh = true;
                    }
                    None => passage.relay.settle(&NO_SLOT),
                }
            }
            Lease::Wait(address) => {
                passage.queued = Some(address);
                self.wheel
                    .set(conn.slot, self.now + self.config.relay.connect_timeout);
            }
            Lease::Unavailable => passage.relay.settle(&UNAVAILABLE),
        }
    }

    /// Gives a connection that is ready to a client's transaction.
    pub(super) fn attach(&mut self, conn: Conn, hop: Conn) {
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        next_hop.client = Some(conn);
        next_hop.idle = false;
        if let Some(passage) = self.passage(conn) {
            passage.hop = Some(hop);
            passage.queued = None;
            self.advance(conn, hop);
        }
    }

    /// Lets the transaction tell its next hop what it can be told now.
    pub(super) fn advance(&mut self, conn: Conn, hop: Conn) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        let connection = &mut self.table[hop];
        if let Role::NextHop(next_hop) = &mut connection.role
            && next_hop.is_ready()
        {
            passage.next_hop = Some(next_hop.address);
            passage
                .relay
                .advance(&mut next_hop.smtp, &mut connection.output);
            next_hop.needs_reset = true;
            self.next_hop_deadline(hop);
            self.touch(hop);
        }
        let settled = passage.relay.is_settled();
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        if settled {
            self.detach(conn);
        }
    }

    pub(super) fn message(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.asked = true;
        passage.relay.ask();
        if !passage.relay.is_settled() {
            self.pass_on(conn);
        }
        self.deliver_answers(conn);
    }

    pub(super) fn content(&mut self, conn: Conn, piece: &[u8]) {
        let Some(session) = self.session(conn) else {
            return;
        };
        session.octets += piece.len() as u64;
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.octets += piece.len() as u64;
        passage.earn_time(piece.len(), self.now, &self.config.limits);
        let mut nowhere = Vec::new();
        let output = match passage.hop {
            Some(hop) => &mut self.table[hop].output,
            None => &mut nowhere,
        };
        let result = passage.relay.content(piece, output);
        passage.congested = output.len() > CONGESTION_HIGH;
        let hop = passage.hop;
        if let Err(reply) = result {
            passage.congested = false;
            passage.refuse("message".into(), &reply);
        }
        let lost = passage
            .relay
            .is_settled()
            .then(|| passage.hop.take())
            .flatten();
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        if let Some(hop) = lost {
            self.drop_next_hop(hop);
        } else if let Some(hop) = hop {
            self.next_hop_deadline(hop);
            self.touch(hop);
        }
    }

    /// The session has given the message up, and answers for it at its end.
    pub(super) fn fault(&mut self, conn: Conn, fault: Fault) {
        if let Some(passage) = self.passage(conn) {
            let reply = fault.reply();
            passage.verdict = Some((outcome(&reply), fault.rule().into(), reply.to_string()));
            self.end_passage(conn);
        }
    }

    pub(super) fn message_end(&mut self, conn: Conn) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.asked = true;
        passage.congested = false;
        match passage.hop {
            Some(hop) => {
                let connection = &mut self.table[hop];
                if let Role::NextHop(next_hop) = &mut connection.role {
                    passage
                        .relay
                        .end(Some(&mut next_hop.smtp), &mut connection.output);
                    next_hop.awaits_final = passage.relay.is_ending();
                    self.next_hop_deadline(hop);
                    self.touch(hop);
                }
            }
            None => passage.relay.end(None, &mut Vec::new()),
        }
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        self.deliver_answers(conn);
    }

    /// Gives the client the answers that are there.
    pub(super) fn deliver_answers(&mut self, conn: Conn) {
        while let Some(answer) = self
            .passage(conn)
            .and_then(|passage| passage.relay.next_answer())
        {
            match answer {
                Answer::Recipient(reply) => {
                    self.answer(conn, &reply);
                    self.note_recipient(conn, &reply);
                }
                Answer::Proceed => {
                    self.accept(conn);
                    self.begin_content(conn);
                }
                Answer::Refused(reply) => {
                    self.answer(conn, &reply);
                    self.note_final(conn, &reply);
                    self.end_passage(conn);
                }
                Answer::Final(reply) => {
                    self.answer(conn, &reply);
                    self.note_final(conn, &reply);
                    self.end_passage(conn);
                }
            }
        }
        let Some(session) = self.session(conn) else {
            return;
        };
        let unanswered = session
            .passage
            .as_ref()
            .map_or(0, |passage| passage.relay.unanswered());
        if unanswered == 0
            && let Some(reply) = session.withheld.take()
        {
            self.answer(conn, &reply);
        }
        self.touch(conn);
    }

    fn note_recipient(&mut self, conn: Conn, reply: &Reply<'_>) {
        if reply.is_positive() {
            return;
        }
        let Some(session) = self.session(conn) else {
            return;
        };
        session.refused += 1;
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let rule = passage.reached();
        passage.refuse(rule.clone(), reply);
        self.counters.recipient_refused(rule);
    }

    fn note_final(&mut self, conn: Conn, reply: &Reply<'_>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        session.accepted += u32::from(reply.is_positive());
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let rule = match &passage.refusal {
            _ if reply.is_positive() => passage.rule.clone(),
            Some((_, rule, _)) if rule == "message" => rule.clone(),
            _ => passage.reached(),
        };
        passage.verdict = Some((outcome(reply), rule, reply.to_string()));
    }

    /// The next hop waits for the message: our own line goes first.
    fn begin_content(&mut self, conn: Conn) {
        let (now, data_timeout) = (self.now, self.config.limits.data_timeout);
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.asked = false;
        passage.content_due = Some(now + data_timeout);
        if let Some(hop) = passage.hop {
            let (id, helo) = (passage.id.to_string(), std::mem::take(&mut session.helo));
            let (client, extended) = (session.client.address, session.smtp.is_extended());
            let mut recipients = passage.relay.envelope.recipients();
            let received = Received {
                helo: &helo,
                client,
                hostname: &self.config.hostname,
                extended,
                utf8: passage.relay.envelope.is_utf8(),
                id: &id,
                recipient: if recipients.len() == 1 {
                    recipients.next()
                } else {
                    None
                },
                date: self.clock.date(),
            };
            received.write(&mut self.table[hop].output);
            self.touch(hop);
            if let Some(session) = self.session(conn) {
                session.helo = helo;
            }
        }
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
    }

    /// The connection to the next hop is gone; `connecting`: it never came to be.
    pub(super) fn lost_next_hop(&mut self, conn: Conn, address: SocketAddr, connecting: bool) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.hop = None;
        passage.congested = false;
        if connecting || passage.fresh {
            passage.tried.push(address);
            passage.fresh = false;
        } else {
            // It may have been closed long ago; that says nothing about the next hop.
            passage.fresh = true;
        }
        if passage.relay.lost() == Lost::Again {
            self.lease(conn);
        }
        self.resume.push(conn);
    }

    /// The time to wait for a connection is over.
    pub(super) fn queue_expired(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.relay.settle(&UNAVAILABLE);
        if let Some(address) = passage.queued.take() {
            self.pool.gave_up(address, conn);
        }
        self.resume.push(conn);
    }

    /// A place may have become free in the queue of a next hop.
    pub(super) fn lease_again(&mut self, conn: Conn) {
        if let Some(passage) = self.passage(conn) {
            passage.queued = None;
            self.wheel.clear(conn.slot);
            self.lease(conn);
            self.resume.push(conn);
        }
    }

    /// The next hop has taken some of what was waiting for it.
    pub(super) fn relieved(&mut self, conn: Conn, waiting: usize) {
        let (now, data_timeout) = (self.now, self.config.limits.data_timeout);
        if let Some(passage) = self.passage(conn)
            && passage.congested
            && waiting < CONGESTION_LOW
        {
            passage.congested = false;
            // It was not the client who was slow.
            passage.content_due = Some(now + data_timeout);
            self.resume.push(conn);
        }
    }

    /// Lets the client's next hop go, in the way that the state of the transaction asks for.
    pub(super) fn detach(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        let (past_envelope, ending) = (passage.relay.is_past_envelope(), passage.relay.is_ending());
        if let Some(address) = passage.queued.take() {
            self.pool.gave_up(address, conn);
        }
        let Some(hop) = self.passage(conn).and_then(|passage| passage.hop.take()) else {
            return;
        };
        if let Role::NextHop(next_hop) = &mut self.table[hop].role {
            next_hop.client = None;
        }
        if past_envelope {
            self.drop_next_hop(hop);
        } else if !ending {
            self.release(hop);
        }
    }

    /// Ends the client's transaction, if there is one, and writes its line into the log.
    pub(super) fn end_passage(&mut self, conn: Conn) {
        self.detach(conn);
        let Some(session) = self.session(conn) else {
            return;
        };
        session.withheld = None;
        let Some(passage) = session.passage.take() else {
            return;
        };
        let client = session.client.address;
        let abandoned = || (Outcome::Abandoned, Cow::Borrowed("client"), String::new());
        let nobody = passage.relay.envelope.recipients().len() == 0;
        let refusal = passage.refusal.filter(|_| nobody);
        let (outcome, rule, reply) = passage.verdict.or(refusal).unwrap_or_else(abandoned);
        let recipients = passage.relay.envelope.recipients().len();
        let record = TransactionRecord {
            id: &passage.id.to_string(),
            client,
            outcome,
            rule,
            sender: &passage.relay.envelope.sender,
            recipient: passage
                .relay
                .envelope
                .recipients()
                .next()
                .unwrap_or_default(),
            recipients,
            refused: passage.refused,
            next_hop: &match (&passage.target, passage.next_hop) {
                (Target::Discard, _) => "discard".to_owned(),
                (_, Some(address)) => address.to_string(),
                _ => String::new(),
            },
            octets: passage.octets,
            time: self.now.saturating_sub(passage.since),
            reply: &reply,
        };
        record.write(&self.counters);
        if self.draining {
            self.resume.push(conn);
        }
    }
}

fn name_of(config: &Config, rule: Rule) -> Cow<'static, str> {
    Cow::Owned(config.policy.rule_name(rule).to_owned())
}
