//! A client's session, in the order in which it happens: admission, the greeting, commands, and one
//! transaction after the other.
//!
//! What a client sends is handed to the SMTP engine, what the engine makes of it to the policy, and
//! what is allowed to the [transaction](super::mail). A session is a task of its own; between
//! commands it is a few hundred bytes that wait.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::envelope::Mail;
use portcullis_smtp::server::{self, Event, Verb};

use super::auth::OpenAuth;
use super::command_due::ReaderLook;
use super::connection::{OUTPUT_MAX, Role};
use super::deadline::Deadline;
use super::end::End;
use super::front::{Front, Origin, Peer};
use super::listener::{Channel, Listener};
use super::lookup::Listings;
use super::reactor::{Reactor, Service};
use super::records::TraceId;
use super::sources::ClientSource;
use super::transaction::OpenTransaction;
use super::users::Sent;
use crate::config::Limits;
use crate::driver::Conn;
use crate::policy::{self, Decision, Facts, Identity, Rule, Stage, decide};

/// What came of showing the SMTP engine what has arrived.
pub(super) enum Heard<T> {
    /// This.
    Some(T),
    /// It needs more octets. `is_over`: none will come.
    More { is_over: bool },
    /// It needs an answer to an earlier command, or room for its replies.
    Wait,
}

/// What a command begins.
pub(super) enum Began {
    /// A transaction.
    Transaction(Rc<OpenTransaction>),
    /// A TLS handshake.
    Handshake,
}

/// One client's session.
pub(super) struct Session {
    pub(super) reactor: Rc<Reactor>,
    pub(super) conn: Conn,
    pub(super) smtp: server::Session,
    pub(super) heard: LastHeard,
    pub(super) listener: Rc<Listener>,
    /// What EHLO offers depends on this.
    pub(super) channel: Channel,
    /// What is known of the client. It is renewed when the configuration changes, and never made
    /// anew from the address alone.
    pub(super) client: policy::Client,
    /// What is kept if it comes by a trusted front.
    pub(super) front: Option<Box<Front>>,
    /// Who it has proved to be. Not renewed with the configuration.
    pub(super) identity: Option<Rc<Identity>>,
    /// AUTH, as long as it runs.
    pub(super) auth: Option<Box<OpenAuth>>,
    /// The configuration that the client and the listener are from.
    generation: u32,
    pub(super) id: TraceId,
    pub(super) helo: String,
    /// When it began.
    pub(super) since: Duration,
    /// When the client last got on: a command, or an answer to one.
    pub(super) progress_at: Duration,
    /// When the client's next whole command has to be there.
    pub(super) command_due: Duration,
    /// A client whose time is over and that may be busy with reading is looked at then.
    pub(super) look: ReaderLook,
    /// The rule that let it in.
    pub(super) admitted: Rule,
    /// Counted in the sessions of this source.
    pub(super) source: Option<ClientSource>,
    /// What DNS lists say about the client.
    pub(super) listings: Listings,
    /// The rule by which recipients were refused for it.
    pub(super) listed: Option<Rule>,
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) octets: u64,
}

/// What the SMTP engine has said last, unless it was given an answer since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastHeard {
    /// It needs more octets, also after a positive answer to MAIL or to a message.
    More,
    /// It needs an answer.
    Wait,
    /// Something else, or it may have something new to say.
    Other,
}

/// The task of a client's session. (An `async fn` would keep its arguments beside the session.)
pub(super) fn session(
    reactor: Rc<Reactor>,
    conn: Conn,
    origin: Origin,
    listener: Rc<Listener>,
) -> impl Future<Output = ()> {
    let mut session = Session::new(reactor, conn, origin, listener);
    async move {
        let end = match session.dialogue().await {
            Ok(never) => match never {},
            Err(end) => session.named(end),
        };
        session.end(&end);
    }
}

impl Session {
    fn new(reactor: Rc<Reactor>, conn: Conn, origin: Origin, listener: Rc<Listener>) -> Self {
        if origin.peer != Peer::Check {
            reactor.counters.session_opened();
        }
        reactor.sessions.set(reactor.sessions.get() + 1);
        let now = reactor.now.get();
        Self {
            smtp: server::Session::new(),
            heard: LastHeard::Other,
            channel: Channel {
                peer: origin.peer,
                ..Channel::default()
            },
            client: reactor.config().policy.client(origin.address),
            front: origin.front,
            identity: None,
            auth: None,
            generation: reactor.generation(),
            id: reactor.next_id(),
            helo: String::new(),
            since: now,
            progress_at: now,
            command_due: Duration::MAX,
            look: ReaderLook::None,
            admitted: Rule::UNLISTED,
            source: None,
            listings: Listings::Known(None),
            listed: None,
            accepted: 0,
            refused: 0,
            octets: 0,
            listener,
            reactor,
            conn,
        }
    }

