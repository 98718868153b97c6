//! The addresses that have a grant, shared by the control plane, which writes them, and the
//! workers, which read them at each command.
//!
//! It is a set and knows no time: the control plane removes an address when its grant ends. Without
//! any grant a look-up is one load. Rejected: a snapshot swapped whole, which would be copied for
//! each login of a busy POP server.

use core::net::IpAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use rustc_hash::{FxBuildHasher, FxHashSet};

const SHARDS: usize = 64;

/// The addresses that have a grant at this moment. IPv4 addresses are as such, never mapped.
#[derive(Debug)]
pub struct Granted {
    number: AtomicUsize,
    shards: [RwLock<FxHashSet<IpAddr>>; SHARDS],
}

impl Default for Granted {
    fn default() -> Self {
        Self {
            number: AtomicUsize::new(0),
            shards: core::array::from_fn(|_| RwLock::default()),
        }
    }
}

impl Granted {
    /// Whether an address has a grant.
    pub fn has(&self, address: IpAddr) -> bool {
        if self.number.load(Ordering::Acquire) == 0 {
            return false;
        }
        let address = address.to_canonical();
        let shard = self.shard(address).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.contains(&address)
    }

    /// Adds an address.
    pub fn add(&self, address: IpAddr) {
        let address = address.to_canonical();
        let shard = self.shard(address).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        if shard.insert(address) {
            self.number.fetch_add(1, Ordering::Release);
        }
    }

    /// Removes an address.
    pub fn remove(&self, address: IpAddr) {
        let address = address.to_canonical();
        let shard = self.shard(address).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        if shard.remove(&address) {
            self.number.fetch_sub(1, Ordering::Release);
        }
    }

    fn shard(&self, address: IpAddr) -> &RwLock<FxHashSet<IpAddr>> {
        use core::hash::BuildHasher as _;
        // The hash table uses the lower bits.
        let hash = FxBuildHasher.hash_one(address) >> 32;
        &self.shards[hash as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_grant_from_add_to_remove_and_its_neighbour_never() {
        let granted = Granted::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for (own, other) in [
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
            ("::ffff:198.51.100.1", "::ffff:198.51.100.2"),
        ] {
            granted.add(address(own));
            granted.add(address(own));
            assert!(granted.has(address(own)) && !granted.has(address(other)));
        }
        assert!(granted.has(address("198.51.100.1")), "mapped");
        for own in ["192.0.2.1", "2001:db8::1", "198.51.100.1", "203.0.113.1"] {
            granted.remove(address(own));
            assert!(!granted.has(address(own)));
        }
        assert_eq!(granted.number.load(Ordering::Relaxed), 0);
    }
}
