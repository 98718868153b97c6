//! The memory that the program reads for nearly every packet, mapped into this process.

use std::ops::Deref;
use std::os::fd::AsFd as _;

use portcullis_ebpf_common::layout;

use super::Error;
use super::maps::open_data;
use super::memory::ControlMemory;
use super::pins::Pins;

/// The element of `CONTROL`.
pub(super) struct Control(ControlMemory);

impl Control {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let map = open_data(pins, "CONTROL")?;
        ControlMemory::new(map.fd().as_fd()).map(Self)
    }
}

impl Deref for Control {
    type Target = layout::Control;

    fn deref(&self) -> &layout::Control {
        self.0.get()
    }
}
