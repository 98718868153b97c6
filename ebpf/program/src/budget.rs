//! What is limited per second: SYNs of one source, RSTs of all interfaces together.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::budget;
use portcullis_ebpf_common::layout::{RATES, Rate, RateUse, SKETCH_LINES, SketchLine, VerdictKey};

use crate::verdicts::now_ns;

#[btf_map]
static SYN_SKETCH: Array<SketchLine, { SKETCH_LINES as usize }> = Array::new();

#[btf_map(name = "RATES")]
static RATES_IN_USE: Array<RateUse, RATES> = Array::new();

const NS_PER_SECOND: u64 = 1_000_000_000;

/// The second that a time is in, in the bits that a cell has for it.
#[inline(always)]
pub(crate) fn second(time_ns: u64) -> u32 {
    (time_ns / NS_PER_SECOND) as u32
}

/// Takes a SYN from the budget of a source; `true`: there was nothing left. Not inlined: it is for
/// SYNs only.
#[inline(never)]
pub(crate) fn exhausts(key: &VerdictKey, budget: u32) -> bool {
    let hash = budget::hash(key);
    let Some(line) = SYN_SKETCH.get_ptr_mut(budget::line(hash)) else {
        return false;
    };
    // SAFETY: the verifier has seen that the pointer is not null; a cell is read and written whole.
    budget::exhausts(unsafe { &mut *line }, hash, second(now_ns()), budget)
}

/// Takes one from a rate; `true`: there was one left.
#[inline(always)]
pub(crate) fn take(rate: Rate, per_second: u32) -> bool {
    let Some(place) = RATES_IN_USE.get_ptr_mut(rate as u32) else {
        return false;
    };
    // SAFETY: the verifier has seen that the pointer is not null.
    let cell = unsafe { *place };
    let Some(cell) = budget::take(cell, second(now_ns()), per_second) else {
        return false;
    };
    // SAFETY: as above; two CPUs at the same moment count as one.
    unsafe { *place = cell };
    true
}
