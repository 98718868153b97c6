//! The snapshot: all lists of a generation, settled into one array of cache lines, and the lookup of an address in it.
//!
//! A lookup reads a constant number of lines, however many prefixes there are: for IPv4 the header and a line of presence
//! bits, and only for addresses that may be on a list an entry of the directory, where a /24 holds more than one address a cell,
//! and where those addresses differ their marks; for IPv6 the header, and per prefix length present a line of pilots and,
//! where there is one, a slot of a bucket. The same code runs in the kernel, over array maps, and in userspace, over the same
//! memory or over a `Vec`.
//!
//! ```text
//! line 0         the header
//! lines 1-9      the IPv6 prefix lengths present up to /64, longest first, a word each; at the end, that of DEEP
//! lines 10-18    the IPv6 prefix lengths present beyond /64, longest first, a word each
//! lines 19-34    the class of each list, four octets each: what the number in a mark means to the program
//! from line 35   presence (all IPv4 addresses), directory, cells and marks; pilots and buckets (IPv6 up to /64); the same for longer ones
//! ```
//!
//! **IPv4.** Presence is a bit for each stretch of the addresses, a power of two of them, that has something in it. It stays in
//! a processor's caches while the rest does not, so that a flood from addresses on no list rarely waits for memory: for a
//! million entries all over IPv4 2 MiB do, a bit for each /24, for ten million it takes 4 MiB, a bit for each /25. The directory
//! goes from the first /16 that is on a list to the last; it has an entry of four octets for each /24: one mark for
//! all of it, a lone address with its mark, two addresses of one list, or the line of a cell. A cell is a line: a bitmap of the addresses whose mark
//! differs from that of the rest, and either the one mark that they all have, or where their marks begin, two octets each.
//!
//! **IPv6.** Prefixes up to /64 are hashed by their upper 64 bits and their length into slots, six to a bucket of one line;
//! beside each key stands its mark. Each key has a slot for itself, because keys come in groups, and each group has a pilot:
//! an octet that was chosen, when the snapshot was built, so that all keys of the group found a slot free (the idea of perfect
//! hashing by displacement). There are at least four groups for each key, so that most addresses on no list meet a group
//! without keys, which has no pilot, and need no bucket. Longer prefixes are rare: they have a table of their own, three to a
//! bucket, which is looked into only if the /64 has an entry of the length 65. Rejected: cuckoo hashing (two lines for every
//! address that is on no list, which is the usual one), a trie (a line per level), a slot that any key of its bucket may
//! take (a search, which is mispredicted half of the time).

use core::ops::Deref;

use crate::packet::Source;
use crate::verdict::Class;

/// A cache line: the unit of everything here.
pub type Line = [u64; 8];

/// Lines of a [`Block`]; a power of two.
pub const BLOCK_LINES: usize = 1 << 20;
/// The value of each array map: 64 MiB of lines. All have one size, which is what lets the kernel put the look into one into
/// the program; it is large enough for header, presence and most of the directory to be in the first, which is looked up once. A
/// struct, because aya 0.14 takes an array of arrays for one of its elements.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Block {
    /// The lines.
    pub lines: [Line; BLOCK_LINES],
}

/// Changes whenever the meaning of a line changes; it is in the header of every snapshot.
pub const VERSION: u32 = 4;
/// The first word of a snapshot: a magic number and the version.
pub const MAGIC: u64 = 0x5043_534e << 32 | VERSION as u64;

/// The line where the lengths of short IPv6 prefixes begin.
pub const SHORT_LENGTHS: u32 = 1;
/// The line where the lengths of long IPv6 prefixes begin.
pub const LONG_LENGTHS: u32 = SHORT_LENGTHS + LENGTHS_LINES;
/// Lines with lengths of each of the two kinds: a word for each.
pub const LENGTHS_LINES: u32 = 9;
/// The line where the table of classes begins.
pub const CLASSES: u32 = LONG_LENGTHS + LENGTHS_LINES;
/// Lists that a snapshot can have: their numbers in a mark begin at 1.
pub const LISTS_MAX: usize = 256;
/// The first line after the fixed ones.
pub const FIRST_FREE: u32 = CLASSES + LISTS_MAX as u32 / 16;

