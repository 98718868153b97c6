//! What a session has the control plane look up, and the command that waits for it.
//!
//! A stranger is asked about when it connects, and only its first recipient waits for what DNS
//! lists say. If nothing comes in time, no list has said anything, and mail goes on.

use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::path::Path;

use super::port::{LookupAnswer, Notice, Question, QuestionId, Refusal};
use super::reactor::Reactor;
use super::session::Session;
use crate::policy::Rule;
use crate::policy::dnsbl::ZoneAnswer;
use crate::policy::pipeline::Answers;

/// How long after the time that DNS lists may take the worker gives an answer up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// What is known of a session's client.
#[derive(Debug)]
pub(super) enum Listings {
    /// The answer to this question is to come; the port has its deadline.
    Awaited(QuestionId),
    /// What the zones said; `None` when that was nothing, or no zone was asked.
    Known(Option<Arc<[ZoneAnswer]>>),
}

impl Listings {
    /// As decisions take it.
    pub(super) fn answers(&self) -> Answers<'_> {
        Answers {
            dnsbl: match self {
                Self::Awaited(_) => None,
                Self::Known(None) => Some(&[]),
                Self::Known(Some(answers)) => Some(answers),
            },
        }
    }

    /// Whether nothing is to come any more.
    pub(super) fn are_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// The session is over: it waits for no answer.
    pub(super) fn forget(&self, reactor: &Reactor) {
        if let Self::Awaited(id) = self {
            reactor.forget(*id);
        }
    }
}

/// A RCPT that waits for a look-up. The session takes no further command meanwhile.
#[derive(Debug)]
pub(super) struct HeldRecipient {
    path: String,
    notify: Option<String>,
    original: Option<String>,
}

impl HeldRecipient {
    pub(super) fn new(rcpt: &Rcpt<'_>) -> Box<Self> {
        Box::new(Self {
            path: rcpt.path.raw.to_owned(),
            notify: rcpt.notify.map(str::to_owned),
            original: rcpt.original_recipient.map(str::to_owned),
        })
    }

    /// The command as it was given. It was parsed before, so it can be parsed again.
    pub(super) fn rcpt(&self) -> Option<Rcpt<'_>> {
        Some(Rcpt {
            path: Path::parse(&self.path).ok()?,
            notify: self.notify.as_deref(),
            original_recipient: self.original.as_deref(),
        })
    }
}

impl Session {
    /// Has the zones asked about a client that has just connected.
    pub(super) fn ask_zones(&mut self) {
        let config = self.reactor.config();
        if self.is_with_front() || !config.policy.asks_about(self.service(), &self.client) {
            return;
        }
        let question = Question::Dnsbl(self.client.address);
        let within = config.dnsbl.timeout + GRACE;
        if let Some(id) = self.reactor.ask(self.conn, question, within) {
            self.listings = Listings::Awaited(id);
        }
    }

    /// Takes the answer if it has come.
    pub(super) fn take_listings(&mut self) {
        let Listings::Awaited(id) = self.listings else {
            return;
        };
        match self.reactor.answer(id) {
            None => {}
            Some(LookupAnswer::Dnsbl(answers)) => self.listings = Listings::Known(answers),
            // One about passwords cannot come to this question.
            Some(LookupAnswer::Full | LookupAnswer::Late | LookupAnswer::Password(_)) => {
                self.listings = Listings::Known(None);
            }
        }
    }

    /// Notes the rule by which a recipient is refused for what DNS lists say. The filter hears of
    /// the first.
    pub(super) fn note_listed(&mut self, rule: Rule) {
        if self.listed.replace(rule).is_none() {
            let refusal = Refusal {
                client: self.client.address,
                rule,
                is_behind_front: self.is_behind_front(),
            };
            self.reactor.notify(Notice::Refused(refusal));
        }
    }
}
