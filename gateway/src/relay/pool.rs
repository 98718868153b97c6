//! The connections of one worker to its next hops: which are idle, which clients wait for one,
//! which hop is down.
//!
//! A connection is kept after its message and taken again by the next: that is most of what makes
//! the relay cheap.
//!
//! No transaction finds out whether a next hop is well, unless it has no other. A next hop that
//! failed is left alone for a moment, doubling from a second up to `retry_after`; then the next
//! transaction has a connection opened in the background, a probe, and takes another next hop. An
//! attempt for a transaction that takes longer than the transaction's patience goes on in the
//! background as well. What becomes of these attempts is kept: a connection in the pool, a failure,
//! or for a moment that the next hop is well, where the connection itself cannot be kept. A
//! transaction for which every next hop is down or being tried is stranded, and asks again when one
//! of the attempts has ended, or when a next hop that was left alone may be tried. No system call,
//! no clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::hop::{DemandsId, HopEvent, HopEvents, HopId};
use super::replies::Refusal;
use crate::driver::Conn;

/// The first pause after a failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// How long a next hop that was reached is not in doubt, even if no connection to it is left.
const WELL_TIME: Duration = Duration::from_secs(1);
/// How long connections to a next hop are in the clear after its TLS has failed.
pub const CLEAR_TIME: Duration = Duration::from_secs(300);

/// What a transaction gets when it asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// An idle connection, now its own.
    Pooled(Conn),
    /// None is idle: open one to this address. It is counted as open already.
    Connect(HopId),
    /// All connections to this address are in use: wait for [`Pool::released`] or [`Pool::closed`]
    /// to name this client.
    Wait(HopId),
    /// Nothing is known to work, and connections to this address (and perhaps to others) are being
    /// tried in the background: wait for [`Pool::reached`], [`Pool::closed`] or
    /// [`Pool::take_stranded`] to name this client.
    Stranded(HopId),
    /// Every address was tried, or is being left alone after a failure.
    Unavailable,
}

/// What a transaction wants of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// A new connection even if one is idle: the last one taken from the pool turned out to be
    /// dead.
    pub fresh: bool,
    /// It has waited for an attempt in vain already: whatever is not known to work is tried in the
    /// background, all at once. What was reached a moment ago is known to work.
    pub hurried: bool,
}

/// What the pool knows of one next hop, for the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopState {
    /// The next hop.
    pub address: SocketAddr,
    /// Whether the last attempt to reach it succeeded.
    pub up: bool,
    /// Connections open or being opened.
    pub open: u32,
    /// Connections open with nothing to do.
    pub idle: u32,
    /// Clients waiting for a connection.
    pub waiting: u32,
    /// Failures to open a connection, ever.
    pub failures_total: u64,
    /// What else has happened with it.
    pub events: HopEvents,
}

#[derive(Default)]
struct Hop {
    /// The last one used is taken first, so that what is not needed grows old and is closed.
    idle: Vec<Conn>,
    open: u32,
    /// Those of them on which transactions can be made.
    ready: u32,
    /// Those that are being opened with no transaction to wait for them: probes, and attempts that
    /// took too long.
    background: u32,
    waiting: VecDeque<Conn>,
    /// Failures since the last success.
    failures: u32,
    failures_total: u64,
    events: HopEvents,
    down_until: Duration,
    /// It was reached so lately that it is not in doubt until then.
    well_until: Duration,
    /// It refused a connection while it had so many, and is not asked for more until then.
    full_at: u32,
    full_until: Duration,
    /// Its TLS has failed, and connections until then are in the clear.
    clear_until: Duration,
    /// Why it was of no use when a connection was opened last.
    refusal: Option<Refusal>,
    warned: Warned,
}

/// What the log was told of a next hop, and need not be told for each transaction.
#[derive(Default)]
struct Warned {
    /// It does not offer DSN.
    lacks_dsn: bool,
    /// It cannot be told of clients.
    unnamed: bool,
}

