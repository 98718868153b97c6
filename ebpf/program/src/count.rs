//! What is counted: every packet once for its interface, and once for the list that decided. Per
//! CPU, so nobody waits.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::Encapsulation;
use portcullis_ebpf_common::layout::{
    self, InterfaceCounter, LIST_SLOTS, ListCounter, unread_counter,
};

/// Slots of lists are a power of two, and no list has one beyond them.
const LIST_MASK: u32 = LIST_SLOTS - 1;
const _: () = assert!(LIST_SLOTS.is_power_of_two());

#[btf_map]
static COUNTERS: PerCpuArray<layout::Counters, 1> = PerCpuArray::new();

/// The counters of this CPU.
pub(crate) struct Counters(&'static mut layout::Counters);

impl Counters {
    #[inline(always)]
    pub(crate) fn of_this_cpu() -> Option<Self> {
        let counters = COUNTERS.get_ptr_mut(0)?;
        // SAFETY: the verifier has seen that the pointer is not null, and nothing else runs here on
        // this CPU.
        Some(Self(unsafe { &mut *counters }))
    }

    /// Counts a packet for an interface, and beside it that its port is hidden.
    #[inline(always)]
    pub(crate) fn interface(&mut self, slot: u32, counter: InterfaceCounter, hidden: bool) {
        let Some(counters) = self.0.interfaces.get_mut(slot as usize) else {
            return;
        };
        if let Some(count) = counters.get_mut(counter as usize) {
            *count += 1;
        }
        if hidden {
            counters[InterfaceCounter::Hidden as usize] += 1;
        }
    }

    /// Counts a packet within a packet, beside what it counts as itself.
    #[inline(always)]
    pub(crate) fn unread(&mut self, slot: u32, encapsulation: Encapsulation) {
        let Some(counters) = self.0.interfaces.get_mut(slot as usize) else {
            return;
        };
        if let Some(count) = counters.get_mut(unread_counter(encapsulation)) {
            *count += 1;
        }
    }

    /// Counts a packet for a list. A mask, not a comparison: the compiler compares one copy of a
    /// value and uses another, and the verifier does not follow it there.
    #[inline(always)]
    pub(crate) fn list(&mut self, slot: u32, counter: ListCounter) {
        self.0.lists[(slot & LIST_MASK) as usize][counter as usize] += 1;
    }
}
