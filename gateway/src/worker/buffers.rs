//! Buffers for what connections send, kept for the next reply.
//!
//! A connection has a buffer only while there is something in it: it takes one from here when it
//! begins to write, the driver gives it back when it is sent, and it comes here again. So a reply
//! costs no allocation, and an idle session holds no memory for one. The worker keeps no more of
//! them than a batch is likely to need, and none that a message has made large.

/// Buffers kept; with [`CAPACITY_MAX`] they bound the memory.
const SPARE_MAX: usize = 64;
/// Room of a new buffer, in bytes: the reply to EHLO fits.
const CAPACITY: usize = 512;
/// A buffer with more room than this many bytes is not kept.
const CAPACITY_MAX: usize = 4 << 10;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Buffers {
    spare: Vec<Vec<u8>>,
}

impl Buffers {
    /// An empty buffer with some room.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.spare
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(CAPACITY))
    }

    /// Takes a buffer back; what is in it is no longer needed.
    pub(super) fn give(&mut self, mut buffer: Vec<u8>) {
        let fits = (CAPACITY..=CAPACITY_MAX).contains(&buffer.capacity());
        if fits && self.spare.len() < SPARE_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_again_empty_and_with_its_room() {
        let mut buffers = Buffers::default();
        let mut first = buffers.take();
        first.extend_from_slice(b"250 2.0.0 Ok\r\n");
        let place = first.as_ptr();
        buffers.give(first);
        let again = buffers.take();
        assert!(again.is_empty() && again.capacity() >= CAPACITY);
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn neither_large_buffers_nor_too_many_are_kept() {
        let mut buffers = Buffers::default();
        buffers.give(Vec::with_capacity(CAPACITY_MAX + 1));
        buffers.give(Vec::new());
        assert!(buffers.spare.is_empty());
        for _ in 0..=SPARE_MAX {
            buffers.give(Vec::with_capacity(CAPACITY));
        }
        assert_eq!(buffers.spare.len(), SPARE_MAX);
    }
}
