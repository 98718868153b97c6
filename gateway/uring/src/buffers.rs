//! The receive buffers: a ring of provided buffers, from which the kernel takes one whenever bytes
//! arrive.
//!
//! An idle connection holds no buffer. A buffer belongs to the kernel from the moment it is offered
//! until a completion names it, and to the caller from then until it is recycled. The owner is
//! recorded here, so that reading a buffer that the kernel may be writing to is refused rather than
//! undefined. Recycled buffers are offered together, with one store of the tail per wait.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use crate::mapping::Mapping;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The one group of buffers that a ring has.
pub(crate) const GROUP: u16 = 0;

/// The kernel's bound on the buffers of one group.
pub(crate) const COUNT_MAX: u16 = 1 << 15;

/// Size of a `struct io_uring_buf`: address (8 octets), length (4), id (2), reserved (2).
const ENTRY: usize = 16;
/// The part of an entry that describes a buffer. What follows it is, in the first entry, the tail
/// of the ring.
const DESCRIPTION: usize = 14;

/// Some received bytes, in memory of the ring that the caller has until it is
/// [recycled](crate::Ring::recycle).
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which of the ring's buffers.
    pub id: u16,
    /// Where in that buffer the bytes begin.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

pub(crate) struct Buffers {
    ring: Mapping,
    memory: Mapping,
    /// A power of two.
    count: u16,
    size: u32,
    /// What the kernel will see as the tail after the next publish.
    tail: u16,
    published: u16,
    /// Per buffer: it is the caller's.
    lent: Vec<bool>,
}

