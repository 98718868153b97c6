//! What was dropped, for somebody who watches: at the cost of one look while nobody does, and of a
//! look at the clock for what is beyond the sample that is told.

use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{
    Control, EVENTS_PER_SECOND, EVENTS_SIZE, Event, NO_LIST, RateUse,
};
use portcullis_ebpf_common::{Verdict, budget};

use crate::budget::second;
use crate::judged::Judged;
use crate::verdicts::now_ns;

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_SIZE as usize }> = RingBuf::new();

#[btf_map]
static EVENT_RATES: PerCpuArray<RateUse, 1> = PerCpuArray::new();

/// Whether somebody is to be told of a packet that is dropped now: no longer, once the sample of
/// this second is used up. So a flood costs little more because it is watched.
#[inline(always)]
pub(crate) fn are_wanted(control: &Control) -> bool {
    let until_ns = control.reader_until_ns.get();
    if until_ns == 0 {
        return false;
    }
    let time_ns = now_ns();
    until_ns > time_ns && rate_left(time_ns).is_some()
}

/// The cell for the rate of this CPU, and what it is to hold if there is to be one event more.
#[inline(always)]
fn rate_left(time_ns: u64) -> Option<(*mut RateUse, RateUse)> {
    let rate = EVENT_RATES.get_ptr_mut(0)?;
    // SAFETY: the verifier has seen that the pointer is not null, and the cell is that of this CPU.
    let used = unsafe { *rate };
    let used = budget::take(used, second(time_ns), EVENTS_PER_SECOND)?;
    Some((rate, used))
}

/// Tells whoever reads that a packet was dropped, answered with a RST or, in monitor mode, would
/// have been.
#[inline(never)]
pub(crate) fn tell(judged: &Judged) {
    let Some(reason) = judged.verdict.reason() else {
        return;
    };
    let time_ns = now_ns();
    let Some((rate, used)) = rate_left(time_ns) else {
        return;
    };
    // SAFETY: as above.
    unsafe { *rate = used };
    let Some(mut entry) = EVENTS.reserve(0) else {
        return;
    };
    entry.write(Event {
        time_ns,
        source: judged.segment.source.0,
        port: judged.segment.port,
        monitored: u16::from(judged.monitored),
        reason: reason as u32,
        list_slot: match judged.verdict {
            Verdict::Listed(slot) => slot,
            _ => NO_LIST,
        },
        interface_slot: judged.interface_slot,
        reserved: 0,
    });
    entry.submit(0);
}
