//! Checking passwords off the workers: by the user file on a few threads (`checker.rs`), or by
//! Dovecot ([`dovecot`], `link.rs`), which carries on the whole exchange. Wrong ones are counted
//! here, over all workers, and their answer is held back; a source that has had its fill gets a
//! recent verdict.

mod checker;
pub mod dovecot;
mod link;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Mutex as AsyncMutex;

use self::checker::{Check, Checked, Checker};
use self::dovecot::{Client, Exchange, Reply};
pub(super) use self::link::{DovecotLink, follow, publish};
use super::Control;
use crate::auth::attempts::Attempts;
use crate::auth::dovecot::Attempt;
use crate::auth::{Credentials, name_key};
use crate::config::{Auth, FilterMode};
use crate::filter::{Cause, NewVerdict, Verdicts, verdict_network};
use crate::printable::printable;
use crate::worker::port::{Ask, Conversation, LookupAnswer, PasswordAnswer, Said};

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
        let users = config.auth.as_ref().and_then(Auth::users).cloned();
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
        let (inner, asked) = (Arc::clone(&self.0), Instant::now());
        let done = move |checked| match checked {
            Checked::Right(user) => {
                ask.answer(LookupAnswer::Password(PasswordAnswer::Accepted(user)));
            }
            Checked::Wrong(name) => inner.refuse(client, &name, due, asked, ask),
            // The worker has its answer by the deadline of the question.
            Checked::TooLate => {}
            Checked::TooMany => ask.answer(LookupAnswer::Full),
        };
        let delay = self.0.delay_of(client, due);
        if delay.is_zero() {
            checker.check(check, Box::new(done));
            return;
        }
        let inner = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(checker) = inner.checker() {
                checker.check(check, Box::new(done));
            }
        });
    }

    /// Has Dovecot carry an exchange on; the answer goes to the worker.
    pub(super) fn proceed(&self, client: IpAddr, is_secured: bool, said: Said, ask: Ask) {
        let asked = Instant::now();
        let inner = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            let within = ask.within.saturating_sub(MARGIN);
            let answer = match inner.dovecot_says(client, is_secured, said, within).await {
                DovecotSays::Wrong(name) => {
                    inner.refuse(client, &name, asked + ask.within, asked, ask);
                    return;
                }
                DovecotSays::Else(answer) => answer,
            };
            ask.answer(LookupAnswer::Password(answer));
        });
    }

    /// Counts a proof that a worker found wrong, and answers when it may be refused.
    pub(super) fn wrong(&self, client: IpAddr, name: &str, ask: Ask) {
        let now = Instant::now();
        self.0.refuse(client, name, now + ask.within, now, ask);
    }
}

/// What Dovecot says to what a client said.
enum DovecotSays {
    /// It is wrong; the name that the client gave, in the form in which names are compared.
    Wrong(Box<str>),
    Else(PasswordAnswer),
}

fn of_reply(reply: Reply, conversation: Option<Conversation>) -> DovecotSays {
    DovecotSays::Else(match (reply, conversation) {
        (Reply::Continue(challenge), Some(conversation)) => {
            PasswordAnswer::Challenge(challenge, conversation)
        }
        // Limits are for a user, however its name is spelt.
        (Reply::Accepted(name), _) => {
            let name = name_key(&name);
            name.map_or(PasswordAnswer::Unavailable, PasswordAnswer::Accepted)
        }
        (Reply::Refused(name), _) => {
            let name = name.and_then(|name| name_key(&name));
            return DovecotSays::Wrong(name.unwrap_or_default());
        }
        (Reply::Unavailable | Reply::Continue(_), _) => PasswordAnswer::Unavailable,
    })
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

    /// One step of an exchange with Dovecot.
    async fn dovecot_says(
        &self,
        client: IpAddr,
        is_secured: bool,
        said: Said,
        within: Duration,
    ) -> DovecotSays {
        let unavailable = DovecotSays::Else(PasswordAnswer::Unavailable);
        match said {
            Said::Auth(mechanism, initial) => {
                let Some(dovecot) = self.dovecot() else {
                    return unavailable;
                };
                let attempt = Attempt {
                    mechanism,
                    client,
                    is_secured,
                    initial,
                };
                let (reply, exchange) = dovecot.begin(attempt, within).await;
                let conversation = exchange.map(|it| Conversation::new(AsyncMutex::new(it)));
                of_reply(reply, conversation)
            }
            Said::Response(conversation, response) => {
                let Some(exchange) = conversation.get::<AsyncMutex<Exchange>>() else {
                    return unavailable;
                };
                // A worker has one question at a time about an exchange.
                let reply = exchange.lock().await.proceed(response, within).await;
                of_reply(reply, Some(conversation))
            }
        }
    }

    /// The connection to Dovecot, if the configuration in force has one.
    fn dovecot(&self) -> Option<Client> {
        let config = self.control.shared.config.load();
        let socket = config.auth.as_ref().and_then(Auth::dovecot)?;
        self.control.dovecot.client(socket)
    }

    /// How long a check is put off, so that there is still time for its answer.
    fn delay_of(&self, client: IpAddr, due: Instant) -> Duration {
        let now = self.control.since.elapsed();
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let left = due.saturating_duration_since(Instant::now());
        attempts
            .delay_of(client, now)
            .min(left.saturating_sub(2 * MARGIN))
    }

    /// Counts a wrong password, and answers when it may be refused: so long after the moment at
    /// which it was wrong.
    fn refuse(&self, client: IpAddr, name: &str, due: Instant, since: Instant, ask: Ask) {
        self.log_wrong(client, name);
        let now = self.control.since.elapsed();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let consequence = attempts.wrong(client, name, now);
        drop(attempts);
        if consequence.has_had_its_fill && !ask.question.is_behind_front() {
            self.keep_out(client);
        }
        let delay = consequence.delay.saturating_sub(since.elapsed());
        let left = due.saturating_duration_since(Instant::now());
        let delay = delay.min(left.saturating_sub(MARGIN));
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            ask.answer(LookupAnswer::Password(PasswordAnswer::Refused));
        });
    }

    /// A name that no user has may be a password that was typed in the wrong place: it is not
    /// logged. What Dovecot knows, its own log has.
    fn log_wrong(&self, client: IpAddr, name: &str) {
        let config = self.control.shared.config.load();
        let users = config.auth.as_ref().and_then(Auth::users);
        match users.and_then(|users| users.get(name)) {
            Some(user) => {
                tracing::info!(%client, user = %printable(&user.name), "wrong password");
            }
            None => tracing::info!(%client, "wrong user name or password"),
        }
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
