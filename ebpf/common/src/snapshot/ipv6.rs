//! IPv6: lengths, pilots and buckets.
//!
//! Prefixes up to /64 are hashed by their upper 64 bits and their length into slots, six to a bucket of one line;
//! beside each key stands its mark. Each key has a slot for itself, because keys come in groups, and each group has a pilot:
//! an octet that was chosen, when the snapshot was built, so that all keys of the group found a slot free (the idea of perfect
//! hashing by displacement). There are at least four groups for each key, so that most addresses on no list meet a group
//! without keys, which has no pilot, and need no bucket. Longer prefixes are rare: they have a table of their own, three to a
//! bucket, which is looked into only if the /64 has an entry of the length 65. Rejected: cuckoo hashing (two lines for every
//! address that is on no list, which is the usual one), a trie (a line per level), slots that any key of the bucket
//! may take (a search of the bucket: no faster, and more for the verifier to follow).

use super::{Field, LENGTHS_LINES, LONG_LENGTHS, Line, Lines, Mark, SHORT_LENGTHS};
use crate::hash::{mix, spread};
use crate::packet::Source;

/// The length of an entry that says that its /64 has prefixes beyond /64.
pub const DEEP: u32 = 65;
/// The place of its word among the lengths of short prefixes.
pub const DEEP_AT: u32 = LENGTHS_LINES * 8 - 1;
/// Keys in a bucket of short IPv6 prefixes.
pub const SHORT_SLOTS: usize = 6;
/// Keys in a bucket of long IPv6 prefixes.
pub const LONG_SLOTS: usize = 3;

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
