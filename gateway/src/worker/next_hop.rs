//! Our session with a next hop: from the connect to QUIT, for one owner after the other.
//!
//! The task is the connection's: it opens it, says EHLO, tells and hears what its [`Owner`] has for
//! the next hop, cleans up with RSET behind an owner that has gone, waits in the pool for the next
//! one, and says QUIT. An owner that goes away, in whatever state, waits for nothing and has
//! nothing to undo.

mod silence;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::client::{Client, ClientEvent, Sent};
use portcullis_smtp::reply::Reply;

use super::connection::{Connection, Ending, Phase};
use super::deadline::Deadline;
use super::lease::{ask_again, attach_to_client, closed_in_pool};
use super::local::Local;
use super::reactor::{Reactor, Service};
use crate::driver::Conn;
use crate::relay::destination::Loss;
use crate::relay::owner::Owner;

/// What others may know of a session with a next hop, and do to it.
pub(super) struct NextHop {
    pub(super) address: SocketAddr,
    /// What it carries, or is being opened for.
    owner: Local<Option<Rc<dyn Owner>>>,
    /// Transactions can begin, or could.
    ready: Cell<bool>,
    /// It is being opened with no transaction to wait for it, and the pool counts it as such.
    background: Cell<bool>,
    /// Its owner has gone after DATA, and the next hop must not hear an end of it.
    abandoned: Cell<bool>,
}

impl NextHop {
    pub(super) fn new(address: SocketAddr, owner: Option<Rc<dyn Owner>>) -> Self {
        Self {
            address,
            background: Cell::new(owner.is_none()),
            owner: Local::new(owner),
            ready: Cell::new(false),
            abandoned: Cell::new(false),
        }
    }

    /// Gives it something to carry.
    pub(super) fn give(&self, owner: Rc<dyn Owner>) {
        self.owner.replace(Some(owner));
    }

    /// Its owner goes. With `abandoned` the connection has to be closed.
    pub(super) fn leave(&self, abandoned: bool) {
        self.owner.take();
        self.abandoned.set(abandoned);
    }

    /// Leaves a connection that is still being opened to itself. Returns its owner, or `None` if it
    /// is open or was left so before.
    pub(super) fn leave_in_background(&self) -> Option<Option<Rc<dyn Owner>>> {
        if self.ready.get() || self.background.replace(true) {
            return None;
        }
        tracing::info!(
            next_hop = %self.address,
            "next hop is slow to take a connection, going on to others meanwhile"
        );
        Some(self.owner.take())
    }

    fn owner(&self) -> Option<Rc<dyn Owner>> {
        self.owner.with(|owner| owner.clone())
    }
}

/// How a session with a next hop ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// With QUIT.
    Quit,
    /// The connection is no good any more, for this reason.
    Lost(Loss),
    /// It is ended in order, and its transaction goes on with another one.
    Replaced,
    /// Nothing is wrong with it, but it is needed no more and cannot be kept.
    Abandoned,
}

/// What a reply means for the session.
enum After {
    Goes,
    /// HELO is to be tried.
    Helo,
    /// EHLO or HELO was accepted.
    Ready,
    Ehlo,
    Ends(End),
}

/// Whether what has just happened gives the next hop its whole time again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Renew {
    Yes,
    No,
}

/// The task of a session with a next hop.
pub(super) async fn session(reactor: Rc<Reactor>, conn: Conn, shared: Rc<NextHop>) {
    let open_due = reactor.now.get() + reactor.config().relay.connect_timeout;
    let mut session = Session {
        reactor,
        conn,
        shared,
        smtp: Client::new(),
        state: State {
            needs_reset: false,
            awaits_final: false,
            refusal: None,
        },
        is_fresh: true,
        waits: None,
        look_at: None,
        open_due,
    };
    let end = session.run().await;
    session.end(end);
}

/// What replies change.
struct State {
    /// A transaction was begun on it that has not been completed.
    needs_reset: bool,
    /// The final reply to a message is awaited, which may take longer than others (RFC 5321 section
    /// 4.5.3.2.6).
    awaits_final: bool,
    /// What it said when it took no session, or ended it.
    refusal: Option<Reply<'static>>,
}

pub(super) struct Session {
    reactor: Rc<Reactor>,
    conn: Conn,
    shared: Rc<NextHop>,
    smtp: Client,
    state: State,
    /// It has just become ready, and its owner has told nothing.
    is_fresh: bool,
    /// What is waited for, and since when.
    waits: Option<(Deadline, Duration)>,
    /// When the next hop is to be looked at next.
    look_at: Option<Duration>,
    /// When it has to be ready.
    open_due: Duration,
}

