//! One worker per core: it accepts, keeps the table of connections and the timers, and moves octets between clients,
//! the SMTP engine, the policy and the next hops.
//!
//! A worker is a loop over batches: collect completions, let [`Gate`] decide about each, then bring the driver in line with what
//! was decided. `Gate` never sees the driver, so a received buffer can be read in place while everything else changes, and the
//! same decisions run on the ring and in the simulation. Workers share nothing but [`Shared`].

mod connection;
pub mod counters;
mod log;
mod next_hop;
mod passage;
mod session;
pub mod sources;
mod wheel;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::connection::{Connection, Ending, Receive, Role, Table};
use self::counters::Counters;
use self::passage::Id;
use self::sources::Sources;
use self::wheel::Wheel;
use crate::config::Config;
use crate::driver::{Completion, Conn, Driver, Listener, Outcome, ReceiveEnd};
use crate::relay::pool::Pool;
use crate::relay::received;

/// Accepts outstanding per listener; also the sessions beyond the limit that can be told so at the same time.
const ACCEPTS: u32 = 64;
/// After an accept has failed (no memory, no descriptors) the next is left for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Connections starved of a buffer that are armed again in one batch.
const STARVED_PER_TURN: usize = 256;
/// How long connections may take to close once everything is said, when the gate stops.
const CLOSING_MAX: Duration = Duration::from_secs(6);

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
    sources: Sources,
    life: AtomicU8,
}

impl Shared {
    /// The state of a gate that is about to serve with this configuration.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            config: Arc::new(ArcSwap::new(config)),
            sources: Sources::default(),
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
pub struct Worker<D> {
    driver: D,
    gate: Gate,
    size: Size,
    /// Accepts outstanding, by listener.
    accepting: Vec<u32>,
    completions: Vec<Completion>,
}

impl<D: Driver> Worker<D> {
    /// A worker that has not begun. `index` tells it from the other workers, in the log.
    pub fn new(
        driver: D,
        index: u8,
        size: Size,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
    ) -> Self {
        let config = shared.config.load_full();
        let gate = Gate {
            table: Table::new(size.slots()),
            wheel: Wheel::default(),
            pool: Pool::new(config.relay.connections, config.relay.retry_after),
            settings: config.session_settings(),
            config,
            counters,
            shared,
            now: Duration::ZERO,
            clock: Clock::default(),
            index,
            ids: 0,
            sessions: 0,
            sessions_max: size.sessions_max,
            draining: false,
            drain_until: Duration::MAX,
            accept_after: Duration::ZERO,
            publish_after: Duration::ZERO,
            touched: Vec::new(),
            resume: Vec::new(),
            waiting_again: Vec::new(),
            starved: VecDeque::new(),
            connects: Vec::new(),
        };
        Self {
            driver,
            gate,
            size,
            accepting: vec![0; usize::from(size.listeners)],
            completions: Vec::new(),
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
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.wait(self.gate.sleep(), &mut completions)?;
        self.gate
            .begin_turn(self.driver.now(), self.driver.unix_time());
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.gate.expire();
        let goes_on = self.follow_life();
        self.gate.work_off();
        self.gate.settle(&mut self.driver);
        Ok(goes_on)
    }

    /// Keeps enough accepts outstanding, as long as there is room for the sessions.
    fn accept(&mut self) {
        let gate = &mut self.gate;
        if gate.draining || gate.now < gate.accept_after {
            return;
        }
        for (listener, accepting) in self.accepting.iter_mut().enumerate() {
            while *accepting < ACCEPTS && gate.table.room() > self.size.next_hops_max {
                let listener = Listener(listener as u16);
                let Some(conn) = gate.table.open(Role::Accepting(listener)) else {
                    return;
                };
                self.driver.accept(listener, conn);
                *accepting += 1;
            }
        }
    }

    fn complete(&mut self, Completion { conn, outcome }: Completion) {
        match outcome {
            Outcome::Received(buffer) => {
                self.gate.received(conn, self.driver.bytes(&buffer));
                self.driver.recycle(buffer);
            }
            Outcome::Accepted(result) => {
                if let Some(connection) = self.gate.table.current(conn) {
                    if let Role::Accepting(listener) = connection.role {
                        self.accepting[usize::from(listener.0)] -= 1;
                    }
                    self.gate.accepted(conn, result);
                }
            }
            Outcome::Connected(result) => self.gate.connected(conn, result),
            Outcome::ReceiveEnded(end) => self.gate.receive_ended(conn, end),
            Outcome::Sent { buffer, result } => self.gate.sent(conn, buffer, result),
            Outcome::Closed => self.gate.closed(conn),
            Outcome::Wake => {}
        }
    }

    /// Does what the control plane asks for; returns whether to go on.
    fn follow_life(&mut self) -> bool {
        match self.gate.shared.life() {
            Life::Running => true,
            Life::Stopping => false,
            Life::Draining => {
                if !self.gate.draining {
                    self.driver.stop_accepting();
                    self.gate.drain();
                }
                self.gate.goes_on_draining()
            }
        }
    }
}

/// The time of day, and its form in a message, which is made at most once a second.
#[derive(Default)]
struct Clock {
    unix_time: u64,
    date: String,
    dated: u64,
}

impl Clock {
    fn date(&mut self) -> &str {
        if self.dated != self.unix_time {
            self.dated = self.unix_time;
            self.date = received::date(self.unix_time);
        }
        &self.date
    }
}

/// What a worker decides, without its driver. The modules beside this one add to it by subject.
struct Gate {
    table: Table,
    wheel: Wheel,
    pool: Pool,
    config: Arc<Config>,
    settings: portcullis_smtp::server::Settings,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// The moment of the present batch.
    now: Duration,
    clock: Clock,
    index: u8,
    ids: u64,
    sessions: u32,
    sessions_max: u32,
    draining: bool,
    drain_until: Duration,
    accept_after: Duration,
    publish_after: Duration,
    /// Slots whose connection may want something of the driver.
    touched: Vec<u32>,
    /// Clients that may have answers waiting.
    resume: Vec<Conn>,
    /// Clients that waited for a connection and are to ask again.
    waiting_again: Vec<Conn>,
    /// Connections without a buffer to receive into, in the order in which they ran out.
    starved: VecDeque<Conn>,
    /// Connections to be opened.
    connects: Vec<(Conn, SocketAddr)>,
}

impl Gate {
    fn begin_turn(&mut self, now: Duration, unix_time: u64) {
        self.now = now;
        self.clock.unix_time = unix_time;
        let config = self.shared.config.load();
        if !Arc::ptr_eq(&config, &self.config) {
            self.config = Arc::clone(&config);
            self.settings = self.config.session_settings();
            self.pool
                .configure(self.config.relay.connections, self.config.relay.retry_after);
        }
        if now >= self.publish_after {
            self.publish_after = now + Duration::from_secs(1);
            self.counters.publish_hops(self.pool.states(now));
        }
    }

