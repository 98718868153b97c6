//! IPv6: what no permit covers, hashed.
//!
//! Overlaps are settled by one pass over the sorted prefixes, which are nested or disjoint: a drop within the last permit
//! goes, and of equal prefixes the first stays. What is left may nest; the look-up asks for the longest lengths first.

use portcullis_ebpf_common::snapshot::{
    DEEP, Field, LONG_SLOTS, Line, Mark, NO_LENGTH, SHORT_SLOTS, long_hash, short_hash,
};

use super::super::entries::Ipv6Prefix;
use super::hashed::{self, Placed};
use super::{line_number, set_octet};

/// Octets in a line.
const OCTETS: usize = 64;
/// Keys for which a table is built for the third time get more room.
const SEEDS: u32 = 3;

/// The prefixes of all lists.
#[derive(Default)]
pub(super) struct Prefixes(Vec<Listed>);

/// A prefix of a list; ordered so that it comes after all that enclose it, and of equal ones the one that counts comes
/// first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    prefix: Ipv6Prefix,
    is_drop: bool,
    list: u16,
}

impl Prefixes {
    pub(super) fn add(&mut self, list: u16, is_permit: bool, prefixes: &[Ipv6Prefix]) {
        self.0.extend(prefixes.iter().map(|prefix| Listed {
            prefix: *prefix,
            is_drop: !is_permit,
            list,
        }));
    }

