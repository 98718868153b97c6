//! One worker per core: it accepts, keeps the table of connections and the timers, and moves octets
//! between clients, the SMTP engine, the policy and the next hops.
//!
//! A worker is a loop over batches: collect completions, poll the tasks of the connections that
//! they are for, then bring the driver in line with what was decided. A task is a session with a
//! client or with a next hop, written in the order in which it happens (`session`, `mail`,
//! `next_hop`); what tasks share and may do is in `reactor`. Tasks never see the driver, so the
//! same sessions run on the ring and in the simulation. Workers share nothing but [`Shared`].
//!
//! Rejected: one structure that is told of each completion and keeps for every session what it
//! waits for (each new wait was a field, and a branch in four places), and a general runtime (its
//! wakers and timers cost more memory than a session has).

mod admission;
pub mod auth;
mod bounded_queue;
mod buffers;
mod command_due;
mod connection;
mod content;
pub mod counters;
mod deadline;
mod end;
mod executor;
mod front;
mod handshakes;
mod header_result;
mod lease;
mod listener;
mod local;
mod lookup;
mod mail;
mod next_hop;
pub mod port;
mod progress;
mod reactor;
pub mod records;
mod secret;
mod secure;
mod session;
mod session_end;
pub mod sources;
mod transaction;
mod transport;
pub mod users;
mod wheel;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::connection::{Connection, Ending, Receive, Role};
use self::counters::Counters;
use self::executor::Executor;
use self::handshakes::HandshakeRates;
use self::port::Port;
use self::reactor::{Reactor, Service};
use self::records::RecordQueue;
use self::sources::Sources;
use self::users::UserCounts;
use crate::config::Config;
use crate::driver::{self, Buffer, Completion, Conn, Driver, OperationResult, ReceiveEnd};
use crate::policy::Granted;

/// Accepts outstanding per listener; also the sessions beyond the limit that can be told so at the
/// same time.
const ACCEPTS: u32 = 64;
/// After an accept has failed (no memory, no descriptors) the next is left for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections starved of a buffer that are armed again in one batch.
const STARVED_PER_TURN: usize = 256;
/// Handshakes that go on in one batch. A signature takes up to milliseconds, and a batch without
/// one microseconds: with more than one the other sessions would only wait longer.
const HANDSHAKES_PER_TURN: usize = 1;
/// How long connections may take to close once everything is said, when the gate stops: the three
/// seconds of one that lingers, the second by which a deadline may be late, and a moment for the
/// close itself.
const CLOSING_MAX: Duration = Duration::from_secs(5);

/// What the gate is about to do, as the control plane says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// Serve.
    Running,
    /// Accept no more, finish what is in flight.
    Draining,
    /// Stop at once.
    Stopping,
}

/// What workers and the control plane share.
pub struct Shared {
    /// The configuration in force; replaced whole.
    pub config: Arc<ArcSwap<Config>>,
    /// The addresses that have a grant; the control plane writes it.
    pub granted: Arc<Granted>,
    sources: Sources,
    handshake_rates: HandshakeRates,
    /// What users have sent in the last hour.
    pub users: UserCounts,
    life: AtomicU8,
}

impl Shared {
    /// The state of a gate that is about to serve with this configuration.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            config: Arc::new(ArcSwap::new(config)),
            granted: Arc::default(),
            sources: Sources::default(),
            handshake_rates: HandshakeRates::default(),
            users: UserCounts::default(),
            life: AtomicU8::new(Life::Running as u8),
        }
    }

    /// Tells the workers how to go on; they look when they are woken.
    pub fn set_life(&self, life: Life) {
        self.life.store(life as u8, Ordering::Release);
    }

    fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            0 => Life::Running,
            1 => Life::Draining,
            _ => Life::Stopping,
        }
    }
}

/// How large a worker is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Listening sockets that the driver was given.
    pub listeners: u16,
    /// Sessions it serves at a time; the next ones hear 421.
    pub sessions_max: u32,
    /// Connections to next hops that it has room for.
    pub next_hops_max: u32,
}

impl Size {
    /// Slots that the worker's table, and so the driver's, has to have.
    pub fn slots(&self) -> u32 {
        self.sessions_max + self.next_hops_max + 2 * ACCEPTS * u32::from(self.listeners)
    }
}

/// A worker on its driver.
pub struct Worker {
    reactor: Rc<Reactor>,
    executor: Executor,
    size: Size,
    /// Accepts outstanding, by listener.
    accepting: Vec<u32>,
    completions: Vec<Completion>,
    /// Slots to be brought in line with the driver; empty between batches.
    touched: Vec<u32>,
    /// After an accept has failed the next is left for a while.
    accept_after: Duration,
    publish_after: Duration,
    /// Connections without a buffer to receive into, in the order in which they ran out.
    starved: VecDeque<Conn>,
}

