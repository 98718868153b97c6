//! IPv4: entry by entry of the directory, as `ebpf/common` describes it.

use bytemuck::Pod;
use portcullis_ebpf_common::snapshot::{
    CELL_MARKS_BITS, ENTRY_ALL, ENTRY_CELL, ENTRY_KIND_SHIFT, ENTRY_LONE, Field, Line, Mark,
    PRESENCE,
};

use super::super::snapshot::Snapshot;
use super::{Covered, Lists};

/// Addresses of a /24.
const NETWORK: usize = 256;
/// /24s that a word of presence bits is about, at least.
const WORD_NETWORKS: u32 = 32;

/// Counts what is newly refused for each list of `after`.
pub(super) fn count(before: &Lists<'_>, after: &Lists<'_>, newly: &mut [Covered]) {
    // Marks have the numbers of lists.
    let same_lists = before.0.lists.len() == after.0.lists.len()
        && (before.0.lists.iter().zip(&after.0.lists))
            .all(|(old, new)| old.name == new.name && old.action == new.action);
    let (before, after) = (Generation::of(before), Generation::of(after));
    let mut add = |list: Option<u16>, addresses: u64| {
        if let Some(list) = list.and_then(|list| newly.get_mut(usize::from(list))) {
            list.ipv4 += addresses;
        }
    };
    let mut painted = [[0; NETWORK]; 4];
    for word in (0..1 << 24).step_by(WORD_NETWORKS as usize) {
        if !after.filtered.is_present(word) && !after.rejected.is_present(word) {
            continue;
        }
        for network in word..word + WORD_NETWORKS {
            let new = [after.filtered.entry(network), after.rejected.entry(network)];
            if new == [0; 2] {
                continue;
            }
            let old = [
                before.filtered.entry(network),
                before.rejected.entry(network),
            ];
            if same_lists
                && after.filtered.same(new[0], &before.filtered, old[0])
                && after.rejected.same(new[1], &before.rejected, old[1])
            {
                continue;
            }
            let is_whole = |entry: &u32| entry >> ENTRY_KIND_SHIFT == ENTRY_ALL;
            if new.iter().chain(&old).all(is_whole) {
                if before.refuses(old[0] as u16, old[1] as u16).is_none() {
                    let list = after.refuses(new[0] as u16, new[1] as u16);
                    add(list, NETWORK as u64);
                }
                continue;
            }
            let [new_filtered, new_rejected, old_filtered, old_rejected] = &mut painted;
            after.filtered.paint(new[0], new_filtered);
            after.rejected.paint(new[1], new_rejected);
            before.filtered.paint(old[0], old_filtered);
            before.rejected.paint(old[1], old_rejected);
            for octet in 0..NETWORK {
                let list = after.refuses(new_filtered[octet], new_rejected[octet]);
                if list.is_some()
                    && before
                        .refuses(old_filtered[octet], old_rejected[octet])
                        .is_none()
                {
                    add(list, 1);
                }
            }
        }
    }
}

/// What both snapshots of a generation have of IPv4.
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

    /// The list that refuses what has these marks.
    fn refuses(&self, filtered: u16, rejected: u16) -> Option<u16> {
        self.lists.refuses(list_of(filtered), list_of(rejected))
    }
}

fn list_of(mark: u16) -> Option<u16> {
    Mark(u32::from(mark)).get().map(|(list, _)| list)
}

/// What a snapshot has of IPv4.
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

    fn get<T: Pod>(&self, at: usize) -> Option<T> {
        bytemuck::cast_slice(self.lines).get(at).copied()
    }

    fn presence(&self, address: u32) -> (u64, u32) {
        let stretch = address.checked_shr(self.shift).unwrap_or(0);
        let at = PRESENCE * size_of::<Line>() / size_of::<u64>() + (stretch >> 6) as usize;
        (self.get(at).unwrap_or(0), stretch & 63)
    }

    /// Whether there may be something in the /24s from this one on that a word of presence bits is about.
    fn is_present(&self, network: u32) -> bool {
        self.presence(network << 8).0 != 0
    }

    /// The entry of a /24; zero where there is none.
    fn entry(&self, network: u32) -> u32 {
        let halves = [network << 8, network << 8 | 0x80];
        let has = |address| {
            let (bits, bit) = self.presence(address);
            bits >> bit & 1 != 0
        };
        if !halves.into_iter().any(has) {
            return 0;
        }
        let at = self.directory.wrapping_add(network as usize);
        self.get(at).unwrap_or(0)
    }

    fn cell(&self, entry: u32) -> Line {
        let at = entry & ((1 << ENTRY_KIND_SHIFT) - 1);
        self.lines.get(at as usize).copied().unwrap_or_default()
    }

    /// Whether this entry says the same as one of another snapshot; when in doubt, not.
    fn same(&self, entry: u32, other: &Ipv4<'_>, theirs: u32) -> bool {
        let is_cell = |entry: u32| entry >> ENTRY_KIND_SHIFT == ENTRY_CELL;
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
    fn paint(&self, entry: u32, marks: &mut [u16; NETWORK]) {
        match entry >> ENTRY_KIND_SHIFT {
            ENTRY_ALL => marks.fill(entry as u16),
            ENTRY_LONE => {
                marks.fill(0);
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
            // Two addresses of one list, which has them as such.
            _ => {
                marks.fill(0);
                let (list, _) = Mark(entry & Mark::NUMBER).get().unwrap_or_default();
                let mark = Mark::new(list, 32).0 as u16;
                marks[(entry >> 9 & 0xff) as usize] = mark;
                marks[(entry >> 17 & 0xff) as usize] = mark;
            }
        }
    }
}

/// The one mark of all addresses of a cell that differ from the rest, or zero.
fn uniform(cell: &Line) -> u16 {
    (cell[5] >> 16) as u16
}