    /// How long the worker may wait for completions.
    fn sleep(&self) -> Duration {
        if !self.starved.is_empty() {
            return Duration::ZERO;
        }
        let sleep = self.wheel.sleep(self.now);
        if self.draining || self.now < self.accept_after {
            sleep.min(Duration::from_millis(100))
        } else {
            sleep
        }
    }

    fn next_id(&mut self) -> Id {
        self.ids += 1;
        Id(self.clock.unix_time << 32 | (self.ids & 0xff_ffff) << 8 | u64::from(self.index))
    }

    /// Has the connection brought in line with the driver at the end of the batch.
    fn touch(&mut self, conn: Conn) {
        let connection = &mut self.table[conn];
        if !connection.touched {
            connection.touched = true;
            self.touched.push(conn.slot);
        }
    }

    fn accepted(&mut self, conn: Conn, result: io::Result<SocketAddr>) {
        match result {
            Ok(peer) => {
                self.table[conn].opened();
                self.client_connected(conn, peer);
                self.touch(conn);
            }
            Err(error) => {
                self.table.free(conn);
                if !self.draining {
                    tracing::warn!(%error, "cannot take a connection; trying again in a moment");
                    self.accept_after = self.now + ACCEPT_PAUSE;
                }
            }
        }
    }

    fn connected(&mut self, conn: Conn, result: io::Result<()>) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        connection.opened();
        if connection.is_open() {
            self.next_hop_connected(conn, result);
        }
        self.touch(conn);
    }

    fn closed(&mut self, conn: Conn) {
        if self.table.current(conn).is_some() {
            self.wheel.clear(conn.slot);
            self.table.free(conn);
        }
    }

    fn received(&mut self, conn: Conn, octets: &[u8]) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        if !connection.is_open() {
            return;
        }
        match connection.role {
            Role::Client(_) => self.client_input(conn, octets),
            Role::NextHop(_) => self.next_hop_input(conn, octets),
            Role::None | Role::Accepting(_) => {}
        }
    }

