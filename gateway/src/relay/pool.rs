//! The connections of one worker to its next hops: which are idle, which clients wait for one, which hop is down.
//!
//! A connection is kept after its message and taken again by the next: that is most of what makes the relay cheap. A next
//! hop that could not be reached is left alone for a moment, doubling from a second up to `retry_after`; then the next
//! transaction tries it again, so it comes back by itself and meanwhile nobody waits for it. No system call, no clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis_smtp::reply::Reply;
use rustc_hash::FxHashMap;

use crate::driver::Conn;

/// The first pause after a failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// What a transaction gets when it asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// An idle connection, now its own.
    Pooled(Conn),
    /// None is idle: open one to this address. It is counted as open already.
    Connect(SocketAddr),
    /// All connections to this address are in use: wait for [`Pool::released`] or [`Pool::closed`] to name this client.
    Wait(SocketAddr),
    /// Every address was tried, or is being left alone after a failure.
    Unavailable,
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
}

#[derive(Default)]
struct Hop {
    /// The last one used is taken first, so that what is not needed grows old and is closed.
    idle: Vec<Conn>,
    open: u32,
    /// Those of them on which transactions can be made.
    ready: u32,
    waiting: VecDeque<Conn>,
    /// Failures since the last success.
    failures: u32,
    failures_total: u64,
    down_until: Duration,
    /// It refused a connection while it had so many, and is not asked for more until then.
    full_at: u32,
    full_until: Duration,
    /// What it said when it refused the last connection.
    refusal: Option<Reply<'static>>,
    /// It was told to the log that it does not offer DSN.
    lacks_dsn: bool,
}

impl Hop {
    fn connections_max(&self, configured: u32, now: Duration) -> u32 {
        if now < self.full_until {
            configured.min(self.full_at)
        } else {
            configured
        }
    }
}

/// The next-hop connections of one worker.
pub struct Pool {
    hops: FxHashMap<SocketAddr, Hop>,
    connections_max: u32,
    retry_after: Duration,
}

impl Pool {
    /// A pool that opens at most `connections_max` connections to each address, and leaves one that failed alone for at
    /// most `retry_after`.
    pub fn new(connections_max: u32, retry_after: Duration) -> Self {
        Self {
            hops: FxHashMap::default(),
            connections_max,
            retry_after,
        }
    }

    /// Takes on the limits of a new configuration.
    pub fn configure(&mut self, connections_max: u32, retry_after: Duration) {
        self.connections_max = connections_max;
        self.retry_after = retry_after;
        self.hops.values_mut().for_each(|hop| hop.lacks_dsn = false);
    }

    /// Notes what the next hop said when it refused a connection, for those who cannot have one meanwhile.
    pub fn note_refusal(&mut self, address: SocketAddr, said: Option<Reply<'static>>) {
        self.hops.entry(address).or_default().refusal = said;
    }

