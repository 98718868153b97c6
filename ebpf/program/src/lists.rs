//! The snapshot of the lists in force, and the lookup of an address in it.

use core::arch::asm;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::SNAPSHOT_FLAGS;
use portcullis_ebpf_common::snapshot::{self, BLOCK_LINES, Block, Line, Lines};
use portcullis_ebpf_common::{Class, Lookup, Source};

type SnapshotMap = Array<Block, 1, SNAPSHOT_FLAGS>;

#[btf_map]
static SNAPSHOT: ArrayOfMaps<SnapshotMap, 1> = ArrayOfMaps::new();

/// The lines of the snapshot that was in force when they were asked for: one packet sees one generation.
///
/// To look into an inner map is a call, so the first block, which has the header, the classes and most of the directory, is
/// looked up once.
struct InMap<'a> {
    map: &'a SnapshotMap,
    first: *const Block,
}

impl<'a> InMap<'a> {
    #[inline(always)]
    fn in_force() -> Option<Self> {
        let map: &'a SnapshotMap = SNAPSHOT.get(0)?;
        let first = map.get_ptr(0)?;
        Some(Self { map, first })
    }
}

impl Lines for InMap<'_> {
    type Lent<'a>
        = &'a Line
    where
        Self: 'a;

    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        let block = match index / BLOCK_LINES as u32 {
            0 => self.first,
            number => self.map.get_ptr(number)?,
        };
        let at = within_block(index) as usize * size_of::<Line>();
        // SAFETY: the verifier has seen that the block is there, and by the mask that the line is within it.
        Some(unsafe { &*((block as usize + at) as *const Line) })
    }
}

/// The place of a line in its block. By an instruction of its own, because the compiler would take out a mask that a
/// comparison before it makes superfluous, and the verifier does not follow it there.
#[inline(always)]
fn within_block(index: u32) -> u64 {
    let mut at = u64::from(index);
    // SAFETY: it changes the one register.
    unsafe {
        asm!("{at} &= {mask}", at = inout(reg) at, mask = const BLOCK_LINES - 1,
            options(pure, nomem, nostack, preserves_flags));
    }
    at
}

/// The generation in force.
pub(crate) struct InForce;

impl Lookup for InForce {
    #[inline(always)]
    fn class(&self, source: &Source) -> Class {
        let Some(lines) = InMap::in_force() else {
            return Class::NONE;
        };
        if source.is_ipv4() {
            let mark = snapshot::ipv4(&lines, u32::from_be(source.0[1]));
            snapshot::class_of(&lines, mark)
        } else {
            let (upper, lower) = snapshot::halves(source);
            Class(class_of_ipv6(upper, lower))
        }
    }

    #[inline(always)]
    fn class_of_destination(&self, destination: &Source) -> Class {
        Class(out_of_line(destination))
    }
}

/// A second copy of the lookup, out of the way of the first.
#[inline(never)]
fn out_of_line(address: &Source) -> u32 {
    InForce.class(address).0
}

/// A global function, which the verifier follows once for all callers: the loop over the prefix lengths is long, and the ways
/// to it through the extension headers are many.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of_ipv6(upper: u64, lower: u64) -> u32 {
    let Some(lines) = InMap::in_force() else {
        return Class::NONE.0;
    };
    let mark = snapshot::ipv6(&lines, upper, lower);
    snapshot::class_of(&lines, mark).0
}