impl Hop {
    fn connections_max(&self, configured: u32, now: Duration) -> u32 {
        if now < self.full_until {
            configured.min(self.full_at)
        } else {
            configured
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.down_until = Duration::ZERO;
        self.refusal = None;
    }

    fn has_room(&self, configured: u32, now: Duration) -> bool {
        self.open < self.connections_max(configured, now)
    }
}

/// What there is for a transaction when no next hop is known to work: of each kind, the first in
/// its order.
#[derive(Default)]
struct SecondBest {
    /// One that has failed, with a connection that is idle.
    idle: Option<HopId>,
    /// One with connections that work, or did, and are in use.
    busy: Option<HopId>,
    /// One that is being tried.
    tried: Option<HopId>,
}

impl SecondBest {
    fn note(&mut self, address: HopId, hop: &Hop, now: Duration) {
        if !hop.idle.is_empty() {
            self.idle.get_or_insert(address);
        }
        if hop.ready > 0 && now >= hop.down_until {
            self.busy.get_or_insert(address);
        }
        let others_try = hop.failures == 0 && hop.open > hop.ready;
        if hop.background > 0 || others_try {
            self.tried.get_or_insert(address);
        }
    }
}

/// The next-hop connections of one worker.
pub struct Pool {
    hops: FxHashMap<HopId, Hop>,
    /// Failures and events of next hops that were forgotten.
    retired: FxHashMap<SocketAddr, (u64, HopEvents)>,
    /// Clients that wait for any attempt to end, and the next hop that they are counted with.
    stranded: Vec<(Conn, HopId)>,
    /// When [`take_stranded`](Pool::take_stranded) looked last, and whether a next hop that had
    /// failed works again since.
    looked_at: Duration,
    recovered: bool,
    /// Probes to be begun.
    probes: Vec<HopId>,
    connections_max: u32,
    retry_after: Duration,
}

impl Pool {
    /// A pool that opens at most `connections_max` connections to each address, and leaves one that
    /// failed alone for at most `retry_after`.
    pub fn new(connections_max: u32, retry_after: Duration) -> Self {
        Self {
            hops: FxHashMap::default(),
            retired: FxHashMap::default(),
            stranded: Vec::new(),
            looked_at: Duration::ZERO,
            recovered: false,
            probes: Vec::new(),
            connections_max,
            retry_after,
        }
    }

    /// Takes on the limits of a new configuration.
    pub fn configure(&mut self, connections_max: u32, retry_after: Duration) {
        self.connections_max = connections_max;
        self.retry_after = retry_after;
        self.hops
            .values_mut()
            .for_each(|hop| hop.warned = Warned::default());
    }

    /// Forgets next hops under demands that are in force no more. Those that still have connections
    /// stay until the next call.
    pub fn retire(&mut self, is_in_force: impl Fn(DemandsId) -> bool) {
        let retired = &mut self.retired;
        self.hops.retain(|id, hop| {
            let is_kept = is_in_force(id.demands) || hop.open > 0 || !hop.waiting.is_empty();
            if !is_kept {
                let total = retired.entry(id.address).or_default();
                total.0 += hop.failures_total;
                total
                    .1
                    .iter_mut()
                    .zip(hop.events)
                    .for_each(|(sum, more)| *sum += more);
            }
            is_kept
        });
    }

    /// Notes why the next hop was of no use, for those who cannot have a connection meanwhile.
    pub fn note_refusal(&mut self, address: HopId, refusal: Option<Refusal>) {
        self.hops.entry(address).or_default().refusal = refusal;
    }

    /// Why the first of these next hops for which that is known was of no use.
    pub fn refusal(&self, addresses: impl IntoIterator<Item = HopId>) -> Option<&Refusal> {
        let hops = addresses
            .into_iter()
            .filter_map(|address| self.hops.get(&address));
        hops.filter_map(|hop| hop.refusal.as_ref()).next()
    }

    /// Counts something that has happened with a next hop.
    pub fn count(&mut self, address: HopId, event: HopEvent) {
        self.hops.entry(address).or_default().events[event as usize] += 1;
    }

    /// Notes that the next hop does not offer DSN; whether that is news.
    pub fn lacks_dsn(&mut self, address: HopId) -> bool {
        let hop = self.hops.entry(address).or_default();
        !std::mem::replace(&mut hop.warned.lacks_dsn, true)
    }

    /// TLS with the next hop has failed: for a while it is not tried.
    pub fn tls_failed(&mut self, address: HopId, now: Duration) {
        self.hops.entry(address).or_default().clear_until = now + CLEAR_TIME;
    }

    /// Until when a connection to the next hop is to be in the clear because TLS has failed;
    /// `None`: it is not to be.
    pub fn clear_until(&self, address: HopId, now: Duration) -> Option<Duration> {
        let until = self.hops.get(&address)?.clear_until;
        (now < until).then_some(until)
    }

    /// Counts a transaction whose client the next hop is not told; whether that is news.
    pub fn unnamed(&mut self, address: HopId) -> bool {
        self.count(address, HopEvent::ClientUnnamed);
        let hop = self.hops.entry(address).or_default();
        !std::mem::replace(&mut hop.warned.unnamed, true)
    }

