//! A client's transaction in the order in which it happens: the envelope is agreed on, the message
//! streams to its destination, and the client hears what became of it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::reply::Reply;
use portcullis_smtp::server::{Blame, Event, Verb};

use super::connection::Role;
use super::deadline::Deadline;
use super::end::End;
use super::lease;
use super::lookup::HeldRecipient;
use super::reactor::Service;
use super::records::{Record, TransactionRecord};
use super::session::{Heard, LastHeard, Session};
use super::transaction::{LoggedReply, OpenTransaction};
use super::users::Sent;
use crate::config::{NextHop, Route};
use crate::policy::pipeline::Recipient;
use crate::policy::{Decision, Facts, Stage, decide};
use crate::policy::{Rule, RuleKind};
use crate::relay::client::MessageClient;
use crate::relay::destination::{Destination, NextHops};
use crate::relay::transaction::{AnswerTo, OwedAnswer, Transaction};

/// A client that takes longer over its next command than this does so without a connection to the
/// next hop: there are fewer of those than of clients.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// What comes after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The message.
    Content,
    /// The transaction is over.
    Over,
    /// Nothing more is taken for now.
    Waits,
}

/// What a transaction that is being agreed on waits for, besides its next hop.
#[derive(Default)]
pub(super) struct Withheld {
    /// A recipient that waits for a look-up.
    held: Option<Box<HeldRecipient>>,
    /// A refusal of ours for a recipient, kept until the next hop has answered for those before it.
    refusal: Option<Box<(Reply<'static>, Blame)>>,
}

impl Withheld {
    fn is_empty(&self) -> bool {
        self.held.is_none() && self.refusal.is_none()
    }
}

impl Session {
    /// A transaction, from the answer to MAIL to the last answer.
    pub(super) async fn carry(&mut self, transaction: &Rc<OpenTransaction>) -> Result<(), End> {
        let mut withheld = Withheld::default();
        let after = poll_fn(|_| self.poll_envelope(transaction, &mut withheld)).await?;
        if after != After::Content {
            return Ok(());
        }
        self.begin_content(transaction);
        let mut due = self.reactor.now.get() + self.limits().data_timeout;
        let is_complete = poll_fn(|_| self.poll_content(transaction, &mut due)).await?;
        if is_complete {
            transaction.with(Transaction::end);
            self.wake_next_hop(transaction);
            poll_fn(|_| self.poll_final(transaction)).await?;
        }
        Ok(())
    }

    /// Agrees on the envelope: recipients go to the next hop as they come, and its replies to the
    /// client in the same order.
    fn poll_envelope(
        &mut self,
        transaction: &Rc<OpenTransaction>,
        withheld: &mut Withheld,
    ) -> Poll<Result<After, End>> {
        if !self.reactor.polled().is_open {
            return Poll::Ready(Err(End::Gone));
        }
        if self.reactor.service.get() == Service::Over {
            return Poll::Ready(Err(End::Stopping));
        }
        let is_over = loop {
            if let Some(after) = self.answer_envelope(transaction, withheld) {
                return Poll::Ready(Ok(after));
            }
            let is_over = if withheld.is_empty() {
                let heard = self.poll_events(|session, event, out| {
                    session.envelope_event(transaction, withheld, event, out)
                });
                match heard? {
                    Heard::Some(After::Waits) | Heard::Wait => false,
                    Heard::Some(after) => return Poll::Ready(Ok(after)),
                    Heard::More { is_over } => is_over,
                }
            } else {
                false
            };
            self.give_up_waiting_in_time(transaction);
            if !transaction.with(|state| state.has_answer()) {
                break is_over;
            }
        };
        let (is_settled, owes_answer) =
            transaction.with(|state| (state.is_settled(), state.owes_answer()));
        if is_settled {
            lease::let_go(&self.reactor, transaction);
        }
        if !withheld.is_empty() || owes_answer {
            return self.poll_gone();
        }
        if is_over {
            return Poll::Ready(Err(End::Gone));
        }
        let hold_due = self.progress_at + HOLD_MAX;
        if transaction.hop.get().is_some() && Deadline::Hold.is_past(&self.reactor, hold_due) {
            lease::park(&self.reactor, transaction);
        }
        self.poll_command_due()
    }

