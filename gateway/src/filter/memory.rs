//! The memory of the maps with the lists, mapped into this process.
//!
//! So a snapshot of ten million entries is written at the speed of memory, not with ten million
//! system calls, and the policy reads the same lines as the program. The lines are in maps of one
//! [`Block`] of 64 MiB each; the lines in use are mapped here as one contiguous slice.
#![allow(
    unsafe_code,
    reason = "a mapping is a pointer and a length, and no crate maps a BPF map or removes an \
              element of an array of maps"
)]

use core::ffi::c_void;
use core::fmt;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::slice;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use aya::Pod;
use aya::maps::{Array, IterableMap as _, MapData};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use portcullis_ebpf_common::layout::{Control, MAPPED, SNAPSHOT_BLOCKS_MAX};
use portcullis_ebpf_common::snapshot::{BLOCK_LINES, Block, FIRST_FREE, Field, Line};

use super::Error;
use super::error::kernel;
use crate::lists::{Memory, private};

/// The value of the map. It is never constructed: its lines are read and written in the mapping.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value(Block);

// SAFETY: an array of integers: every bit pattern is a value, and there is no padding.
unsafe impl Pod for Value {}

/// The map of a block.
pub(super) type BlockMap = Array<MapData, Value>;

/// The lines of a snapshot, shared with the kernel.
pub struct KernelMemory {
    blocks: Vec<BlockMap>,
    lines: Mapping,
    /// The first lines of `lines`, mapped once more: for what is written after other threads share
    /// this value.
    fixed: Mutex<Mapping>,
}

impl KernelMemory {
    /// Creates maps with room for this many lines, all zero.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::TooMany`], and [`Error::Kernel`] if the kernel does not
    /// have that much memory.
    pub fn new(lines: usize) -> Result<Self, Error> {
        let lines = lines.max(FIRST_FREE);
        let count = lines.div_ceil(BLOCK_LINES);
        if count > SNAPSHOT_BLOCKS_MAX as usize {
            return Err(Error::TooMany {
                what: "blocks of lists, of 64 MiB each",
                number: count,
                max: SNAPSHOT_BLOCKS_MAX as usize,
            });
        }
        let create = |_| BlockMap::create(1, MAPPED as u32);
        let blocks: Result<Vec<_>, _> = (0..count).map(create).collect();
        let blocks = blocks.map_err(kernel("creating a map for the lists"))?;
        Self::of(blocks, lines)
    }

    /// The lines in these maps.
    pub(super) fn of(blocks: Vec<BlockMap>, lines: usize) -> Result<Self, Error> {
        let maps: Vec<_> = blocks.iter().map(descriptor).collect();
        let mapped = Mapping::new(&maps, lines.max(FIRST_FREE))?;
        let fixed = Mapping::new(&maps, FIRST_FREE)?;
        Ok(Self {
            lines: mapped,
            fixed: Mutex::new(fixed),
            blocks,
        })
    }

    /// The maps.
    pub(super) fn blocks(&self) -> &[BlockMap] {
        &self.blocks
    }

    /// Writes one of the fixed lines. A snapshot gets its generation and the classes of its lists
    /// when it comes into force, when other threads already share it. They use another mapping, and
    /// read neither.
    pub(super) fn set_line(&self, index: usize, line: Line) {
        let mut fixed = self.fixed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = fixed.as_mut_slice().get_mut(index) {
            *place = line;
        }
    }

    /// Writes the generation number of the snapshot.
    pub(super) fn set_generation(&self, number: u32) {
        let mut fixed = self.fixed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = fixed.as_mut_slice().first_mut() {
            Field::GENERATION.set(header, number.into());
        }
    }

    /// The generation number that the snapshot has, or had last.
    pub(super) fn generation(&self) -> u32 {
        let header = self.lines().first().copied().unwrap_or_default();
        Field::GENERATION.of(&header) as u32
    }

    /// How many blocks it has.
    pub(super) fn block_count(&self) -> u32 {
        blocks_of(self.lines.count)
    }
}

impl Memory for KernelMemory {
    fn lines(&self) -> &[Line] {
        self.lines.as_slice()
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        self.lines.as_mut_slice()
    }
}

/// How many blocks this many lines need.
pub(super) fn blocks_of(lines: usize) -> u32 {
    lines.div_ceil(BLOCK_LINES) as u32
}

