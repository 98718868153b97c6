//! The local networks in the kernel: no recent verdict and no SYN budget applies to their sources.
//!
//! The program looks a source up here only before it would drop it for one of these, so speed does
//! not matter. A change adds new networks before it removes old ones: a network that stays is
//! always in the map.

use std::collections::BTreeSet;

use aya::maps::{LpmTrie, MapData};
use ipnet::IpNet;

use super::Error;
use super::address::{of_trie, trie_key};
use super::error::kernel;
use super::maps::{found, open};
use super::pins::Pins;

const LOOKING: &str = "looking for a local network";

/// The map of the local networks.
pub(super) struct LocalNetworks {
    trie: LpmTrie<MapData, [u32; 5], u32>,
}

impl LocalNetworks {
    /// Opens the pinned map.
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let trie = open(pins, "LOCAL_NETWORKS")?;
        Ok(Self { trie })
    }

    /// Makes the map hold exactly these networks.
    pub(super) fn sync(&mut self, wanted: &[IpNet]) -> Result<(), Error> {
        let failed = "writing the local networks";
        let keys = self.trie.keys();
        let before = keys
            .map(|key| key.map(|key| (key.prefix_len(), key.data())))
            .collect::<Result<BTreeSet<_>, _>>()
            .map_err(kernel(failed))?;
        let mut kept = BTreeSet::new();
        for network in wanted {
            let key = trie_key(network);
            let words = (key.prefix_len(), key.data());
            if !before.contains(&words) {
                self.trie.insert(&key, 1, 0).map_err(kernel(failed))?;
            }
            kept.insert(words);
        }
        for (length, words) in before.difference(&kept) {
            let key = aya::maps::lpm_trie::Key::new(*length, *words);
            self.trie.remove(&key).map_err(kernel(failed))?;
        }
        Ok(())
    }

    /// The local network with the longest prefix that contains all of `source`.
    pub(super) fn covering(&self, source: IpNet) -> Result<Option<IpNet>, Error> {
        let found = found(self.trie.get(&trie_key(&source), 0));
        if found.map_err(kernel(LOOKING))?.is_none() {
            return Ok(None);
        }
        // The trie does not say which one.
        let mut covering = self.all()?;
        covering.retain(|network| network.contains(&source));
        Ok(covering.into_iter().max_by_key(IpNet::prefix_len))
    }

    /// All local networks.
    pub(super) fn all(&self) -> Result<Vec<IpNet>, Error> {
        let keys = self.trie.keys();
        let networks = keys.map(|key| key.map(|key| of_trie(key.prefix_len(), key.data())));
        networks
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()
            .map_err(kernel(LOOKING))
    }
}
