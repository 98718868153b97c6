//! The fast path: the frames that a flood is made of, which
//! [`fast_path`](portcullis_ebpf_common::fast_path) can decide on.

use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::Class;
use portcullis_ebpf_common::fast_path::{self, Beginning, Headers, PlainSource, SlowPath, Sources};
use portcullis_ebpf_common::layout::{Control, Mode, VerdictKey};

use crate::control::control;
use crate::decision::Decision;
use crate::frame::{Frame, Part};
use crate::{count, events, interface, lists};

/// The decision on a frame, if this path can make it.
#[inline(always)]
pub(crate) fn decide<const FRAGS: bool>(context: *mut xdp_md) -> Result<Decision, SlowPath> {
    // Elsewhere frames begin without an Ethernet header, or have more rows of the table.
    if !interface().is_ethernet_edge() {
        return Err(SlowPath);
    }
    let segment = fast_path::read(&Frame::<FRAGS>::new(context))?;
    let control = control().ok_or(SlowPath)?;
    let verdict = fast_path::judge(&segment, control.packed_settings(), &InForce(control))?;
    if verdict.reason().is_some() && events::are_wanted(control) {
        return Err(SlowPath);
    }
    count::packet(interface().slot(), verdict, Mode::Enforce);
    Ok(Decision::of(verdict, Mode::Enforce))
}

/// The lists and the hints of grants and recent verdicts in force.
struct InForce(&'static Control);

impl Sources for InForce {
    #[inline(always)]
    fn class(&self, source: PlainSource) -> Result<Class, SlowPath> {
        match source {
            PlainSource::Ipv4(address) => Ok(lists::ipv4(address)),
            PlainSource::Ipv6Network(upper) => {
                lists::ipv6_network(u64::from_be(upper)).or(Err(SlowPath))
            }
        }
    }

    #[inline(always)]
    fn may_be_granted(&self, key: &VerdictKey) -> bool {
        self.0.may_be_granted(key)
    }

    #[inline(always)]
    fn may_be_recent(&self, key: &VerdictKey) -> bool {
        self.0.may_be_recent(key)
    }
}

impl<const FRAGS: bool> Beginning for Frame<FRAGS> {
    #[inline(always)]
    fn headers<const BYTES: usize>(&self) -> Option<impl Headers> {
        self.part::<BYTES>(0)
    }
}

impl<const BYTES: usize> Headers for Part<BYTES> {
    #[inline(always)]
    fn word<const AT: usize>(&self) -> u32 {
        self.word_at::<AT>()
    }

    #[inline(always)]
    fn double<const AT: usize>(&self) -> u64 {
        self.double_at::<AT>()
    }
}
