//! Slots for hashed keys, one for each alone, so that a look-up reads exactly one.
//!
//! Keys fall into groups by their hash, and each group gets a pilot: the first octet, from 1 on, with which all of its keys
//! find their slots free, tried for the largest groups first, while most are (hash and displace: Belazzougui, Botelho,
//! Dietzfelbinger 2009). A group without keys has none. There are so many groups that most have one key or none: then the
//! first seed does with eight of ten slots filled.

use portcullis_ebpf_common::snapshot::{displaced, group};

/// Groups for each key, at least (twice as many at most): an octet each, and four of five looks for what is not there end with
/// the pilot.
const GROUPS: usize = 4;
/// As many as fill a line.
const LEAST_GROUPS: usize = 64;
/// Slots that are filled, of ten.
const LOAD_TENTHS: usize = 8;

/// Where the keys of a table are.
pub(super) struct Placed {
    /// One for each group; 0 for one without keys.
    pub(super) pilots: Vec<u8>,
    /// By how much a hash is shifted to give its group.
    pub(super) shift: u32,
    /// How many buckets there are.
    pub(super) buckets: u32,
    /// The bucket and the slot of each key.
    pub(super) places: Vec<(u32, usize)>,
}

/// The fewest buckets of so many slots that are tried for so many keys.
pub(super) fn buckets_min(keys: usize, slots: usize) -> u32 {
    let buckets = (keys * 10).div_ceil(slots * LOAD_TENTHS).max(1);
    u32::try_from(buckets).unwrap_or(u32::MAX >> 3)
}

/// Finds a place for each key, given by its hash, or none if a group finds no pilot.
pub(super) fn place(hashes: &[u64], slots: usize, buckets: u32) -> Option<Placed> {
    let groups = (hashes.len() * GROUPS)
        .next_power_of_two()
        .max(LEAST_GROUPS);
    let shift = u64::BITS - groups.ilog2();
    let grouped = Grouped::new(hashes, shift);
    let mut pilots = vec![0; groups];
    let mut taken = vec![false; buckets as usize * slots];
    let mut places = vec![(0, 0); hashes.len()];
    for number in grouped.largest_first() {
        let members = grouped.members(number);
        let place_of = |key: u32, pilot| displaced(hashes[key as usize], pilot, buckets, slots);
        let pilot = (1..=u8::MAX).find(|pilot| {
            let at = |key: u32| {
                let (bucket, slot) = place_of(key, *pilot);
                bucket as usize * slots + slot
            };
            let free = members
                .iter()
                .take_while(|key| !core::mem::replace(&mut taken[at(**key)], true));
            let free = free.count();
            if free < members.len() {
                for key in &members[..free] {
                    taken[at(*key)] = false;
                }
            }
            free == members.len()
        })?;
        pilots[number as usize] = pilot;
        for key in members {
            places[*key as usize] = place_of(*key, pilot);
        }
    }
    Some(Placed {
        pilots,
        shift,
        buckets,
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
    fn new(hashes: &[u64], shift: u32) -> Self {
        let mut starts = vec![0; (1 << (u64::BITS - shift)) + 1];
        for hash in hashes {
            starts[group(*hash, shift) as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut keys = vec![0; hashes.len()];
        for (key, hash) in (0..).zip(hashes) {
            let at = &mut next[group(*hash, shift) as usize];
            keys[*at as usize] = key;
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
