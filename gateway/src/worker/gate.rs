//! What a worker decides, without its driver: each completion comes here, and what follows from it
//! is left in the table of connections for the driver to be brought in line with. The modules
//! beside this one add to [`Gate`] by subject.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Shared;
use super::connection::{Connection, Ending, Receive, Role, Table};
use super::counters::Counters;
use super::dnsbl::Inbox;
use super::passage::Id;
use super::wheel::Wheel;
use crate::config::Config;
use crate::driver::{Conn, Driver, ReceiveEnd};
use crate::policy::{Listener, Rule, STOPPING, Service};
use crate::relay::pool::Pool;
use crate::relay::received;

/// After an accept has failed (no memory, no descriptors) the next is left for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections starved of a buffer that are armed again in one batch.
const STARVED_PER_TURN: usize = 256;
/// How long connections may take to close once everything is said, when the gate stops: the three
/// seconds of one that lingers, the second by which a deadline may be late, and a moment for the
/// close itself.
const CLOSING_MAX: Duration = Duration::from_secs(5);

/// The time of day, and its form in a message, which is made at most once a second.
#[derive(Default)]
pub(super) struct Clock {
    pub(super) unix_time: u64,
    date: String,
    dated: u64,
}

impl Clock {
    pub(super) fn date(&mut self) -> &str {
        if self.dated != self.unix_time {
            self.dated = self.unix_time;
            self.date = received::date(self.unix_time);
        }
        &self.date
    }
}

/// What a worker decides, without its driver. The modules beside this one add to it by subject.
pub(super) struct Gate {
    pub(super) table: Table,
    pub(super) wheel: Wheel,
    pub(super) pool: Pool,
    pub(super) config: Arc<Config>,
    pub(super) settings: portcullis_smtp::server::Settings,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) inbox: Arc<Inbox>,
    /// The moment of the present batch.
    pub(super) now: Duration,
    pub(super) clock: Clock,
    pub(super) index: u8,
    pub(super) ids: u64,
    pub(super) sessions: u32,
    pub(super) sessions_max: u32,
    pub(super) draining: bool,
    pub(super) drain_until: Duration,
    pub(super) accept_after: Duration,
    pub(super) publish_after: Duration,
    /// Slots whose connection may want something of the driver.
    pub(super) touched: Vec<u32>,
    /// Clients that may have answers waiting.
    pub(super) resume: Vec<Conn>,
    /// Clients that waited for a connection and are to ask again.
    pub(super) waiting_again: Vec<(Conn, SocketAddr)>,
    /// Connections to next hops that a transaction has let go.
    pub(super) released: Vec<Conn>,
    /// Connections without a buffer to receive into, in the order in which they ran out.
    pub(super) starved: VecDeque<Conn>,
    /// Connections to be opened.
    pub(super) connects: Vec<(Conn, SocketAddr)>,
    /// Connections that are being opened, and until when the transactions they are for wait for
    /// them; the earliest first.
    pub(super) patience: VecDeque<(Duration, Conn)>,
}

