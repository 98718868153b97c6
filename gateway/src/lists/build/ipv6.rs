//! IPv6: what no permit covers, hashed.
//!
//! Overlaps are settled by one pass over the sorted prefixes, which are nested or disjoint: a drop within the last permit
//! goes, and of equal prefixes the first stays. What is left may nest; the look-up asks for the longest lengths first.

use portcullis_ebpf_common::snapshot::{
    DEEP, DEEP_AT, Field, LENGTHS_LINES, LONG_SLOTS, Line, Mark, SHORT_SLOTS, length_word,
    long_hash, short_hash,
};

use super::super::entries::Ipv6Prefix;
use super::hashed::{self, Placed};
use super::line_number;

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
    upper: u64,
    lower: u64,
    mark: Mark,
}

impl Long {
    fn length(&self) -> u32 {
        self.mark.get().map_or(0, |(_, length)| u32::from(length))
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
        let (short_seed, short_placed) = place(short.len(), SHORT_SLOTS, first_seed, |seed| {
            let words = words(seed);
            let hash = |key: &Short| short_hash(words[key.length() as usize], key.upper);
            short.iter().map(hash).collect()
        });
        let (long_seed, long_placed) = place(long.len(), LONG_SLOTS, first_seed, |seed| {
            let words = words(seed);
            let hash = |key: &Long| long_hash(words[key.length() as usize], key.upper, key.lower);
            long.iter().map(hash).collect()
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
        let (of_short, of_long) = lengths.split_at_mut(LENGTHS_LINES as usize);
        let present = self.short.iter().map(Short::length);
        let (short_seed, long_seed) = self.seeds;
        let count = set_lengths(
            of_short,
            short_seed,
            present.filter(|length| *length != DEEP),
        );
        Field::SHORT_LENGTH_COUNT.set(header, count);
        of_short.as_flattened_mut()[DEEP_AT as usize] = length_word(short_seed, DEEP);
        let count = set_lengths(of_long, long_seed, self.long.iter().map(Long::length));
        Field::LONG_LENGTH_COUNT.set(header, count);
        let (of_short, of_long) = table_lines.split_at_mut(lines(&self.short_placed));
        let fields = [
            Field::SHORT_PILOTS,
            Field::SHORT_SHIFT,
            Field::SHORT_BUCKETS,
            Field::SHORT_BUCKET_COUNT,
        ];
        let buckets = set_pilots(&self.short_placed, header, fields, of_short, first);
        for (key, (bucket, slot)) in self.short.iter().zip(&self.short_placed.places) {
            let bucket = &mut buckets[*bucket as usize];
            bucket[*slot] = key.upper;
            bucket[SHORT_SLOTS + slot / 4] |= u64::from(key.mark.0) << (slot % 4 * 16);
        }
        let fields = [
            Field::LONG_PILOTS,
            Field::LONG_SHIFT,
            Field::LONG_BUCKETS,
            Field::LONG_BUCKET_COUNT,
        ];
        let first = first + lines(&self.short_placed);
        let buckets = set_pilots(&self.long_placed, header, fields, of_long, first);
        for (key, (bucket, slot)) in self.long.iter().zip(&self.long_placed.places) {
            let bucket = &mut buckets[*bucket as usize];
            bucket[*slot] = key.lower;
            bucket[LONG_SLOTS + slot] = key.upper;
            bucket[2 * LONG_SLOTS + slot / 2] |= u64::from(key.mark.0) << (slot % 2 * 32);
        }
    }
}

/// The words of all lengths.
fn words(seed: u32) -> [u64; 129] {
    std::array::from_fn(|length| length_word(seed, length as u32))
}

/// Finds a place for each key, and the seed of the hashes with which there is one.
fn place(
    keys: usize,
    slots: usize,
    first_seed: u32,
    hashes: impl Fn(u32) -> Vec<u64>,
) -> (u32, Placed) {
    let least = hashed::buckets_min(keys, slots);
    let mut buckets = least;
    for attempt in 1_u32.. {
        let seed = first_seed.wrapping_add(attempt);
        if let Some(placed) = hashed::place(&hashes(seed), slots, buckets) {
            return (seed, placed);
        }
        if attempt % SEEDS == 0 && buckets < least.saturating_mul(4) {
            buckets += buckets / 8 + 1;
        }
    }
    unreachable!("no keys collide under every one of four thousand million seeds")
}

/// A number that follows from all keys: who adds one of them cannot tell which others it will collide with.
fn first_seed(prefixes: &[Listed]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for Listed { prefix, .. } in prefixes {
        hasher.update(&prefix.address.to_ne_bytes());
    }
    hasher.finalize()
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
    [pilots, shift, buckets, bucket_count]: [Field; 4],
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
    shift.set(header, placed.shift);
    buckets.set(header, line_number(first + of_pilots.len()));
    bucket_count.set(header, placed.buckets);
    of_buckets
}

/// Writes the octet at this place of an array of octets.
fn set_octet(lines: &mut [Line], at: usize, value: u8) {
    lines[at >> 6][at >> 3 & 7] |= u64::from(value) << ((at & 7) * 8);
}

/// Writes the words of the lengths that are present, the longest first; gives their number.
fn set_lengths(lines: &mut [Line], seed: u32, lengths: impl Iterator<Item = u32>) -> u32 {
    let mut present = [false; 129];
    for length in lengths {
        present[length as usize] = true;
    }
    let lengths = (0..).zip(present).filter(|(_, is_present)| *is_present);
    let lengths: Vec<u32> = lengths.map(|(length, _)| length).collect();
    let longest_first = lengths.iter().rev();
    for (word, length) in lines.as_flattened_mut().iter_mut().zip(longest_first) {
        *word = length_word(seed, *length);
    }
    lengths.len() as u32
}