    async fn dialogue(&mut self) -> Result<Infallible, End> {
        self.admit()?;
        self.ask_zones();
        if self.listener.is_implicit() {
            // Boxed, or every session would be larger for it.
            Box::pin(self.begin_secured()).await?;
        }
        let delay = self.limits().greeting_delay;
        // A user's program that talks too soon is not to be turned away for it.
        let is_stranger = !self.client.is_exempt() && !self.is_with_front();
        let waits = is_stranger && !self.service().is_submission();
        if waits && !delay.is_zero() {
            let due = self.reactor.now.get() + delay;
            poll_fn(|_| self.poll_greeting_due(due)).await?;
        }
        self.greet();
        loop {
            let transaction = match poll_fn(|_| self.poll_mail()).await? {
                Began::Transaction(transaction) => transaction,
                Began::Handshake => {
                    Box::pin(self.upgrade()).await?;
                    continue;
                }
            };
            let carried = self.carry(&transaction).await;
            self.close(&transaction, carried.as_ref().err());
            carried?;
        }
    }

    fn greet(&mut self) {
        let settings = self.listener.settings(self.channel);
        let smtp = &mut self.smtp;
        self.reactor
            .write(self.conn, |out| smtp.greet(settings, out));
        self.heard = LastHeard::Other;
        self.expect_command();
    }

    /// The time before the greeting, in which a client may say nothing.
    fn poll_greeting_due(&mut self, due: Duration) -> Poll<Result<(), End>> {
        if self.reactor.service.get() != Service::Open {
            return Poll::Ready(Err(End::Stopping));
        }
        let heard =
            self.poll_events(|session, event, _| session.common_event(None, &event).map(Err))?;
        match heard {
            Heard::Some(()) | Heard::More { is_over: true } => {
                return Poll::Ready(Err(End::Gone));
            }
            Heard::More { is_over: false } | Heard::Wait => {}
        }
        if Deadline::Greeting.is_past(&self.reactor, due) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Commands between transactions; ready with what one of them begins.
    fn poll_mail(&mut self) -> Poll<Result<Began, End>> {
        if self.reactor.service.get() != Service::Open {
            return Poll::Ready(Err(End::Stopping));
        }
        self.take_auth();
        let heard = self.poll_events(|session, event, out| match event {
            Event::Mail(mail) => session.mail(&mail, out).map(Began::Transaction).map(Ok),
            Event::StartTls => session.starttls(out).map(Ok),
            Event::Auth { mechanism, initial } => {
                session.begin_auth(mechanism, initial, out);
                None
            }
            Event::AuthResponse(response) => {
                session.auth_response(response, out);
                None
            }
            Event::Hello { name, .. } => {
                session.hello(name, out);
                None
            }
            Event::Xclient(command) => session.xclient(command, out).map(Err),
            event => session.common_event(None, &event).map(Err),
        })?;
        match heard {
            Heard::Some(began) => {
                if let Began::Transaction(_) = began {
                    // MAIL was accepted: without more octets the engine has nothing to say.
                    self.heard = LastHeard::More;
                }
                Poll::Ready(Ok(began))
            }
            Heard::More { is_over: true } => Poll::Ready(Err(End::Gone)),
            // The time is ours now.
            Heard::Wait if self.awaits_auth() => self.poll_gone(),
            Heard::More { is_over: false } | Heard::Wait => self.poll_command_due(),
        }
    }

    /// What is the same wherever the session stands: commands that the SMTP engine refuses by
    /// itself, which are noted, and the end of the session, which is returned.
    pub(super) fn common_event(
        &mut self,
        transaction: Option<&OpenTransaction>,
        event: &Event<'_>,
    ) -> Option<End> {
        match event {
            Event::Refused { verb, error, reply } => {
                if *verb == Verb::Auth {
                    self.break_off_auth();
                }
                self.note_refused_command(transaction, *verb, (*error).into(), reply);
                None
            }
            Event::Quit => Some(End::Quit {
                talks_on: self.smtp.has_unread_input(),
            }),
            Event::Abort(abuse) => Some(End::Abuse(*abuse)),
            _ => None,
        }
    }

    /// Shows the SMTP engine what has arrived, and its events to `on` until that has something to
    /// go on with. What was not used up stays with the connection: also what comes behind a command
    /// after which the transport may be another.
    ///
    /// # Errors
    /// The end that `on` gave, or that came meanwhile.
    pub(super) fn poll_events<T>(
        &mut self,
        mut on: impl FnMut(&mut Self, Event<'_>, &mut Vec<u8>) -> Option<Result<T, End>>,
    ) -> Result<Heard<T>, End> {
        if self.reactor.service.get() == Service::Over {
            return Err(End::Stopping);
        }
        self.renew();
        let polled = self.reactor.polled();
        if !polled.has_input && polled.is_open {
            // The engine has nothing to say that it has not said.
            match self.heard {
                LastHeard::More => {
                    return Ok(Heard::More {
                        is_over: polled.is_at_end,
                    });
                }
                LastHeard::Wait => return Ok(Heard::Wait),
                LastHeard::Other => {}
            }
        }
        if self.auth.is_some() {
            self.reactor.reads_secret.set(true);
        }
        let reactor = Rc::clone(&self.reactor);
        let listener = Rc::clone(&self.listener);
        let settings = listener.settings(self.channel);
        let (mut progress, mut is_awaiting) = (false, false);
        let heard = reactor.read(self.conn, |input, out| {
            let (mut taken, written) = (0, out.len());
            if out.is_empty() {
                self.smtp.flushed();
            }
            let heard = loop {
                if out.len() > OUTPUT_MAX {
                    break Ok(Heard::Wait);
                }
                let step = self.smtp.handle(settings, &input[taken..], out);
                taken += step.consumed;
                match step.event {
                    Event::NeedInput => break Ok(Heard::More { is_over: false }),
                    Event::AwaitingAnswer => {
                        is_awaiting = true;
                        break Ok(Heard::Wait);
                    }
                    event => {
                        progress = true;
                        if let Some(result) = on(self, event, out) {
                            break result.map(Heard::Some);
                        }
                    }
                }
            };
            // A command that the engine answers by itself makes no event.
            progress |= out.len() > written;
            (taken, heard)
        });
        if progress {
            self.expect_command();
        }
        self.heard = if is_awaiting {
            LastHeard::Wait
        } else {
            LastHeard::Other
        };
        match heard {
            None => Err(End::Gone),
            Some(Ok(Heard::More { .. })) => {
                self.heard = LastHeard::More;
                Ok(Heard::More {
                    is_over: polled.is_at_end,
                })
            }
            Some(heard) => heard,
        }
    }

    fn hello(&mut self, name: &str, out: &mut Vec<u8>) {
        if !self.has_named_helo() {
            name.clone_into(&mut self.helo);
        }
        let config = self.reactor.config();
        let decision = decide(Stage::Hello, &config.policy, &self.facts());
        self.answer(&decision, out);
    }

    fn mail(&mut self, mail: &Mail<'_>, out: &mut Vec<u8>) -> Option<Rc<OpenTransaction>> {
        if self.is_with_unknown() {
            self.refuse_unknown(out);
            return None;
        }
        let config = self.reactor.config();
        let sender = mail.path.as_ref().map_or("", |path| path.raw);
        let facts = Facts {
            sender,
            counts: self.user_counts(),
            ..self.facts()
        };
        let decision = decide(Stage::Mail, &config.policy, &facts);
        let (id, now) = (self.reactor.next_id(), self.reactor.now.get());
        let transaction = OpenTransaction::new(mail, id, self.conn, now);
        self.set_trace_length(mail, &transaction);
        if let Decision::Refuse { rule, reply, .. } = &decision {
            transaction.note_refusal(*rule, "", reply);
            transaction.note(|notes| notes.refused_by = Some(*rule));
        }
        self.answer(&decision, out);
        if !decision.is_accept() {
            self.record_transaction(&transaction);
            return None;
        }
        self.count_sent(Sent::MESSAGE);
        let transaction = Rc::new(transaction);
        let shared = Rc::clone(&transaction);
        self.reactor.with(self.conn, |connection| {
            connection.role = Role::Client(Some(shared));
        });
        Some(transaction)
    }

    /// Answers what the policy alone decides.
    fn answer(&mut self, decision: &Decision, out: &mut Vec<u8>) {
        let settings = self.listener.settings(self.channel);
        match decision {
            // No check before RCPT looks anything up.
            Decision::Accept(_) | Decision::Wait(_) => self.smtp.accept(settings, out),
            Decision::Refuse { reply, blame, .. } => {
                self.smtp.refuse(settings, reply, *blame, out);
            }
        }
    }

    /// What is known of the client so far.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            helo: &self.helo,
            answers: self.listings.answers(),
            is_granted: self.reactor.shared.granted.has(self.client.address),
            identity: self.identity.as_deref(),
            ..Facts::new(self.listener.facts, &self.client)
        }
    }

