//! IPv6: prefix lengths, pilots and slots.
//!
//! Prefixes up to /64 are hashed by their upper 64 bits and their length, and each has a slot for
//! itself, because keys come in groups, and each group has a pilot: a byte that was chosen, when
//! the snapshot was built, so that all keys of the group found a slot free (the idea of perfect
//! hashing by displacement). There are three groups for each slot at least, so that most addresses
//! on no list meet a group without keys, which has no pilot, and need no slot. Longer prefixes are
//! rare: they have a table of their own, which is looked into only if the /64 has an entry of the
//! length 65. Rejected: cuckoo hashing (two lines for every address that is on no list, which is
//! the usual one), a trie (a line per level), slots that any key of a bucket may take (a search of
//! the bucket), slots packed six to a line (less memory, but a dozen instructions more to find
//! one).

use bytemuck::Pod;

use super::{Lines, Mark, TABLE_LINES, WORDS};
use crate::hash::{mix, spread};
use crate::packet::Source;

/// The length of an entry that says that its /64 has prefixes beyond /64: the longest of short
/// ones.
pub const DEEP: u32 = 65;

/// The place of a prefix up to /64: its bits, and its [`Mark`].
pub type ShortSlot = [u64; 2];
/// The place of a longer one: its upper and its lower bits, its [`Mark`], and zero.
pub type LongSlot = [u64; 4];

/// Prefix lengths that there can be up to /64, [`DEEP`] among them.
const SHORT_LENGTHS: usize = 66;
/// And beyond.
const LONG_LENGTHS: usize = 64;
const _: () = assert!(Table::LENGTHS + 2 * SHORT_LENGTHS <= TABLE_LINES * WORDS);

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

/// The key of a prefix up to /64, made of its bits and the salt of its length, as it is hashed.
#[inline(always)]
#[must_use]
pub const fn short_key(salt: u64, upper: u64) -> u64 {
    upper ^ salt
}

/// The key of a longer prefix, as it is hashed. The halves meet behind a mix that cannot be
/// foreseen without the seed: else a sender could choose addresses that collide under every seed.
#[inline(always)]
#[must_use]
pub const fn long_key(salt: u64, upper: u64, lower: u64) -> u64 {
    lower ^ mix(upper ^ salt)
}

/// A table of hashed prefixes. Its head is words: those named here, then two for each prefix length
/// present, the longest first: a mask with its bits, of the half where it ends, and its
/// [salt](Self::salt).
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The first word of its head, counted from the header.
    head: usize,
    /// The bits of its longest prefixes.
    bits: u32,
}

/// That of prefixes up to /64.
pub const SHORT: Table = Table {
    head: WORDS,
    bits: 64,
};

/// That of longer ones.
pub const LONG: Table = Table {
    head: (1 + TABLE_LINES) * WORDS,
    bits: 128,
};

impl Table {
    /// By how much a hash is shifted to give the number of its group.
    pub const SHIFT: usize = 0;
    /// Where its pilots begin, if all lines are taken for an array of bytes.
    pub const PILOTS: usize = 1;
    /// Where its slots begin, if all lines are taken for an array of slots.
    pub const SLOTS: usize = 2;
    /// How many slots there are; fewer than 2^32.
    pub const SLOT_COUNT: usize = 3;
    /// What a key is multiplied with to give the number of its group.
    pub const GROUP_FACTOR: usize = 4;
    /// What it is multiplied with to give its slot.
    pub const SLOT_FACTOR: usize = 5;
    /// How many prefix lengths there are.
    pub const LENGTH_COUNT: usize = 6;
    /// Where those of the longest begin.
    pub const LENGTHS: usize = 7;

    /// A mask with the bits of a prefix length, of the half where it ends.
    #[must_use]
    pub const fn mask(&self, length: u32) -> u64 {
        match self.bits.saturating_sub(length) {
            64.. => 0,
            beyond => u64::MAX << beyond,
        }
    }