impl Worker {
    /// A worker that has not begun. `index` tells it from the other workers, in the log; what it
    /// cannot know by itself it asks through `port`; `records` takes what it records.
    pub fn new(
        driver: impl Driver + 'static,
        index: u8,
        size: Size,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        port: Port,
        records: Arc<RecordQueue>,
    ) -> Self {
        let reactor = Reactor::new(
            Box::new(driver),
            index,
            size,
            shared,
            counters,
            port,
            records,
        );
        Self {
            reactor: Rc::new(reactor),
            executor: Executor::default(),
            size,
            accepting: vec![0; usize::from(size.listeners)],
            completions: Vec::new(),
            touched: Vec::new(),
            accept_after: Duration::ZERO,
            publish_after: Duration::ZERO,
            starved: VecDeque::new(),
        }
    }

    /// Serves until the gate stops.
    ///
    /// # Errors
    /// When the driver is broken.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// One batch. Returns whether there is more to do.
    ///
    /// # Errors
    /// When the driver is broken.
    pub fn turn(&mut self) -> io::Result<bool> {
        self.accept();
        let reactor = Rc::clone(&self.reactor);
        let mut completions = std::mem::take(&mut self.completions);
        let sleep = self.sleep();
        let (now, unix_time) = reactor.driver.with(|driver| {
            driver.wait(sleep, &mut completions)?;
            io::Result::Ok((driver.now(), driver.unix_time()))
        })?;
        reactor.begin_batch(now, unix_time);
        self.publish(now);
        reactor.take_lookups();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.expire();
        self.shake_hands();
        let goes_on = self.follow_life();
        self.work_off();
        self.settle();
        Ok(goes_on)
    }

    /// How long the worker may wait for completions.
    fn sleep(&self) -> Duration {
        if !self.starved.is_empty() || self.reactor.has_handshakes() {
            return Duration::ZERO;
        }
        let now = self.reactor.now.get();
        let until = |due: Duration| due.saturating_sub(now);
        let mut sleep = self.reactor.wheel.with(|wheel| wheel.sleep(now));
        let patience = self
            .reactor
            .patience
            .with(|patience| patience.front().copied());
        if let Some((due, _)) = patience {
            sleep = sleep.min(until(due));
        }
        if let Some(due) = self.reactor.port.with(|port| port.next_due()) {
            sleep = sleep.min(until(due));
        }
        if self.reactor.pool.with(|pool| pool.has_stranded()) {
            sleep = sleep.min(until(self.publish_after));
        }
        if self.reactor.service.get() != Service::Open || now < self.accept_after {
            sleep.min(Duration::from_millis(100))
        } else {
            sleep
        }
    }

    /// Tells the metrics of the next hops once a second, and clients that wait for one of them to
    /// recover.
    fn publish(&mut self, now: Duration) {
        if now < self.publish_after {
            return;
        }
        self.publish_after = now + Duration::from_secs(1);
        let (states, again) = self
            .reactor
            .pool
            .with(|pool| (pool.states(), pool.take_stranded(now)));
        self.reactor.counters.publish_hops(states);
        self.reactor
            .waiting_again
            .with(|waiting| waiting.extend(again));
    }

    /// Keeps enough accepts outstanding, as long as there is room for the sessions.
    fn accept(&mut self) {
        let reactor = &self.reactor;
        if reactor.service.get() != Service::Open || reactor.now.get() < self.accept_after {
            return;
        }
        for (listener, accepting) in self.accepting.iter_mut().enumerate() {
            while *accepting < ACCEPTS {
                let listener = driver::Listener(listener as u16);
                let opened = reactor.table.with(|table| {
                    let has_room = table.room() > self.size.next_hops_max;
                    has_room.then(|| table.open(Role::Accepting(listener)))
                });
                let Some(Some(conn)) = opened else {
                    break;
                };
                reactor.driver.with(|driver| driver.accept(listener, conn));
                *accepting += 1;
            }
        }
    }