    /// Finds a connection for `client` to the first of `addresses` that was not `tried` and works
    /// as far as is known. [`take_probes`](Self::take_probes) has to be called afterwards.
    pub fn lease(
        &mut self,
        client: Conn,
        addresses: impl IntoIterator<Item = HopId>,
        tried: &[HopId],
        wish: Wish,
        now: Duration,
    ) -> Lease {
        let mut second_best = SecondBest::default();
        for address in addresses {
            if tried.contains(&address) {
                continue;
            }
            let hop = self.hops.entry(address).or_default();
            let has_room = hop.has_room(self.connections_max, now);
            let down = hop.failures > 0;
            if !down
                && !wish.fresh
                && let Some(conn) = hop.idle.pop()
            {
                return Lease::Pooled(conn);
            }
            // A probe may leave no connection behind: one with a PROXY header is for one client,
            // and a gate that stops keeps none. Another probe would tell nothing new.
            let unknown = hop.ready == 0 && now >= hop.well_until;
            let doubtful = down || hop.background > 0 || (wish.hurried && unknown);
            if !doubtful {
                if has_room {
                    hop.open += 1;
                    return Lease::Connect(address);
                }
                if let Some(conn) = hop.idle.pop() {
                    // A new one was asked for, but there is no room for any.
                    return Lease::Pooled(conn);
                }
                hop.waiting.push_back(client);
                return Lease::Wait(address);
            }
            if now >= hop.down_until && hop.background == 0 && has_room {
                hop.open += 1;
                hop.background += 1;
                self.probes.push(address);
            }
            second_best.note(address, hop, now);
        }
        self.lease_second_best(client, &second_best)
    }

    /// Nothing is known to work. What is idle may, what is in use may, and what is being tried may.
    fn lease_second_best(&mut self, client: Conn, found: &SecondBest) -> Lease {
        if let Some(hop) = found.idle.and_then(|address| self.hops.get_mut(&address))
            && let Some(conn) = hop.idle.pop()
        {
            return Lease::Pooled(conn);
        }
        if let Some(address) = found.busy {
            self.hops
                .entry(address)
                .or_default()
                .waiting
                .push_back(client);
            return Lease::Wait(address);
        }
        let Some(address) = found.tried else {
            return Lease::Unavailable;
        };
        self.stranded.push((client, address));
        Lease::Stranded(address)
    }

    /// Next hops to which a connection is to be opened with no transaction to wait for it. It is
    /// counted as open already.
    pub fn take_probes(&mut self) -> Vec<HopId> {
        std::mem::take(&mut self.probes)
    }

    /// Whether clients wait for attempts, so that [`take_stranded`](Self::take_stranded) has to be
    /// called now and then.
    pub fn has_stranded(&self) -> bool {
        !self.stranded.is_empty()
    }

    /// The stranded clients, if since the last call a next hop has become one that they can ask
    /// for: it was left alone long enough, or works again on a connection that it had. An attempt
    /// at another one is no reason to wait for that.
    pub fn take_stranded(&mut self, now: Duration) -> Vec<(Conn, HopId)> {
        let before = std::mem::replace(&mut self.looked_at, now);
        let recovered = std::mem::take(&mut self.recovered);
        let is_due = |hop: &Hop| before < hop.down_until && hop.down_until <= now;
        if self.stranded.is_empty() || !(recovered || self.hops.values().any(is_due)) {
            return Vec::new();
        }
        std::mem::take(&mut self.stranded)
    }

    /// The transaction for which a connection is being opened waits for it no longer. Returns
    /// clients that need not wait for this next hop either, and are to ask again.
    pub fn overdue(&mut self, address: HopId) -> Vec<Conn> {
        let hop = self.hops.entry(address).or_default();
        hop.background += 1;
        hop.waiting.drain(..).collect()
    }

    /// There was no room for a probe: none is begun for a moment.
    pub fn postpone(&mut self, address: HopId, now: Duration) {
        self.background_ended(address);
        let hop = self.hops.entry(address).or_default();
        hop.down_until = hop.down_until.max(now + RETRY_FIRST);
    }

    /// An attempt in the background has ended; [`reached`](Self::reached) or
    /// [`closed`](Self::closed) says how.
    pub fn background_ended(&mut self, address: HopId) {
        let hop = self.hops.entry(address).or_default();
        hop.background = hop.background.saturating_sub(1);
    }

