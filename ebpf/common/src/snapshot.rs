//! The snapshot: all lists of a generation, settled into one array of cache lines, and the lookup of an address in it.
//!
//! A lookup reads a constant number of lines, however many prefixes there are: for IPv4 the header, an entry of the
//! directory, and where a /24 holds more than one address a cell, and where those addresses differ their marks; for IPv6 the
//! header and one bucket (and the octet that leads to it) per prefix length present. The same code runs in the kernel, over
//! an array map, and in userspace, over the same memory or over a `Vec`.
//!
//! ```text
//! line 0         the header
//! lines 1-2      the IPv6 prefix lengths present up to /64, longest first, an octet each, 0xff ends them
//! line 3         the IPv6 prefix lengths present beyond /64, longest first, an octet each, 0xff ends them
//! lines 4-19     the class of each list, four octets each: what the number in a mark means to the program
//! from line 20   directory, cells and marks (IPv4); pilots and buckets (IPv6 up to /64); the same for longer prefixes
//! ```
//!
//! **IPv4.** The directory has an entry of four octets for each /24: one mark for all of it, a lone address with its mark,
//! or the number of a cell. A cell is a line: a bitmap of the addresses whose mark differs from that of the rest, and either
//! the one mark that they all have, or where their marks begin in the array of marks.
//!
//! **IPv6.** Prefixes up to /64 are hashed by their upper 64 bits and their length into buckets of one line, six to a
//! bucket; beside each key stands its mark. No bucket overflows, because keys come in groups, and each group has a pilot: an octet that was chosen, when the
//! snapshot was built, so that all keys of the group found room (the idea of perfect hashing by displacement). Longer
//! prefixes are rare; their /64 has an entry of the length 65, whose place in the buckets, together with the lower 64 bits,
//! is their key in a table of their own. Rejected: cuckoo hashing (two lines for every address that is on no list, which
//! is the usual one), a trie (a line per level).

use crate::packet::Source;
use crate::verdict::Class;

/// A cache line: the unit of everything here, and the value of the array map.
pub type Line = [u64; 8];

/// Changes whenever the meaning of a line changes; it is in the header of every snapshot.
pub const VERSION: u32 = 1;
/// The first word of a snapshot: a magic number and the version.
pub const MAGIC: u64 = 0x5043_534e << 32 | VERSION as u64;

/// The line where the lengths of short IPv6 prefixes begin.
pub const SHORT_LENGTHS: u32 = 1;
/// The line with the lengths of long IPv6 prefixes.
pub const LONG_LENGTHS: u32 = 3;
/// The line where the table of classes begins.
pub const CLASSES: u32 = 4;
/// Lists that a snapshot can have: their numbers in a mark begin at 1.
pub const LISTS_MAX: usize = 256;
/// The first line after the fixed ones.
pub const FIRST_FREE: u32 = CLASSES + LISTS_MAX as u32 / 16;

/// Ends a list of prefix lengths.
pub const NO_LENGTH: u8 = 0xff;
/// The length of an entry that says that its /64 has prefixes beyond /64.
pub const DEEP: u32 = 65;
/// Keys in a bucket of short IPv6 prefixes.
pub const SHORT_SLOTS: usize = 6;
/// Keys in a bucket of long IPv6 prefixes.
pub const LONG_SLOTS: usize = 4;

/// The kind of an entry of the directory: its two highest bits.
pub const ENTRY_KIND_SHIFT: u32 = 30;
/// One mark, in the lower 16 bits, for the whole /24. Zero: nothing.
pub const ENTRY_ALL: u32 = 0;
/// One address, its last octet in bits 16 to 23, has the mark in the lower 16 bits; the others have none.
pub const ENTRY_LONE: u32 = 1;
/// The lower 30 bits are the number of a cell.
pub const ENTRY_CELL: u32 = 2;

/// Which list speaks for an address, and by which prefix length; zero: none.
///
/// In an IPv4 mark of 16 bits the number of the list (from 1) has the lower 9, the prefix length the next 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mark(pub u32);