/// The length of an entry that says that its /64 has prefixes beyond /64.
pub const DEEP: u32 = 65;
/// The place of its word among the lengths of short prefixes.
pub const DEEP_AT: u32 = LENGTHS_LINES * 8 - 1;
/// Where presence begins: it is always in the first block.
pub const PRESENCE: u32 = FIRST_FREE;
/// By how much an address is shifted to give the number of its presence bit, at least: a bit for each /25, 4 MiB in all.
pub const PRESENCE_SHIFT_MIN: u32 = 7;
/// And at most: all of it is one line.
pub const PRESENCE_SHIFT_MAX: u32 = 23;
/// Lines of the directory for a /16.
pub const DIRECTORY_LINES: u32 = 16;
/// Keys in a bucket of short IPv6 prefixes.
pub const SHORT_SLOTS: usize = 6;
/// Keys in a bucket of long IPv6 prefixes.
pub const LONG_SLOTS: usize = 3;

/// The kind of an entry of the directory: its two highest bits.
pub const ENTRY_KIND_SHIFT: u32 = 30;
/// One mark, in the lower 16 bits, for the whole /24. Zero: nothing.
pub const ENTRY_ALL: u32 = 0;
/// One address, its last octet in bits 16 to 23, has the mark in the lower 16 bits; the others have none.
pub const ENTRY_LONE: u32 = 1;
/// The lower 30 bits are the line of a cell.
pub const ENTRY_CELL: u32 = 2;
/// Two addresses, their last octets in bits 9 to 16 and 17 to 24, have the mark of a /32 of the list whose number (from 1) is in
/// the lower 9 bits; the others have none.
pub const ENTRY_PAIR: u32 = 3;

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
    /// The bits of the list's number.
    pub const NUMBER: u32 = (1 << Self::NUMBER_BITS) - 1;

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
    /// How a line is lent: a reference where it lies in memory, the line itself where it was read from a file.
    type Lent<'a>: Deref<Target = Line>
    where
        Self: 'a;

    /// A line; `None` beyond the last.
    fn line(&self, index: u32) -> Option<Self::Lent<'_>>;

    /// One of the lines before [`FIRST_FREE`] or of presence: the program holds the block that they are in already.
    #[inline(always)]
    fn fixed(&self, index: u32) -> Option<Self::Lent<'_>> {
        self.line(index)
    }
}

impl Lines for [Line] {
    type Lent<'a> = &'a Line;

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
    /// The number of all lines.
    pub const LINES: Self = Self(1, true);
    /// By how much an address is shifted to give the number of its presence bit.
    pub const PRESENCE_SHIFT: Self = Self(2, false);
    /// Where the directory would begin if it knew of 0.0.0.0/16, modulo 2^32: [`DIRECTORY_LINES`] for each /16.
    pub const DIRECTORY: Self = Self(2, true);
    /// By how much a hash of a short IPv6 prefix is shifted to give the number of its group; 0: no IPv6.
    pub const SHORT_SHIFT: Self = Self(3, false);
    /// The same for long IPv6 prefixes; 0: there are none.
    pub const LONG_SHIFT: Self = Self(3, true);
    /// The first line of the pilots of short IPv6 prefixes.
    pub const SHORT_PILOTS: Self = Self(4, false);
    /// The first line of their buckets.
    pub const SHORT_BUCKETS: Self = Self(4, true);
    /// Number of their buckets.
    pub const SHORT_BUCKET_COUNT: Self = Self(5, false);
    /// As [`Field::SHORT_BUCKET_COUNT`], of long prefixes.
    pub const LONG_BUCKET_COUNT: Self = Self(5, true);
    /// As [`Field::SHORT_PILOTS`].
    pub const LONG_PILOTS: Self = Self(6, false);
    /// As [`Field::SHORT_BUCKETS`].
    pub const LONG_BUCKETS: Self = Self(6, true);
    /// How many lengths of short IPv6 prefixes there are.
    pub const SHORT_LENGTH_COUNT: Self = Self(7, false);
    /// The same of long ones.
    pub const LONG_LENGTH_COUNT: Self = Self(7, true);

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