/// The header of a snapshot, from its first block.
pub(super) fn header(first: &BlockMap) -> Result<Line, Error> {
    let mapping = Mapping::new(&[descriptor(first)], FIRST_FREE)?;
    Ok(mapping.as_slice().first().copied().unwrap_or_default())
}

fn descriptor(block: &BlockMap) -> BorrowedFd<'_> {
    block.map().fd().as_fd()
}

/// Removes an element of an array of maps, which aya 0.14 cannot do. An empty element is no error.
pub(super) fn remove(array: &MapData, slot: u32) -> io::Result<()> {
    /// The part of `union bpf_attr` (linux/bpf.h) for BPF_MAP_DELETE_ELEM.
    #[repr(C)]
    struct Element {
        map: i32,
        padding: u32,
        key: u64,
    }
    const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
    let element = Element {
        map: array.fd().as_fd().as_raw_fd(),
        padding: 0,
        key: (&raw const slot).addr() as u64,
    };
    // SAFETY: the descriptor is open; the key and the pointer to it live until the call returns,
    // and it writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_DELETE_ELEM,
            &raw const element,
            size_of::<Element>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        },
    }
}

/// The first `count` lines of a sequence of maps with one block each, mapped as one contiguous
/// slice.
struct Mapping {
    lines: NonNull<Line>,
    count: usize,
}

// SAFETY: a mapping belongs to no thread, and is written only through `&mut` or as atomic words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(maps: &[BorrowedFd<'_>], count: usize) -> Result<Self, Error> {
        let step = "mapping the memory of a map";
        let failed = || kernel(step)(Errno::EINVAL);
        if maps.len() < count.div_ceil(BLOCK_LINES) {
            return Err(failed());
        }
        let size = |lines: usize| NonZeroUsize::new(lines * size_of::<Line>()).ok_or_else(failed);
        let whole = size(count)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let reserved =
            unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) };
        // From here on dropping it unmaps it, also after an error.
        let mapping = Self {
            lines: reserved.map_err(kernel(step))?.cast(),
            count,
        };
        let firsts = (0..count).step_by(BLOCK_LINES);
        for (map, first) in maps.iter().zip(firsts) {
            // SAFETY: within the reserved range.
            let place = unsafe { mapping.lines.add(first) };
            // SAFETY: it replaces a part of the reserved range, to which there is no reference yet.
            // If it fails, the reserved part stays: the kernel checks everything before it unmaps.
            let mapped = unsafe {
                mmap(
                    Some(place.addr()),
                    size((count - first).min(BLOCK_LINES))?,
                    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                    MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                    map,
                    0,
                )
            };
            mapped.map_err(kernel(step))?;
        }
        Ok(mapping)
    }

    fn as_slice(&self) -> &[Line] {
        // SAFETY: the mapping has this many lines, aligned to a page, while this value lives; they
        // are changed through it only with `&mut self`.
        unsafe { slice::from_raw_parts(self.lines.as_ptr(), self.count) }
    }

    fn as_mut_slice(&mut self) -> &mut [Line] {
        // SAFETY: as for `as_slice`; `&mut self` excludes other references.
        unsafe { slice::from_raw_parts_mut(self.lines.as_ptr(), self.count) }
    }
}

/// The element of a map of one [`Control`].
pub(super) struct ControlMemory(Mapping);

impl ControlMemory {
    pub(super) fn new(map: BorrowedFd<'_>) -> Result<Self, Error> {
        const { assert!(size_of::<Control>().is_multiple_of(size_of::<Line>())) };
        Mapping::new(&[map], size_of::<Control>() / size_of::<Line>()).map(Self)
    }

    pub(super) fn get(&self) -> &Control {
        // SAFETY: the mapping has that size, is aligned to a page, and lives as long as this value;
        // what changes in it is atomic, and there is no reference to its lines.
        unsafe { self.0.lines.cast::<Control>().as_ref() }
    }
}

/// Memory for a snapshot that will be given to the filter: that of a map or, if the kernel refuses
/// one, private memory, which the filter will copy.
#[must_use]
pub fn memory(lines: usize) -> Box<dyn Memory> {
    match KernelMemory::new(lines) {
        Ok(memory) => Box::new(memory),
        Err(error) => {
            tracing::debug!(%error, "the lists are built in private memory");
            private(lines)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let size = self.count * size_of::<Line>();
        // SAFETY: this value owns the mapping, and no reference into it outlives this value.
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
