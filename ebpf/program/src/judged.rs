//! A judged packet on its way to what is rarely done with one.
//!
//! It lies in a map and not on the stack, because the verifier knows nothing of what comes out of a
//! map: it walks through the subprogram once, and not once for every way through parser and
//! verdicts that leads to it.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::packet::NETWORK_MAX;
use portcullis_ebpf_common::{Segment, Verdict};

use crate::frame::TRANSPORT_MASK;

#[btf_map]
static JUDGED: PerCpuArray<Judged, 1> = PerCpuArray::new();

/// A judged packet.
#[derive(Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) segment: Segment,
    pub(crate) verdict: Verdict,
    pub(crate) interface_slot: u32,
    pub(crate) resets_per_second: u32,
    pub(crate) monitored: bool,
}

impl Judged {
    /// Puts it where the next packet of this CPU puts itself.
    #[inline(always)]
    pub(crate) fn put(self) -> Option<&'static Self> {
        let place = JUDGED.get_ptr_mut(0)?;
        // SAFETY: the verifier has seen that the pointer is not null, and nothing else runs here on
        // this CPU.
        unsafe { place.write(self) };
        // SAFETY: as above; what is written there again before the next packet is the same.
        Some(unsafe { &*place })
    }

    /// The one that [`put`](Self::put) has put there for this packet.
    #[inline(always)]
    pub(crate) fn last() -> Option<&'static Self> {
        let place = JUDGED.get_ptr_mut(0)?;
        // SAFETY: as above; it was put there before this is called.
        Some(unsafe { &*place })
    }

    /// The segment, with offsets of which the verifier can see that they lead nowhere else. A mask,
    /// not a comparison: the compiler compares one copy of a value and uses another.
    #[inline(always)]
    pub(crate) fn segment(&self) -> Segment {
        Segment {
            network: self.segment.network & NETWORK_MASK,
            transport: self.segment.transport & TRANSPORT_MASK,
            ..self.segment
        }
    }
}

/// As many bits as the offset of a header of IPv4 or IPv6 can have.
pub(crate) const NETWORK_MASK: usize = (NETWORK_MAX + 1).next_power_of_two() - 1;
