//! The snapshot: all lists of a generation, settled into one array of cache lines, and the lookup
//! of an address in it.
//!
//! A lookup reads a constant number of places, however many prefixes there are: for IPv4 the header
//! and a presence bit, and only for addresses that may be on a list an entry of the directory,
//! where a /24 holds more than two addresses a cell, and where those differ their marks; for IPv6
//! the head of a table, and per prefix length present a pilot and, where there is one, a slot. The
//! same code runs in the kernel, over array maps, and in userspace, over the same memory, a `Vec`
//! or a file.
//!
//! ```text
//! line 0         the header
//! lines 1-18     the head of the table of IPv6 prefixes up to /64
//! lines 19-36    the head of the table of longer ones
//! lines 37-52    the class of each list, four bytes each: what the number in a mark means to the
//!                program
//! from line 53   presence, directory, cells and marks (IPv4); pilots and slots (IPv6 up to /64);
//!                the same for longer prefixes
//! ```

mod ipv4;
mod ipv6;

use bytemuck::Pod;

use crate::packet::Source;
use crate::verdict::Class;

pub use self::ipv4::{
    CELL_MARKS_BITS, ENTRY_ALL, ENTRY_CELL, ENTRY_KIND_SHIFT, ENTRY_LONE, ENTRY_PAIR, PRESENCE,
    PRESENCE_SHIFT_MAX, PRESENCE_SHIFT_MIN, ipv4,
};
pub use self::ipv6::{
    DEEP, Deep, LONG, LongSlot, SHORT, ShortSlot, Table, halves, ipv6, ipv6_network, long_key,
    short_key, up_to_64, within_64,
};

/// A cache line: the unit of everything here.
pub type Line = [u64; 8];

/// Words of a line.
const WORDS: usize = size_of::<Line>() / size_of::<u64>();

/// Lines of a [`Block`]; a power of two.
pub const BLOCK_LINES: usize = 1 << 20;
/// The value of each array map: 64 MiB of lines. All have one size, which is what lets the kernel
/// put the look into one into the program; it is large enough for header, presence and most of the
/// directory to be in the first, which is looked up once. A struct, because aya 0.14 takes an array
/// of arrays for one of its elements.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Block {
    /// The lines.
    pub lines: [Line; BLOCK_LINES],
}

/// Changes whenever the meaning of a line changes; it is in the header of every snapshot.
pub const VERSION: u32 = 5;
/// The first word of a snapshot: a magic number and the version.
pub const MAGIC: u64 = 0x5043_534e << 32 | VERSION as u64;

/// Lines that the head of a table of IPv6 prefixes takes.
pub const TABLE_LINES: usize = 18;
/// The line where the table of classes begins.
pub const CLASSES: usize = 1 + 2 * TABLE_LINES;
/// Lists that a snapshot can have: their numbers in a mark begin at 1.
pub const LISTS_MAX: usize = 256;
/// The first line after the fixed ones.
pub const FIRST_FREE: usize = CLASSES + LISTS_MAX / CLASSES_OF_LINE;
/// Classes in a line.
const CLASSES_OF_LINE: usize = size_of::<Line>() / size_of::<Class>();

/// The list that decides about an address, and the length of its prefix; zero: none.
///
/// In an IPv4 mark of 16 bits the number of the list (from 1) has the lower 9, the prefix length
/// the next 6.
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

/// Where the lines are. Integers in them are little-endian, as all machines are that this runs on.
pub trait Lines {
    /// The value at a position, with all lines seen as an array of `T`, whose size is a power of
    /// two and at most that of a line; `None` beyond the last line.
    fn get<T: Pod>(&self, at: usize) -> Option<T>;

    /// The same before [`FIRST_FREE`] or in presence: the program holds the block that they are in
    /// already.
    #[inline(always)]
    fn fixed<T: Pod>(&self, at: usize) -> Option<T> {
        self.get(at)
    }
}

const _: () = assert!(cfg!(target_endian = "little"));

impl Lines for [Line] {
    #[inline(always)]
    fn get<T: Pod>(&self, at: usize) -> Option<T> {
        bytemuck::cast_slice(self).get(at).copied()
    }
}

/// The places in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(usize);

impl Field {
    /// [`MAGIC`].
    pub const MAGIC: Self = Self(0);
    /// Which generation it is in the kernel, a number of 32 bits; 0 before it is put in place.
    pub const GENERATION: Self = Self(1);
    /// The number of all lines.
    pub const LINES: Self = Self(2);
    /// By how much an address is shifted to give the number of its presence bit.
    pub const PRESENCE_SHIFT: Self = Self(3);
    /// Where the directory's entry for 0.0.0.0/24 would be, if it had one; it may be less than
    /// zero.
    pub const DIRECTORY: Self = Self(4);

    /// The field of this header.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, header: &Line) -> u64 {
        header[self.0 & 7]
    }

    /// The field in these lines.
    #[inline(always)]
    fn in_lines<L: Lines + ?Sized>(self, lines: &L) -> Option<u64> {
        lines.fixed(self.0)
    }

    /// Writes the field into this header.
    pub const fn set(self, header: &mut Line, value: u64) {
        header[self.0 & 7] = value;
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
    match (mark.0 & Mark::NUMBER) as usize {
        0 => Class::NONE,
        number => {
            let class = lines.fixed(CLASSES * CLASSES_OF_LINE - 1 + number);
            class.map_or(Class::NONE, Class)
        }
    }
}

/// The list that decides about a source, and the length of its prefix.
#[inline(always)]
pub fn mark<L: Lines + ?Sized>(lines: &L, source: &Source) -> Mark {
    if source.is_ipv4() {
        ipv4(lines, u32::from_be(source.0[1]))
    } else {
        let (upper, lower) = halves(source);
        ipv6(lines, upper, lower)
    }
}
