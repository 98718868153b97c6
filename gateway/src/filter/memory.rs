//! Memory of a map that the program looks into, mapped into this process.
//!
//! A snapshot of ten million entries is written in the time that memory takes, not in ten million system calls, and the
//! policy reads the lines that the program reads. A line is a cache line: elements of an array map lie eight octets apart at
//! least, so that a smaller element would have to know of its padding.
#![allow(
    unsafe_code,
    reason = "a mapping is a pointer and a length, and nobody else makes one of a BPF map"
)]

use core::ffi::c_void;
use core::fmt;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::slice;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use aya::Pod;
use aya::maps::{Array, IterableMap as _, MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portcullis_ebpf_common::layout::SNAPSHOT_FLAGS;
use portcullis_ebpf_common::snapshot::Line;

use super::Error;
use super::error::kernel;
use crate::lists::Memory;

/// The value of the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value(pub(super) Line);

// SAFETY: an array of integers: every pattern of bits is a value, and there is no padding.
unsafe impl Pod for Value {}

/// The inner map of a snapshot.
pub(super) type SnapshotMap = Array<MapData, Value>;

/// The lines of a map, shared with the kernel.
pub struct KernelMemory {
    map: Mutex<SnapshotMap>,
    lines: NonNull<Line>,
    count: usize,
}

// SAFETY: a mapping belongs to no thread, and is written only through `&mut`; `set_line` is for before it is shared.
unsafe impl Send for KernelMemory {}
// SAFETY: as above.
unsafe impl Sync for KernelMemory {}

impl KernelMemory {
    /// A map of this many lines, all zero.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], and [`Error::Kernel`] where the kernel has not so much memory.
    pub fn new(lines: usize) -> Result<Self, Error> {
        let step = "making a map for the lists";
        let entries = u32::try_from(lines).map_err(kernel(step))?;
        let map = SnapshotMap::create(entries, SNAPSHOT_FLAGS as u32).map_err(kernel(step))?;
        let step = "mapping the memory of the lists";
        let size = NonZeroUsize::new(lines * size_of::<Line>())
            .ok_or(nix::errno::Errno::EINVAL)
            .map_err(kernel(step))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes to have it takes nothing from anybody.
        let mapped = unsafe {
            mmap(
                None,
                size,
                protection,
                MapFlags::MAP_SHARED,
                map.map().fd().as_fd(),
                0,
            )
        };
        Ok(Self {
            lines: mapped.map_err(kernel(step))?.cast(),
            map: Mutex::new(map),
            count: lines,
        })
    }

    /// The lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Line] {
        // SAFETY: the mapping has this many lines, aligned to a page, for as long as this value lives; they are changed
        // only through `&mut self`, and by `set_line` before anybody looks into them.
        unsafe { slice::from_raw_parts(self.lines.as_ptr(), self.count) }
    }

    /// The lines, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [Line] {
        // SAFETY: as for `as_slice`; nobody else has a reference.
        unsafe { slice::from_raw_parts_mut(self.lines.as_ptr(), self.count) }
    }

    /// Calls with the map, to put it in place.
    pub(super) fn with_map<T>(&self, put: impl FnOnce(&SnapshotMap) -> T) -> T {
        put(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes a line by a system call: a snapshot is told its generation and the classes of its lists when it is put in
    /// place, and by then others hold it, too.
    pub(super) fn set_line(&self, index: u32, line: Line) -> Result<(), Error> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(index, Value(line), 0)
            .map_err(kernel("writing the classes of the lists"))
    }
}

/// Memory for a snapshot that the filter is going to be given: that of a map, or our own where the kernel does not give us
/// one, from which the filter will make a copy.
#[must_use]
pub fn memory(lines: usize) -> Memory {
    match KernelMemory::new(lines) {
        Ok(memory) => Memory::Kernel(memory),
        Err(error) => {
            tracing::debug!(%error, "the lists are built outside of the kernel");
            Memory::private(lines)
        }
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        let size = self.count * size_of::<Line>();
        // SAFETY: the mapping is ours, and no reference into it outlives this value.
        if let Err(error) = unsafe { munmap(self.lines.cast::<c_void>(), size) } {
            tracing::warn!(%error, "could not unmap the memory of old lists");
        }
    }
}

impl fmt::Debug for KernelMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelMemory({} lines)", self.count)
    }
}
