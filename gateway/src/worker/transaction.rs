//! A client's transaction as the tasks of a worker share it: the session of the client, and that
//! with the next hop which carries it.
//!
//! [`relay::transaction`](crate::relay::transaction) knows what to say; this knows who has to hear
//! of it, which connection carries it or is waited for, and what the log will say. It is one
//! allocation, made at MAIL, so that a session between transactions pays nothing for it.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::client::{Client, Sent};
use portcullis_smtp::envelope::Mail;
use portcullis_smtp::reply::Reply;

use super::counters::TransactionOutcome;
use super::local::Local;
use super::records::{Reached, TraceId, TransactionRecord, TransactionTexts};
use crate::driver::Conn;
use crate::policy::Rule;
use crate::relay::client::MessageClient;
use crate::relay::destination::{Destination, Loss};
use crate::relay::hop::HopId;
use crate::relay::owner::{Link, Owner, Standing};
use crate::relay::transaction::{Lost, Transaction};

/// More octets than this waiting for the next hop stop the client's receive.
pub(super) const CONGESTION_HIGH: usize = 256 << 10;
/// Fewer octets than this waiting for the next hop let the client's receive go on.
const CONGESTION_LOW: usize = 64 << 10;

/// What only the session looks at.
#[derive(Default)]
pub(super) struct Notes {
    /// Octets of content so far.
    pub(super) octets: u64,
    /// Recipients that were refused, by us or by the next hop.
    pub(super) refused: u32,
    /// The rule that let the first recipient in, and the next hops of its route as the
    /// configuration writes them.
    pub(super) accepted_by: Option<(Rule, Arc<str>)>,
    /// The rule by which we refused MAIL or a recipient, the last one if there were several.
    pub(super) refused_by: Option<Rule>,
    /// The latest refusal: what the log names if nothing comes of the transaction.
    pub(super) refusal: Option<LoggedReply>,
    /// The last word about the whole transaction, once it is certain.
    pub(super) verdict: Option<LoggedReply>,
}

/// What the client was told, and by which rule.
pub(super) struct LoggedReply {
    rule: Rule,
    reply: Reply<'static>,
    /// Whom it is about, if it is about one recipient.
    recipient: String,
}

impl LoggedReply {
    pub(super) fn new(rule: Rule, reply: &Reply<'_>, recipient: &str) -> Self {
        Self {
            rule,
            reply: reply.clone().into_owned(),
            recipient: recipient.to_owned(),
        }
    }

    /// The record of a transaction that did not begin.
    pub(super) fn into_record(self, id: TraceId, client: IpAddr) -> TransactionRecord {
        TransactionRecord {
            id,
            client,
            user: None,
            texts: TransactionTexts::new("", "", Some(&self.reply)),
            outcome: self.outcome(),
            rule: self.rule,
            refused_by: Some(self.rule),
            recipients: 0,
            refused: 0,
            reached: Reached::Nothing,
            next_hop_tls: "",
            octets: 0,
            time: Duration::ZERO,
        }
    }

    /// How a transaction ends in which this is the last word.
    fn outcome(&self) -> TransactionOutcome {
        if self.reply.is_positive() {
            TransactionOutcome::Accepted
        } else if self.reply.is_permanent() {
            TransactionOutcome::Refused
        } else {
            TransactionOutcome::Deferred
        }
    }
}

/// A client's transaction in progress.
pub(super) struct OpenTransaction {
    pub(super) id: TraceId,
    /// The task of the client's session.
    pub(super) client: Conn,
    pub(super) since: Duration,
    state: Local<Transaction>,
    notes: Local<Notes>,
    /// The connection that it has, or that is being opened for it.
    pub(super) hop: Cell<Option<Conn>>,
    /// It waits for a connection to this next hop.
    pub(super) queued: Cell<Option<HopId>>,
    /// How long it may wait for one.
    pub(super) queue_due: Cell<Option<Duration>>,
    /// There is something to tell a next hop, and no connection for it.
    pub(super) wants_hop: Cell<bool>,
    /// The next hop takes the content more slowly than the client sends it.
    pub(super) congested: Cell<bool>,
    /// The next hop that was spoken to, for the log.
    pub(super) next_hop: Cell<Option<Link>>,
    /// The client, if a next hop is to be told of it.
    pub(super) client_told: Local<Option<Box<MessageClient>>>,
}

impl OpenTransaction {
    pub(super) fn new(mail: &Mail<'_>, id: TraceId, client: Conn, since: Duration) -> Self {
        Self {
            id,
            client,
            since,
            state: Local::new(Transaction::new(mail)),
            notes: Local::default(),
            hop: Cell::new(None),
            queued: Cell::new(None),
            queue_due: Cell::new(None),
            wants_hop: Cell::new(false),
            congested: Cell::new(false),
            next_hop: Cell::new(None),
            client_told: Local::default(),
        }
    }