impl Mark {
    /// No list.
    pub const NONE: Self = Self(0);

    const NUMBER_BITS: u32 = 9;
    const NUMBER: u32 = (1 << Self::NUMBER_BITS) - 1;

    /// The mark of a list, numbered from 0, and a prefix length.
    #[inline(always)]
    #[must_use]
    pub const fn new(list: u16, length: u8) -> Self {
        Self((length as u32) << Self::NUMBER_BITS | (list as u32 + 1) & Self::NUMBER)
    }

    /// The list, numbered from 0, and the prefix length.
    #[must_use]
    pub const fn get(self) -> Option<(u16, u8)> {
        match self.0 & Self::NUMBER {
            0 => None,
            number => Some(((number - 1) as u16, (self.0 >> Self::NUMBER_BITS) as u8)),
        }
    }
}

/// Where the lines are.
pub trait Lines {
    /// A line; `None` beyond the last.
    fn line(&self, index: u32) -> Option<&Line>;
}

impl Lines for [Line] {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        self.get(index as usize)
    }
}

/// The places in the header: a word, and which half of it (the lower for `false`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(pub usize, pub bool);

impl Field {
    /// Which generation it is in the kernel; 0 before it is put in place.
    pub const GENERATION: Self = Self(1, false);
    /// Seeds all hashes.
    pub const SEED: Self = Self(1, true);
    /// The first line of the directory; 0: no IPv4.
    pub const DIRECTORY: Self = Self(2, false);
    /// The first cell.
    pub const CELLS: Self = Self(2, true);
    /// The first line of marks.
    pub const MARKS: Self = Self(3, false);
    /// Number of all lines.
    pub const LINES: Self = Self(3, true);
    /// The first line of the pilots of short IPv6 prefixes; 0: no IPv6.
    pub const SHORT_PILOTS: Self = Self(4, false);
    /// Number of their groups less one; the number is a power of two.
    pub const SHORT_GROUPS: Self = Self(4, true);
    /// Their first bucket.
    pub const SHORT_BUCKETS: Self = Self(5, false);
    /// Number of their buckets less one; the number is a power of two.
    pub const SHORT_MASK: Self = Self(5, true);
    /// The same for long IPv6 prefixes.
    pub const LONG_PILOTS: Self = Self(6, false);
    /// As [`Field::SHORT_GROUPS`].
    pub const LONG_GROUPS: Self = Self(6, true);
    /// As [`Field::SHORT_BUCKETS`].
    pub const LONG_BUCKETS: Self = Self(7, false);
    /// As [`Field::SHORT_MASK`].
    pub const LONG_MASK: Self = Self(7, true);

    /// The field in this header.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, header: &Line) -> u32 {
        let word = header[self.0 & 7];
        if self.1 {
            (word >> 32) as u32
        } else {
            word as u32
        }
    }
}

/// What the lists say of a source.
#[inline(always)]
pub fn class<L: Lines + ?Sized>(lines: &L, source: &Source) -> Class {
    let mark = mark(lines, source);
    let number = mark.0 & Mark::NUMBER;
    if number == 0 {
        return Class::NONE;
    }
    let at = number - 1;
    match lines.line(CLASSES + (at >> 4)) {
        Some(line) => Class((line[(at >> 1) as usize & 7] >> ((at & 1) * 32)) as u32),
        None => Class::NONE,
    }
}

/// Which list speaks for a source, and by which prefix length.
#[inline(always)]
pub fn mark<L: Lines + ?Sized>(lines: &L, source: &Source) -> Mark {
    let Some(header) = lines.line(0) else {
        return Mark::NONE;
    };
    if source.is_ipv4() {
        ipv4(lines, header, u32::from_be(source.0[1]))
    } else {
        let upper =
            u64::from(u32::from_be(source.0[1])) << 32 | u64::from(u32::from_be(source.0[2]));
        let lower =
            u64::from(u32::from_be(source.0[3])) << 32 | u64::from(u32::from_be(source.0[4]));
        ipv6(lines, header, upper, lower)
    }
}

