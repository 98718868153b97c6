//! What the program looks at for nearly every packet, mapped into this process.
//!
//! The gate, a command that gives a verdict and whoever reads the events write it at the same time, and the program reads
//! meanwhile: so it is written word by word, and bit by bit with an atomic operation.

use core::mem::offset_of;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use portcullis_ebpf_common::layout::{self, Glance, VerdictKey, hint};
use portcullis_ebpf_common::snapshot::Line;

use super::Error;
use super::maps::open_data;
use super::memory::Mapping;
use super::pins::Pins;

/// The element of `CONTROL`.
pub(super) struct Control(Mapping);

impl Control {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let map = open_data(pins, "CONTROL")?;
        let lines = size_of::<layout::Control>() / size_of::<Line>();
        Mapping::new(&[map.fd().as_fd()], lines).map(Self)
    }

    /// From now on the program sees this at a glance.
    pub(super) fn set_glance(&self, glance: Glance) {
        self.word(offset_of!(layout::Control, glance), 0)
            .store(glance.0, Ordering::SeqCst);
    }

    /// Until when somebody reads the events, in nanoseconds of CLOCK_MONOTONIC; 0: nobody does.
    pub(super) fn reader_until_ns(&self) -> u64 {
        self.reader().load(Ordering::SeqCst)
    }

    pub(super) fn set_reader_until_ns(&self, until_ns: u64) {
        self.reader().store(until_ns, Ordering::SeqCst);
    }

    /// From now on the program looks for a verdict under keys with this hint.
    pub(super) fn set_hint(&self, hint: u32) {
        let (word, bit) = self.hint(hint);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// From now on it looks for none.
    pub(super) fn clear_hint(&self, hint: u32) {
        let (word, bit) = self.hint(hint);
        word.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Says that there may be a verdict under this key.
    pub(super) fn set_hint_of(&self, key: &VerdictKey) {
        self.set_hint(hint(key));
    }

    fn reader(&self) -> &AtomicU64 {
        self.word(offset_of!(layout::Control, reader_until_ns), 0)
    }

    fn hint(&self, hint: u32) -> (&AtomicU64, u64) {
        let first = offset_of!(layout::Control, hints);
        (self.word(first, hint as usize / 64), 1 << (hint % 64))
    }

    /// The word at so many octets, and so many words behind that.
    fn word(&self, octets: usize, words: usize) -> &AtomicU64 {
        self.0.word(octets / size_of::<u64>() + words)
    }
}
