//! The worker's side of DNS lists: a stranger is asked about when it connects, and only its first
//! recipient waits for what they say.
//!
//! Asking is the control plane's business ([`Lookups`]); a question never blocks, and its answer
//! comes back through the worker's [`Inbox`]. The worker has a deadline of its own, a little after
//! that of the control plane: if nothing comes (the question was one too many, the control plane is
//! stuck), no list has said anything, and mail goes on. Nothing here can refuse more than
//! the check of the [policy](crate::policy) does.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::path::Path;

use super::Gate;
use super::connection::Role;
use super::session::{ClientSession, Flow};
use crate::driver::Conn;
use crate::policy::Rule;
use crate::policy::dnsbl::Finding;

/// How long after the time that an answer may take the worker gives it up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// What workers have somebody else ask, who may take his time. Neither call ever waits.
pub trait Lookups: Send + Sync {
    /// Asks all zones about an address; the answer goes to the question's inbox. `false`: there are
    /// too many questions already, and no answer will come.
    fn ask(&self, question: Question) -> bool;
    /// A recipient of this client was refused for what the zones say.
    fn refused(&self, refusal: Refusal);
}

/// A client that is to be asked about.
#[derive(Debug)]
pub struct Question {
    /// Its address.
    pub client: IpAddr,
    /// Its connection, which the answer names.
    pub conn: Conn,
    /// Where the answer goes.
    pub inbox: Arc<Inbox>,
}

/// A client that was refused: it has completed a handshake and has spoken SMTP, so its address is
/// its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its address.
    pub client: IpAddr,
    /// The rule that refused it: `dnsbl:ZONE`.
    pub rule: Rule,
}

/// What the zones say about the client of a connection; zones that say nothing may be left out, and
/// `None` is for all of them.
pub type Answer = (Conn, Option<Arc<[Finding]>>);

/// Answers for one worker. It holds no more of them than the worker has sessions.
pub struct Inbox {
    answers: Mutex<Vec<Answer>>,
    /// There may be some: a worker looks at every batch, and mostly there is nothing.
    filled: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Inbox {
    /// An empty inbox; `wake` ends the worker's wait.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            answers: Mutex::default(),
            filled: AtomicBool::new(false),
            wake: Box::new(wake),
        }
    }

    /// Puts an answer in, and wakes the worker.
    pub fn put(&self, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(answer);
        self.filled.store(true, Ordering::Release);
        drop(answers);
        (self.wake)();
    }

    fn take(&self) -> Vec<Answer> {
        if !self.filled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        self.filled.store(false, Ordering::Release);
        std::mem::take(&mut *answers)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

/// What is known of a session's client.
#[derive(Debug)]
pub(super) enum Listings {
    /// The answer is to come; after this moment it is not waited for.
    Awaited(Duration),
    /// What the zones said; `None` when that was nothing, or nobody was asked.
    Known(Option<Arc<[Finding]>>),
}

impl Listings {
    fn is_awaited(&self, now: Duration) -> bool {
        matches!(self, Self::Awaited(due) if now < *due)
    }
}

/// A RCPT that waits for what DNS lists say. The session takes no further command meanwhile.
#[derive(Debug)]
pub(super) struct HeldRecipient {
    path: String,
    notify: Option<String>,
    original: Option<String>,
    /// How long it waits at most.
    due: Duration,
}

impl HeldRecipient {
    fn new(rcpt: &Rcpt<'_>, due: Duration) -> Self {
        Self {
            path: rcpt.path.raw.to_owned(),
            notify: rcpt.notify.map(str::to_owned),
            original: rcpt.original_recipient.map(str::to_owned),
            due,
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
    /// Holds a recipient back until it is known what DNS lists say about the client.
    pub(super) fn hold_recipient(&mut self, rcpt: &Rcpt<'_>) {
        if let Listings::Awaited(due) = self.listings {
            self.held = Some(Box::new(HeldRecipient::new(rcpt, due)));
        }
    }

    /// Notes the rule by which a recipient is refused for a listing; gives it back if it is the
    /// first one, which the filter hears of.
    pub(super) fn refuse_as_listed(&mut self, rule: Rule) -> Option<Rule> {
        let first = self.listed.is_none();
        self.listed = Some(rule);
        first.then_some(rule)
    }

    /// What DNS lists have said; `None`: they may still say something.
    pub(super) fn findings(&self, now: Duration) -> Option<&[Finding]> {
        match &self.listings {
            Listings::Awaited(_) if self.listings.is_awaited(now) => None,
            Listings::Known(Some(findings)) => Some(findings),
            Listings::Awaited(_) | Listings::Known(None) => Some(&[]),
        }
    }
}

impl Gate {
    /// Has the zones asked about a client that has just connected.
    pub(super) fn ask_zones(&mut self, conn: Conn) {
        let (now, timeout) = (self.now, self.config.dnsbl.timeout);
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(lookups) = self.shared.lookups() else {
            return;
        };
        if !self.config.policy.asks_about(&session.client) {
            return;
        }
        let question = Question {
            client: session.client.address,
            conn,
            inbox: Arc::clone(&self.inbox),
        };
        if lookups.ask(question) {
            session.listings = Listings::Awaited(now + timeout + GRACE);
        }
    }

    /// Takes the answers that have come. Some may be for sessions that are over.
    pub(super) fn take_answers(&mut self) {
        for (conn, findings) in self.inbox.take() {
            if self.table.current(conn).is_none() {
                continue;
            }
            let Some(session) = self.session(conn) else {
                continue;
            };
            session.listings = Listings::Known(findings);
            if session.held.is_some() {
                self.resume.push(conn);
            }
        }
    }

    /// Decides about the recipient that waited, if it need not wait any longer. Returns whether it
    /// was.
    pub(super) fn decide_held(&mut self, conn: Conn) -> bool {
        let now = self.now;
        let Some(session) = self.session(conn) else {
            return false;
        };
        if session.listings.is_awaited(now) {
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

    /// Sets the client's deadline to the earlier of those for what it waits for: what DNS lists
    /// say, and a connection to the next hop.
    pub(super) fn expect_answer(&mut self, conn: Conn) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let held = session.held.as_ref().map(|held| held.due);
        let passage = session.passage.as_ref();
        let queued = passage
            .filter(|passage| passage.waits_in_queue())
            .and_then(|passage| passage.queue_due);
        if let Some(due) = held.into_iter().chain(queued).min() {
            self.wheel.set(conn.slot, due);
        }
    }

    /// Tells the control plane of a refusal, for the filter.
    pub(super) fn report_refusal(&self, client: IpAddr, rule: Rule) {
        if let Some(lookups) = self.shared.lookups() {
            lookups.refused(Refusal { client, rule });
        }
    }
}