impl Buffers {
    /// `count` must be a power of two, at most [`COUNT_MAX`]; `size` is in octets. All buffers are
    /// offered at once.
    pub(crate) fn new(count: u16, size: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > COUNT_MAX || size == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the number of receive buffers must be a power of two up to 32768, their size not \
                 zero",
            ));
        }
        let mut buffers = Self {
            ring: Mapping::new(usize::from(count) * ENTRY)?,
            memory: Mapping::new(usize::from(count) * size as usize)?,
            count,
            size,
            tail: 0,
            published: 0,
            lent: vec![false; usize::from(count)],
        };
        for id in 0..count {
            buffers.offer(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Where the kernel finds the ring of buffers, and how many entries it has.
    pub(crate) fn ring(&self) -> (u64, u16) {
        (self.ring.start().as_ptr() as u64, self.count)
    }

    /// A completion named this buffer: it is the caller's now. False if the ring has no such buffer
    /// or the caller has it already, which only a broken kernel could bring about.
    pub(crate) fn lend(&mut self, id: u16) -> bool {
        match self.lent.get_mut(usize::from(id)) {
            Some(lent) => !std::mem::replace(lent, true),
            None => false,
        }
    }

    /// What the caller has of a buffer; nothing if it does not have the buffer, or if that is not
    /// within it.
    pub(crate) fn bytes(&self, &Buffer { id, offset, len }: &Buffer) -> Option<&[u8]> {
        let lent = self.lent.get(usize::from(id)).copied()?;
        let end = offset.checked_add(len)?;
        if !lent || end > self.size {
            return None;
        }
        let first = self.buffer(id);
        // SAFETY: offset is within the buffer, as checked.
        let first = unsafe { first.add(offset as usize) };
        // SAFETY: initialised (pages begin as zeroes), within one mapping, and not written to: the
        // kernel does not have the buffer before it is offered again, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(first.as_ptr(), len as usize) })
    }

    /// Overwrites what the caller has of a buffer with zeroes. False if it does not have that.
    pub(crate) fn wipe(&mut self, buffer: &Buffer) -> bool {
        if self.bytes(buffer).is_none() {
            return false;
        }
        let first = self.buffer(buffer.id);
        // SAFETY: offset and length are within the buffer, as `bytes` has checked.
        let first = unsafe { first.add(buffer.offset as usize) };
        // SAFETY: within one mapping, and the caller's: the kernel does not write to it, and
        // `&mut self` says that no slice of it is about.
        unsafe { first.write_bytes(0, buffer.len as usize) };
        true
    }

    /// Takes a buffer back from the caller. False if it was not the caller's.
    pub(crate) fn recycle(&mut self, id: u16) -> bool {
        let Some(lent) = self.lent.get_mut(usize::from(id)) else {
            return false;
        };
        if !std::mem::replace(lent, false) {
            return false;
        }
        self.offer(id);
        true
    }

    /// Lets the kernel see the buffers that were recycled since the last time.
    pub(crate) fn publish(&mut self) {
        if self.published == self.tail {
            return;
        }
        self.published = self.tail;
        // SAFETY: within the first entry of the mapping.
        let tail = unsafe { self.ring.start().add(DESCRIPTION) };
        // SAFETY: aligned (pages are, and 14 is even) and valid as long as the mapping; the kernel
        // only loads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast().as_ptr()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Keeps the memory for good, because the kernel could not be made to let go of it.
    pub(crate) fn leak(&mut self) {
        self.ring.leak();
        self.memory.leak();
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        debug_assert!(id < self.count);
        // SAFETY: every id is below count, and the mapping has room for count buffers.
        unsafe {
            self.memory
                .start()
                .add(usize::from(id) * self.size as usize)
        }
    }

    /// Writes an entry for a buffer that the kernel does not have. There is
    /// always room: as many entries as buffers.
    fn offer(&mut self, id: u16) {
        let mut description = [0; DESCRIPTION];
        let address = self.buffer(id).as_ptr() as u64;
        description[..8].copy_from_slice(&address.to_ne_bytes());
        description[8..12].copy_from_slice(&self.size.to_ne_bytes());
        description[12..].copy_from_slice(&id.to_ne_bytes());
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is below count, and the mapping has room for count entries.
        let entry = unsafe { self.ring.start().add(index * ENTRY) };
        // SAFETY: within the mapping; the kernel reads no entry at or behind the published tail.
        unsafe { entry.cast().write(description) };
        self.tail = self.tail.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: u16, offset: u32, len: u32) -> Buffer {
        Buffer { id, offset, len }
    }

    #[test]
    fn buffer_cannot_be_read_unless_it_was_lent() {
        let mut buffers = Buffers::new(4, 64).unwrap();
        assert_eq!(buffers.bytes(&part(2, 0, 1)), None);
        assert!(buffers.lend(2));
        assert_eq!(buffers.bytes(&part(2, 60, 4)), Some(&[0; 4][..]));
        assert!(buffers.recycle(2));
        assert_eq!(buffers.bytes(&part(2, 0, 1)), None);
    }

    #[test]
    fn buffer_cannot_be_read_past_its_end() {
        let mut buffers = Buffers::new(2, 64).unwrap();
        assert!(buffers.lend(0));
        assert_eq!(buffers.bytes(&part(0, 0, 65)), None);
        assert_eq!(buffers.bytes(&part(0, u32::MAX, 2)), None);
        assert_eq!(buffers.bytes(&part(9, 0, 1)), None);
    }

    #[test]
    fn wiping_reaches_what_was_lent_and_nothing_else() {
        let mut buffers = Buffers::new(2, 64).unwrap();
        assert!(!buffers.wipe(&part(0, 0, 64)));
        assert!(buffers.lend(0));
        let first = buffers.buffer(0);
        // SAFETY: within the buffer, which is the caller's.
        unsafe { first.write_bytes(b'x', 64) };
        assert!(buffers.wipe(&part(0, 1, 62)));
        let left = buffers.bytes(&part(0, 0, 64)).unwrap();
        assert_eq!((left[0], left[63]), (b'x', b'x'));
        assert!(left[1..63].iter().all(|&octet| octet == 0));
        assert!(!buffers.wipe(&part(0, 1, 64)));
    }

    #[test]
    fn buffer_is_not_offered_twice() {
        let mut buffers = Buffers::new(2, 64).unwrap();
        assert!(buffers.lend(1));
        assert!(buffers.recycle(1));
        assert!(!buffers.recycle(1));
        assert!(!buffers.recycle(7));
        assert_eq!(buffers.tail, 3);
    }

    #[test]
    fn tail_goes_round() {
        let mut buffers = Buffers::new(1, 64).unwrap();
        for _ in 0..70_000 {
            assert!(buffers.lend(0));
            assert!(buffers.recycle(0));
            buffers.publish();
        }
    }

    #[test]
    fn number_of_buffers_that_the_kernel_would_not_take_is_refused() {
        for count in [0, 3, 40_000] {
            assert!(Buffers::new(count, 64).is_err(), "{count}");
        }
        assert!(Buffers::new(4, 0).is_err());
    }
}
