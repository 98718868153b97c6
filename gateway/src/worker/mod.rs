//! One worker per core: it accepts, keeps the table of connections and the timers, and moves octets
//! between clients, the SMTP engine, the policy and the next hops.
//!
//! A worker is a loop over batches: collect completions, let `Gate` decide about each, then bring
//! the driver in line with what was decided. `Gate` never sees the driver, so a received buffer can
//! be read in place while everything else changes, and the same decisions run on the ring and in
//! the simulation. Workers share nothing but [`Shared`].

mod bounded_queue;
mod connection;
pub mod counters;
mod dnsbl;
mod gate;
mod lease;
mod mail;
mod next_hop;
mod passage;
pub mod port;
mod progress;
pub mod records;
mod session;
pub mod sources;
mod wheel;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::connection::{Role, Table};
use self::counters::Counters;
use self::gate::{Clock, Gate};
use self::port::Port;
use self::records::RecordQueue;
use self::sources::Sources;
use self::wheel::Wheel;
use crate::config::Config;
use crate::driver::{Completion, Driver, Listener, Outcome};
use crate::relay::pool::Pool;

/// Accepts outstanding per listener; also the sessions beyond the limit that can be told so at the
/// same time.
const ACCEPTS: u32 = 64;

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
    /// A worker that has not begun. `index` tells it from the other workers, in the log; through
    /// `port` it asks what it cannot know by itself; `records` takes what it records.
    pub fn new(
        driver: D,
        index: u8,
        size: Size,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        port: Port,
        records: Arc<RecordQueue>,
    ) -> Self {
        let config = shared.config.load_full();
        let gate = Gate {
            table: Table::new(size.slots()),
            wheel: Wheel::default(),
            pool: Pool::new(config.relay.connections, config.relay.retry_after),
            settings: config.session_settings(),
            config,
            counters,
            port,
            records,
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
            released: Vec::new(),
            starved: VecDeque::new(),
            connects: Vec::new(),
            patience: VecDeque::new(),
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
        self.gate.take_answers();
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
            Outcome::ReceiveEnded(end) => self.gate.receive_ended(conn, &end),
            Outcome::Sent { buffer, result } => self.gate.sent(conn, buffer, &result),
            Outcome::Unacknowledged(result) => self.gate.unacknowledged(conn, &result),
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
