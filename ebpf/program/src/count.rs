//! What is counted: every packet once for its interface, and once for the list that decided. Per CPU, so nobody waits.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{
    INTERFACE_SLOTS, InterfaceCounter, InterfaceCounters, LIST_SLOTS, ListCounter, ListCounters,
};

#[btf_map]
static LIST_COUNTERS: PerCpuArray<ListCounters, { LIST_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
static INTERFACE_COUNTERS: PerCpuArray<InterfaceCounters, { INTERFACE_SLOTS as usize }> =
    PerCpuArray::new();

/// Counts a packet for an interface, and beside it that its port is hidden.
#[inline(always)]
pub(crate) fn interface(slot: u32, counter: InterfaceCounter, hidden: bool) {
    let Some(counters) = INTERFACE_COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the verifier has seen that the pointer is not null, and the counters are those of this CPU.
    let counters = unsafe { &mut *counters };
    if let Some(count) = counters.get_mut(counter as usize) {
        *count += 1;
    }
    if hidden {
        counters[InterfaceCounter::Hidden as usize] += 1;
    }
}

/// Counts a packet for a list.
#[inline(always)]
pub(crate) fn list(slot: u32, counter: ListCounter) {
    let Some(counters) = LIST_COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: as above.
    let counters = unsafe { &mut *counters };
    if let Some(count) = counters.get_mut(counter as usize) {
        *count += 1;
    }
}