    /// Gives the answers that have come from elsewhere: those of the next hop, and the decision
    /// about a recipient that has waited for a look-up.
    fn answer_envelope(
        &mut self,
        transaction: &Rc<OpenTransaction>,
        withheld: &mut Withheld,
    ) -> Option<After> {
        self.take_listings();
        let is_decided = withheld.held.is_some() && self.listings.are_known();
        if !is_decided && !transaction.with(|state| state.has_answer()) {
            return None;
        }
        let reactor = Rc::clone(&self.reactor);
        reactor.write(self.conn, |out| {
            // Answers that are there come before those to what was just received.
            let after = self.give_answers(transaction, withheld, out);
            if after.is_some() || !is_decided {
                return after;
            }
            let held = withheld.held.take()?;
            // It was parsed before.
            let rcpt = held.rcpt()?;
            self.expect_command();
            self.recipient(transaction, withheld, &rcpt, out);
            self.give_answers(transaction, withheld, out)
        })
    }

    fn envelope_event(
        &mut self,
        transaction: &Rc<OpenTransaction>,
        withheld: &mut Withheld,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Result<After, End>> {
        match event {
            Event::Rcpt(rcpt) => self.recipient(transaction, withheld, &rcpt, out),
            Event::Message => {
                if self.refuses_content(transaction, Stage::Data, out) {
                    return Some(Ok(After::Over));
                }
                transaction.with(Transaction::ask);
                self.pass_on(transaction);
            }
            Event::Reset => return Some(Ok(After::Over)),
            event => return self.common_event(Some(transaction), &event).map(Err),
        }
        let after = self.give_answers(transaction, withheld, out);
        let waits = (!withheld.is_empty()).then_some(After::Waits);
        after.or(waits).map(Ok)
    }

    /// A recipient, judged by what is known now.
    fn recipient(
        &mut self,
        transaction: &Rc<OpenTransaction>,
        withheld: &mut Withheld,
        rcpt: &Rcpt<'_>,
        out: &mut Vec<u8>,
    ) {
        self.renew();
        let config = self.reactor.config();
        let route = config.route(&rcpt.path.mailbox);
        let recipient = Recipient {
            rcpt,
            next_hops: route.map(|route| &*config.routes[route].target),
        };
        let decision = self.decide_in(transaction, Stage::Rcpt, Some(recipient));
        match decision {
            Decision::Accept(rule) => {
                self.count_sent(Sent::RECIPIENT);
                if let Some(route) = route {
                    let route = &config.routes[route];
                    transaction.note(|notes| {
                        let target = || (rule, Arc::clone(&route.target));
                        notes.accepted_by.get_or_insert_with(target);
                    });
                    self.direct(transaction, route);
                }
                transaction.with(|state| state.recipient(rcpt));
                self.pass_on(transaction);
            }
            Decision::Refuse { rule, reply, blame } => {
                if rule.kind() == RuleKind::Dnsbl {
                    self.note_listed(rule);
                }
                self.reactor.counters.recipient_refused(rule);
                self.refused += 1;
                transaction.note_refusal(rule, rcpt.path.raw, &reply);
                transaction.note(|notes| notes.refused_by = Some(rule));
                if transaction.with(|state| state.unanswered()) > 0 {
                    withheld.refusal = Some(Box::new((reply, blame)));
                } else {
                    self.refuse(&reply, blame, out);
                }
            }
            Decision::Wait(_) => withheld.held = Some(HeldRecipient::new(rcpt)),
        }
    }

    /// The first recipient decides where the transaction goes.
    fn direct(&self, transaction: &OpenTransaction, route: &Route) {
        let wants_client = transaction.with(|state| {
            if !matches!(state.destination, Destination::Undecided) {
                return false;
            }
            if route.next_hops.contains(&NextHop::Discard) {
                state.direct(Destination::Discard);
                return false;
            }
            let next_hops = NextHops::new(route.hops());
            let wants_client = next_hops.want_client();
            state.direct(Destination::NextHops(next_hops));
            wants_client
        });
        if wants_client {
            let client = Some(Box::new(self.message_client()));
            transaction.client_told.replace(client);
        }
    }

    /// The client as a next hop is told of it.
    fn message_client(&self) -> MessageClient {
        let port = self
            .reactor
            .with(self.conn, |connection| connection.peer_port);
        let facts = &self.listener().facts;
        MessageClient {
            address: SocketAddr::new(self.client.address, port.unwrap_or_default()),
            server: facts.address,
            helo: self.helo.as_str().into(),
            is_esmtp: self.is_extended(),
            login: self
                .identity
                .as_deref()
                .map(|identity| identity.user.as_ref().into()),
        }
    }

    /// Whether the policy refuses a message that is about to come, or is there. The transaction is
    /// over then, and the client has its answer.
    pub(super) fn refuses_content(
        &mut self,
        transaction: &OpenTransaction,
        stage: Stage,
        out: &mut Vec<u8>,
    ) -> bool {
        let decision = self.decide_in(transaction, stage, None);
        let Decision::Refuse { rule, reply, blame } = decision else {
            return false;
        };
        transaction.note_verdict(rule, &reply);
        lease::let_go(&self.reactor, transaction);
        self.refuse(&reply, blame, out);
        true
    }

    /// What the policy says within a transaction.
    fn decide_in(
        &self,
        transaction: &OpenTransaction,
        stage: Stage,
        recipient: Option<Recipient<'_>>,
    ) -> Decision {
        let config = self.reactor.config();
        transaction.with(|state| {
            transaction.note(|notes| {
                let facts = Facts {
                    sender: state.envelope.sender(),
                    recipient,
                    next_hops: notes.accepted_by.as_ref().map(|(_, target)| &**target),
                    counts: self.user_counts(),
                    ..self.facts()
                };
                decide(stage, &config.policy, &facts)
            })
        })
    }

    /// Has the next hop told what is new, finding a connection first if there is none.
    fn pass_on(&self, transaction: &Rc<OpenTransaction>) {
        let is_settled = transaction.with(|state| state.is_settled());
        if is_settled || transaction.waits_in_queue() {
            return;
        }
        match transaction.hop.get() {
            Some(hop) => self.reactor.wake(hop),
            None => lease::lease(&self.reactor, transaction),
        }
    }

    pub(super) fn wake_next_hop(&self, transaction: &OpenTransaction) {
        if let Some(hop) = transaction.hop.get() {
            self.reactor.wake(hop);
        }
    }

    /// Finds another connection if the one that there was is lost, and ends a wait for one that has
    /// taken too long.
    fn give_up_waiting_in_time(&self, transaction: &Rc<OpenTransaction>) {
        if transaction.wants_hop.get() {
            lease::lease(&self.reactor, transaction);
        }
        if transaction.waits_in_queue()
            && let Some(due) = transaction.queue_due.get()
            && Deadline::Queue.is_past(&self.reactor, due)
        {
            lease::give_up_waiting(&self.reactor, transaction);
        }
    }

    /// The client waits for us, for as long as it takes.
    pub(super) fn poll_gone<T>(&mut self) -> Poll<Result<T, End>> {
        if self.reactor.polled().is_open {
            Poll::Pending
        } else {
            Poll::Ready(Err(End::Gone))
        }
    }

    /// Gives the client the answers that are there, up to the one that ends the envelope or the
    /// transaction.
    pub(super) fn give_answers(
        &mut self,
        transaction: &OpenTransaction,
        withheld: &mut Withheld,
        out: &mut Vec<u8>,
    ) -> Option<After> {
        let mut given = false;
        let after = loop {
            let next = transaction
                .with(|state| state.next_answer(|answer| self.give(transaction, &answer, out)));
            match next {
                None => break None,
                Some(None) => given = true,
                Some(after) => break after,
            }
        };
        if transaction.with(|state| state.unanswered()) == 0
            && let Some(refusal) = withheld.refusal.take()
        {
            self.refuse(&refusal.0, refusal.1, out);
            given = true;
        }
        if given {
            self.expect_command();
        }
        after
    }

    fn give(
        &mut self,
        transaction: &OpenTransaction,
        answer: &OwedAnswer<'_>,
        out: &mut Vec<u8>,
    ) -> Option<After> {
        let reply = &answer.reply;
        let blame = match answer.to {
            AnswerTo::RecipientUnknown => self.client.blame_for_unknown_recipient(),
            _ => Blame::None,
        };
        if answer.to == AnswerTo::Proceed {
            self.heard = LastHeard::Other;
            let listener = self.listener();
            self.smtp.accept(listener.settings(self.channel), out);
            return Some(After::Content);
        }
        self.refuse(reply, blame, out);
        match answer.to {
            AnswerTo::Recipient | AnswerTo::Proceed => None,
            AnswerTo::RecipientRefused | AnswerTo::RecipientUnknown => {
                let rule = transaction.reached();
                self.refused += 1;
                self.reactor.counters.recipient_refused(rule);
                transaction.note_refusal(rule, answer.recipient, reply);
                None
            }
            AnswerTo::Refused | AnswerTo::Final => {
                if reply.is_positive() {
                    self.accepted += 1;
                    // Nothing is owed: without more octets the engine has nothing to say.
                    self.heard = LastHeard::More;
                }
                let accepted_by = transaction.note(|notes| Some(notes.accepted_by.as_ref()?.0));
                let rule = accepted_by
                    .filter(|_| reply.is_positive())
                    .unwrap_or_else(|| transaction.reached());
                transaction.note_verdict(rule, reply);
                Some(After::Over)
            }
        }
    }

    fn refuse(&mut self, reply: &Reply<'_>, blame: Blame, out: &mut Vec<u8>) {
        self.heard = LastHeard::Other;
        let listener = self.listener();
        self.smtp
            .refuse(listener.settings(self.channel), reply, blame, out);
    }

    /// The transaction is over: its next hop is let go, and the log gets its line.
    pub(super) fn close(&mut self, transaction: &OpenTransaction, end: Option<&End>) {
        if let Some(end) = end
            && let (Some(rule), Some(words)) = (end.rule(), end.last_words())
        {
            transaction.note_verdict(rule, words);
        }
        lease::let_go(&self.reactor, transaction);
        self.reactor.with(self.conn, |connection| {
            connection.role = Role::Client(None);
            connection.congested = false;
        });
        self.record_transaction(transaction);
    }

    /// The SMTP engine has refused a command by itself: it is counted, and named in the log if
    /// nothing better comes of the transaction.
    pub(super) fn note_refused_command(
        &mut self,
        transaction: Option<&OpenTransaction>,
        verb: Verb,
        rule: Rule,
        reply: &Reply<'_>,
    ) {
        let counters = &self.reactor.counters;
        match (verb, transaction) {
            (Verb::Mail, _) => {
                let id = self.reactor.next_id();
                let record = LoggedReply::new(rule, reply, "").into_record(id, self.client.address);
                self.record(record);
            }
            (Verb::Rcpt, transaction) => {
                self.refused += 1;
                counters.recipient_refused(rule);
                if let Some(transaction) = transaction {
                    transaction.note(|notes| {
                        notes.refused += 1;
                        notes.refused_by = Some(rule);
                    });
                    transaction.note_refusal(rule, "", reply);
                }
            }
            (Verb::Content, Some(transaction)) => {
                counters.command_refused(rule);
                if transaction.note(|notes| notes.refusal.is_none()) {
                    transaction.note_refusal(rule, "", reply);
                }
            }
            (Verb::Content | Verb::Auth | Verb::Other, _) => counters.command_refused(rule),
        }
    }

    /// Counts the transaction and records it.
    pub(super) fn record_transaction(&self, transaction: &OpenTransaction) {
        self.record(transaction.record(self.client.address, self.reactor.now.get()));
    }

    fn record(&self, mut record: TransactionRecord) {
        if self.is_with_unknown() {
            return;
        }
        record.user = self.user();
        let counters = &self.reactor.counters;
        counters.transaction(record.outcome, record.rule, record.octets);
        self.reactor.records.push(Record::Transaction(record));
    }
}