    /// What distinguishes equal prefixes of different lengths: the length in the lowest byte, and
    /// bits that come of it and a seed.
    #[must_use]
    pub const fn salt(seed: u32, length: u32) -> u64 {
        mix((seed as u64) << 8 | length as u64) & !0xff | length as u64
    }

    /// The factors that come of a seed, that of groups and that of slots.
    ///
    /// The upper bits of a product with an odd number distinguish any two keys for nearly every
    /// such number (Dietzfelbinger and others 1997). With fixed numbers one could choose prefixes
    /// that collide under every seed.
    #[must_use]
    pub const fn factors(seed: u32) -> [u64; 2] {
        let seed = (seed as u64) << 8;
        [mix(seed | 0xfe) | 1, mix(seed | 0xff) | 1]
    }

    /// The group of a key.
    #[inline(always)]
    #[must_use]
    pub const fn group(key: u64, factor: u64, shift: u64) -> usize {
        (key.wrapping_mul(factor) >> (shift & 63)) as usize
    }

    /// The slot that a pilot leads a key to; a hash is scaled to a number of slots without a
    /// division (Lemire 2019). The pilots move a key all over the table: if they had only bits of
    /// their own to change, as in an XOR, the keys that agree in the others would have 256 slots
    /// among them, which at times are too few.
    #[inline(always)]
    #[must_use]
    pub const fn slot(key: u64, factor: u64, pilot: u8, slots: u64) -> usize {
        let place = key.wrapping_mul(factor).wrapping_add(spread(pilot as u64));
        ((place >> 32).wrapping_mul(slots) >> 32) as usize
    }

    /// A word of its head.
    #[inline(always)]
    fn word<L: Lines + ?Sized>(&self, lines: &L, at: usize) -> Option<u64> {
        lines.fixed(self.head + at)
    }

    /// What is in the only slot that may have this key, if there is one.
    #[inline(always)]
    fn find<S: Pod, L: Lines + ?Sized>(&self, lines: &L, key: u64) -> Option<S> {
        let factor = self.word(lines, Self::GROUP_FACTOR)?;
        let group = Self::group(key, factor, self.word(lines, Self::SHIFT)?);
        let pilots = self.word(lines, Self::PILOTS)? as usize;
        match lines.get(pilots.wrapping_add(group))? {
            0 => None,
            pilot => {
                let factor = self.word(lines, Self::SLOT_FACTOR)?;
                let slot = Self::slot(key, factor, pilot, self.word(lines, Self::SLOT_COUNT)?);
                let slots = self.word(lines, Self::SLOTS)? as usize;
                lines.get(slots.wrapping_add(slot))
            }
        }
    }

    /// The prefix length at a place among those present, of which the longest comes first.
    #[inline(always)]
    fn length<L: Lines + ?Sized>(&self, lines: &L, at: usize) -> Option<Length> {
        if at as u64 >= self.word(lines, Self::LENGTH_COUNT)? {
            return None;
        }
        Some(Length {
            mask: self.word(lines, Self::LENGTHS + 2 * at)?,
            salt: self.word(lines, Self::LENGTHS + 2 * at + 1)?,
        })
    }
}

/// The words of a prefix length.
#[derive(Clone, Copy)]
struct Length {
    mask: u64,
    salt: u64,
}

impl Length {
    /// In bits.
    #[inline(always)]
    const fn bits(self) -> u64 {
        self.salt & 0xff
    }

    #[inline(always)]
    const fn is_deep(self) -> bool {
        self.bits() == DEEP as u64
    }

    /// Zero if it is that in this mark. A slot without a prefix has no mark: what is found there
    /// for ::/0 is nothing.
    #[inline(always)]
    const fn differs(self, mark: u64) -> u64 {
        mark >> Mark::NUMBER_BITS ^ self.bits()
    }
}

/// There are prefixes within the /64 of an address, and they decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deep;