    fn complete(&mut self, Completion { conn, outcome }: Completion) {
        let reactor = Rc::clone(&self.reactor);
        match outcome {
            OperationResult::Received(buffer) => self.received(conn, buffer),
            OperationResult::Accepted(result) => self.accepted(conn, result),
            OperationResult::Connected(result) => {
                reactor.with(conn, |connection| {
                    connection.opened();
                    if let Err(error) = &result
                        && let Role::NextHop(next_hop) = &connection.role
                    {
                        let next_hop = next_hop.id();
                        tracing::debug!(%next_hop, %error, "cannot connect");
                        connection.abort();
                    }
                });
                self.poll(conn);
                // An attempt that was given up has no task any more.
                reactor.touch(conn);
            }
            OperationResult::ReceiveEnded(end) => self.receive_ended(conn, &end),
            OperationResult::Sent { buffer, result } => self.sent(conn, buffer, &result),
            OperationResult::Unacknowledged(result) => self.unacknowledged(conn, &result),
            OperationResult::Closed => {
                let is_current = reactor.with(conn, |_| ()).is_some();
                if is_current {
                    reactor.wheel.with(|wheel| wheel.clear(conn.slot));
                    reactor.table.with(|table| table.free(conn));
                }
            }
            OperationResult::Wake => {}
        }
    }

    fn received(&mut self, conn: Conn, buffer: Buffer) {
        let reactor = &self.reactor;
        let is_open = reactor.with(conn, |connection| {
            if !connection.is_open() {
                connection.talks_on();
            }
            connection.is_open()
        });
        reactor.put_arrived(conn, buffer);
        if is_open == Some(true) {
            self.poll(conn);
        }
        self.reactor.keep_arrived();
    }

    fn accepted(&mut self, conn: Conn, result: io::Result<SocketAddr>) {
        let reactor = Rc::clone(&self.reactor);
        let role = reactor.with(conn, |connection| {
            std::mem::replace(&mut connection.role, Role::None)
        });
        let Some(Role::Accepting(listener)) = role else {
            return;
        };
        self.accepting[usize::from(listener.0)] -= 1;
        match (result, reactor.listener(listener)) {
            (Ok(peer), Some(listener)) => {
                reactor.with(conn, |connection| {
                    connection.opened();
                    connection.peer_port = peer.port();
                    connection.role = Role::Client(None);
                });
                let task = front::task(&reactor, conn, peer, listener);
                self.executor.begin(conn, task);
                self.poll(conn);
            }
            (Ok(_), None) => {
                // It was taken out of the configuration; its sockets close at the next start.
                reactor.with(conn, Connection::opened);
                reactor.finish(conn, Ending::Now);
            }
            (Err(error), _) => {
                reactor.table.with(|table| table.free(conn));
                if reactor.service.get() == Service::Open {
                    tracing::warn!(%error, "cannot take a connection; trying again in a moment");
                    self.accept_after = reactor.now.get() + ACCEPT_PAUSE;
                }
            }
        }
    }

    fn receive_ended(&mut self, conn: Conn, end: &ReceiveEnd) {
        let polls = self.reactor.with(conn, |connection| match end {
            ReceiveEnd::Paused | ReceiveEnd::Rearm => {
                connection.receive = Receive::Off;
                false
            }
            ReceiveEnd::Starved => {
                connection.receive = Receive::Starved;
                self.reactor
                    .counters
                    .starved_total
                    .fetch_add(1, Ordering::Relaxed);
                self.starved.push_back(conn);
                false
            }
            ReceiveEnd::EndOfStream => {
                connection.receive = Receive::Ended;
                true
            }
            ReceiveEnd::Failed(_) => {
                connection.receive = Receive::Ended;
                connection.abort();
                true
            }
        });
        if polls == Some(true) {
            self.poll(conn);
        }
        self.reactor.touch(conn);
    }

    fn sent(&mut self, conn: Conn, mut buffer: Vec<u8>, result: &io::Result<usize>) {
        let now = self.reactor.now.get();
        let polls = self.reactor.with(conn, |connection| {
            connection.sending = false;
            let &Ok(sent) = result else {
                connection.abort();
                return true;
            };
            connection.sent = true;
            if let Some(progress) = &mut connection.progress {
                progress.handed(sent);
            }
            if sent < buffer.len() && !connection.is_ending() {
                buffer.drain(..sent);
                // Behind it comes what TLS had to say meanwhile.
                buffer.append(&mut connection.unsent);
                connection.unsent = std::mem::take(&mut buffer);
                connection.sent_in_part(now);
            }
            match connection.role {
                Role::NextHop(_) => connection.wants_sent,
                // Only a session that waits for room, or for its own end, need know.
                Role::Client(_) => connection.held || connection.receive == Receive::Ended,
                Role::None | Role::Accepting(_) => false,
            }
        });
        self.reactor.buffers.with(|buffers| buffers.give(buffer));
        if polls == Some(true) {
            self.poll(conn);
        }
        self.reactor.touch(conn);
    }

