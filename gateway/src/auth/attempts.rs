//! Wrong passwords, counted for each source, each network and each user, over all workers: how long
//! the next refusal is held back, and when a source has had its fill.
//!
//! Each count leaks: one wrong password is forgotten after a set time (GCRA, with the time at
//! which all are forgotten as its only state). Only refusals are held back, so that guessing at a
//! user does not lock the user out. Guessing from one address at many users shows in the count of
//! the source, from many addresses of a network in that of the network, and from everywhere at one
//! user in that of the user.
//!
//! The tables have a fixed size. An entry lives in a set of eight, and a new one takes the place of
//! the least, so that a flood of new sources does not make the worst be forgotten. Which set is
//! chosen by a keyed hash: nothing that a client sends chooses it.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Entries of each of the three tables: 1 MiB each.
const ENTRIES: usize = 65_536;
const WAYS: usize = 8;

/// The delay of a refusal by itself, and the greatest.
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(16);

/// How one kind of count leaks and what it leads to.
#[derive(Clone, Copy, Debug)]
struct Leak {
    /// One wrong password is forgotten after so many milliseconds.
    each_ms: u64,
    /// With more than so many the delay doubles with each.
    free: u64,
}

const SOURCE: Leak = Leak {
    each_ms: 300_000,
    free: 3,
};
/// A /24 or a /64: many clients behind one translator, or one with many addresses.
const NETWORK: Leak = Leak {
    each_ms: 30_000,
    free: 30,
};
const USER: Leak = Leak {
    each_ms: 300_000,
    free: 10,
};

/// With so many a source has had its fill, and again with each further so many.
const SOURCE_BOUND: u64 = 20;
/// No count goes further: it would take too long to be forgotten.
const COUNT_MAX: u64 = 64;

/// What follows from a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consequence {
    /// How long the refusal is held back.
    pub delay: Duration,
    /// The source has had its fill, just now: it may be kept out by a recent verdict.
    pub has_had_its_fill: bool,
}

/// The counts.
#[derive(Debug)]
pub struct Attempts<H = RandomState> {
    sources: Table,
    networks: Table,
    users: Table,
    hasher: H,
}

impl Attempts {
    /// Without any wrong password.
    pub fn new() -> Self {
        Self::with(RandomState::new(), ENTRIES)
    }
}

impl Default for Attempts {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: BuildHasher> Attempts<H> {
    fn with(hasher: H, entries: usize) -> Self {
        let table = || Table(vec![[Entry::default(); WAYS]; (entries / WAYS).max(1)]);
        Self {
            sources: table(),
            networks: table(),
            users: table(),
            hasher,
        }
    }

    /// How long a check for this client is put off, because its source has been wrong too often.
    /// Otherwise one that hangs up instead of waiting for a refusal could guess on at once. It is
    /// not by user: no user is to be locked out by others.
    pub fn delay_of(&self, client: IpAddr, now: Duration) -> Duration {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX / 2);
        let key = self.hasher.hash_one(client.to_canonical());
        let over = self.sources.count(key, SOURCE, now_ms);
        match over.saturating_sub(SOURCE.free) {
            0 => Duration::ZERO,
            over => (DELAY_MIN * (1 << over.min(30))).min(DELAY_MAX),
        }
    }

    /// Counts a wrong password of this client for this name (in the form in which names are
    /// compared; empty: it is not known). The time is any that only goes on.
    pub fn wrong(&mut self, client: IpAddr, name: &str, now: Duration) -> Consequence {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX / 2);
        let (source, network) = (client.to_canonical(), network(client));
        let source = self
            .sources
            .add(self.hasher.hash_one(source), SOURCE, now_ms);
        let network = self
            .networks
            .add(self.hasher.hash_one(network), NETWORK, now_ms);
        // Those without a name have nothing in common.
        let user = match name {
            "" => 0,
            name => self.users.add(self.hasher.hash_one(name), USER, now_ms),
        };
        let over = [(source, SOURCE), (network, NETWORK), (user, USER)];
        let over = over.map(|(count, leak)| count.saturating_sub(leak.free));
        let doublings = over.into_iter().max().unwrap_or(0).min(30) as u32;
        Consequence {
            delay: (DELAY_MIN * (1 << doublings)).min(DELAY_MAX),
            has_had_its_fill: source.is_multiple_of(SOURCE_BOUND),
        }
    }
}

/// The /24 or /64 of an address.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

/// One count.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The hash of what is counted.
    key: u64,
    /// When all is forgotten, in milliseconds. Until then there is a count.
    until_ms: u64,
}

#[derive(Debug)]
struct Table(Vec<[Entry; WAYS]>);

impl Table {
    /// The count as it is.
    fn count(&self, key: u64, leak: Leak, now_ms: u64) -> u64 {
        let set = &self.0[(key % self.0.len() as u64) as usize];
        let known = set.iter().find(|entry| entry.key == key);
        let left = known.map_or(0, |entry| entry.until_ms.saturating_sub(now_ms));
        left.div_ceil(leak.each_ms)
    }