    fn receive_ended(&mut self, conn: Conn, end: ReceiveEnd) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        match end {
            ReceiveEnd::Paused | ReceiveEnd::Rearm => connection.receive = Receive::Off,
            ReceiveEnd::Starved => {
                connection.receive = Receive::Starved;
                self.counters.starved_total.fetch_add(1, Ordering::Relaxed);
                self.starved.push_back(conn);
            }
            ReceiveEnd::EndOfStream => {
                connection.receive = Receive::Ended;
                if connection.is_open() {
                    match connection.role {
                        Role::Client(_) => self.client_at_end(conn),
                        Role::NextHop(_) => self.drop_next_hop(conn),
                        Role::None | Role::Accepting(_) => {}
                    }
                }
            }
            ReceiveEnd::Failed(_) => {
                connection.receive = Receive::Ended;
                self.broken(conn);
            }
        }
        self.touch(conn);
    }

    fn sent(&mut self, conn: Conn, mut buffer: Vec<u8>, result: io::Result<usize>) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        connection.sending = false;
        let Ok(sent) = result else {
            self.broken(conn);
            return;
        };
        if sent < buffer.len() && !connection.is_ending() {
            buffer.drain(..sent);
            buffer.append(&mut connection.output);
            connection.output = buffer;
        }
        match connection.role {
            Role::Client(_) if connection.held => self.resume.push(conn),
            Role::NextHop(_) => self.next_hop_sent(conn),
            Role::Client(_) | Role::None | Role::Accepting(_) => {}
        }
        self.touch(conn);
    }

    /// The connection cannot be used any more.
    fn broken(&mut self, conn: Conn) {
        match self.table[conn].role {
            Role::Client(_) => self.end_session(conn, Ending::Quiet, None),
            Role::NextHop(_) => self.drop_next_hop(conn),
            Role::None | Role::Accepting(_) => {}
        }
        self.table[conn].abort();
        self.touch(conn);
    }

    /// Deals with the deadlines that have come.
    fn expire(&mut self) {
        let mut due = Vec::new();
        self.wheel.expire(self.now, &mut due);
        for slot in due {
            let conn = self.table.conn(slot);
            let connection = &mut self.table[conn];
            match connection.role {
                Role::Client(_) => self.client_expired(conn),
                Role::NextHop(_) => self.next_hop_expired(conn),
                Role::None => connection.abort(),
                Role::Accepting(_) => {}
            }
            self.touch(conn);
        }
    }

    /// Goes on with everything that this batch has made possible, until nothing is left.
    fn work_off(&mut self) {
        loop {
            if let Some(client) = self.waiting_again.pop() {
                self.lease_again(client);
            } else if let Some(client) = self.resume.pop() {
                self.resume(client);
                self.dismiss_if_draining(client);
            } else {
                return;
            }
        }
    }

    /// Brings the driver in line with what was decided.
    fn settle<D: Driver>(&mut self, driver: &mut D) {
        let ready = self.starved.len().min(STARVED_PER_TURN);
        for conn in self.starved.drain(..ready).collect::<Vec<_>>() {
            if let Some(connection) = self.table.current(conn)
                && connection.receive == Receive::Starved
            {
                connection.receive = Receive::Off;
                self.touch(conn);
            }
        }
        for (conn, address) in std::mem::take(&mut self.connects) {
            driver.connect(conn, address);
        }
        for slot in std::mem::take(&mut self.touched) {
            let conn = self.table.conn(slot);
            let connection: &mut Connection = &mut self.table[conn];
            connection.touched = false;
            if let Some(closing_max) = connection.settle(conn, driver) {
                self.wheel.set(slot, self.now + closing_max);
            }
        }
    }

    /// Begins to stop: who is between transactions is sent away, the others may finish.
    fn drain(&mut self) {
        self.draining = true;
        self.drain_until = self.now + self.config.limits.shutdown_timeout;
        for conn in self.table.open_conns() {
            self.dismiss_if_draining(conn);
        }
        for hop in self.idle_next_hops() {
            self.quit_next_hop(hop);
        }
    }

    fn dismiss_if_draining(&mut self, conn: Conn) {
        if self.draining
            && let Role::Client(session) = &self.table[conn].role
            && session.passage.is_none()
        {
            self.dismiss(conn, &session::STOPPING, "stopping");
        }
    }

    fn goes_on_draining(&mut self) -> bool {
        if self.now >= self.drain_until {
            for conn in self.table.open_conns() {
                match self.table[conn].role {
                    Role::Client(_) => self.dismiss(conn, &session::STOPPING, "stopping"),
                    Role::NextHop(_) => self.drop_next_hop(conn),
                    Role::None | Role::Accepting(_) => {}
                }
            }
        }
        let empty = self.table.is_empty();
        !empty && self.now < self.drain_until.saturating_add(CLOSING_MAX)
    }
}