    /// Settles what overlaps, and finds a place for each that is left.
    pub(super) fn plan(mut self) -> Plan {
        self.0.sort_unstable();
        self.0.dedup_by_key(|listed| listed.prefix);
        let mut permitted_to = None;
        self.0.retain(|listed| {
            let is_permitted = permitted_to.is_some_and(|last| listed.prefix.address <= last);
            if !listed.is_drop && !is_permitted {
                permitted_to = Some(last(listed.prefix));
            }
            !(listed.is_drop && is_permitted)
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
    fn length(&self) -> u32 {
        self.mark.get().map_or(0, |(_, length)| u32::from(length))
    }
}

/// A prefix beyond /64.
struct Long {
    /// Which of the short keys says that it is there.
    deep: u32,
    lower: u64,
    mark: Mark,
}

/// Everything about IPv6 but where its lines are.
pub(super) struct Plan {
    seed: u32,
    short: Vec<Short>,
    long: Vec<Long>,
    short_placed: Placed,
    long_placed: Placed,
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
            let deep = line_number(short.len() - 1);
            long.push(Long { deep, lower, mark });
        }
        let (seed, short_placed) = place_short(&short);
        let long_placed = place_long(&long, seed, &short_placed);
        Self {
            seed,
            short,
            long,
            short_placed,
            long_placed,
        }
    }

    pub(super) fn lines(&self) -> usize {
        lines(&self.short_placed) + lines(&self.long_placed)
    }

    /// Writes the lengths and the tables, of which the first line has this number.
    pub(super) fn write(
        &self,
        header: &mut Line,
        lengths: &mut [Line],
        table_lines: &mut [Line],
        first: usize,
    ) {
        Field::SEED.set(header, self.seed);
        let (of_short, of_long) = lengths.split_at_mut(2);
        let present = self.short.iter().map(|key| key.mark);
        set_lengths(of_short, present.filter(|mark| mark.0 >> 9 != DEEP));
        set_lengths(of_long, self.long.iter().map(|key| key.mark));
        let (of_short, of_long) = table_lines.split_at_mut(lines(&self.short_placed));
        let fields = [
            Field::SHORT_PILOTS,
            Field::SHORT_GROUPS,
            Field::SHORT_BUCKETS,
            Field::SHORT_BUCKET_COUNT,
        ];
        let buckets = set_pilots(&self.short_placed, header, fields, of_short, first);
        for (key, place) in self.short.iter().zip(&self.short_placed.places) {
            let (bucket, slot) = (&mut buckets[(*place / 8) as usize], *place as usize % 8);
            bucket[slot] = key.upper;
            bucket[6 + slot / 4] |= u64::from(key.mark.0) << (slot % 4 * 16);
        }
        let fields = [
            Field::LONG_PILOTS,
            Field::LONG_GROUPS,
            Field::LONG_BUCKETS,
            Field::LONG_BUCKET_COUNT,
        ];
        let first = first + lines(&self.short_placed);
        let buckets = set_pilots(&self.long_placed, header, fields, of_long, first);
        for (key, place) in self.long.iter().zip(&self.long_placed.places) {
            let (bucket, slot) = (&mut buckets[(*place / 8) as usize], *place as usize % 8);
            let deep = self.short_placed.places[key.deep as usize];
            bucket[slot] = key.lower;
            bucket[4 + slot] = u64::from(deep) << 32 | u64::from(key.mark.0);
        }
    }
}

fn place_short(keys: &[Short]) -> (u32, Placed) {
    let mut buckets = hashed::buckets_min(keys.len(), SHORT_SLOTS as u8);
    for seed in 1.. {
        let hashes = keys
            .iter()
            .map(|key| short_hash(seed, key.upper, key.length()));
        let hashes: Vec<u64> = hashes.collect();
        if let Some(placed) = hashed::place(&hashes, SHORT_SLOTS as u8, buckets) {
            return (seed, placed);
        }
        if seed % SEEDS == 0 {
            buckets = more(buckets);
        }
    }
    unreachable!("with enough buckets each key has one to itself")
}

/// The seed is that of the short keys, whose places are part of the hashes.
fn place_long(keys: &[Long], seed: u32, short: &Placed) -> Placed {
    let hashes: Vec<u64> = keys
        .iter()
        .map(|key| {
            let length = key.mark.get().map_or(0, |(_, length)| u32::from(length));
            long_hash(seed, short.places[key.deep as usize], key.lower, length)
        })
        .collect();
    let mut buckets = hashed::buckets_min(keys.len(), LONG_SLOTS as u8);
    loop {
        if let Some(placed) = hashed::place(&hashes, LONG_SLOTS as u8, buckets) {
            return placed;
        }
        buckets = more(buckets);
    }
}

fn more(buckets: u32) -> u32 {
    buckets + buckets / 8 + 1
}

/// Lines of pilots and buckets; none for no keys.
fn lines(placed: &Placed) -> usize {
    if placed.places.is_empty() {
        0
    } else {
        placed.pilots.len().div_ceil(OCTETS) + placed.buckets as usize
    }
}

/// Writes the pilots, and where they and the buckets are; gives the lines of the buckets.
fn set_pilots<'a>(
    placed: &Placed,
    header: &mut Line,
    [pilots, groups, buckets, bucket_count]: [Field; 4],
    lines: &'a mut [Line],
    first: usize,
) -> &'a mut [Line] {
    if lines.is_empty() {
        return lines;
    }
    let (of_pilots, of_buckets) = lines.split_at_mut(placed.pilots.len().div_ceil(OCTETS));
    for (at, pilot) in placed.pilots.iter().enumerate() {
        set_octet(of_pilots, at, *pilot);
    }
    pilots.set(header, line_number(first));
    groups.set(header, line_number(placed.pilots.len()));
    buckets.set(header, line_number(first + of_pilots.len()));
    bucket_count.set(header, placed.buckets);
    of_buckets
}

/// Writes the lengths that are present, the longest first.
fn set_lengths(lines: &mut [Line], marks: impl Iterator<Item = Mark>) {
    let mut present = [false; 129];
    for (_, length) in marks.filter_map(Mark::get) {
        present[usize::from(length)] = true;
    }
    let lengths = (0..).zip(present).filter(|(_, is_present)| *is_present);
    let lengths: Vec<u8> = lengths.map(|(length, _)| length).collect();
    let end = lines.len() * OCTETS;
    let filled = lengths
        .into_iter()
        .rev()
        .chain(std::iter::repeat(NO_LENGTH));
    for (at, length) in filled.take(end).enumerate() {
        set_octet(lines, at, length);
    }
}
