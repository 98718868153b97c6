//! How many handshakes each source begins, over all workers.
//!
//! A handshake costs a signature of ours and next to nothing of the client's. The count per source
//! is exact for as many sources as fit; when a flood from more of them fills the table, sources
//! that are not in it are let through: the bound on handshakes at a time holds for them.

use std::hash::BuildHasher as _;
use std::sync::{Mutex, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::sources::ClientSource;

const SHARDS: usize = 64;
/// Sources in one shard; with [`SHARDS`] that bounds the memory to about 2 MiB.
const SOURCES_MAX: usize = 1_024;
const MINUTE_MS: u64 = 60_000;

/// Handshakes by source: each entry is the moment, in milliseconds since 1970, at which all of its
/// handshakes are paid for (the generic cell rate algorithm of ITU-T I.371).
pub(super) struct HandshakeRates {
    shards: [Mutex<FxHashMap<ClientSource, u64>>; SHARDS],
}

impl Default for HandshakeRates {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl HandshakeRates {
    /// Counts a handshake, unless the source has had `per_minute` of them in a minute; then it is
    /// `false`. `unix_time` is in seconds.
    pub(super) fn take(&self, source: ClientSource, per_minute: u32, unix_time: u64) -> bool {
        let now = unix_time.saturating_mul(1_000);
        let cost = MINUTE_MS / u64::from(per_minute.clamp(1, MINUTE_MS as u32));
        let shard = FxBuildHasher.hash_one(source) as usize >> 7 & (SHARDS - 1);
        let mut shard = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SOURCES_MAX && !shard.contains_key(&source) {
            shard.retain(|_, paid_at| *paid_at > now);
            if shard.len() >= SOURCES_MAX {
                return true;
            }
        }
        let paid_at = shard.entry(source).or_insert(0);
        // After the clock was put back no source is to wait for it.
        let next = (*paid_at).min(now + MINUTE_MS).max(now) + cost;
        if next > now + MINUTE_MS {
            return false;
        }
        *paid_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn source(number: u32) -> ClientSource {
        ClientSource::from(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn a_source_has_so_many_in_a_minute_and_another_as_many() {
        let rates = HandshakeRates::default();
        let take = |number, now| rates.take(source(number), 3, now);
        assert_eq!([(); 4].map(|()| take(1, 1_000)), [true, true, true, false]);
        assert!(take(2, 1_000));
        assert!(!take(1, 1_019));
        assert!(take(1, 1_020));
        assert!(!take(1, 1_020));
        assert_eq!([(); 4].map(|()| take(1, 2_000)), [true, true, true, false]);
    }

    #[test]
    fn sources_beyond_the_memory_are_let_through_and_idle_ones_make_room() {
        let rates = HandshakeRates::default();
        for number in 0..(2 * SHARDS * SOURCES_MAX) as u32 {
            assert!(rates.take(source(number), 1, 1_000));
        }
        let held = |rates: &HandshakeRates| {
            let shards = rates.shards.iter();
            shards
                .map(|shard| shard.lock().unwrap().len())
                .sum::<usize>()
        };
        assert!(held(&rates) <= SHARDS * SOURCES_MAX);
        for number in 0..(2 * SHARDS * SOURCES_MAX) as u32 {
            rates.take(source(u32::MAX - number), 1, 5_000);
        }
        assert!(!rates.take(source(u32::MAX), 1, 5_000));
    }
}
