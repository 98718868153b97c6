//! Memory of a map that the program looks into, mapped into this process.
//!
//! A snapshot of ten million entries is written in the time that memory takes, not in ten million system calls, and the
//! policy reads the lines that the program reads. An element of the map is a [`Block`] of lines, so a map is never smaller than
//! 64 MiB; what is mapped here are the lines that there are.
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
use portcullis_ebpf_common::snapshot::{BLOCK_LINES, Block, FIRST_FREE, Line};

use super::Error;
use super::error::kernel;
use crate::lists::Memory;

/// The value of the map. None is ever made: they are written and read where they lie.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value(Block);

// SAFETY: an array of integers: every pattern of bits is a value, and there is no padding.
unsafe impl Pod for Value {}

/// The inner map of a snapshot.
pub(super) type SnapshotMap = Array<MapData, Value>;

/// The lines of a map, shared with the kernel.
pub struct KernelMemory {
    map: SnapshotMap,
    lines: Mapping,
    /// The same lines as the first ones of `lines`, mapped once more: what is written there after others hold this value.
    fixed: Mutex<Mapping>,
}

impl KernelMemory {
    /// A map with room for this many lines, all zero.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], and [`Error::Kernel`] where the kernel has not so much memory.
    pub fn new(lines: usize) -> Result<Self, Error> {
        let step = "making a map for the lists";
        let lines = lines.max(FIRST_FREE as usize);
        let blocks = u32::try_from(lines.div_ceil(BLOCK_LINES)).map_err(kernel(step))?;
        let map = SnapshotMap::create(blocks, SNAPSHOT_FLAGS as u32).map_err(kernel(step))?;
        Ok(Self {
            lines: Mapping::new(&map, lines)?,
            fixed: Mutex::new(Mapping::new(&map, FIRST_FREE as usize)?),
            map,
        })
    }

    /// The lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Line] {
        self.lines.as_slice()
    }

    /// The lines, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [Line] {
        self.lines.as_mut_slice()
    }

    /// The map, to put it in place.
    pub(super) fn map(&self) -> &SnapshotMap {
        &self.map
    }

    /// Writes one of the fixed lines: a snapshot is told its generation and the classes of its lists when it is put in
    /// place, and by then others hold it, too. They go by another mapping, and look at neither.
    pub(super) fn set_line(&self, index: u32, line: Line) {
        let mut fixed = self.fixed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = fixed.as_mut_slice().get_mut(index as usize) {
            *place = line;
        }
    }
}

/// The header of the snapshot in this map.
pub(super) fn header(map: &SnapshotMap) -> Result<Line, Error> {
    let mapping = Mapping::new(map, FIRST_FREE as usize)?;
    Ok(mapping.as_slice().first().copied().unwrap_or_default())
}

/// The first lines of a map, mapped.
struct Mapping {
    lines: NonNull<Line>,
    count: usize,
}

// SAFETY: a mapping belongs to no thread, and is written only through `&mut`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: &SnapshotMap, count: usize) -> Result<Self, Error> {
        let step = "mapping the memory of the lists";
        let size = NonZeroUsize::new(count * size_of::<Line>())
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
            count,
        })
    }

    fn as_slice(&self) -> &[Line] {
        // SAFETY: the mapping has this many lines, aligned to a page, for as long as this value lives; they are changed
        // through it only by `&mut self`.
        unsafe { slice::from_raw_parts(self.lines.as_ptr(), self.count) }
    }

    fn as_mut_slice(&mut self) -> &mut [Line] {
        // SAFETY: as for `as_slice`; nobody else has a reference.
        unsafe { slice::from_raw_parts_mut(self.lines.as_ptr(), self.count) }
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

impl Drop for Mapping {
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
        write!(f, "KernelMemory({} lines)", self.lines.count)
    }
}