    /// Looks at what was agreed, or changes it.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Transaction) -> T) -> T {
        self.state.with(look)
    }

    /// Looks at what is noted for the log, or changes it.
    pub(super) fn note<T>(&self, look: impl FnOnce(&mut Notes) -> T) -> T {
        self.notes.with(look)
    }

    /// Notes a refusal: of this recipient, or of the sender when there is none.
    pub(super) fn note_refusal(&self, rule: Rule, recipient: &str, reply: &Reply<'_>) {
        self.notes.with(|notes| {
            notes.refused += u32::from(!recipient.is_empty());
            notes.refusal = Some(LoggedReply::new(rule, reply, recipient));
        });
    }

    /// Notes the last word about the whole transaction, unless there is one.
    pub(super) fn note_verdict(&self, rule: Rule, reply: &Reply<'_>) {
        let word = || LoggedReply::new(rule, reply, "");
        self.notes.with(|notes| {
            notes.verdict.get_or_insert_with(word);
        });
    }

    /// The rule for what a next hop refused, or did not take.
    pub(super) fn reached(&self) -> Rule {
        if self.next_hop.get().is_some() {
            Rule::NEXT_HOP
        } else {
            Rule::NEXT_HOP_UNAVAILABLE
        }
    }

    /// What is recorded of it at its end.
    pub(super) fn record(&self, client: IpAddr, now: Duration) -> TransactionRecord {
        let record = |state: &mut Transaction, notes: &mut Notes| {
            let mut recipients = state.envelope.recipients();
            let count = recipients.len();
            let refusal = notes.refusal.as_ref().filter(|_| count == 0);
            let last = notes.verdict.as_ref().or(refusal);
            let refused = last.map_or("", |last| last.recipient.as_str());
            let recipient = recipients.next().unwrap_or(refused);
            let reply = last.map(|last| &last.reply);
            TransactionRecord {
                id: self.id,
                client,
                user: None,
                texts: TransactionTexts::new(state.envelope.sender(), recipient, reply),
                outcome: last.map_or(TransactionOutcome::Abandoned, LoggedReply::outcome),
                rule: last.map_or(Rule::CLIENT, |last| last.rule),
                refused_by: notes.refused_by,
                recipients: count as u32,
                refused: notes.refused,
                reached: match (&state.destination, self.next_hop.get()) {
                    (Destination::Discard, _) => Reached::Discard,
                    (_, Some(link)) => Reached::NextHop(link.address),
                    _ => Reached::Nothing,
                },
                next_hop_tls: self.next_hop.get().map_or("", |link| link.tls_version),
                octets: notes.octets,
                time: now.saturating_sub(self.since),
            }
        };
        self.with(|state| self.note(|notes| record(state, notes)))
    }

    /// Whether it waits for a connection.
    pub(super) fn waits_in_queue(&self) -> bool {
        self.queued.get().is_some()
    }
}

impl Owner for OpenTransaction {
    fn task(&self) -> Conn {
        self.client
    }

    fn advance(&self, link: Link, hop: &mut Client, out: &mut Vec<u8>) -> bool {
        self.next_hop.set(Some(link));
        // Should it have to wait for another connection later, that is a wait of its own.
        self.queue_due.set(None);
        self.with(|transaction| transaction.advance(hop, out))
    }

    fn reply(&self, to: Sent, reply: &Reply<'_>) {
        self.with(|transaction| transaction.reply(to, reply));
    }

    fn interrupted(&self, reply: &Reply<'_>) {
        self.with(|transaction| transaction.interrupted(reply));
    }

    fn standing(&self) -> Standing {
        self.with(|transaction| Standing {
            past_envelope: transaction.is_past_envelope(),
            awaits_final: transaction.is_ending(),
            has_news: transaction.has_answer() || transaction.is_settled(),
        })
    }

    fn may_be_the_connection(&self) -> bool {
        let next_hops = |transaction: &mut Transaction| {
            let next_hops = transaction.next_hops();
            next_hops.is_some_and(|next_hops| next_hops.may_be_the_connection())
        };
        self.with(next_hops)
    }

    fn asks_for_dsn(&self) -> bool {
        self.with(|transaction| transaction.envelope.asks_for_dsn())
    }

    fn client(&self, look: &mut dyn FnMut(Option<&MessageClient>)) {
        self.client_told.with(|client| look(client.as_deref()));
    }

    fn relieved(&self, waiting: usize) -> bool {
        self.congested.get() && waiting < CONGESTION_LOW
    }

    fn overtaken(&self) {
        self.hop.set(None);
        self.with(|transaction| {
            if let Some(next_hops) = transaction.next_hops() {
                next_hops.hurry();
            }
        });
        self.wants_hop.set(true);
    }

    fn lost(&self, hop: HopId, loss: Loss, said: Option<Reply<'static>>) {
        self.hop.set(None);
        self.congested.set(false);
        let lost = self.with(|transaction| {
            let lost = transaction.lost(said.as_ref());
            if let Some(next_hops) = transaction.next_hops() {
                next_hops.lost(hop, loss, said);
            }
            lost
        });
        self.wants_hop.set(lost == Lost::Again);
    }
}
