//! Slots for hashed keys, one for each alone, so that a look-up reads exactly one.
//!
//! Keys fall into groups by their hash, and each group gets a pilot: the first octet, from 1 on,
//! with which all of its keys find their slots free, tried for the largest groups first, while most
//! are (hash and displace: Belazzougui, Botelho, Dietzfelbinger 2009). A group without keys has
//! none. Most groups have one key or none, because there are many groups: then the first seed works
//! with eight of ten slots filled.

use portcullis_ebpf_common::snapshot::Table;

/// Groups for each slot, at least (twice as many at most): an octet each, and four of five looks
/// for what is not there end with the pilot.
const GROUPS: usize = 3;
/// As many as fill a line.
const LEAST_GROUPS: usize = 64;
/// Slots that are filled, of ten.
const LOAD_TENTHS: u64 = 8;

/// Where the keys of a table are.
pub(super) struct Placed {
    /// One for each group; 0 for one without keys.
    pub(super) pilots: Vec<u8>,
    /// By how much a hash is shifted to give its group.
    pub(super) shift: u64,
    /// How many slots there are.
    pub(super) slots: u64,
    /// The slot of each key.
    pub(super) places: Vec<usize>,
}

/// The fewest slots that are tried for this number of keys.
pub(super) fn slots_min(keys: usize) -> u64 {
    (keys as u64 * 10).div_ceil(LOAD_TENTHS)
}

/// Finds a slot for each key by these [factors](Table::factors), or none if a group finds no pilot.
pub(super) fn place(keys: &[u64], [group, slot]: [u64; 2], slots: u64) -> Option<Placed> {
    let groups = (slots as usize * GROUPS).next_power_of_two();
    let groups = groups.max(LEAST_GROUPS);
    let shift = u64::from(u64::BITS - groups.ilog2());
    let grouped = Grouped::new(keys, group, shift);
    let mut pilots = vec![0; groups];
    let mut taken = vec![false; slots as usize];
    let mut places = vec![0; keys.len()];
    for number in grouped.largest_first() {
        let members = grouped.members(number);
        let slot_of = |key: u32, pilot| Table::slot(keys[key as usize], slot, pilot, slots);
        let pilot = (1..=u8::MAX).find(|pilot| {
            let free = members
                .iter()
                .take_while(|key| !core::mem::replace(&mut taken[slot_of(**key, *pilot)], true));
            let free = free.count();
            if free < members.len() {
                for key in &members[..free] {
                    taken[slot_of(*key, *pilot)] = false;
                }
            }
            free == members.len()
        })?;
        pilots[number as usize] = pilot;
        for key in members {
            places[*key as usize] = slot_of(*key, pilot);
        }
    }
    Some(Placed {
        pilots,
        shift,
        slots,
        places,
    })
}

/// The keys by their groups.
struct Grouped {
    keys: Vec<u32>,
    /// Where each group begins in `keys`, and the end of the last.
    starts: Vec<u32>,
}

impl Grouped {
    fn new(all: &[u64], factor: u64, shift: u64) -> Self {
        let mut starts = vec![0; (1 << (u64::from(u64::BITS) - shift)) + 1];
        for key in all {
            starts[Table::group(*key, factor, shift) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut keys = vec![0; all.len()];
        for (number, key) in (0..).zip(all) {
            let at = &mut next[Table::group(*key, factor, shift)];
            keys[*at as usize] = number;
            *at += 1;
        }
        Self { keys, starts }
    }

    fn members(&self, group: u32) -> &[u32] {
        let group = group as usize;
        &self.keys[self.starts[group] as usize..self.starts[group + 1] as usize]
    }

    fn largest_first(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..)
            .zip(&self.starts[1..])
            .map(|(group, _)| group)
            .filter(|group| !self.members(*group).is_empty())
            .collect();
        order.sort_by_key(|group| std::cmp::Reverse(self.members(*group).len()));
        order
    }
}
