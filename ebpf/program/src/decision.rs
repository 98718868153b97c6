//! What a path of the program decides on a frame.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use portcullis_ebpf_common::Verdict;
use portcullis_ebpf_common::layout::Mode;

/// What a path decides on a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Decision {
    /// It is dropped.
    Drop = XDP_DROP,
    /// It passes.
    Pass = XDP_PASS,
    /// An answer to it is sent back, if there can be one; else its verdict decides.
    Answer = XDP_TX,
}

impl Decision {
    /// What follows from a verdict without an answer.
    #[inline(always)]
    pub(crate) fn of(verdict: Verdict, mode: Mode) -> Self {
        if verdict.drops(mode) {
            Self::Drop
        } else {
            Self::Pass
        }
    }
}
