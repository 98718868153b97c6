//! From the prefixes of all lists to a snapshot, in which every overlap is settled.
//!
//! 1. A permit wins over every drop, and a hard drop over every other drop, whatever the prefix
//!    lengths.
//! 2. Among lists of the same action the longest prefix answers, then the list that comes first in
//!    the configuration.
//!
//! Each family is planned first (sorted, settled, counted), then memory is asked for, in its final
//! size, then written. So the lines can lie in a kernel map from the start, and a plan can be
//! written once to be judged and again where it is to lie. While it is built, sixteen bytes an IPv4
//! prefix are needed beside the snapshot at most (eight as it was read, eight as it is sorted; the
//! first are freed before the snapshot is written), two for each /24 where there are prefixes up to
//! /24 (32 MiB at most), the presence bits (6 MiB at most), and about 140 bytes an IPv6 prefix.

mod hashed;
mod ipv4;
mod ipv6;
mod presence;

use portcullis_ebpf_common::snapshot::{CLASSES, FIRST_FREE, Field, LISTS_MAX, MAGIC};

use super::entries::Entries;
use super::snapshot::{Allocate, Snapshot};

/// What a list gives to the snapshot.
pub(super) struct NumberedList {
    /// Its place in the configuration.
    pub(super) number: u16,
    /// It wins over those of a lower rank.
    pub(super) rank: u8,
    /// Its prefixes.
    pub(super) entries: Entries,
}

/// The highest rank that there is.
const RANK_MAX: u8 = 2;

/// The ranks of lists by their numbers.
struct Ranks([u8; LISTS_MAX]);

impl Ranks {
    fn of(&self, list: u16) -> u8 {
        self.0.get(usize::from(list)).copied().unwrap_or_default()
    }
}

/// Settles the overlaps of these lists.
///
/// # Panics
/// If the number of a list is beyond the table of classes, or a rank beyond two.
pub(super) fn plan(lists: Vec<NumberedList>) -> Plan {
    let mut ranks = Ranks([0; LISTS_MAX]);
    for list in &lists {
        assert!(list.rank <= RANK_MAX, "a rank has two bits");
        ranks.0[usize::from(list.number)] = list.rank;
    }
    let mut ipv4 = ipv4::Prefixes::with_room_for(&lists);
    let mut ipv6 = ipv6::Prefixes::default();
    for NumberedList {
        number: list,
        entries,
        ..
    } in lists
    {
        let Entries {
            ipv4: narrow,
            ipv6: wide,
        } = entries;
        let rank = ranks.of(list);
        ipv4.add(list, rank, &narrow);
        drop(narrow);
        ipv6.add(list, rank, &wide);
    }
    let (ipv4, ipv6) = (ipv4.plan(&ranks), ipv6.plan());
    Plan { ranks, ipv4, ipv6 }
}

/// A snapshot of which only the lines are missing.
pub(super) struct Plan {
    ranks: Ranks,
    ipv4: ipv4::Plan,
    ipv6: ipv6::Plan,
}

impl Plan {
    /// Writes the lines into memory that is asked for in its final size.
    pub(super) fn write(&self, allocate: Allocate) -> Snapshot {
        let Self { ranks, ipv4, ipv6 } = self;
        let count = FIRST_FREE + ipv4.lines() + ipv6.lines();
        let mut memory = allocate(count);
        let (fixed, rest) = memory.lines_mut().split_at_mut(FIRST_FREE);
        let [header, heads @ ..] = fixed.first_chunk_mut::<CLASSES>().expect("the fixed lines");
        Field::MAGIC.set(header, MAGIC);
        Field::LINES.set(header, count as u64);
        let (of_ipv4, of_ipv6) = rest.split_at_mut(ipv4.lines());
        ipv4.write(header, of_ipv4, ranks);
        ipv6.write(heads, of_ipv6, FIRST_FREE + ipv4.lines());
        Snapshot::from(memory)
    }
}