    /// Writes the field into this header.
    pub const fn set(self, header: &mut Line, value: u32) {
        let shift = if self.1 { 32 } else { 0 };
        let word = &mut header[self.0 & 7];
        *word = *word & !(0xffff_ffff << shift) | (value as u64) << shift;
    }
}

/// What the lists say of a source.
#[inline(always)]
pub fn class<L: Lines + ?Sized>(lines: &L, source: &Source) -> Class {
    class_of(lines, mark(lines, source))
}

/// What a mark means to the program.
#[inline(always)]
pub fn class_of<L: Lines + ?Sized>(lines: &L, mark: Mark) -> Class {
    let number = mark.0 & Mark::NUMBER;
    if number == 0 {
        return Class::NONE;
    }
    let at = number - 1;
    match lines.fixed(CLASSES + (at >> 4)) {
        Some(line) => Class((line[(at >> 1) as usize & 7] >> ((at & 1) * 32)) as u32),
        None => Class::NONE,
    }
}

/// Which list speaks for a source, and by which prefix length.
#[inline(always)]
pub fn mark<L: Lines + ?Sized>(lines: &L, source: &Source) -> Mark {
    if source.is_ipv4() {
        ipv4(lines, u32::from_be(source.0[1]))
    } else {
        let (upper, lower) = halves(source);
        ipv6(lines, upper, lower)
    }
}

