//! IPv6: what nothing of a higher rank covers, hashed.
//!
//! Overlaps are settled by one pass over the sorted prefixes, which are nested or disjoint: what
//! is within one of a higher rank goes, and of equal prefixes the first stays. What is left may
//! nest; the look-up asks for the longest lengths first.

use bytemuck::Pod;
use portcullis_ebpf_common::snapshot::{
    DEEP, LONG, Line, LongSlot, Mark, SHORT, ShortSlot, TABLE_LINES, Table, long_key, short_key,
};

use super::super::entries::Ipv6Prefix;
use super::RANK_MAX;
use super::hashed::{self, Placed};

/// Octets in a line.
const OCTETS: usize = 64;
/// Keys for which a table is built for the third time get more room.
const SEEDS: u32 = 3;

/// The prefixes of all lists.
#[derive(Default)]
pub(super) struct Prefixes(Vec<Listed>);

/// A prefix of a list; ordered so that it comes after all that enclose it, and of equal ones the
/// one that counts comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    prefix: Ipv6Prefix,
    /// How far its rank is below the highest.
    below: u8,
    list: u16,
}

impl Prefixes {
    pub(super) fn add(&mut self, list: u16, rank: u8, prefixes: &[Ipv6Prefix]) {
        self.0.extend(prefixes.iter().map(|prefix| Listed {
            prefix: *prefix,
            below: RANK_MAX - rank,
            list,
        }));
    }

    /// Settles what overlaps, and finds a place for each that is left.
    pub(super) fn plan(mut self) -> Plan {
        self.0.sort_unstable();
        self.0.dedup_by_key(|listed| listed.prefix);
        // Up to which address each rank covers all from the prefix in question on.
        let mut covered_to = [None; RANK_MAX as usize + 1];
        self.0.retain(|listed| {
            let (higher, own) = covered_to.split_at_mut(usize::from(listed.below));
            let is_covered = higher
                .iter()
                .any(|last| Some(listed.prefix.address) <= *last);
            if !is_covered && let Some(own) = own.first_mut() {
                *own = Some(last(listed.prefix)).max(*own);
            }
            !is_covered
        });
        Plan::new(&self.0)
    }
}

fn last(prefix: Ipv6Prefix) -> u128 {
    let hosts = u128::MAX.checked_shr(u32::from(prefix.length));
    prefix.address | hosts.unwrap_or(0)
}

/// A prefix up to /64, or that there are longer ones in a /64.
struct Short {
    upper: u64,
    mark: Mark,
}

impl Short {
    fn length(&self) -> usize {
        self.mark.get().map_or(0, |(_, length)| usize::from(length))
    }
}

/// A prefix beyond /64.
struct Long {
    upper: u64,
    lower: u64,
    mark: Mark,
}

impl Long {
    fn length(&self) -> usize {
        self.mark.get().map_or(0, |(_, length)| usize::from(length))
    }
}

/// Everything about IPv6 but where its lines are.
pub(super) struct Plan {
    short: Vec<Short>,
    long: Vec<Long>,
    short_placed: Placed,
    long_placed: Placed,
    /// The seeds of the two.
    seeds: (u32, u32),
}

impl Plan {
    fn new(settled: &[Listed]) -> Self {
        let (mut short, mut long) = (Vec::new(), Vec::new());
        let mut last_deep = None;
        for Listed { prefix, list, .. } in settled {
            let (upper, lower) = ((prefix.address >> 64) as u64, prefix.address as u64);
            let mark = Mark::new(*list, prefix.length);
            if prefix.length <= 64 {
                short.push(Short { upper, mark });
                continue;
            }
            if last_deep != Some(upper) {
                last_deep = Some(upper);
                let mark = Mark::new(0, DEEP as u8);
                short.push(Short { upper, mark });
            }
            long.push(Long { upper, lower, mark });
        }
        let first_seed = first_seed(settled);
        let (short_seed, short_placed) = place(short.len(), first_seed, |seed| {
            let salts = salts(seed);
            let key = |key: &Short| short_key(salts[key.length()], key.upper);
            short.iter().map(key).collect()
        });
        let (long_seed, long_placed) = place(long.len(), first_seed, |seed| {
            let salts = salts(seed);
            let key = |key: &Long| long_key(salts[key.length()], key.upper, key.lower);
            long.iter().map(key).collect()
        });
        Self {
            short,
            long,
            short_placed,
            long_placed,
            seeds: (short_seed, long_seed),
        }
    }

    pub(super) fn lines(&self) -> usize {
        lines::<ShortSlot>(&self.short_placed) + lines::<LongSlot>(&self.long_placed)
    }

    /// Writes the heads and the tables, of which the first line has this number.
    pub(super) fn write(&self, heads: &mut [Line], table_lines: &mut [Line], first: usize) {
        let (of_short, of_long) = heads.split_at_mut(TABLE_LINES);
        let (short_seed, long_seed) = self.seeds;
        let lengths = self.short.iter().map(Short::length);
        set_hashes(of_short, SHORT, short_seed, lengths);
        let lengths = self.long.iter().map(Long::length);
        set_hashes(of_long, LONG, long_seed, lengths);
        let (short_lines, long_lines) =
            table_lines.split_at_mut(lines::<ShortSlot>(&self.short_placed));
        let after_short = first + short_lines.len();
        let slots: &mut [ShortSlot] = set_table(&self.short_placed, of_short, short_lines, first);
        for (key, place) in self.short.iter().zip(&self.short_placed.places) {
            slots[*place] = [key.upper, key.mark.0.into()];
        }
        let slots: &mut [LongSlot] = set_table(&self.long_placed, of_long, long_lines, after_short);
        for (key, place) in self.long.iter().zip(&self.long_placed.places) {
            slots[*place] = [key.upper, key.lower, key.mark.0.into(), 0];
        }
    }
}

