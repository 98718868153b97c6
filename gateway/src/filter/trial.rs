//! Frames run through the program in the kernel, without an interface (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions};
use portcullis_ebpf_common::layout::INTERFACES_MAX;

use super::error::kernel;
use super::pins::Pins;
use super::{Error, links};
use crate::config::Role;

/// An instance of the program that sits on no interface and holds frames against the lists and settings in force.
///
/// It counts what the lists decide, but has no interface to count for. It can be made from a [`Filter`](super::Filter)
/// without interfaces, so that nothing of a real one is touched.
pub struct Trial {
    object: Ebpf,
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Dropped, or passed.
    pub dropped: bool,
    /// The mean time that one run took. A frame repeated flatters the cache.
    pub duration: Duration,
}

impl Trial {
    pub(super) fn new(pins: &Pins) -> Result<Self, Error> {
        // One slot past the last: there are no counters for it.
        let object = links::load(pins, INTERFACES_MAX, Role::Edge)?;
        Ok(Self { object })
    }

    /// Runs a frame through the program as often as told. The kernel wants at least the 14 octets of an Ethernet header.
    ///
    /// # Errors
    /// [`Error::Kernel`], for a frame that the kernel does not take; [`Error::NotPermitted`].
    pub fn run(&mut self, frame: &[u8], repeat: u32) -> Result<Outcome, Error> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::default()
        };
        let result = links::program(&mut self.object)?
            .test_run(options)
            .map_err(kernel("running a frame through the program"))?;
        Ok(Outcome {
            dropped: result.return_value == XDP_DROP,
            duration: result.duration,
        })
    }
}

/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;