    /// The connection has nothing more to do. Returns the client that has waited longest and has
    /// the connection now.
    pub fn released(&mut self, address: HopId, conn: Conn) -> Option<Conn> {
        let hop = self.hops.entry(address).or_default();
        if hop.failures > 0 {
            // It answered everything on this one.
            hop.recovered();
            self.recovered = true;
        }
        let next = hop.waiting.pop_front();
        if next.is_none() {
            hop.idle.push(conn);
        }
        next
    }

    /// A connection is ready: the next hop is well. Returns the clients that are to ask again.
    pub fn reached(&mut self, address: HopId, now: Duration) -> Vec<Conn> {
        let hop = self.hops.entry(address).or_default();
        hop.ready += 1;
        hop.well_until = now + WELL_TIME;
        hop.recovered();
        // Those who waited while it was in doubt may open connections of their own now.
        let room = self.connections_max.saturating_sub(hop.open) as usize;
        let waiting = room.min(hop.waiting.len());
        let waiting = hop.waiting.drain(..waiting);
        let stranded = self.stranded.drain(..).map(|(client, _)| client);
        waiting.chain(stranded).collect()
    }

    /// A connection could not be opened. If others work, the next hop just takes no more of them
    /// for now, and who wants one has to wait: returns `true`. If not, it is left alone for a
    /// while.
    pub fn refused(&mut self, address: HopId, now: Duration) -> bool {
        let retry_after = self.retry_after;
        let hop = self.hops.entry(address).or_default();
        if hop.ready == 0 {
            self.stalled(address, now);
            return false;
        }
        hop.failures_total += 1;
        hop.full_at = hop.ready;
        hop.full_until = now + RETRY_FIRST.min(retry_after);
        true
    }

    /// The next hop does not answer. It is left alone for a while.
    pub fn stalled(&mut self, address: HopId, now: Duration) {
        let hop = self.hops.entry(address).or_default();
        hop.failures_total += 1;
        if now < hop.down_until {
            // Several connections that fail together are one failure.
            return;
        }
        let pause = RETRY_FIRST * 2u32.saturating_pow(hop.failures.min(16));
        hop.failures = hop.failures.saturating_add(1);
        hop.down_until = now + pause.min(self.retry_after);
    }

    /// A connection, in use or idle, is gone (`None`: there never was one); `ready`: it had been
    /// [reached](Self::reached). Returns the clients that are to ask again: there is room for one
    /// more, or the next hop is down and they need not wait for it, or it was an attempt that they
    /// may have waited for.
    pub fn closed(
        &mut self,
        address: HopId,
        conn: Option<Conn>,
        ready: bool,
        now: Duration,
    ) -> Vec<Conn> {
        let hop = self.hops.entry(address).or_default();
        hop.open = hop.open.saturating_sub(1);
        hop.ready = hop.ready.saturating_sub(u32::from(ready));
        hop.idle.retain(|idle| Some(*idle) != conn);
        let is_unreachable = now < hop.down_until || hop.open == 0;
        let ask_again = if is_unreachable {
            hop.waiting.len()
        } else {
            1.min(hop.waiting.len())
        };
        let mut again: Vec<Conn> = hop.waiting.drain(..ask_again).collect();
        if !ready {
            again.extend(self.stranded.drain(..).map(|(client, _)| client));
        }
        again
    }

    /// The client that has waited longest for this next hop, and now does not any more.
    pub fn next_waiting(&mut self, address: HopId) -> Option<Conn> {
        self.hops.get_mut(&address)?.waiting.pop_front()
    }

    /// The client waits no longer.
    pub fn gave_up(&mut self, address: HopId, client: Conn) {
        if let Some(hop) = self.hops.get_mut(&address) {
            hop.waiting.retain(|waiting| *waiting != client);
        }
        self.stranded.retain(|(stranded, _)| *stranded != client);
    }

    /// The state of every next hop that was used so far; one for each of the demands on it.
    pub fn states(&self) -> Vec<HopState> {
        let stranded = |address: &HopId| {
            let with = self.stranded.iter().filter(|(_, with)| with == address);
            with.count() as u32
        };
        let mut states: Vec<HopState> = self
            .hops
            .iter()
            .map(|(address, hop)| HopState {
                address: address.address,
                up: hop.failures == 0,
                open: hop.open,
                idle: hop.idle.len() as u32,
                waiting: hop.waiting.len() as u32 + stranded(address),
                failures_total: hop.failures_total,
                events: hop.events,
            })
            .collect();
        states.extend(self.retired.iter().map(|(address, total)| HopState {
            address: *address,
            up: true,
            open: 0,
            idle: 0,
            waiting: 0,
            failures_total: total.0,
            events: total.1,
        }));
        states.sort_by_key(|state| state.address);
        states
    }
}

#[cfg(test)]
mod tests;
