//! A judged packet, as the slow path hands it to the subprograms that report and answer.
//!
//! It lies in a map and not on the stack, because the verifier knows nothing of what comes out of a
//! map: it follows a subprogram once, and not once for every way through parser and verdicts that
//! leads to it.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::Mode;
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
    pub(crate) mode: Mode,
}

impl Judged {
    /// Puts it into the map, where the next packet of this CPU replaces it.
    #[inline(always)]
    pub(crate) fn put(self) -> Option<&'static Self> {
        let place = JUDGED.get_ptr_mut(0)?;
        // SAFETY: the verifier has seen that the pointer is not null, and nothing else runs here on
        // this CPU.
        unsafe { place.write(self) };
        // SAFETY: as above; before the next packet only the same is written there again.
        Some(unsafe { &*place })
    }

    /// The packet that [`put`](Self::put) has put there last.
    #[inline(always)]
    pub(crate) fn last() -> Option<&'static Self> {
        let place = JUDGED.get_ptr_mut(0)?;
        // SAFETY: as above; it was put there before this is called.
        Some(unsafe { &*place })
    }

    /// The segment, with offsets whose bounds the verifier can see. A mask,
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

/// The bits that the offset of an IP header can have.
pub(crate) const NETWORK_MASK: usize = (NETWORK_MAX + 1).next_power_of_two() - 1;