/// The upper and the lower 64 bits of an IPv6 source.
#[inline(always)]
#[must_use]
pub const fn halves(source: &Source) -> (u64, u64) {
    let [_, a, b, c, d] = source.0;
    (
        (u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64,
        (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64,
    )
}

/// The mark of an IPv4 address.
#[inline(always)]
pub fn ipv4<L: Lines + ?Sized>(lines: &L, address: u32) -> Mark {
    let Some(header) = lines.fixed(0) else {
        return Mark::NONE;
    };
    let stretch = address.wrapping_shr(Field::PRESENCE_SHIFT.of(&header));
    let Some(present) = lines.fixed(PRESENCE + (stretch >> 9)) else {
        return Mark::NONE;
    };
    if present[(stretch >> 6) as usize & 7] >> (stretch & 63) & 1 == 0 {
        return Mark::NONE;
    }
    let network = address >> 8;
    let at = Field::DIRECTORY.of(&header).wrapping_add(network >> 4);
    let Some(line) = lines.line(at) else {
        return Mark::NONE;
    };
    let entry = (line[(network >> 1) as usize & 7] >> ((network & 1) * 32)) as u32;
    let octet = address & 0xff;
    match entry >> ENTRY_KIND_SHIFT {
        ENTRY_ALL => Mark(entry & 0xffff),
        ENTRY_LONE if entry >> 16 & 0xff == octet => Mark(entry & 0xffff),
        ENTRY_PAIR if entry >> 9 & 0xff == octet || entry >> 17 & 0xff == octet => {
            Mark(entry & Mark::NUMBER | 32 << Mark::NUMBER_BITS)
        }
        ENTRY_LONE | ENTRY_PAIR => Mark::NONE,
        _ => match lines.line(entry & ((1 << ENTRY_KIND_SHIFT) - 1)) {
            Some(cell) => in_cell(lines, &cell, octet),
            None => Mark::NONE,
        },
    }
}

/// Words 0 to 3 of a cell are the bitmap; word 4 holds where its marks begin (32 bits: the line and the place in it, 32
/// to a line), then how many bits words 0, 0-1 and 0-2 have (8 bits each); word 5 holds the mark of addresses without a
/// bit (16 bits) and the one mark of all others (16 bits), which is zero where they differ.
#[inline(always)]
fn in_cell<L: Lines + ?Sized>(lines: &L, cell: &Line, octet: u32) -> Mark {
    let word = octet >> 6;
    let bits = cell[word as usize & 3];
    let bit = octet & 63;
    if bits >> bit & 1 == 0 {
        return Mark((cell[5] & 0xffff) as u32);
    }
    let uniform = (cell[5] >> 16 & 0xffff) as u32;
    if uniform != 0 {
        return Mark(uniform);
    }
    // The count before word 0 is that of no word: it comes from shifting in zeros.
    let before = (cell[4] >> 32 << 8 >> (word * 8) & 0xff) as u32;
    let rank = before + (bits & ((1 << bit) - 1)).count_ones();
    let at = (cell[4] as u32).wrapping_add(rank);
    match lines.line(at >> 5) {
        Some(line) => Mark((line[(at >> 2) as usize & 7] >> ((at & 3) * 16)) as u32 & 0xffff),
        None => Mark::NONE,
    }
}

/// The word of a prefix length: the length in the lowest octet, and bits that tell equal keys of different lengths apart.
#[must_use]
pub const fn length_word(seed: u32, length: u32) -> u64 {
    mix((seed as u64) << 8 | length as u64) & !0xff | length as u64
}

/// The hash of a short IPv6 prefix: its upper 64 bits, all beyond its length zero, and the word of its length.
///
/// The upper bits of a product with an odd number (Knuth) tell apart what counts up, as prefixes do, and any other keys well
/// enough: what collides meets another pilot, or another seed.
#[inline(always)]
#[must_use]
pub const fn short_hash(word: u64, upper: u64) -> u64 {
    spread(upper ^ word)
}

/// The hash of a long IPv6 prefix: both halves, all beyond its length zero, and the word of its length. The halves meet behind
/// a mix that nobody can foresee who does not know the seed: else one could choose addresses that collide under every seed.
#[inline(always)]
#[must_use]
pub const fn long_hash(word: u64, upper: u64, lower: u64) -> u64 {
    spread(lower ^ mix(upper ^ word))
}

/// The group of a key: the first bits of its hash.
#[inline(always)]
#[must_use]
pub const fn group(hash: u64, shift: u32) -> u32 {
    hash.wrapping_shr(shift) as u32
}

/// The bucket that a pilot leads a key to, and the slot in it. All but an XOR and two multiplications can be done before the
/// pilot is there; a number below another is had from a hash without a division (Lemire 2019).
#[inline(always)]
#[must_use]
pub const fn displaced(hash: u64, pilot: u8, buckets: u32, slots: usize) -> (u32, usize) {
    let position = (spread(hash ^ hash >> 32) >> 32) as u32 ^ (pilot as u32) << 24;
    let bucket = position as u64 * buckets as u64;
    let slot = (bucket & 0xffff_ffff) * slots as u64;
    ((bucket >> 32) as u32, (slot >> 32) as usize)
}

/// Multiplies: every bit decides over all that are above it.
#[inline(always)]
pub(crate) const fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
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
#[must_use]
pub const fn leading(word: u64, bits: u32) -> u64 {
    if bits == 0 {
        0
    } else {
        word & u64::MAX << (64_u32.wrapping_sub(bits) & 63)
    }
}

/// One table of hashed keys, by the fields that say where its pilots and buckets are.
struct Table {
    pilots: Field,
    shift: Field,
    buckets: Field,
    bucket_count: Field,
    slots: usize,
}

/// That of IPv6 prefixes up to /64.
const SHORT: Table = Table {
    pilots: Field::SHORT_PILOTS,
    shift: Field::SHORT_SHIFT,
    buckets: Field::SHORT_BUCKETS,
    bucket_count: Field::SHORT_BUCKET_COUNT,
    slots: SHORT_SLOTS,
};

/// That of longer ones.
const LONG: Table = Table {
    pilots: Field::LONG_PILOTS,
    shift: Field::LONG_SHIFT,
    buckets: Field::LONG_BUCKETS,
    bucket_count: Field::LONG_BUCKET_COUNT,
    slots: LONG_SLOTS,
};

impl Table {
    #[inline(always)]
    fn is_empty(&self, header: &Line) -> bool {
        self.shift.of(header) == 0
    }

    /// The bucket and the slot that hold the key with this hash, if any do.
    #[inline(always)]
    fn slot<'a, L: Lines + ?Sized>(
        &self,
        lines: &'a L,
        header: &Line,
        hash: u64,
    ) -> Option<(L::Lent<'a>, usize)> {
        let group = group(hash, self.shift.of(header));
        let line = lines.line(self.pilots.of(header).wrapping_add(group >> 6))?;
        match octet(&line, group) as u8 {
            0 => None,
            pilot => {
                let buckets = self.bucket_count.of(header);
                let (bucket, slot) = displaced(hash, pilot, buckets, self.slots);
                let bucket = lines.line(self.buckets.of(header).wrapping_add(bucket))?;
                Some((bucket, slot))
            }
        }
    }
}

/// The mark of an IPv6 address.
#[inline(always)]
pub fn ipv6<L: Lines + ?Sized>(lines: &L, upper: u64, lower: u64) -> Mark {
    let Some(header) = lines.fixed(0) else {
        return Mark::NONE;
    };
    if SHORT.is_empty(&header) {
        return Mark::NONE;
    }
    if !LONG.is_empty(&header) {
        let deep = length_at(lines, SHORT_LENGTHS, DEEP_AT);
        if short(lines, &header, upper, deep) != Mark::NONE {
            let mark = beyond_64(lines, &header, upper, lower);
            if mark != Mark::NONE {
                return mark;
            }
        }
    }
    let count = Field::SHORT_LENGTH_COUNT.of(&header);
    for at in 0..65_u32 {
        if at >= count {
            break;
        }
        let word = length_at(lines, SHORT_LENGTHS, at);
        let found = short(lines, &header, leading(upper, length(word)), word);
        if found != Mark::NONE {
            return found;
        }
    }
    Mark::NONE
}

/// The word of a length at a place of the table that begins at a line.
#[inline(always)]
fn length_at<L: Lines + ?Sized>(lines: &L, first: u32, at: u32) -> u64 {
    match lines.fixed(first + (at >> 3)) {
        Some(line) => line[at as usize & 7],
        None => 0,
    }
}

/// The length in its word.
#[inline(always)]
const fn length(word: u64) -> u32 {
    word as u32 & 0xff
}

/// The mark of a short prefix.
#[inline(always)]
fn short<L: Lines + ?Sized>(lines: &L, header: &Line, key: u64, word: u64) -> Mark {
    let Some((bucket, slot)) = SHORT.slot(lines, header, short_hash(word, key)) else {
        return Mark::NONE;
    };
    let mark = bucket[SHORT_SLOTS + (slot >> 2 & 1)] >> ((slot & 3) * 16) & 0xffff;
    let length = u64::from(length(word));
    // One condition, because the verifier follows each. A slot that is free has no mark, so that finding one for ::/0 is finding
    // nothing.
    if (bucket[slot & 7] ^ key) | (mark >> Mark::NUMBER_BITS ^ length) == 0 {
        Mark(mark as u32)
    } else {
        Mark::NONE
    }
}

/// The mark of the longest of the prefixes within a /64 that covers an address.
#[inline(always)]
fn beyond_64<L: Lines + ?Sized>(lines: &L, header: &Line, upper: u64, lower: u64) -> Mark {
    let count = Field::LONG_LENGTH_COUNT.of(header);
    for at in 0..64_u32 {
        if at >= count {
            break;
        }
        let word = length_at(lines, LONG_LENGTHS, at);
        let length = length(word);
        let key = leading(lower, length.wrapping_sub(64));
        let Some((bucket, slot)) = LONG.slot(lines, header, long_hash(word, upper, key)) else {
            continue;
        };
        let mark = bucket[2 * LONG_SLOTS + (slot >> 1 & 1)] >> ((slot & 1) * 32) & 0xffff_ffff;
        let other = (bucket[slot & 3] ^ key)
            | (bucket[LONG_SLOTS + (slot & 3)] ^ upper)
            | (mark >> Mark::NUMBER_BITS ^ u64::from(length));
        if other == 0 {
            return Mark(mark as u32);
        }
    }
    Mark::NONE
}

/// One octet of a line; it repeats after 64.
#[inline(always)]
const fn octet(line: &Line, at: u32) -> u32 {
    (line[(at >> 3) as usize & 7] >> ((at & 7) * 8)) as u32 & 0xff
}
