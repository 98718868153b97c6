//! How many sessions each source holds at the moment, over all workers.
//!
//! This is the one thing that workers write together. The kernel spreads the connections of one
//! source over all listening sockets, so a count per worker would make `sessions_per_source` mean
//! something between the number configured and that number divided by the workers. Rejected:
//! steering a source to one worker (one busy smart host would have one core). The count is split
//! over locks that two workers seldom want at once.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};
use std::hash::BuildHasher as _;

const SHARDS: usize = 64;
/// The upper half of 64:ff9b::/96, in whose addresses RFC 6052 puts those of IPv4.
const TRANSLATED: u64 = 0x0064_ff9b_0000_0000;

/// What is counted as one source: an IPv4 address, also one that a translator has put into
/// 64:ff9b::/96, or the /64 of an IPv6 address, which one host can fill at will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientSource(u64, bool);

impl From<IpAddr> for ClientSource {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(address.to_bits()), true),
            IpAddr::V6(address) => {
                let (upper, lower) = ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
                // All of IPv4 behind a translator is one /64. What stands for one address of it is
                // the place of a /64 that is no one's.
                let is_translated = upper == TRANSLATED && lower >> 32 == 0;
                Self(if is_translated { upper | lower } else { upper }, false)
            }
        }
    }
}

/// Open sessions by source.
pub struct Sources {
    shards: [Mutex<FxHashMap<ClientSource, u32>>; SHARDS],
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Sources {
    /// Counts one more session of the source; how many it has with this one. It has to
    /// [leave](Self::leave), also when it is one too many.
    pub fn enter(&self, source: ClientSource) -> u32 {
        let mut shard = self
            .shard(source)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sessions = shard.entry(source).or_insert(0);
        *sessions += 1;
        *sessions
    }

    /// Ends a session that was counted.
    pub fn leave(&self, source: ClientSource) {
        let mut shard = self
            .shard(source)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(sessions) = shard.get_mut(&source) {
            *sessions -= 1;
            if *sessions == 0 {
                shard.remove(&source);
            }
        }
    }

    fn shard(&self, source: ClientSource) -> &Mutex<FxHashMap<ClientSource, u32>> {
        &self.shards[FxBuildHasher.hash_one(source) as usize >> 7 & (SHARDS - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let source = |text: &str| ClientSource::from(text.parse::<IpAddr>().unwrap());
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_eq!(source("2001:db8:1:2::3"), source("2001:db8:1:2:ffff::"));
        assert_ne!(source("64:ff9b::192.0.2.1"), source("64:ff9b::192.0.2.2"));
        assert_eq!(source("64:ff9b:0:0:1::1"), source("64:ff9b:0:0:1::2"));
        assert_ne!(source("2001:db8:1:2::3"), source("2001:db8:1:3::3"));
        assert_ne!(source("0.0.0.1"), source("0:0:0:1::"));
    }

    #[test]
    fn a_source_has_as_many_sessions_as_have_not_ended() {
        let (sources, source) = (Sources::default(), ClientSource(7, true));
        assert_eq!([(); 3].map(|()| sources.enter(source)), [1, 2, 3]);
        sources.leave(source);
        assert_eq!(sources.enter(source), 3);
        for _ in 0..3 {
            sources.leave(source);
        }
        assert!(
            sources.shard(source).lock().unwrap().is_empty(),
            "a source without sessions costs no memory"
        );
    }
}