    /// The kernel says how much the peer has not taken.
    fn unacknowledged(&mut self, conn: Conn, result: &io::Result<u32>) {
        let (now, over) = (self.reactor.now.get(), self.reactor.drain_until.get());
        let polls = self.reactor.with(conn, |connection| {
            connection.unacknowledged(result, now, over)
        });
        if polls == Some(true) {
            self.poll(conn);
        }
        self.reactor.touch(conn);
    }

    /// Polls the task of a connection, if it has one.
    fn poll(&mut self, conn: Conn) {
        self.executor.poll(&self.reactor, conn);
    }

    /// Deals with the deadlines that have come.
    fn expire(&mut self) {
        let reactor = Rc::clone(&self.reactor);
        lease::lose_patience(&reactor);
        let (now, mut due) = (reactor.now.get(), Vec::new());
        reactor.wheel.with(|wheel| wheel.expire(now, &mut due));
        for slot in due {
            let conn = reactor.table.with(|table| table.conn(slot));
            let asks = reactor.with(conn, |connection| match connection.role {
                Role::None if connection.is_sending_last() => true,
                Role::None => {
                    connection.abort();
                    false
                }
                Role::Client(_) | Role::NextHop(_) | Role::Accepting(_) => false,
            });
            if asks == Some(true) {
                reactor.ask_progress(conn);
            }
            self.poll(conn);
            reactor.touch(conn);
        }
    }

    /// Goes on with a few handshakes; the others wait for the next batch, which follows at once.
    fn shake_hands(&self) {
        for _ in 0..HANDSHAKES_PER_TURN {
            if !self.reactor.take_handshake() {
                return;
            }
        }
    }

    /// Goes on with everything that this batch has made possible, until nothing is left.
    fn work_off(&mut self) {
        let reactor = Rc::clone(&self.reactor);
        loop {
            for (conn, task) in reactor.take_spawned() {
                self.executor.begin(conn, task);
                self.poll(conn);
            }
            // What was woken first: a connection that is let go may be the one that is waited for.
            if let Some(conn) = reactor.next_ready() {
                self.poll(conn);
            } else if let Some((client, address)) = reactor.waiting_again.with(Vec::pop) {
                lease::lease_again(&reactor, client, address);
            } else if !reactor.has_spawned() {
                return;
            }
        }
    }

    /// Brings the driver in line with what was decided.
    fn settle(&mut self) {
        let reactor = &self.reactor;
        let ready = self.starved.len().min(STARVED_PER_TURN);
        for conn in self.starved.drain(..ready) {
            let was_starved = reactor.with(conn, |connection| {
                let was_starved = connection.receive == Receive::Starved;
                if was_starved {
                    connection.receive = Receive::Off;
                }
                was_starved
            });
            if was_starved == Some(true) {
                reactor.touch(conn);
            }
        }
        reactor.swap_touched(&mut self.touched);
        let (now, over) = (reactor.now.get(), reactor.drain_until.get());
        reactor.driver.with(|driver| {
            for (conn, address) in reactor.connects.take() {
                driver.connect(conn, address);
            }
            reactor.table.with(|table| {
                for slot in self.touched.drain(..) {
                    let conn = table.conn(slot);
                    let connection = &mut table[conn];
                    connection.touched = false;
                    if let Some(longest) = connection.settle(conn, driver.as_mut()) {
                        let due = connection.closing_due(now, longest, over);
                        reactor.wheel.with(|wheel| wheel.set(slot, due));
                    }
                }
            });
        });
    }

    /// Does what the control plane asks for; returns whether to go on.
    fn follow_life(&mut self) -> bool {
        let reactor = Rc::clone(&self.reactor);
        match reactor.shared.life() {
            Life::Running => return true,
            Life::Stopping => return false,
            Life::Draining => {}
        }
        let now = reactor.now.get();
        if reactor.service.get() == Service::Open {
            reactor.driver.with(|driver| driver.stop_accepting());
            let timeout = reactor.config().limits.shutdown_timeout;
            reactor.drain_until.set(now + timeout);
            self.enter(Service::Draining);
        }
        if now >= reactor.drain_until.get() && reactor.service.get() == Service::Draining {
            self.enter(Service::Over);
        }
        if reactor.sessions.get() == 0 {
            self.wake_all();
        }
        let is_empty = reactor.table.with(|table| table.is_empty());
        !is_empty && now < reactor.drain_until.get().saturating_add(CLOSING_MAX)
    }

    /// Has every task see that sessions are ended now.
    fn enter(&mut self, service: Service) {
        self.reactor.service.set(service);
        self.wake_all();
    }

    fn wake_all(&self) {
        for conn in self.reactor.table.with(|table| table.open_conns()) {
            self.reactor.wake(conn);
        }
    }
}
