//! Our session with a next hop: from the connect to QUIT, for one owner after the other.
//!
//! The task is the connection's: it opens it, says EHLO, tells and hears what its [`Owner`] has for
//! the next hop, cleans up with RSET behind an owner that has gone, waits in the pool for the next
//! one, and says QUIT. An owner that goes away, in whatever state, waits for nothing and has
//! nothing to undo.

mod ending;
mod naming;
mod opening;
mod replies;
mod silence;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::client::Client;

use self::replies::State;
use super::deadline::Deadline;
use super::lease::attach_to_client;
use super::local::Local;
use super::reactor::{Reactor, Service};
use crate::driver::Conn;
use crate::relay::destination::Loss;
use crate::relay::hop::{Hop, HopId};
use crate::relay::owner::{Link, Owner};

/// What others may know of a session with a next hop, and do to it.
pub(super) struct NextHop {
    hop: Hop,
    /// What it carries, or is being opened for.
    owner: Local<Option<Rc<dyn Owner>>>,
    /// The owner is another one than when that was asked last.
    is_new_owner: Cell<bool>,
    /// Transactions can begin, or could.
    ready: Cell<bool>,
    /// It is being opened with no transaction to wait for it, and the pool counts it as such.
    background: Cell<bool>,
    /// Its owner has gone after DATA, and the next hop must not hear an end of it.
    abandoned: Cell<bool>,
}

impl NextHop {
    pub(super) fn new(hop: Hop, owner: Option<Rc<dyn Owner>>) -> Self {
        Self {
            hop,
            is_new_owner: Cell::new(owner.is_some()),
            background: Cell::new(owner.is_none()),
            owner: Local::new(owner),
            ready: Cell::new(false),
            abandoned: Cell::new(false),
        }
    }

    /// The next hop, as the pool knows it.
    pub(super) fn id(&self) -> HopId {
        self.hop.id()
    }

    /// Gives it something to carry.
    pub(super) fn give(&self, owner: Rc<dyn Owner>) {
        self.is_new_owner.set(true);
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
            next_hop = %self.id(),
            "next hop is slow to take a connection, going on to others meanwhile"
        );
        Some(self.owner.take())
    }

    fn owner(&self) -> Option<Rc<dyn Owner>> {
        self.owner.with(|owner| owner.clone())
    }
}

/// How a session with a next hop ends.
#[derive(Clone, Copy, PartialEq, Eq)]
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
        state: State::default(),
        has_begun: false,
        tls_version: "",
        is_fresh: true,
        waits: None,
        look_at: None,
        open_due,
        clear_until: None,
    };
    let end = session.run().await;
    session.end(end);
}

pub(super) struct Session {
    reactor: Rc<Reactor>,
    conn: Conn,
    shared: Rc<NextHop>,
    smtp: Client,
    state: State,
    /// The connection was made, and what comes first was written.
    has_begun: bool,
    /// Under which version of TLS; empty in the clear.
    tls_version: &'static str,
    /// It has just become ready, and its owner has told nothing.
    is_fresh: bool,
    /// What is waited for, and since when.
    waits: Option<(Deadline, Duration)>,
    /// When the next hop is to be looked at next.
    look_at: Option<Duration>,
    /// When it has to be ready.
    open_due: Duration,
    /// It is in the clear because TLS has failed, and not for longer than this.
    clear_until: Option<Duration>,
}

impl Session {
    async fn run(&mut self) -> End {
        match self.dialogue().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn dialogue(&mut self) -> Result<Infallible, End> {
        self.open().await?;
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
                let is_fresh = std::mem::take(&mut self.is_fresh);
                if (replied || polled.was_woken || is_fresh)
                    && self.is_client_named(owner.as_ref())?
                {
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
        let (link, conn) = (self.link(), self.conn);
        if !self.smtp.extensions().dsn && owner.asks_for_dsn() {
            self.warn_of_dsn();
        }
        let smtp = &mut self.smtp;
        let begun = self
            .reactor
            .write(conn, |out| owner.advance(link, smtp, out));
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

    fn link(&self) -> Link {
        Link {
            address: self.shared.id().address,
            tls_version: self.tls_version,
        }
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
        let can_change_client = self.shared.hop.demands().send_client.can_change_client();
        let is_of_one_client = !can_change_client || self.state.naming.is_final();
        let now = self.reactor.now.get();
        let is_clear_too_long = self.clear_until.is_some_and(|until| until <= now);
        if is_draining || is_of_one_client || is_clear_too_long || !self.smtp.takes_transaction() {
            return Err(End::Quit);
        }
        let (address, conn) = (self.shared.id(), self.conn);
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
        // TLS is tried again then.
        let due = self.clear_until.map_or(due, |until| due.min(until));
        let is_draining = self.reactor.service.get() != Service::Open;
        if is_draining || Deadline::Idle.is_past(&self.reactor, due) {
            return Poll::Ready(Err(End::Quit));
        }
        Poll::Pending
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
        tracing::warn!(next_hop = %self.shared.id(), "{what}");
    }

    fn warn_of_dsn(&self) {
        let address = self.shared.id();
        if self.reactor.pool.with(|pool| pool.lacks_dsn(address)) {
            tracing::warn!(
                next_hop = %address,
                "next hop does not offer DSN although its route says so: what NOTIFY, ORCPT, RET \
                 and ENVID ask for is lost; set dsn = false in its [[route]]"
            );
        }
    }
}
