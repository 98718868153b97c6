//! Checking passwords off the workers: by the user file on a few threads (`checker.rs`), or by
//! Dovecot ([`dovecot`]). Wrong ones are counted here, over all workers, and their answer is held
//! back; a source that has had its fill gets a recent verdict.

mod checker;
pub mod dovecot;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use self::checker::{Check, Checked, Checker};
use super::Control;
use crate::auth::Credentials;
use crate::auth::attempts::Attempts;
use crate::config::FilterMode;
use crate::filter::{Cause, NewVerdict, Verdicts, verdict_network};
use crate::worker::port::{Ask, LookupAnswer, PasswordAnswer};

/// How long a source that guesses is kept out.
const KEPT_OUT: Duration = Duration::from_secs(3_600);
/// A refusal that is held back comes so long before the worker would give it up.
const MARGIN: Duration = Duration::from_millis(500);

/// The service for passwords.
pub(super) struct Passwords(Arc<Inner>);

struct Inner {
    control: Arc<Control>,
    verdicts: Option<Arc<Verdicts>>,
    /// With the first question: most gates have no users. `None`: no thread could be started.
    checker: OnceLock<Option<Checker>>,
    attempts: Mutex<Attempts>,
    runtime: Handle,
}

impl Passwords {
    /// The service; to be called in the control plane's runtime.
    pub(super) fn new(control: &Arc<Control>, verdicts: Option<Arc<Verdicts>>) -> Self {
        Self(Arc::new(Inner {
            control: Arc::clone(control),
            verdicts,
            checker: OnceLock::new(),
            attempts: Mutex::default(),
            runtime: Handle::current(),
        }))
    }

    /// Has a password checked; the answer goes to the worker.
    pub(super) fn check(&self, client: IpAddr, credentials: Arc<Credentials>, ask: Ask) {
        let due = Instant::now() + ask.within;
        let config = self.0.control.shared.config.load();
        let users = config.auth.as_ref().and_then(|auth| auth.users.clone());
        let (Some(users), Some(checker)) = (users, self.0.checker()) else {
            ask.answer(LookupAnswer::Password(PasswordAnswer::Unavailable));
            return;
        };
        let check = Check {
            users,
            client,
            credentials,
            due,
        };
        let inner = Arc::clone(&self.0);
        let done = move |checked| match checked {
            Checked::Right(user) => {
                ask.answer(LookupAnswer::Password(PasswordAnswer::Accepted(user)));
            }
            Checked::Wrong(name) => inner.refuse(client, &name, due, ask),
            // The worker has its answer by the deadline of the question.
            Checked::TooLate => {}
            Checked::TooMany => ask.answer(LookupAnswer::Full),
        };
        checker.check(check, Box::new(done));
    }

    /// Counts a proof that a worker found wrong, and answers when it may be refused.
    pub(super) fn wrong(&self, client: IpAddr, name: &str, ask: Ask) {
        let due = Instant::now() + ask.within;
        self.0.refuse(client, name, due, ask);
    }
}

impl Inner {
    fn checker(&self) -> Option<&Checker> {
        let checker = self.checker.get_or_init(|| match Checker::start() {
            Ok(checker) => Some(checker),
            Err(error) => {
                tracing::error!(%error, "no thread to check passwords: clients hear 454");
                None
            }
        });
        checker.as_ref()
    }

    fn refuse(&self, client: IpAddr, name: &str, due: Instant, ask: Ask) {
        let now = self.control.since.elapsed();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let consequence = attempts.wrong(client, name, now);
        drop(attempts);
        if consequence.has_had_its_fill && !ask.question.is_behind_front() {
            self.keep_out(client);
        }
        let left = due.saturating_duration_since(Instant::now());
        let delay = consequence.delay.min(left.saturating_sub(MARGIN));
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            ask.answer(LookupAnswer::Password(PasswordAnswer::Refused));
        });
    }

    /// Has the filter drop a source that guesses at passwords, unless it is a trusted front. Local
    /// networks and permit lists are spared by the filter itself.
    fn keep_out(&self, client: IpAddr) {
        let config = self.control.shared.config.load_full();
        if config.has_front_in(verdict_network(client)) {
            tracing::warn!(%client, "many wrong passwords; no verdict: it is a trusted front");
            return;
        }
        let filter = config.filter.as_ref();
        let is_enforced = filter.is_some_and(|filter| filter.mode == FilterMode::Enforce);
        let Some(verdicts) = self.verdicts.as_ref().filter(|_| is_enforced) else {
            tracing::warn!(%client, "many wrong passwords from this source; no filter drops it");
            return;
        };
        let verdicts = Arc::clone(verdicts);
        // Writing a verdict is quick, unless the map is full.
        self.runtime.spawn_blocking(move || {
            let verdict = NewVerdict {
                source: client.to_canonical().into(),
                duration: KEPT_OUT,
                cause: Cause::Password,
                note: "wrong passwords",
            };
            match verdicts.add(&verdict, Some(config.policy.lists())) {
                Ok(added) => {
                    tracing::warn!(%client, ?added, "many wrong passwords from this source");
                }
                Err(error) => tracing::warn!(
                    %client, %error,
                    "many wrong passwords from this source, and the filter takes no verdict on it"
                ),
            }
        });
    }
}

#[cfg(test)]
mod tests;