#[inline(always)]
fn ipv4<L: Lines + ?Sized>(lines: &L, header: &Line, address: u32) -> Mark {
    let directory = Field::DIRECTORY.of(header);
    if directory == 0 {
        return Mark::NONE;
    }
    let network = address >> 8;
    let Some(line) = lines.line(directory + (network >> 4)) else {
        return Mark::NONE;
    };
    let entry = (line[(network >> 1) as usize & 7] >> ((network & 1) * 32)) as u32;
    match entry >> ENTRY_KIND_SHIFT {
        ENTRY_ALL => Mark(entry & 0xffff),
        ENTRY_LONE if entry >> 16 & 0xff == address & 0xff => Mark(entry & 0xffff),
        ENTRY_LONE => Mark::NONE,
        _ => {
            let number = entry & ((1 << ENTRY_KIND_SHIFT) - 1);
            match lines.line(Field::CELLS.of(header) + number) {
                Some(cell) => in_cell(lines, header, cell, address & 0xff),
                None => Mark::NONE,
            }
        }
    }
}

/// Words 0 to 3 of a cell are the bitmap; word 4 holds where its marks begin (32 bits), then how many bits words 0, 0-1 and
/// 0-2 have (8 bits each); word 5 holds the mark of addresses without a bit (16 bits) and the one mark of all others (16
/// bits), which is zero where they differ.
#[inline(always)]
fn in_cell<L: Lines + ?Sized>(lines: &L, header: &Line, cell: &Line, octet: u32) -> Mark {
    let word = octet as usize >> 6;
    let bits = cell[word & 3];
    let bit = octet & 63;
    if bits >> bit & 1 == 0 {
        return Mark((cell[5] & 0xffff) as u32);
    }
    let uniform = (cell[5] >> 16 & 0xffff) as u32;
    if uniform != 0 {
        return Mark(uniform);
    }
    // The count before word 0 is that of no word: it comes from shifting in zeros.
    let before = (cell[4] >> 32 << 8 >> (word as u32 * 8) & 0xff) as u32;
    let rank = before + (bits & ((1 << bit) - 1)).count_ones();
    let at = cell[4] as u32 + rank;
    match lines.line(Field::MARKS.of(header) + (at >> 5)) {
        Some(line) => Mark((line[(at >> 2) as usize & 7] >> ((at & 3) * 16)) as u32 & 0xffff),
        None => Mark::NONE,
    }
}

/// One table of hashed keys: pilots and buckets.
#[derive(Clone, Copy)]
struct Table {
    pilots: u32,
    groups: u32,
    buckets: u32,
    mask: u32,
}

impl Table {
    /// The number of the bucket that holds the key with this hash, if any does.
    #[inline(always)]
    fn bucket<L: Lines + ?Sized>(self, lines: &L, hash: u64) -> Option<u32> {
        let group = (hash >> 32) as u32 & self.groups;
        let line = lines.line(self.pilots + (group >> 6))?;
        let pilot = line[(group >> 3) as usize & 7] >> ((group & 7) * 8) & 0xff;
        Some(displaced(hash, pilot as u8, self.mask))
    }
}

/// The hash of a short IPv6 prefix: its upper 64 bits, all beyond its length zero, and its length.
#[inline(always)]
#[must_use]
pub const fn short_hash(seed: u32, upper: u64, length: u32) -> u64 {
    mix(upper ^ mix((seed as u64) << 8 | length as u64))
}

/// The hash of a long IPv6 prefix: where the entry of its /64 is, its lower 64 bits, all beyond its length zero, and its
/// length.
#[inline(always)]
#[must_use]
pub const fn long_hash(seed: u32, place: u32, lower: u64, length: u32) -> u64 {
    mix(lower ^ mix((seed as u64 ^ place as u64) << 8 | length as u64))
}

