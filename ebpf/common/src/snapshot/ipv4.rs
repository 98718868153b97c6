//! IPv4: presence, the directory, cells and marks.
//!
//! Presence is a bit for each range of addresses, a power of two of them: set if the range is
//! non-empty. It stays in a processor's caches while the rest does not, so that a flood from
//! addresses on no list rarely waits for memory: for a million entries all over IPv4 2 MiB do, a
//! bit for each /24, for ten million it takes 4 MiB, a bit for each /25. The directory goes from
//! the first /16 that is on a list to the last; it has an entry of four bytes for each /24: one
//! mark for all of it, a lone address with its mark, two addresses of one list, or the line of a
//! cell. A cell is a line: a bitmap of the addresses whose mark differs from that of the rest, and
//! either the one mark that they all have, or where their marks begin, two bytes each.

use super::{FIRST_FREE, Field, Lines, Mark, WORDS};

/// Where presence begins: it is always in the first block.
pub const PRESENCE: usize = FIRST_FREE;
/// By how much an address is shifted to give the number of its presence bit, at least: a bit for
/// each /25, 4 MiB in all.
pub const PRESENCE_SHIFT_MIN: u32 = 7;
/// And at most: all of it is one line.
pub const PRESENCE_SHIFT_MAX: u32 = 23;

/// The kind of an entry of the directory: its two highest bits.
pub const ENTRY_KIND_SHIFT: u32 = 30;
/// One mark, in the lower 16 bits, for the whole /24. Zero: nothing.
pub const ENTRY_ALL: u32 = 0;
/// One address, its last octet in bits 16 to 23, has the mark in the lower 16 bits; the others have
/// none.
pub const ENTRY_LONE: u32 = 1;
/// The lower 30 bits are the line of a cell.
pub const ENTRY_CELL: u32 = 2;
/// Two addresses, their last octets in bits 9 to 16 and 17 to 24, have the mark of a /32 of the
/// list whose number (from 1) is in the lower 9 bits; the others have none.
pub const ENTRY_PAIR: u32 = 3;

/// Bits of word 4 of a cell that say where its marks begin.
pub const CELL_MARKS_BITS: u32 = 40;

/// The mark of an IPv4 address.
#[inline(always)]
pub fn ipv4<L: Lines + ?Sized>(lines: &L, address: u32) -> Mark {
    let Some(shift) = Field::PRESENCE_SHIFT.in_lines(lines) else {
        return Mark::NONE;
    };
    let range = address.wrapping_shr(shift as u32) as usize;
    let present = lines.fixed::<u64>(PRESENCE * WORDS + (range >> 6));
    if present.is_none_or(|bits| bits >> (range & 63) & 1 == 0) {
        return Mark::NONE;
    }
    let Some(directory) = Field::DIRECTORY.in_lines(lines) else {
        return Mark::NONE;
    };
    let at = (directory as usize).wrapping_add(address as usize >> 8);
    let Some(entry) = lines.get::<u32>(at) else {
        return Mark::NONE;
    };
    let octet = address & 0xff;
    match entry >> ENTRY_KIND_SHIFT {
        ENTRY_ALL => Mark(entry & 0xffff),
        ENTRY_LONE if entry >> 16 & 0xff == octet => Mark(entry & 0xffff),
        ENTRY_PAIR if entry >> 9 & 0xff == octet || entry >> 17 & 0xff == octet => {
            Mark(entry & Mark::NUMBER | 32 << Mark::NUMBER_BITS)
        }
        ENTRY_LONE | ENTRY_PAIR => Mark::NONE,
        _ => {
            let cell = entry & ((1 << ENTRY_KIND_SHIFT) - 1);
            in_cell(lines, cell as usize, octet).unwrap_or(Mark::NONE)
        }
    }
}

/// Words 0 to 3 of a cell are the bitmap; word 4 holds where its marks begin (40 bits: all lines
/// taken for an array of marks), then how many bits words 0, 0-1 and 0-2 have (8 bits each); word 5
/// holds the mark of addresses without a bit (16 bits) and the one mark of all others (16 bits),
/// which is zero where they differ.
#[inline(always)]
fn in_cell<L: Lines + ?Sized>(lines: &L, cell: usize, octet: u32) -> Option<Mark> {
    let word = octet >> 6;
    let bit = octet & 63;
    let bits: u64 = lines.get(cell * WORDS + word as usize)?;
    let [marks, kinds]: [u64; 2] = lines.get(cell * WORDS / 2 + 2)?;
    if bits >> bit & 1 == 0 {
        return Some(Mark((kinds & 0xffff) as u32));
    }
    let uniform = (kinds >> 16 & 0xffff) as u32;
    if uniform != 0 {
        return Some(Mark(uniform));
    }
    // The count before word 0 is that of no word: it comes from shifting in zeros.
    let before = (marks >> CELL_MARKS_BITS << 8 >> (word * 8) & 0xff) as usize;
    let rank = before + (bits & ((1 << bit) - 1)).count_ones() as usize;
    let first = marks & ((1 << CELL_MARKS_BITS) - 1);
    let mark: u16 = lines.get(first as usize + rank)?;
    Some(Mark(u32::from(mark)))
}