    /// What is spoken on its listener.
    pub(super) fn service(&self) -> policy::Service {
        self.listener.facts.service
    }

    /// A new configuration may see this client with other eyes. What it has proved itself stays.
    pub(super) fn renew(&mut self) {
        if self.generation == self.reactor.generation() {
            return;
        }
        self.generation = self.reactor.generation();
        self.client = self.reactor.config().policy.client(self.client.address);
        if let Some(listener) = self.reactor.listener(self.listener.number()) {
            self.listener = listener;
        }
        self.renew_identity();
    }

    /// The user that the client has proved to be, for records.
    pub(super) fn user(&self) -> Option<Arc<str>> {
        let identity = self.identity.as_deref();
        identity.map(|identity| Arc::clone(&identity.user))
    }

    /// What holds for the sessions of its listener.
    pub(super) fn listener(&self) -> Rc<Listener> {
        Rc::clone(&self.listener)
    }

    /// The limits of the sessions of its listener.
    pub(super) fn limits(&self) -> &Limits {
        self.listener.limits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_future(session);
        println!(
            "future {size}, session {}, smtp {}, client {}, conn {}, txn {}",
            size_of::<Session>(),
            size_of::<server::Session>(),
            size_of::<policy::Client>(),
            size_of::<super::super::connection::Connection>(),
            size_of::<OpenTransaction>()
        );
        assert!(size <= 512, "{size}");
    }
}