impl Gate {
    pub(super) fn begin_turn(&mut self, now: Duration, unix_time: u64) {
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
            self.counters.publish_hops(self.pool.states());
            let again = self.pool.take_stranded(now);
            self.waiting_again.extend(again);
        }
    }

    /// How long the worker may wait for completions.
    pub(super) fn sleep(&self) -> Duration {
        if !self.starved.is_empty() {
            return Duration::ZERO;
        }
        let mut sleep = self.wheel.sleep(self.now);
        if let Some((due, _)) = self.patience.front() {
            sleep = sleep.min(due.saturating_sub(self.now));
        }
        if self.pool.has_stranded() {
            sleep = sleep.min(self.publish_after.saturating_sub(self.now));
        }
        if self.draining || self.now < self.accept_after {
            sleep.min(Duration::from_millis(100))
        } else {
            sleep
        }
    }

    pub(super) fn next_id(&mut self) -> Id {
        self.ids += 1;
        Id(self.clock.unix_time << 32 | (self.ids & 0xff_ffff) << 8 | u64::from(self.index))
    }

    /// Has the connection brought in line with the driver at the end of the batch.
    pub(super) fn touch(&mut self, conn: Conn) {
        let connection = &mut self.table[conn];
        if !connection.touched {
            connection.touched = true;
            self.touched.push(conn.slot);
        }
    }

    pub(super) fn accepted(&mut self, conn: Conn, result: io::Result<SocketAddr>) {
        match result {
            Ok(peer) => {
                let listener = self.listener(conn);
                self.table[conn].opened();
                self.client_connected(conn, listener, peer);
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

    /// Where a connection that was just taken has come in.
    fn listener(&self, conn: Conn) -> Listener {
        let number = match self.table[conn].role {
            Role::Accepting(listener) => usize::from(listener.0),
            _ => 0,
        };
        let listener = self.config.listeners.get(number).copied();
        listener.unwrap_or(Listener {
            address: SocketAddr::from(([0; 4], 0)),
            service: Service::Relay,
        })
    }

    pub(super) fn connected(&mut self, conn: Conn, result: io::Result<()>) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        connection.opened();
        if connection.is_open() {
            self.next_hop_connected(conn, result);
        }
        self.touch(conn);
    }

    pub(super) fn closed(&mut self, conn: Conn) {
        if self.table.current(conn).is_some() {
            self.wheel.clear(conn.slot);
            self.table.free(conn);
        }
    }

    pub(super) fn received(&mut self, conn: Conn, octets: &[u8]) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        if !connection.is_open() {
            connection.talks_on();
            return;
        }
        match connection.role {
            Role::Client(_) => self.client_input(conn, octets),
            Role::NextHop(_) => self.next_hop_input(conn, octets),
            Role::None | Role::Accepting(_) => {}
        }
    }

    pub(super) fn receive_ended(&mut self, conn: Conn, end: &ReceiveEnd) {
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

    pub(super) fn sent(&mut self, conn: Conn, mut buffer: Vec<u8>, result: &io::Result<usize>) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        connection.sending = false;
        let &Ok(sent) = result else {
            self.broken(conn);
            return;
        };
        if let Some(progress) = &mut connection.progress {
            progress.handed(sent);
        }
        if sent < buffer.len() && !connection.is_ending() {
            buffer.drain(..sent);
            connection.unsent = buffer;
            self.sent_in_part(conn);
        }
        let connection = &self.table[conn];
        match connection.role {
            Role::Client(_) if connection.held || connection.receive == Receive::Ended => {
                self.resume.push(conn);
            }
            Role::NextHop(_) => self.next_hop_sent(conn),
            Role::Client(_) | Role::None | Role::Accepting(_) => {}
        }
        self.touch(conn);
    }

    /// The connection cannot be used any more.
    pub(super) fn broken(&mut self, conn: Conn) {
        match self.table[conn].role {
            Role::Client(_) => self.end_session(conn, Ending::Quiet, None),
            Role::NextHop(_) => self.drop_next_hop(conn),
            Role::None | Role::Accepting(_) => {}
        }
        self.table[conn].abort();
        self.touch(conn);
    }

    /// Deals with the deadlines that have come.
    pub(super) fn expire(&mut self) {
        self.lose_patience();
        let mut due = Vec::new();
        self.wheel.expire(self.now, &mut due);
        for slot in due {
            let conn = self.table.conn(slot);
            let connection = &mut self.table[conn];
            match connection.role {
                Role::Client(_) => self.client_expired(conn),
                Role::NextHop(_) => self.next_hop_expired(conn),
                Role::None if connection.is_sending_last() => self.ask_progress(conn),
                Role::None => connection.abort(),
                Role::Accepting(_) => {}
            }
            self.touch(conn);
        }
    }

    /// Goes on with everything that this batch has made possible, until nothing is left.
    pub(super) fn work_off(&mut self) {
        loop {
            // What was released first: who asks again may find it idle.
            if let Some(hop) = self.released.pop() {
                self.pass_to_next(hop);
            } else if let Some((client, address)) = self.waiting_again.pop() {
                self.lease_again(client, address);
            } else if let Some(client) = self.resume.pop() {
                self.resume(client);
                self.dismiss_if_draining(client);
            } else {
                return;
            }
        }
    }

    /// Brings the driver in line with what was decided.
    pub(super) fn settle<D: Driver>(&mut self, driver: &mut D) {
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
                let due = self.closing_due(conn, closing_max);
                self.wheel.set(slot, due);
            }
        }
    }

    /// Begins to stop: who is between transactions is sent away, the others may finish.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.drain_until = self.now + self.config.limits.shutdown_timeout;
        for conn in self.table.open_conns() {
            self.dismiss_if_draining(conn);
        }
        for hop in self.idle_next_hops() {
            self.quit_next_hop(hop);
        }
    }

    pub(super) fn dismiss_if_draining(&mut self, conn: Conn) {
        if self.draining
            && let Role::Client(session) = &self.table[conn].role
            && session.passage.is_none()
        {
            self.dismiss(conn, &STOPPING, Rule::STOPPING);
        }
    }

    pub(super) fn goes_on_draining(&mut self) -> bool {
        if self.now >= self.drain_until {
            for conn in self.table.open_conns() {
                match self.table[conn].role {
                    Role::Client(_) => self.dismiss(conn, &STOPPING, Rule::STOPPING),
                    Role::NextHop(_) => self.drop_next_hop(conn),
                    Role::None | Role::Accepting(_) => {}
                }
            }
        }
        if self.sessions == 0 {
            self.abandon_attempts();
        }
        let empty = self.table.is_empty();
        !empty && self.now < self.drain_until.saturating_add(CLOSING_MAX)
    }
}
