//! A table of IP prefixes with the longest match as its answer.
//!
//! One sorted array. Prefixes are nested or disjoint, never half overlapping, so the longest prefix
//! that covers an address is the last one that sorts before the address, or one of those that
//! enclose it: a binary search and a few steps outwards. Twenty-eight bytes an entry and no
//! pointers; rejected: a trie (several times the memory), and a hash map per prefix length (up to
//! 160 look-ups for an address that is on no list).

use core::net::IpAddr;
use core::ops::Deref;

use ipnet::IpNet;

/// No prefix of the table encloses this one.
const OUTERMOST: u32 = u32::MAX;

/// Prefixes, each with a number that says what it stands for. Prefixes are distinct and have no
/// host bits.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    /// Sorted, so that a prefix comes after all that enclose it.
    entries: Vec<(IpNet, u16)>,
    /// For each entry the narrowest one that encloses it.
    enclosing: Vec<u32>,
}

impl Prefixes {
    /// The table of these prefixes. Where the same prefix comes more than once, the smallest number
    /// stays.
    pub fn new(mut entries: Vec<(IpNet, u16)>) -> Prefixes {
        for (net, _) in &mut entries {
            *net = net.trunc();
        }
        entries.sort_unstable();
        entries.dedup_by_key(|(net, _)| *net);
        let mut enclosing = Vec::with_capacity(entries.len());
        let mut open: Vec<u32> = Vec::new();
        for (at, (net, _)) in entries.iter().enumerate() {
            while open
                .last()
                .is_some_and(|&outer| !entries[outer as usize].0.contains(net))
            {
                open.pop();
            }
            enclosing.push(open.last().copied().unwrap_or(OUTERMOST));
            open.push(at as u32);
        }
        Prefixes { entries, enclosing }
    }

    /// The longest prefix that covers the address, and its number.
    pub fn lookup(&self, address: IpAddr) -> Option<(IpNet, u16)> {
        self.covering(address).next()
    }

    /// All prefixes that cover the address, the longest first.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = (IpNet, u16)> {
        let host = IpNet::from(address);
        let before = self.entries.partition_point(|(net, _)| *net <= host);
        let last = before.checked_sub(1).map(|at| at as u32);
        std::iter::successors(last, |&at| {
            Some(self.enclosing[at as usize]).filter(|&outer| outer != OUTERMOST)
        })
        .map(|at| self.entries[at as usize])
        .filter(move |(net, _)| net.contains(&address))
    }
}

/// The prefixes, sorted.
impl Deref for Prefixes {
    type Target = [(IpNet, u16)];

    fn deref(&self) -> &[(IpNet, u16)] {
        &self.entries
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct bits, so that random prefixes nest and collide.
    pub(crate) fn crowded_address() -> impl Strategy<Value = IpAddr> {
        let octet = || prop::sample::select(vec![0u8, 1, 2, 127, 128, 254, 255]);
        prop_oneof![
            [octet(), octet(), octet(), octet()].prop_map(IpAddr::from),
            [octet(), octet()].prop_map(|[a, b]| {
                let mut octets = [0; 16];
                (octets[0], octets[7], octets[15]) = (0x20, a, b);
                IpAddr::from(octets)
            }),
        ]
    }

    pub(crate) fn crowded_prefix() -> impl Strategy<Value = IpNet> {
        (crowded_address(), 0..=128u8).prop_map(|(address, len)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, len.min(longest))
                .expect("a length within the family")
                .trunc()
        })
    }

    proptest! {
        #[test]
        fn a_lookup_gives_what_a_search_of_all_prefixes_gives(
            entries in prop::collection::vec((crowded_prefix(), 0..4u16), 0..60),
            addresses in prop::collection::vec(crowded_address(), 1..40),
        ) {
            let table = Prefixes::new(entries.clone());
            for address in addresses {
                let longest = entries
                    .iter()
                    .filter(|(net, _)| net.contains(&address))
                    .max_by_key(|(net, number)| (net.prefix_len(), std::cmp::Reverse(*number)));
                prop_assert_eq!(table.lookup(address), longest.copied());
            }
        }
    }
}
