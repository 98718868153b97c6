//! The worker's side of DNS lists: a stranger is asked about when it connects, and only its first
//! recipient waits for what they say.
//!
//! The question goes through the worker's [`Port`](super::port::Port). Without an answer (it was
//! one question too many, the control plane is stuck) no list has said anything, and mail goes on.
//! Nothing here can refuse more than [`Policy::listings`](crate::policy::Policy::listings) does.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::path::Path;

use super::Gate;
use super::connection::Role;
use super::port::{Answered, LookupAnswer, Notice, Question, QuestionId, Refusal};
use super::session::{ClientSession, Flow};
use crate::driver::Conn;
use crate::policy::dnsbl::Finding;

/// How long after the time that DNS lists may take the worker gives their answer up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// What is known of a session's client.
#[derive(Debug)]
pub(super) enum Listings {
    /// The answer to this question is to come.
    Awaited(QuestionId),
    /// What the zones said; `None` when that was nothing, or they were not asked.
    Known(Option<Arc<[Finding]>>),
}

impl Listings {
    /// What an answer says. No answer is no listing.
    fn from_answer(answer: LookupAnswer) -> Self {
        match answer {
            LookupAnswer::Dnsbl(findings) => Self::Known(findings),
            LookupAnswer::Full | LookupAnswer::Late => Self::Known(None),
        }
    }
}

/// A RCPT that waits for what DNS lists say. The session takes no further command meanwhile.
#[derive(Debug)]
pub(super) struct HeldRecipient {
    path: String,
    notify: Option<String>,
    original: Option<String>,
}

impl HeldRecipient {
    fn new(rcpt: &Rcpt<'_>) -> Self {
        Self {
            path: rcpt.path.raw.to_owned(),
            notify: rcpt.notify.map(str::to_owned),
            original: rcpt.original_recipient.map(str::to_owned),
        }
    }

    /// The command as it was given. It was parsed before, so it can be parsed again.
    fn rcpt(&self) -> Option<Rcpt<'_>> {
        Some(Rcpt {
            path: Path::parse(&self.path).ok()?,
            notify: self.notify.as_deref(),
            original_recipient: self.original.as_deref(),
        })
    }
}

impl ClientSession {
    /// Holds a recipient back if what DNS lists say about the client is not there yet.
    pub(super) fn hold_recipient(&mut self, rcpt: &Rcpt<'_>) -> bool {
        let awaited = matches!(self.listings, Listings::Awaited(_));
        if awaited {
            self.held = Some(Box::new(HeldRecipient::new(rcpt)));
        }
        awaited
    }

    /// Notes the rule by which a recipient is refused for a listing; gives it back if it is the
    /// first one, which the filter hears of.
    pub(super) fn refuse_as_listed(
        &mut self,
        rule: Cow<'static, str>,
    ) -> Option<Cow<'static, str>> {
        let first = self.listed.is_none();
        self.listed = Some(rule.clone());
        first.then_some(rule)
    }

    /// What DNS lists have said so far.
    pub(super) fn findings(&self) -> &[Finding] {
        match &self.listings {
            Listings::Known(Some(findings)) => findings,
            _ => &[],
        }
    }
}

impl Gate {
    /// Asks the zones about a client that has just connected.
    pub(super) fn ask_zones(&mut self, conn: Conn) {
        let now = self.now;
        let due = now + self.config.dnsbl.timeout + GRACE;
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        if !self.config.policy.asks_about(&session.client) {
            return;
        }
        let question = Question::Dnsbl(session.client.address);
        session.listings = match self.port.ask(conn, question, now, due) {
            Ok(id) => Listings::Awaited(id),
            Err(answer) => Listings::from_answer(answer),
        };
    }

    /// Takes the answers that have come. Some may be for sessions that are over.
    pub(super) fn take_answers(&mut self) {
        for Answered { asker, id, answer } in self.port.take(self.now) {
            if self.table.current(asker).is_none() {
                continue;
            }
            let Some(session) = self.session(asker) else {
                continue;
            };
            if !matches!(session.listings, Listings::Awaited(awaited) if awaited == id) {
                continue;
            }
            session.listings = Listings::from_answer(answer);
            if session.held.is_some() {
                self.resume.push(asker);
            }
        }
    }

    /// The session is over: it waits for no answer.
    pub(super) fn forget_question(&mut self, listings: &Listings) {
        if let Listings::Awaited(id) = listings {
            self.port.forget(*id);
        }
    }

    /// Decides about the recipient that waited, if it need not wait any longer. Returns whether it
    /// was.
    pub(super) fn decide_held(&mut self, conn: Conn) -> bool {
        let Some(session) = self.session(conn) else {
            return false;
        };
        if matches!(session.listings, Listings::Awaited(_)) {
            return false;
        }
        let Some(held) = session.held.take() else {
            return false;
        };
        if let Some(rcpt) = held.rcpt() {
            // Whether it has its answer or waits for the next hop: what comes after it is the
            // session's to say.
            let _: Flow = self.rcpt(conn, &rcpt);
        }
        true
    }

    /// Sets the client's deadline to that for what it waits for: a connection to the next hop. For
    /// what DNS lists say the port has one.
    pub(super) fn expect_answer(&mut self, conn: Conn) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let passage = session.passage.as_ref();
        let queued = passage
            .filter(|passage| passage.waits_in_queue())
            .and_then(|passage| passage.queue_due);
        match queued {
            Some(due) => self.wheel.set(conn.slot, due),
            None => self.wheel.clear(conn.slot),
        }
    }

    /// Tells the control plane of a refusal, for the filter.
    pub(super) fn report_refusal(&self, client: IpAddr, rule: Cow<'static, str>) {
        self.port.notify(Notice::Refused(Refusal { client, rule }));
    }
}