impl Session {
    async fn run(&mut self) -> End {
        match self.dialogue().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn dialogue(&mut self) -> Result<Infallible, End> {
        poll_fn(|_| self.poll_open()).await?;
        self.opened();
        loop {
            poll_fn(|_| self.poll_carry()).await?;
            if self.state.needs_reset {
                self.reset();
                poll_fn(|_| self.poll_replies_owed()).await?;
                continue;
            }
            self.return_to_pool()?;
            poll_fn(|_| self.poll_rest()).await?;
        }
    }

    /// The connect, the greeting and EHLO, within `connect_timeout`.
    fn poll_open(&mut self) -> Poll<Result<(), End>> {
        if self.is_connecting() {
            return self.poll_open_due();
        }
        match self.poll_replies() {
            Poll::Ready(Ok(After::Ready)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) | Poll::Pending => self.poll_open_due(),
            Poll::Ready(Err(end)) => Poll::Ready(Err(end)),
        }
    }

    fn is_connecting(&self) -> bool {
        let opening = |connection: &mut Connection| connection.phase == Phase::Opening;
        self.reactor.with(self.conn, opening).unwrap_or(false)
    }

    fn poll_open_due(&mut self) -> Poll<Result<(), End>> {
        if self.is_abandoned() {
            return Poll::Ready(Err(End::Abandoned));
        }
        if !Deadline::Open.is_past(&self.reactor, self.open_due) {
            return Poll::Pending;
        }
        self.warn_of_silence("no answer in time");
        Poll::Ready(Err(End::Lost(Loss::NoAnswer)))
    }

    /// The next hop is well: transactions can begin.
    fn opened(&mut self) {
        let address = self.shared.address;
        self.shared.ready.set(true);
        self.state.refusal = None;
        let was_in_background = self.shared.background.replace(false);
        let again = self.reactor.pool.with(|pool| {
            if was_in_background {
                pool.background_ended(address);
            }
            pool.reached(address)
        });
        ask_again(&self.reactor, address, again);
    }

    /// Carries what its owner has, until there is no owner and nothing more is awaited.
    fn poll_carry(&mut self) -> Poll<Result<(), End>> {
        if self.is_abandoned() {
            return Poll::Ready(Err(End::Abandoned));
        }
        let replied = match self.poll_replies() {
            Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
            Poll::Ready(Ok(_)) => true,
            Poll::Pending => false,
        };
        let polled = self.reactor.polled();
        // With replies owed it is those that are waited for.
        let renew = if replied || (polled.has_sent && self.smtp.replies_owed() == 0) {
            Renew::Yes
        } else {
            Renew::No
        };
        let owner = self.shared.owner();
        match &owner {
            Some(owner) => {
                if replied {
                    self.reactor.wake(owner.task());
                }
                if polled
                    .waiting
                    .is_some_and(|waiting| owner.relieved(waiting))
                {
                    self.reactor.wake(owner.task());
                }
                if replied || polled.was_woken || std::mem::take(&mut self.is_fresh) {
                    self.advance(owner.as_ref(), renew);
                } else {
                    self.expect(renew);
                }
            }
            None if !self.state.awaits_final && self.smtp.replies_owed() == 0 => {
                return Poll::Ready(Ok(()));
            }
            // MAIL may be waiting for its reply: RSET comes behind it.
            None if self.state.needs_reset && !self.state.awaits_final && self.smtp.may_send() => {
                return Poll::Ready(Ok(()));
            }
            None => self.expect(renew),
        }
        self.poll_silence()
    }

    /// Has the owner tell what it can tell now.
    fn advance(&mut self, owner: &dyn Owner, mut renew: Renew) {
        let (address, conn) = (self.shared.address, self.conn);
        if !self.smtp.extensions().dsn && owner.asks_for_dsn() {
            self.warn_of_dsn();
        }
        let smtp = &mut self.smtp;
        let begun = self
            .reactor
            .write(conn, |out| owner.advance(address, smtp, out));
        self.state.needs_reset |= begun;
        let standing = owner.standing();
        if standing.awaits_final && !self.state.awaits_final {
            self.state.awaits_final = true;
            renew = Renew::Yes;
        }
        if standing.has_news {
            self.reactor.wake(owner.task());
        }
        self.expect(renew);
    }

    fn reset(&mut self) {
        self.state.needs_reset = false;
        let smtp = &mut self.smtp;
        self.reactor.write(self.conn, |out| smtp.rset(out));
        self.expect(Renew::Yes);
    }

    /// Waits for the replies that are owed.
    fn poll_replies_owed(&mut self) -> Poll<Result<(), End>> {
        if self.is_abandoned() {
            return Poll::Ready(Err(End::Abandoned));
        }
        let renew = match self.poll_replies() {
            Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
            Poll::Ready(Ok(_)) => Renew::Yes,
            Poll::Pending => Renew::No,
        };
        if self.smtp.replies_owed() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.expect(renew);
        self.poll_silence()
    }

    /// It has nothing more to do: the client that has waited longest gets it, or it lies in the
    /// pool.
    fn return_to_pool(&mut self) -> Result<(), End> {
        let is_draining = self.reactor.service.get() != Service::Open;
        if is_draining || !self.smtp.takes_transaction() {
            return Err(End::Quit);
        }
        let (address, conn) = (self.shared.address, self.conn);
        // One that has gone in this moment waits no more.
        while let Some(client) = self.reactor.pool.with(|pool| pool.released(address, conn)) {
            if attach_to_client(&self.reactor, client, conn) {
                break;
            }
        }
        self.waits = None;
        self.look_at = None;
        Ok(())
    }

    /// Lies in the pool until it has an owner, or for `idle_timeout`.
    fn poll_rest(&mut self) -> Poll<Result<(), End>> {
        if let Poll::Ready(Err(end)) = self.poll_replies() {
            return Poll::Ready(Err(end));
        }
        if self.shared.owner().is_some() {
            self.waits = None;
            return Poll::Ready(Ok(()));
        }
        let now = self.reactor.now.get();
        let (_, since) = *self.waits.get_or_insert((Deadline::Idle, now));
        let due = since + self.reactor.config().relay.idle_timeout;
        let is_draining = self.reactor.service.get() != Service::Open;
        if is_draining || Deadline::Idle.is_past(&self.reactor, due) {
            return Poll::Ready(Err(End::Quit));
        }
        Poll::Pending
    }

    /// Takes the replies that have come; ready with what the last one means if there was one.
    fn poll_replies(&mut self) -> Poll<Result<After, End>> {
        let polled = self.reactor.polled();
        if !polled.has_input {
            return if polled.is_open && !polled.is_at_end {
                Poll::Pending
            } else {
                Poll::Ready(Err(End::Lost(Loss::Broken)))
            };
        }
        let reactor = Rc::clone(&self.reactor);
        let owner = self.shared.owner();
        let owner = owner.as_deref();
        let (smtp, state) = (&mut self.smtp, &mut self.state);
        let read = reactor.read(self.conn, |input, out| {
            let (mut taken, mut latest) = (0, None);
            loop {
                let is_kept = smtp.transactions() > 1;
                let (consumed, event) = smtp.handle(&input[taken..]);
                taken += consumed;
                let after = match event {
                    ClientEvent::NeedInput => break,
                    ClientEvent::Reply { to, reply } => state.take(to, &reply, owner, is_kept),
                    ClientEvent::Unsolicited(reply) => {
                        if let Some(owner) = owner.filter(|_| reply.code != 421) {
                            owner.interrupted(&reply);
                        }
                        state.refusal = Some(reply.into_owned());
                        After::Ends(End::Lost(Loss::Broken))
                    }
                    ClientEvent::Malformed => After::Ends(End::Lost(Loss::Broken)),
                };
                match after {
                    After::Ehlo => smtp.ehlo(&reactor.config().hostname, out),
                    After::Helo => smtp.helo(&reactor.config().hostname, out),
                    _ => {}
                }
                let ends = matches!(after, After::Ends(_));
                latest = Some(after);
                if ends {
                    break;
                }
            }
            (taken, latest)
        });
        match read {
            Some(Some(After::Ends(end))) => Poll::Ready(Err(end)),
            _ if polled.is_at_end => Poll::Ready(Err(End::Lost(Loss::Broken))),
            Some(Some(after)) => Poll::Ready(Ok(after)),
            Some(None) => Poll::Pending,
            None => Poll::Ready(Err(End::Lost(Loss::Broken))),
        }
    }

    fn is_abandoned(&self) -> bool {
        let service = self.reactor.service.get();
        // An attempt that no session waits for must not keep the gate from stopping.
        let is_useless = !self.shared.ready.get() && self.reactor.sessions.get() == 0;
        self.shared.abandoned.get()
            || service == Service::Over
            || (service == Service::Draining && is_useless)
    }

    pub(super) fn warn_of_silence(&self, what: &'static str) {
        tracing::warn!(next_hop = %self.shared.address, "{what}");
    }

    fn warn_of_dsn(&self) {
        let address = self.shared.address;
        if self.reactor.pool.with(|pool| pool.lacks_dsn(address)) {
            tracing::warn!(
                next_hop = %address,
                "next hop does not offer DSN although its route says so: what NOTIFY, ORCPT, RET \
                 and ENVID ask for is lost; set dsn = false in its [[route]]"
            );
        }
    }

    /// The session is over: the pool hears of it, and then the owner.
    fn end(mut self, end: End) {
        let (address, conn) = (self.shared.address, self.conn);
        let owner = self.shared.owner.take();
        let said = self.state.refusal.take();
        let ready = self.shared.ready.get();
        let (in_order, loss) = match end {
            End::Quit => (true, Loss::Broken),
            End::Replaced => (self.smtp.may_send(), Loss::Deferred),
            End::Lost(_) if !ready => (false, self.not_opened(said.as_ref())),
            End::Lost(loss) => (false, loss),
            End::Abandoned => (false, Loss::Broken),
        };
        if in_order {
            let smtp = &mut self.smtp;
            self.reactor.write(conn, |out| smtp.quit(out));
            self.reactor.finish(conn, Ending::HangUp);
        } else {
            self.reactor.with(conn, Connection::abort);
            self.reactor.finish(conn, Ending::Quiet);
        }
        if self.shared.background.get() {
            self.reactor
                .pool
                .with(|pool| pool.background_ended(address));
        }
        closed_in_pool(&self.reactor, address, Some(conn), ready);
        if let Some(owner) = owner {
            owner.lost(address, loss, said);
            self.reactor.wake(owner.task());
        }
    }

    /// A session with a next hop did not come about. What the next hop said to that is for the log,
    /// and for all clients that cannot have a connection to it meanwhile.
    fn not_opened(&self, said: Option<&Reply<'static>>) -> Loss {
        let (address, now) = (self.shared.address, self.reactor.now.get());
        let reply = said.map(ToString::to_string);
        if self.reactor.pool.with(|pool| pool.refused(address, now)) {
            if let Some(reply) = reply {
                tracing::info!(
                    next_hop = %address,
                    reply,
                    "next hop takes no more connections for now"
                );
            }
            return Loss::Crowded;
        }
        match reply {
            Some(reply) => tracing::warn!(
                next_hop = %address,
                reply,
                "next hop refuses this server: its own log, or who runs it, can say why"
            ),
            None => tracing::warn!(next_hop = %address, "next hop cannot be reached"),
        }
        let said = said.cloned();
        self.reactor
            .pool
            .with(|pool| pool.note_refusal(address, said));
        Loss::NoAnswer
    }
}

impl State {
    /// Takes a reply. `is_kept`: the connection had carried other transactions.
    fn take(
        &mut self,
        to: Sent,
        reply: &Reply<'_>,
        owner: Option<&dyn Owner>,
        is_kept: bool,
    ) -> After {
        let lost = || After::Ends(End::Lost(Loss::Broken));
        if reply.code == 421 || !fits(to, reply) {
            self.refusal = (reply.code == 421).then(|| reply.clone().into_owned());
            return lost();
        }
        let may_be_the_connection = is_kept && owner.is_some_and(Owner::may_be_the_connection);
        match to {
            Sent::Mail if reply.is_transient() && may_be_the_connection => {
                self.refusal = Some(reply.clone().into_owned());
                return After::Ends(End::Replaced);
            }
            Sent::Greeting if reply.is_positive() => return After::Ehlo,
            Sent::Ehlo if reply.is_permanent() => {
                // Either it does not know EHLO, or it hangs up on HELO as well and this was the
                // reason.
                self.refusal = Some(reply.clone().into_owned());
                return After::Helo;
            }
            Sent::Ehlo | Sent::Helo if reply.is_positive() => return After::Ready,
            Sent::Greeting | Sent::Ehlo | Sent::Helo => {
                self.refusal = Some(reply.clone().into_owned());
                return lost();
            }
            // Only QUIT is sent.
            Sent::Quit | Sent::StartTls | Sent::Auth | Sent::Xclient => return lost(),
            // A next hop that refuses to forget a transaction is not to get another.
            Sent::Rset if !reply.is_positive() => return lost(),
            Sent::Rset => {}
            Sent::Mail | Sent::Rcpt | Sent::Data | Sent::Chunk | Sent::Message => {
                if to == Sent::Message {
                    self.needs_reset = false;
                    self.awaits_final = false;
                }
                if let Some(owner) = owner {
                    owner.reply(to, reply);
                }
            }
        }
        After::Goes
    }
}

/// Whether a reply of this kind can be an answer to the command at all. Taking a 250 to DATA for a
/// success would lose the message.
fn fits(to: Sent, reply: &Reply<'_>) -> bool {
    match to {
        Sent::Data if reply.is_positive() => reply.code == 354,
        _ => matches!(reply.code, 200..=299 | 400..=599),
    }
}
