//! How much of the address space lists refuse, and how much of it they did not refuse before.
//!
//! What is compared are the settled snapshots, so that the answer is exact: an address counts for
//! the list that speaks for it now, if no list had it refused before. It needs both snapshots in
//! memory and one pass over them, of which nearly all is passed over: ranges without presence,
//! and entries that are the same in both. [`Covered`] is the bound that says, while the entries are
//! at hand, that no pass is needed: what a list covers at all is no less than what it covers newly.
//! Rejected: to keep the prefixes of the last compile (80 MB for ten million), and to compare the
//! numbers of addresses (a list may lose one half of the Internet and gain the other).

mod ipv4;
mod ipv6;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::compiled::{Compiled, ListAction};
use super::entries::Entries;

/// All of IPv4.
const IPV4_ALL: u128 = 1 << 32;
/// What is assigned of IPv6: 2000::/3.
const IPV6_FIRST: u128 = 0x2000 << 112;
const IPV6_LAST: u128 = (0x4000 << 112) - 1;
const IPV6_ALL: u128 = IPV6_LAST - IPV6_FIRST + 1;

/// Either family, both, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
}

impl Families {
    pub(super) const BOTH: Self = Self {
        ipv4: true,
        ipv6: true,
    };

    pub(super) const fn any(self) -> bool {
        self.ipv4 || self.ipv6
    }

    pub(super) const fn or(self, other: Self) -> Self {
        Self {
            ipv4: self.ipv4 || other.ipv4,
            ipv6: self.ipv6 || other.ipv6,
        }
    }
}

/// How many addresses there are: of IPv4, and of IPv6 in 2000::/3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// Of 2^32.
    pub ipv4: u64,
    /// Of 2^125.
    pub ipv6: u128,
}

impl Covered {
    /// What sorted entries cover, each address counted once.
    pub fn of(entries: &Entries) -> Covered {
        let mut covered = Covered::default();
        let mut next = 0_u64;
        for prefix in &entries.ipv4 {
            let first = u64::from(prefix.address);
            // What encloses others comes before them.
            if first >= next {
                let size = 1_u64 << (32 - prefix.length.min(32));
                covered.ipv4 += size;
                next = first + size;
            }
        }
        let mut end = None;
        for prefix in &entries.ipv6 {
            if end.is_none_or(|end| prefix.address > end) {
                let last = last_ipv6(prefix.address, prefix.length);
                covered.ipv6 += assigned(prefix.address, last);
                end = Some(last);
            }
        }
        covered
    }

    /// Whether either is more than `percent` of all addresses.
    pub fn is_more_than(&self, percent: u8) -> bool {
        self.families_of_more_than(percent).any()
    }

    /// Which of the two is more than `percent` of all addresses.
    pub(super) fn families_of_more_than(&self, percent: u8) -> Families {
        Families {
            ipv4: self.ipv4_is_more_than(percent),
            ipv6: self.ipv6_is_more_than(percent),
        }
    }

    fn ipv4_is_more_than(&self, percent: u8) -> bool {
        u128::from(self.ipv4) * 100 > IPV4_ALL * u128::from(percent)
    }

    fn ipv6_is_more_than(&self, percent: u8) -> bool {
        // In /120s, or a hundred times as many would be too many for the type.
        (self.ipv6 >> 8) * 100 > (IPV6_ALL >> 8) * u128::from(percent)
    }

    /// Percent of IPv4, for people.
    pub fn ipv4_percent(&self) -> f64 {
        self.ipv4 as f64 * 100.0 / IPV4_ALL as f64
    }

    /// Percent of 2000::/3, for people.
    pub fn ipv6_percent(&self) -> f64 {
        self.ipv6 as f64 * 100.0 / IPV6_ALL as f64
    }
}

fn last_ipv6(first: u128, length: u8) -> u128 {
    first | u128::MAX.checked_shr(u32::from(length)).unwrap_or(0)
}

/// How much of a range is in 2000::/3.
fn assigned(first: u128, last: u128) -> u128 {
    let (first, last) = (first.max(IPV6_FIRST), last.min(IPV6_LAST));
    if first <= last { last - first + 1 } else { 0 }
}

/// For each list of `after`: how many of the addresses that it has refused were not refused before.
/// A family that is not asked for is left at nought: ten million prefixes of IPv6 side by side are
/// a gigabyte, for nothing if all that is wide is IPv4.
pub(super) fn newly(before: &Compiled, after: &Compiled, families: Families) -> Vec<Covered> {
    let mut newly = vec![Covered::default(); after.lists.len()];
    let (before, after) = (Lists(before), Lists(after));
    if families.ipv4 {
        ipv4::count(&before, &after, &mut newly);
    }
    if families.ipv6 {
        ipv6::count(&before, &after, &mut newly);
    }
    newly
}

/// The lists of a generation, and which of them refuses an address that its two snapshots have.
struct Lists<'a>(&'a Compiled);

impl Lists<'_> {
    /// The list by which an address is refused, that both snapshots say this of.
    fn refuses(&self, filtered: Option<u16>, rejected: Option<u16>) -> Option<u16> {
        let Some(list) = filtered else {
            return rejected;
        };
        let action = self.0.lists.get(usize::from(list));
        action
            .is_some_and(|list| list.action != ListAction::Permit)
            .then_some(list)
    }
}
