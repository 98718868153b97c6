//! Anonymous pages, for memory that the kernel holds on to.
//!
//! Pages rather than a `Vec`: what a ring registers must be page-aligned, and pages that are not
//! touched yet cost nothing, so that a generous number of receive buffers is paid for when it is
//! used.

#![expect(unsafe_code, reason = "mmap and munmap")]

use std::io;
use std::ptr::NonNull;

/// A private anonymous mapping, zeroed, readable and writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is plain memory that belongs to the process; this handle is its only owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes, which must not be zero.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: asks for new pages wherever there is room; no existing memory is affected.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// Its first byte; the mapping is aligned to a page.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Keeps the pages mapped for the rest of the process's life.
    pub(crate) fn leak(&mut self) {
        self.length = 0;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        // SAFETY: start and length are those of a mapping that this handle alone owns, and no
        // reference into it can outlive the handle.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
