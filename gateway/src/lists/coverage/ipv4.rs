//! IPv4: entry by entry of the directory, as `ebpf/common` describes it.

use portcullis_ebpf_common::snapshot::{
    CELL_MARKS_BITS, ENTRY_ALL, ENTRY_CELL, ENTRY_KIND_SHIFT, ENTRY_LONE, Field, Line, Mark,
    PRESENCE,
};

use super::super::snapshot::Snapshot;
use super::{Covered, Lists};

/// Addresses of a /24.
const NETWORK: usize = 256;
/// /24s that are compared together. A word of presence bits covers at least this many.
const RANGE: usize = 32;
/// The entries of the /24s of a range.
type RangeEntries = [u32; RANGE];
const NO_ENTRIES: RangeEntries = [0; RANGE];

/// Adds to `newly`, for each list of `after`, the IPv4 addresses that `after` refuses and `before`
/// does not.
pub(super) fn count(before: &Lists<'_>, after: &Lists<'_>, newly: &mut [Covered]) {
    // A mark holds the number of its list, so marks compare only between equal lists.
    let same_lists = before.0.lists.len() == after.0.lists.len()
        && (before.0.lists.iter().zip(&after.0.lists))
            .all(|(old, new)| old.name == new.name && old.action == new.action);
    let (before, after) = (Generation::of(before), Generation::of(after));
    let mut add = |list: Option<u16>, addresses: u64| {
        if let Some(list) = list.and_then(|list| newly.get_mut(usize::from(list))) {
            list.ipv4 += addresses;
        }
    };
    for first in (0..1 << 24).step_by(RANGE) {
        let new = after.range(first);
        if new == [NO_ENTRIES; 2] {
            continue;
        }
        let old = before.range(first);
        let has_cell =
            |entries: &RangeEntries| entries.iter().any(|entry| kind(*entry) == ENTRY_CELL);
        if same_lists && new == old && !new.iter().any(has_cell) {
            continue;
        }
        let is_uniform = |entries: &RangeEntries| {
            kind(entries[0]) == ENTRY_ALL && *entries == [entries[0]; RANGE]
        };
        let all_uniform = new.iter().chain(&old).all(is_uniform);
        let networks = if all_uniform { 0..1 } else { 0..RANGE };
        for at in networks {
            let (new, old) = (
                new.map(|entries| entries[at]),
                old.map(|entries| entries[at]),
            );
            let is_same = same_lists
                && after
                    .filtered
                    .same_content(new[0], &before.filtered, old[0])
                && after
                    .rejected
                    .same_content(new[1], &before.rejected, old[1]);
            if new == [0; 2] || is_same {
                continue;
            }
            if new
                .iter()
                .chain(&old)
                .all(|entry| kind(*entry) == ENTRY_ALL)
            {
                if before.refuses(old.map(|entry| entry as u16)).is_none() {
                    let addresses = if all_uniform {
                        RANGE * NETWORK
                    } else {
                        NETWORK
                    };
                    add(
                        after.refuses(new.map(|entry| entry as u16)),
                        addresses as u64,
                    );
                }
                continue;
            }
            let (new, old) = (after.painted(new), before.painted(old));
            for octet in 0..NETWORK {
                let list = after.refuses([new[0][octet], new[1][octet]]);
                if list.is_some() && before.refuses([old[0][octet], old[1][octet]]).is_none() {
                    add(list, 1);
                }
            }
        }
    }
}

fn kind(entry: u32) -> u32 {
    entry >> ENTRY_KIND_SHIFT
}

/// The IPv4 part of both snapshots of a generation.
struct Generation<'a> {
    lists: &'a Lists<'a>,
    filtered: Ipv4<'a>,
    rejected: Ipv4<'a>,
}

impl<'a> Generation<'a> {
    fn of(lists: &'a Lists<'a>) -> Self {
        Self {
            lists,
            filtered: Ipv4::of(&lists.0.filtered),
            rejected: Ipv4::of(&lists.0.rejected),
        }
    }

    /// The list that refuses an address with these marks in the two snapshots.
    fn refuses(&self, [filtered, rejected]: [u16; 2]) -> Option<u16> {
        self.lists.refuses(list_of(filtered), list_of(rejected))
    }

    fn range(&self, first: u32) -> [RangeEntries; 2] {
        [self.filtered.range(first), self.rejected.range(first)]
    }

    fn painted(&self, [filtered, rejected]: [u32; 2]) -> [[u16; NETWORK]; 2] {
        [
            self.filtered.painted(filtered),
            self.rejected.painted(rejected),
        ]
    }
}