/// The bucket that a pilot leads a key to. The group of a key is in the upper half of its hash.
#[inline(always)]
#[must_use]
pub const fn displaced(hash: u64, pilot: u8, mask: u32) -> u32 {
    mix(hash.wrapping_add((pilot as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))) as u32 & mask
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input decides over every bit of the output.
#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The first bits of a word, the others zero.
#[inline(always)]
const fn leading(word: u64, bits: u32) -> u64 {
    if bits == 0 {
        0
    } else {
        word & u64::MAX << ((64 - bits) & 63)
    }
}

#[inline(always)]
fn ipv6<L: Lines + ?Sized>(lines: &L, header: &Line, upper: u64, lower: u64) -> Mark {
    let table = Table {
        pilots: Field::SHORT_PILOTS.of(header),
        groups: Field::SHORT_GROUPS.of(header),
        buckets: Field::SHORT_BUCKETS.of(header),
        mask: Field::SHORT_MASK.of(header),
    };
    if table.pilots == 0 {
        return Mark::NONE;
    }
    let seed = Field::SEED.of(header);
    if Field::LONG_PILOTS.of(header) != 0 {
        let place = short(lines, table, seed, upper, DEEP);
        if place.0 != 0 {
            let mark = beyond_64(lines, header, seed, place.1, lower);
            if mark.0 != 0 {
                return mark;
            }
        }
    }
    for at in 0..65_u32 {
        let Some(lengths) = lines.line(SHORT_LENGTHS + (at >> 6)) else {
            return Mark::NONE;
        };
        let length = octet(lengths, at);
        if length > 64 {
            return Mark::NONE;
        }
        let found = short(lines, table, seed, leading(upper, length), length);
        if found.0 != 0 {
            return Mark(found.0);
        }
    }
    Mark::NONE
}

/// The mark of a short prefix and its place: the bucket and the slot. Zero: it is not there.
#[inline(always)]
fn short<L: Lines + ?Sized>(
    lines: &L,
    table: Table,
    seed: u32,
    key: u64,
    length: u32,
) -> (u32, u32) {
    let Some(bucket) = table.bucket(lines, short_hash(seed, key, length)) else {
        return (0, 0);
    };
    let Some(line) = lines.line(table.buckets + bucket) else {
        return (0, 0);
    };
    for slot in 0..SHORT_SLOTS {
        let mark = (line[6 + slot / 4] >> (slot % 4 * 16)) as u32 & 0xffff;
        if line[slot] == key && mark >> Mark::NUMBER_BITS == length && mark & Mark::NUMBER != 0 {
            return (mark, bucket * 8 + slot as u32);
        }
    }
    (0, 0)
}

/// The prefixes within the /64 at this place.
#[inline(always)]
fn beyond_64<L: Lines + ?Sized>(
    lines: &L,
    header: &Line,
    seed: u32,
    place: u32,
    lower: u64,
) -> Mark {
    let table = Table {
        pilots: Field::LONG_PILOTS.of(header),
        groups: Field::LONG_GROUPS.of(header),
        buckets: Field::LONG_BUCKETS.of(header),
        mask: Field::LONG_MASK.of(header),
    };
    let Some(lengths) = lines.line(LONG_LENGTHS) else {
        return Mark::NONE;
    };
    for at in 0..64_u32 {
        let length = octet(lengths, at);
        if length > 128 {
            return Mark::NONE;
        }
        let key = leading(lower, length - 64);
        let Some(bucket) = table.bucket(lines, long_hash(seed, place, key, length)) else {
            return Mark::NONE;
        };
        let Some(line) = lines.line(table.buckets + bucket) else {
            return Mark::NONE;
        };
        for slot in 0..LONG_SLOTS {
            let entry = line[4 + slot];
            if line[slot] == key
                && entry >> 32 == u64::from(place)
                && entry as u32 >> Mark::NUMBER_BITS == length
            {
                return Mark(entry as u32);
            }
        }
    }
    Mark::NONE
}

/// One octet of a line; it repeats after 64.
#[inline(always)]
const fn octet(line: &Line, at: u32) -> u32 {
    (line[(at >> 3) as usize & 7] >> ((at & 7) * 8)) as u32 & 0xff
}