    /// What the first of these next hops that said something has said when it refused the last connection.
    pub fn refusal(&self, addresses: &[SocketAddr]) -> Option<&Reply<'static>> {
        let hops = addresses
            .iter()
            .filter_map(|address| self.hops.get(address));
        hops.filter_map(|hop| hop.refusal.as_ref()).next()
    }

    /// Notes that the next hop does not offer DSN; whether that is news.
    pub fn lacks_dsn(&mut self, address: SocketAddr) -> bool {
        let hop = self.hops.entry(address).or_default();
        !std::mem::replace(&mut hop.lacks_dsn, true)
    }

    /// Finds a connection for `client` to the first of `addresses` that was not `tried` and is not down.
    /// `fresh` asks for a new connection even if one is idle: the last one taken from the pool turned out to be dead.
    pub fn lease(
        &mut self,
        client: Conn,
        addresses: impl IntoIterator<Item = SocketAddr>,
        tried: &[SocketAddr],
        fresh: bool,
        now: Duration,
    ) -> Lease {
        for address in addresses {
            if tried.contains(&address) {
                continue;
            }
            let hop = self.hops.entry(address).or_default();
            if let Some(conn) = (!fresh).then(|| hop.idle.pop()).flatten() {
                return Lease::Pooled(conn);
            }
            if now < hop.down_until {
                continue;
            }
            if hop.open < hop.connections_max(self.connections_max, now) {
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
        Lease::Unavailable
    }

    /// The connection has nothing more to do. Returns the client that has waited longest and has the connection now.
    pub fn released(&mut self, address: SocketAddr, conn: Conn) -> Option<Conn> {
        let hop = self.hops.entry(address).or_default();
        let next = hop.waiting.pop_front();
        if next.is_none() {
            hop.idle.push(conn);
        }
        next
    }

    /// A connection is ready: the next hop is well.
    pub fn reached(&mut self, address: SocketAddr) {
        let hop = self.hops.entry(address).or_default();
        hop.ready += 1;
        hop.failures = 0;
        hop.down_until = Duration::ZERO;
        hop.refusal = None;
    }

    /// A connection could not be opened. If others work, the next hop just takes no more of them for now, and who wants one
    /// has to wait: returns `true`. If not, it is left alone for a while.
    pub fn refused(&mut self, address: SocketAddr, now: Duration) -> bool {
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
    pub fn stalled(&mut self, address: SocketAddr, now: Duration) {
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

    /// A connection, in use or idle, is gone; `ready`: it had been [reached](Self::reached). Returns the clients that are
    /// to ask again: there is room for one more, or the next hop is down and they need not wait for it.
    pub fn closed(
        &mut self,
        address: SocketAddr,
        conn: Conn,
        ready: bool,
        now: Duration,
    ) -> Vec<Conn> {
        let hop = self.hops.entry(address).or_default();
        hop.open = hop.open.saturating_sub(1);
        hop.ready = hop.ready.saturating_sub(u32::from(ready));
        hop.idle.retain(|idle| *idle != conn);
        let nobody_answers = now < hop.down_until || hop.open == 0;
        let ask_again = if nobody_answers {
            hop.waiting.len()
        } else {
            1.min(hop.waiting.len())
        };
        hop.waiting.drain(..ask_again).collect()
    }

    /// The client that has waited longest for this next hop, and now does not any more.
    pub fn next_waiting(&mut self, address: SocketAddr) -> Option<Conn> {
        self.hops.get_mut(&address)?.waiting.pop_front()
    }

    /// The client waits no longer.
    pub fn gave_up(&mut self, address: SocketAddr, client: Conn) {
        if let Some(hop) = self.hops.get_mut(&address) {
            hop.waiting.retain(|waiting| *waiting != client);
        }
    }

    /// The state of every next hop that was used so far.
    pub fn states(&self) -> Vec<HopState> {
        let mut states: Vec<HopState> = self
            .hops
            .iter()
            .map(|(address, hop)| HopState {
                address: *address,
                up: hop.failures == 0,
                open: hop.open,
                idle: hop.idle.len() as u32,
                waiting: hop.waiting.len() as u32,
                failures_total: hop.failures_total,
            })
            .collect();
        states.sort_by_key(|state| state.address);
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const CLIENT: Conn = Conn {
        slot: 1,
        generation: 0,
    };
    const OTHER: Conn = Conn {
        slot: 2,
        generation: 0,
    };
    const HOP: Conn = Conn {
        slot: 9,
        generation: 0,
    };

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn pool() -> Pool {
        Pool::new(1, Duration::from_secs(10))
    }

    #[test]
    fn a_released_connection_is_taken_again_before_a_new_one_is_opened() {
        let mut pool = pool();
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], false, NOW),
            Lease::Connect(address(1))
        );
        assert_eq!(pool.released(address(1), HOP), None);
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], false, NOW),
            Lease::Pooled(HOP)
        );
    }

    #[test]
    fn who_waits_longest_gets_the_connection() {
        let mut pool = pool();
        pool.lease(HOP, [address(1)], &[], false, NOW);
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], false, NOW),
            Lease::Wait(address(1))
        );
        pool.lease(OTHER, [address(1)], &[], false, NOW);
        pool.gave_up(address(1), CLIENT);
        assert_eq!(pool.released(address(1), HOP), Some(OTHER));
    }

    #[test]
    fn a_hop_that_is_down_is_passed_over_and_tried_again_later() {
        let (mut pool, both) = (pool(), [address(1), address(2)]);
        pool.lease(CLIENT, both, &[], false, NOW);
        pool.stalled(address(1), NOW);
        pool.closed(address(1), HOP, false, NOW);
        assert_eq!(
            pool.lease(CLIENT, both, &[], false, NOW),
            Lease::Connect(address(2))
        );
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], false, NOW),
            Lease::Unavailable
        );
        let later = NOW + Duration::from_secs(1);
        assert_eq!(
            pool.lease(CLIENT, both, &[], false, later),
            Lease::Connect(address(1))
        );
    }

    #[test]
    fn the_pause_after_failures_grows_to_the_limit_and_ends_with_a_success() {
        let (mut pool, mut now) = (pool(), NOW);
        let lease = |pool: &mut Pool, now| pool.lease(CLIENT, [address(1)], &[], false, now);
        for expected in [1, 2, 4, 8, 10, 10] {
            pool.stalled(address(1), now);
            let pause = Duration::from_secs(expected);
            let early = now + pause - Duration::from_millis(1);
            assert_eq!(lease(&mut pool, early), Lease::Unavailable);
            assert_eq!(lease(&mut pool, now + pause), Lease::Connect(address(1)));
            assert!(!pool.states()[0].up, "nobody knows yet whether it is back");
            now += pause;
            pool.closed(address(1), HOP, false, now);
        }
        pool.reached(address(1));
        assert!(pool.states()[0].up);
        pool.stalled(address(1), now);
        let later = now + Duration::from_secs(1);
        assert_eq!(lease(&mut pool, later), Lease::Connect(address(1)));
    }

    #[test]
    fn clients_waiting_for_a_hop_that_fails_are_told_to_ask_again() {
        let mut pool = pool();
        pool.lease(HOP, [address(1)], &[], false, NOW);
        pool.lease(CLIENT, [address(1)], &[], false, NOW);
        pool.lease(OTHER, [address(1)], &[], false, NOW);
        pool.stalled(address(1), NOW);
        assert_eq!(pool.closed(address(1), HOP, false, NOW), [CLIENT, OTHER]);
    }

    #[test]
    fn nobody_waits_for_a_fresh_connection_while_one_lies_idle() {
        let mut pool = pool();
        pool.lease(CLIENT, [address(1)], &[], false, NOW);
        pool.released(address(1), HOP);
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], true, NOW),
            Lease::Pooled(HOP)
        );
    }

    #[test]
    fn a_next_hop_that_takes_no_more_connections_is_not_down() {
        let mut pool = Pool::new(3, Duration::from_secs(10));
        pool.lease(CLIENT, [address(1)], &[], false, NOW);
        pool.reached(address(1));
        pool.lease(OTHER, [address(1)], &[], false, NOW);
        assert!(pool.refused(address(1), NOW));
        pool.closed(address(1), HOP, false, NOW);
        assert!(pool.states()[0].up);
        assert_eq!(
            pool.lease(OTHER, [address(1)], &[], false, NOW),
            Lease::Wait(address(1))
        );
        let later = NOW + RETRY_FIRST;
        assert_eq!(
            pool.lease(OTHER, [address(1)], &[], false, later),
            Lease::Connect(address(1))
        );
    }

    #[test]
    fn connections_that_fail_together_are_one_failure() {
        let mut pool = Pool::new(8, Duration::from_secs(30));
        for _ in 0..8 {
            pool.stalled(address(1), NOW);
        }
        let later = NOW + RETRY_FIRST;
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], false, later),
            Lease::Connect(address(1))
        );
    }

    #[test]
    fn a_dead_pooled_connection_is_followed_by_a_fresh_one() {
        let mut pool = Pool::new(3, Duration::from_secs(10));
        pool.lease(CLIENT, [address(1)], &[], false, NOW);
        pool.released(address(1), HOP);
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[], true, NOW),
            Lease::Connect(address(1))
        );
        assert_eq!(
            pool.lease(CLIENT, [address(1)], &[address(1)], false, NOW),
            Lease::Unavailable
        );
    }
}
