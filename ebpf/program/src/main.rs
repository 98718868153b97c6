//! The XDP program: reads a frame, asks [`judge`] for the verdict, counts it, and passes or drops.
//!
//! It is loaded once per interface, with the interface's slot as a constant, so that nothing has to be looked up to know
//! whose counters to use. All instances share the pinned maps. What cannot be found (no settings yet, no lists yet)
//! passes: the filter drops only on the word of a list or of the settings.

#![no_std]
#![no_main]

mod budget;
mod events;
mod lists;
mod verdicts;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use portcullis_ebpf_common::layout::{
    INTERFACES_MAX, InterfaceCounter, InterfaceCounters, LIST_SLOTS, ListCounter, ListCounters,
    Mode, Settings,
};
use portcullis_ebpf_common::{Packet, Verdict, judge};

use self::lists::InForce;

/// The slot of the interface that this instance is attached to in the lower half, its
/// [`Role`](portcullis_ebpf_common::layout::Role) in the upper; set before it is loaded.
///
/// Its value here is one that no other constant has: LLVM puts equal constants into one place, and what is set before
/// loading would be set for both. With 0, the key of `SETTINGS` became the slot, too.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0xfeed_5107);

#[btf_map]
static SETTINGS: ArrayOfMaps<Array<Settings, 1>, 1> = ArrayOfMaps::new();

#[btf_map]
static LIST_COUNTERS: PerCpuArray<ListCounters, { LIST_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
static INTERFACE_COUNTERS: PerCpuArray<InterfaceCounters, { INTERFACES_MAX as usize }> =
    PerCpuArray::new();

/// Drops or passes one frame, which may lie in several buffers: devices with jumbo frames want that of a program.
#[xdp(frags)]
pub fn portcullis(context: XdpContext) -> u32 {
    filter(context)
}

/// The same for kernels before 5.18, which know nothing of several buffers.
#[xdp]
pub fn portcullis_linear(context: XdpContext) -> u32 {
    filter(context)
}

#[inline(always)]
fn filter(context: XdpContext) -> u32 {
    // A variable, and so on the stack, for the same reason as with `INTERFACE`.
    let first = 0;
    let Some(settings) = SETTINGS.get_value(0, &first) else {
        return XDP_PASS;
    };
    let mode = settings.mode();
    if mode == Mode::Off {
        return XDP_PASS;
    }
    let frame = Frame {
        start: context.data(),
        end: context.data_end(),
    };
    let verdict = judge(&frame, settings, &InForce);
    count(verdict, mode);
    if verdict.drops(mode) {
        XDP_DROP
    } else {
        XDP_PASS
    }
}

#[inline(always)]
fn count(verdict: Verdict, mode: Mode) {
    if let Some(counters) = INTERFACE_COUNTERS.get_ptr_mut(INTERFACE.load() & 0xffff) {
        // SAFETY: the verifier has seen that the pointer is not null, and the counters are those of this CPU.
        let counters = unsafe { &mut *counters };
        increment_interface(counters, verdict.interface_counter(mode));
    }
    if let Some((slot, counter)) = verdict.list_counter(mode) {
        if let Some(counters) = LIST_COUNTERS.get_ptr_mut(slot) {
            // SAFETY: as above.
            let counters = unsafe { &mut *counters };
            increment_list(counters, counter);
        }
    }
}

#[inline(always)]
fn increment_interface(counters: &mut InterfaceCounters, counter: InterfaceCounter) {
    if let Some(count) = counters.get_mut(counter as usize) {
        *count += 1;
    }
}

#[inline(always)]
fn increment_list(counters: &mut ListCounters, counter: ListCounter) {
    if let Some(count) = counters.get_mut(counter as usize) {
        *count += 1;
    }
}

/// A frame between the pointers that the kernel gives.
struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// A pointer to a `T` at the offset, if all of it is in the frame.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*const T> {
        let pointer = self.start + offset;
        if pointer + size_of::<T>() > self.end {
            return None;
        }
        Some(pointer as *const T)
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        // SAFETY: `at` has checked the bounds, the frame does not move while the program runs, and any alignment will do.
        self.at::<u16>(offset)
            .map(|pointer| u16::from_be(unsafe { pointer.read_unaligned() }))
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> Option<u32> {
        // SAFETY: as for `half`.
        self.at::<u32>(offset)
            .map(|pointer| unsafe { pointer.read_unaligned() })
    }
}

/// Nothing here panics, and the linker drops this; the compiler wants it all the same.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