fn list_of(mark: u16) -> Option<u16> {
    Mark(u32::from(mark)).get().map(|(list, _)| list)
}

/// The IPv4 part of a snapshot.
struct Ipv4<'a> {
    lines: &'a [Line],
    shift: u32,
    /// Where the entry of 0.0.0.0/24 would be.
    directory: usize,
}

impl<'a> Ipv4<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let lines = snapshot.lines();
        let header = lines.first().copied().unwrap_or_default();
        Self {
            lines,
            shift: Field::PRESENCE_SHIFT.of(&header) as u32,
            directory: Field::DIRECTORY.of(&header) as usize,
        }
    }

    /// The word that holds the presence bit of an address, and the number of that bit.
    fn presence(&self, address: u32) -> (u64, u32) {
        let bit = address.checked_shr(self.shift).unwrap_or(0);
        let at = PRESENCE * (size_of::<Line>() / size_of::<u64>()) + (bit >> 6) as usize;
        let words = self.lines.as_flattened();
        (words.get(at).copied().unwrap_or(0), bit & 63)
    }

    /// The entries of the range of /24s that begins with this one; zero where there is none.
    fn range(&self, first: u32) -> RangeEntries {
        let mut range = NO_ENTRIES;
        if self.presence(first << 8).0 == 0 {
            return range;
        }
        let entries: &[u32] = bytemuck::cast_slice(self.lines);
        for (network, entry) in (first..).zip(&mut range) {
            let has = |address| {
                let (bits, bit) = self.presence(address);
                bits >> bit & 1 != 0
            };
            if has(network << 8) || has(network << 8 | 0x80) {
                let at = self.directory.wrapping_add(network as usize);
                *entry = entries.get(at).copied().unwrap_or(0);
            }
        }
        range
    }

    fn cell(&self, entry: u32) -> Line {
        let at = entry & ((1 << ENTRY_KIND_SHIFT) - 1);
        self.lines.get(at as usize).copied().unwrap_or_default()
    }

    /// Whether this entry has the same content as one of another snapshot. False when in doubt.
    fn same_content(&self, entry: u32, other: &Ipv4<'_>, theirs: u32) -> bool {
        let is_cell = |entry: u32| kind(entry) == ENTRY_CELL;
        match (is_cell(entry), is_cell(theirs)) {
            (false, false) => entry == theirs,
            (true, true) => {
                let (cell, their_cell) = (self.cell(entry), other.cell(theirs));
                cell[..4] == their_cell[..4]
                    && cell[5] == their_cell[5]
                    && (uniform(&cell) != 0 || {
                        let set: u32 = cell[..4].iter().map(|word| word.count_ones()).sum();
                        let marks = self.marks(&cell, set);
                        marks.is_some() && marks == other.marks(&their_cell, set)
                    })
            }
            _ => false,
        }
    }

    fn marks(&self, cell: &Line, count: u32) -> Option<&[u16]> {
        let first = (cell[4] & ((1 << CELL_MARKS_BITS) - 1)) as usize;
        let marks: &[u16] = bytemuck::cast_slice(self.lines);
        marks.get(first..first + count as usize)
    }

    /// The mark of each address of a /24.
    fn painted(&self, entry: u32) -> [u16; NETWORK] {
        let mut marks = [0; NETWORK];
        match kind(entry) {
            ENTRY_ALL => marks.fill(entry as u16),
            ENTRY_LONE => {
                marks[(entry >> 16 & 0xff) as usize] = entry as u16;
            }
            ENTRY_CELL => {
                let cell = self.cell(entry);
                marks.fill(cell[5] as u16);
                let set: u32 = cell[..4].iter().map(|word| word.count_ones()).sum();
                let own = self.marks(&cell, set).unwrap_or_default();
                let octets = (0..NETWORK).filter(|octet| cell[octet / 64] >> (octet % 64) & 1 != 0);
                for (rank, octet) in octets.enumerate() {
                    marks[octet] = match uniform(&cell) {
                        0 => own.get(rank).copied().unwrap_or(0),
                        uniform => uniform,
                    };
                }
            }
            // A pair: two addresses (/32) of one list.
            _ => {
                let (list, _) = Mark(entry & Mark::NUMBER).get().unwrap_or_default();
                let mark = Mark::new(list, 32).0 as u16;
                marks[(entry >> 9 & 0xff) as usize] = mark;
                marks[(entry >> 17 & 0xff) as usize] = mark;
            }
        }
        marks
    }
}

/// The one mark of all addresses of a cell that differ from the rest, or zero.
fn uniform(cell: &Line) -> u16 {
    (cell[5] >> 16) as u16
}