    /// Adds one, and gives the count with it.
    fn add(&mut self, key: u64, leak: Leak, now_ms: u64) -> u64 {
        let sets = self.0.len() as u64;
        // The remainder is less than the length.
        let set = &mut self.0[(key % sets) as usize];
        let known = set.iter().position(|entry| entry.key == key);
        let least = || (0..WAYS).min_by_key(|&way| set[way].until_ms).unwrap_or(0);
        let way = known.unwrap_or_else(least);
        let entry = &mut set[way];
        if entry.key != key {
            *entry = Entry { key, until_ms: 0 };
        }
        let before = entry.until_ms.max(now_ms);
        let most = now_ms + leak.each_ms * COUNT_MAX;
        entry.until_ms = (before + leak.each_ms).min(most);
        (entry.until_ms - now_ms).div_ceil(leak.each_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasherDefault;

    use rustc_hash::FxHasher;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn attempts(entries: usize) -> Attempts<BuildHasherDefault<FxHasher>> {
        Attempts::with(BuildHasherDefault::default(), entries)
    }

    fn client(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn checks_are_put_off_for_a_source_that_was_wrong_too_often_and_for_no_other() {
        let mut attempts = attempts(64);
        let guesser = client("192.0.2.1");
        for _ in 0..3 {
            attempts.wrong(guesser, "alice", SECOND);
            assert_eq!(attempts.delay_of(guesser, SECOND), Duration::ZERO);
        }
        attempts.wrong(guesser, "alice", SECOND);
        assert_eq!(attempts.delay_of(guesser, SECOND), 2 * SECOND);
        for _ in 0..30 {
            attempts.wrong(guesser, "alice", SECOND);
        }
        assert_eq!(attempts.delay_of(guesser, SECOND), DELAY_MAX);
        assert_eq!(
            attempts.delay_of(client("192.0.2.2"), SECOND),
            Duration::ZERO
        );
        let later = 100 * 300 * SECOND;
        assert_eq!(attempts.delay_of(guesser, later), Duration::ZERO);
    }

    #[test]
    fn a_source_is_slowed_after_three_and_has_had_its_fill_after_twenty() {
        let mut attempts = attempts(64);
        let guess = |number: u64| format!("user{number}");
        let seen: Vec<_> = (0..25)
            .map(|number| attempts.wrong(client("192.0.2.1"), &guess(number), SECOND))
            .collect();
        let delays: Vec<_> = seen
            .iter()
            .map(|seen| seen.delay.as_secs())
            .take(8)
            .collect();
        assert_eq!(delays, [1, 1, 1, 2, 4, 8, 16, 16]);
        let fills = (1..).zip(&seen).filter(|(_, seen)| seen.has_had_its_fill);
        assert_eq!(fills.map(|(number, _)| number).collect::<Vec<_>>(), [20]);
        let other = attempts.wrong(client("198.51.100.1"), "x", SECOND);
        assert_eq!((other.delay, other.has_had_its_fill), (SECOND, false));
    }

    #[test]
    fn wrong_passwords_are_forgotten_one_by_one() {
        let mut attempts = attempts(64);
        for _ in 0..6 {
            attempts.wrong(client("192.0.2.1"), "alice", Duration::ZERO);
        }
        // Three of six are forgotten, and this is the fourth.
        let later = attempts.wrong(client("192.0.2.1"), "bob", 900 * SECOND);
        assert_eq!(later.delay, 2 * SECOND);
        // Whatever was done, an hour and six is enough.
        for _ in 0..1_000 {
            attempts.wrong(client("192.0.2.1"), "bob", 900 * SECOND);
        }
        let most = Duration::from_millis(COUNT_MAX * SOURCE.each_ms);
        let later = attempts.wrong(client("192.0.2.1"), "carol", 900 * SECOND + most);
        assert_eq!(later.delay, SECOND);
    }

    #[test]
    fn a_network_and_a_user_are_counted_over_all_sources() {
        let mut of_network = attempts(4_096);
        let guess = |attempts: &mut Attempts<_>, host: u16, name: &str| {
            let client = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into();
            attempts.wrong(client, name, SECOND).delay
        };
        let delays: Vec<_> = (0..40)
            .map(|number| guess(&mut of_network, number, &number.to_string()))
            .collect();
        assert_eq!(
            (delays[29], delays[30], delays[39]),
            (SECOND, 2 * SECOND, DELAY_MAX)
        );
        let mut of_user = attempts(4_096);
        let delays: Vec<_> = (0..20u8)
            .map(|net| of_user.wrong([10, net, 0, 1].into(), "alice", SECOND).delay)
            .collect();
        assert_eq!(
            (delays[9], delays[10], delays[19]),
            (SECOND, 2 * SECOND, DELAY_MAX)
        );
    }

    #[test]
    fn guesses_without_a_name_do_not_slow_each_other_down() {
        let mut attempts = attempts(4_096);
        for net in 0..40u8 {
            let delay = attempts.wrong([10, net, 0, 1].into(), "", SECOND).delay;
            assert_eq!(delay, SECOND);
        }
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        let mut attempts = attempts(64);
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"] {
            attempts.wrong(client(text), "a", SECOND);
        }
        let fourth = attempts.wrong(client("::ffff:192.0.2.1"), "b", SECOND);
        assert_eq!(fourth.delay, 2 * SECOND);
        assert_eq!(network(client("192.0.2.77")), client("192.0.2.0"));
        assert_eq!(
            network(client("2001:db8:1:2:3::4")),
            client("2001:db8:1:2::")
        );
    }

    #[test]
    fn a_flood_of_new_sources_takes_no_memory_and_does_not_hide_the_worst() {
        let mut attempts = attempts(WAYS);
        let worst = client("192.0.2.1");
        for _ in 0..10 {
            attempts.wrong(worst, "alice", SECOND);
        }
        for number in 0..100_000u32 {
            let flood = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number));
            attempts.wrong(flood, &number.to_string(), SECOND);
        }
        assert_eq!(attempts.sources.0.len(), 1);
        assert_eq!(attempts.wrong(worst, "bob", SECOND).delay, DELAY_MAX);
    }
}
