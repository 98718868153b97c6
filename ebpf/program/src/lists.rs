//! The snapshot in force, and the lookup of an address in it.

use core::arch::asm;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use bytemuck::Pod;
use portcullis_ebpf_common::layout::{MAPPED, SNAPSHOT_BLOCKS_MAX, SNAPSHOT_SLOTS, snapshot_slot};
use portcullis_ebpf_common::snapshot::{self, Block, Deep, Field, Lines};
use portcullis_ebpf_common::{Class, Lookup, Source};

#[btf_map]
static SNAPSHOT: ArrayOfMaps<Array<Block, 1, MAPPED>, { SNAPSHOT_SLOTS as usize }> =
    ArrayOfMaps::new();

/// The lines of the snapshot in force. One packet sees one generation: its blocks stay in place
/// until all packets that read its header are done.
struct InMap {
    /// The header, the classes, presence and most of the directory.
    first: *const Block,
}

impl InMap {
    #[inline(always)]
    fn in_force() -> Option<Self> {
        block(0).map(|first| Self { first })
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        // SAFETY: the verifier has seen that the block is there.
        Field::GENERATION.of(unsafe { &(*self.first).lines[0] }) as u32
    }
}

/// The block in this element.
#[inline(always)]
fn block(slot: u32) -> Option<*const Block> {
    SNAPSHOT.get(slot)?.get_ptr(0)
}

impl Lines for InMap {
    #[inline(always)]
    fn get<T: Pod>(&self, at: usize) -> Option<T> {
        let count = const { in_block::<T>() };
        let block = if at < count {
            self.first
        } else {
            let number = at / count;
            // Only a damaged header leads there.
            if number >= SNAPSHOT_BLOCKS_MAX as usize {
                return None;
            }
            block(snapshot_slot(self.generation(), number as u32))?
        };
        // The mask is an instruction of its own, because the compiler would take out one that a
        // comparison before it makes superfluous, and the verifier does not follow it there.
        let mut at = at;
        // SAFETY: it changes the one register.
        unsafe {
            asm!("{at} &= {mask}", at = inout(reg) at, mask = const in_block::<T>() - 1,
                options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: the verifier has seen that the block is there, and by the mask it is within the
        // block.
        Some(unsafe { block.cast::<T>().add(at).read() })
    }

    #[inline(always)]
    fn fixed<T: Pod>(&self, at: usize) -> Option<T> {
        let at = at & const { in_block::<T>() - 1 };
        // SAFETY: as above.
        Some(unsafe { self.first.cast::<T>().add(at).read() })
    }
}

/// How many `T` a block has: a power of two.
const fn in_block<T>() -> usize {
    size_of::<Block>() / size_of::<T>()
}

/// The generation in force.
pub(crate) struct InForce;

impl Lookup for InForce {
    #[inline(always)]
    fn class(&self, source: &Source) -> Class {
        if source.is_ipv4() {
            Class(class_of_ipv4(source.0[1]))
        } else {
            let (upper, lower) = snapshot::halves(source);
            Class(class_of_ipv6(upper, lower))
        }
    }
}

/// The class of an IPv4 address, as it lies in the packet.
#[inline(always)]
pub(crate) fn ipv4(address: u32) -> Class {
    match InMap::in_force() {
        Some(lines) => snapshot::class_of(&lines, snapshot::ipv4(&lines, u32::from_be(address))),
        None => Class::NONE,
    }
}

/// The class of an IPv6 address by its upper half.
///
/// # Errors
/// [`Deep`]: there are prefixes within its /64.
#[inline(always)]
pub(crate) fn ipv6_network(upper: u64) -> Result<Class, Deep> {
    let Some(lines) = InMap::in_force() else {
        return Ok(Class::NONE);
    };
    let mark = snapshot::ipv6_network(&lines, upper)?;
    Ok(snapshot::class_of(&lines, mark))
}

/// A global function: the verifier follows it once for all callers, and many ways lead to it
/// through the extension headers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of_ipv4(address: u32) -> u32 {
    ipv4(address).0
}

/// As [`class_of_ipv4`]; and the loop over the prefix lengths is long.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of_ipv6(upper: u64, lower: u64) -> u32 {
    let Some(lines) = InMap::in_force() else {
        return Class::NONE.0;
    };
    snapshot::class_of(&lines, snapshot::ipv6(&lines, upper, lower)).0
}