/// The mark of an IPv6 address.
#[inline(always)]
pub fn ipv6<L: Lines + ?Sized>(lines: &L, upper: u64, lower: u64) -> Mark {
    match ipv6_network(lines, upper) {
        Ok(mark) => mark,
        Err(Deep) => match beyond_64(lines, upper, lower) {
            Some(mark) => mark,
            None => shorter(lines, upper),
        },
    }
}

/// The mark of an IPv6 address, by its upper half alone.
///
/// # Errors
/// [`Deep`] if that is not enough.
#[inline(always)]
pub fn ipv6_network<L: Lines + ?Sized>(lines: &L, upper: u64) -> Result<Mark, Deep> {
    // Most snapshots have one length, or nearly all prefixes of one: it is not a case of the loop.
    let Some(longest) = SHORT.length(lines, 0) else {
        return Ok(Mark::NONE);
    };
    match of_length(lines, upper, longest) {
        Mark::NONE => Ok(shorter(lines, upper)),
        _ if longest.is_deep() => Err(Deep),
        mark => Ok(mark),
    }
}

/// The mark of the longest prefix that covers all of a /64, given by its upper half.
pub fn up_to_64<L: Lines + ?Sized>(lines: &L, upper: u64) -> Mark {
    ipv6_network(lines, upper).unwrap_or_else(|Deep| shorter(lines, upper))
}

/// The prefixes within a /64, each by the lower half of its bits and its mark.
pub fn within_64<L: Lines + ?Sized>(lines: &L, upper: u64) -> impl Iterator<Item = (u64, Mark)> {
    let slots = match ipv6_network(lines, upper) {
        Ok(_) => 0,
        Err(Deep) => LONG.word(lines, Table::SLOT_COUNT).unwrap_or(0),
    };
    let first = LONG.word(lines, Table::SLOTS).unwrap_or(0);
    (0..slots).filter_map(move |slot| {
        let at = first.wrapping_add(slot) as usize;
        let [found, lower, mark, _] = lines.get::<LongSlot>(at)?;
        let mark = Mark(mark as u32);
        (found == upper && mark != Mark::NONE).then_some((lower, mark))
    })
}

/// The mark of the longest prefix up to /64 that covers an address. Prefixes of the longest length
/// present are not considered.
#[inline(always)]
fn shorter<L: Lines + ?Sized>(lines: &L, upper: u64) -> Mark {
    for at in 1..SHORT_LENGTHS {
        let Some(length) = SHORT.length(lines, at) else {
            break;
        };
        let mark = of_length(lines, upper, length);
        if mark != Mark::NONE {
            return mark;
        }
    }
    Mark::NONE
}

/// The mark of the prefix of this length that covers an address.
#[inline(always)]
fn of_length<L: Lines + ?Sized>(lines: &L, upper: u64, length: Length) -> Mark {
    let prefix = upper & length.mask;
    let key = short_key(length.salt, prefix);
    match SHORT.find::<ShortSlot, L>(lines, key) {
        // One condition, because the verifier follows each.
        Some([found, mark]) if found ^ prefix | length.differs(mark) == 0 => Mark(mark as u32),
        _ => Mark::NONE,
    }
}

/// The mark of the longest of the prefixes within a /64 that covers an address.
#[inline(always)]
fn beyond_64<L: Lines + ?Sized>(lines: &L, upper: u64, lower: u64) -> Option<Mark> {
    for at in 0..LONG_LENGTHS {
        let length = LONG.length(lines, at)?;
        let prefix = lower & length.mask;
        let key = long_key(length.salt, upper, prefix);
        let Some([found_upper, found, mark, _]) = LONG.find::<LongSlot, L>(lines, key) else {
            continue;
        };
        if found_upper ^ upper | found ^ prefix | length.differs(mark) == 0 {
            return Some(Mark(mark as u32));
        }
    }
    None
}