/// Those of all lengths.
fn salts(seed: u32) -> [u64; 129] {
    std::array::from_fn(|length| Table::salt(seed, length as u32))
}

/// Finds a place for each key, and the seed with which there is one.
fn place(count: usize, first_seed: u32, keys: impl Fn(u32) -> Vec<u64>) -> (u32, Placed) {
    let least = hashed::slots_min(count);
    let mut slots = least;
    for attempt in 1_u32.. {
        let seed = first_seed.wrapping_add(attempt);
        if let Some(placed) = hashed::place(&keys(seed), Table::factors(seed), slots) {
            return (seed, placed);
        }
        if attempt % SEEDS == 0 && slots < least.saturating_mul(4) {
            slots += slots / 8 + 1;
        }
    }
    unreachable!("no keys collide under every one of four thousand million seeds")
}

/// A number that follows from all keys: who adds one of them cannot tell which others it will
/// collide with.
fn first_seed(prefixes: &[Listed]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for Listed { prefix, .. } in prefixes {
        hasher.update(&prefix.address.to_ne_bytes());
    }
    hasher.finalize()
}

/// Lines of the pilots, and of the slots; none for no keys.
fn lines<Slot>(placed: &Placed) -> usize {
    if placed.places.is_empty() {
        return 0;
    }
    placed.pilots.len().div_ceil(OCTETS)
        + (placed.slots as usize * size_of::<Slot>()).div_ceil(OCTETS)
}

/// Writes the pilots, and in the head of the table where they and the slots are; gives the slots.
fn set_table<'a, Slot: Pod>(
    placed: &Placed,
    head: &mut [Line],
    lines: &'a mut [Line],
    first: usize,
) -> &'a mut [Slot] {
    if lines.is_empty() {
        return &mut [];
    }
    let (of_pilots, of_slots) = lines.split_at_mut(placed.pilots.len().div_ceil(OCTETS));
    let octets = bytemuck::cast_slice_mut(of_pilots);
    octets[..placed.pilots.len()].copy_from_slice(&placed.pilots);
    let head = head.as_flattened_mut();
    head[Table::SHIFT] = placed.shift;
    head[Table::PILOTS] = (first * OCTETS) as u64;
    let slots = (first + of_pilots.len()) * OCTETS / size_of::<Slot>();
    head[Table::SLOTS] = slots as u64;
    head[Table::SLOT_COUNT] = placed.slots;
    bytemuck::cast_slice_mut(of_slots)
}

/// Writes what keys are hashed with: the factors, and the words of the prefix lengths that are
/// present, the longest first.
fn set_hashes(head: &mut [Line], table: Table, seed: u32, lengths: impl Iterator<Item = usize>) {
    let mut present = [false; 129];
    for length in lengths {
        present[length] = true;
    }
    let lengths = (0..).zip(present).filter(|(_, is_present)| *is_present);
    let lengths: Vec<u32> = lengths.map(|(length, _)| length).collect();
    let head = head.as_flattened_mut();
    [head[Table::GROUP_FACTOR], head[Table::SLOT_FACTOR]] = Table::factors(seed);
    head[Table::LENGTH_COUNT] = lengths.len() as u64;
    let (words, _) = head[Table::LENGTHS..].as_chunks_mut();
    for (words, length) in words.iter_mut().zip(lengths.into_iter().rev()) {
        *words = [table.mask(length), Table::salt(seed, length)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prefixes as registries, providers and attackers' tools hand them out. Nearly every seed is
    /// good for each.
    #[test]
    fn whatever_order_is_in_the_prefixes_the_first_seeds_do_and_no_more_room_is_needed() {
        const COUNT: u128 = 60_000;
        const BASE: u128 = 0x2001_0db8 << 96;
        const REGISTRY: u128 = 0x2000 << 112;
        const SCATTERED: u128 = 0xda94_2042_e4dd_58b5_369d_ea0f_31a5_3f85;
        type Case = (&'static str, u8, fn(u128) -> u128);
        let cases: [Case; 10] = [
            ("/64s in a row", 64, |n| BASE + (n << 64)),
            ("every third /64", 64, |n| BASE + ((3 * n) << 64)),
            ("the first /64 of /56s", 64, |n| BASE + (n << 72)),
            ("/48s in a row", 48, |n| BASE + (n << 80)),
            ("every tenth /48", 48, |n| BASE + ((10 * n) << 80)),
            ("/32s in a row", 32, |n| REGISTRY + (n << 96)),
            ("/29s in a row", 29, |n| REGISTRY + (n << 99)),
            ("/64s anywhere", 64, |n| n.wrapping_mul(SCATTERED)),
            ("/128s of a /64", 128, |n| BASE + n),
            ("a /128 in each /64", 128, |n| BASE + (n << 64) + 1),
        ];
        for (case, length, address) in cases {
            let mut prefixes = Prefixes::default();
            let prefix = |n| Ipv6Prefix {
                address: address(n) & u128::MAX << (128 - length),
                length,
            };
            prefixes.add(0, 0, &(0..COUNT).map(prefix).collect::<Vec<_>>());
            prefixes.0.sort_unstable();
            let first_seed = first_seed(&prefixes.0);
            let plan = prefixes.plan();
            for (keys, placed, seed) in [
                (plan.short.len(), &plan.short_placed, plan.seeds.0),
                (plan.long.len(), &plan.long_placed, plan.seeds.1),
            ] {
                assert_eq!(placed.slots, hashed::slots_min(keys), "{case}");
                let seeds = seed.wrapping_sub(first_seed);
                assert!(seeds <= 2, "{case}: {seeds} seeds for {keys}");
            }
        }
    }
}
