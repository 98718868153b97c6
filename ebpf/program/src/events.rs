//! Events: a sample of the packets that are dropped, for a reader. Without one they cost one read
//! of a word, and beyond the sample one of the clock.

use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{
    Control, EVENTS_PER_SECOND, EVENTS_SIZE, Event, Mode, NO_LIST, RateUse,
};
use portcullis_ebpf_common::{Verdict, budget};

use crate::budget::second;
use crate::judged::Judged;
use crate::verdicts::now_ns;

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_SIZE as usize }> = RingBuf::new();

#[btf_map]
static EVENT_RATES: PerCpuArray<RateUse, 1> = PerCpuArray::new();

/// Whether there is a reader, and room in the sample of this second. Beyond the sample a flood
/// costs little more because it is watched.
#[inline(always)]
pub(crate) fn are_wanted(control: &Control) -> bool {
    let until_ns = control.reader_until_ns.get();
    if until_ns == 0 {
        return false;
    }
    let time_ns = now_ns();
    until_ns > time_ns && rate_left(time_ns).is_some()
}

/// The cell for the rate of this CPU, and its value after one event more.
#[inline(always)]
fn rate_left(time_ns: u64) -> Option<(*mut RateUse, RateUse)> {
    let rate = EVENT_RATES.get_ptr_mut(0)?;
    // SAFETY: the verifier has seen that the pointer is not null, and the cell is that of this CPU.
    let used = unsafe { *rate };
    let used = budget::take(used, second(time_ns), EVENTS_PER_SECOND)?;
    Some((rate, used))
}

/// Reports a packet that was dropped, answered with a RST or, in monitor mode, would have been.
#[inline(never)]
pub(crate) fn report(judged: &Judged) {
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
        port: judged.segment.port.get().unwrap_or(0),
        monitored: u16::from(judged.mode == Mode::Monitor),
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
