//! What is counted: every packet once for its interface, and once for the list that decided. Per
//! CPU, so no CPU waits for another.

use core::hint::black_box;

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{
    Counters, InterfaceCounter, LIST_SLOTS, Mode, unread_counter,
};
use portcullis_ebpf_common::{Content, Verdict};

/// Slots of lists are a power of two, and no list has one beyond them.
const LIST_MASK: u32 = LIST_SLOTS - 1;
const _: () = assert!(LIST_SLOTS.is_power_of_two());

#[btf_map]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// The counters of this CPU.
#[inline(always)]
fn of_this_cpu() -> Option<&'static mut Counters> {
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: the verifier has seen that the pointer is not null, and nothing else runs here on
    // this CPU.
    Some(unsafe { &mut *counters })
}

/// Counts a packet by its verdict.
#[inline(always)]
pub(crate) fn packet(slot: u32, verdict: Verdict, mode: Mode) {
    let Some(counters) = of_this_cpu() else {
        return;
    };
    if let Some((list, counter)) = verdict.list_counter(mode) {
        // A mask, not a comparison: the compiler compares one copy of a value and uses another, and
        // the verifier does not follow it there.
        counters.lists[(list & LIST_MASK) as usize][counter as usize] += 1;
    }
    interface(counters, slot, verdict.interface_counter(mode) as usize);
}

/// Counts a packet that could be answered: no list has decided on it.
#[inline(always)]
pub(crate) fn answerable(slot: u32, counter: InterfaceCounter) {
    if let Some(counters) = of_this_cpu() {
        interface(counters, slot, counter as usize);
    }
}

/// Counts a packet whose port is hidden or that encloses another one, beside its verdict.
#[inline(always)]
pub(crate) fn content(slot: u32, content: &Content) {
    let counter = match content {
        Content::Segment(segment) if segment.port.is_hidden() => InterfaceCounter::Hidden as usize,
        // The compiler knows that the counter exists and would not check it; the verifier does not.
        Content::Unread(encapsulation) => black_box(unread_counter(*encapsulation)),
        Content::Segment(_) | Content::TooManyTags | Content::Other => return,
    };
    if let Some(counters) = of_this_cpu() {
        interface(counters, slot, counter);
    }
}

#[inline(always)]
fn interface(counters: &mut Counters, slot: u32, counter: usize) {
    let interface = counters.interfaces.get_mut(slot as usize);
    if let Some(count) = interface.and_then(|counters| counters.get_mut(counter)) {
        *count += 1;
    }
}
