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
//! from line 35   presence, directory, cells and marks (IPv4); pilots and buckets (IPv6 up to /64); the same for longer prefixes
//! ```

mod ipv4;
mod ipv6;

use core::ops::Deref;

use crate::packet::Source;
use crate::verdict::Class;

pub use self::ipv4::{
    DIRECTORY_LINES, ENTRY_ALL, ENTRY_CELL, ENTRY_KIND_SHIFT, ENTRY_LONE, ENTRY_PAIR, PRESENCE,
    PRESENCE_SHIFT_MAX, PRESENCE_SHIFT_MIN, ipv4,
};
pub use self::ipv6::{
    DEEP, DEEP_AT, LONG_SLOTS, SHORT_SLOTS, displaced, group, halves, ipv6, leading, length_word,
    long_hash, short_hash,
};

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
