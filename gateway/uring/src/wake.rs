//! Waking a ring from anywhere.
//!
//! The waking thread has no ring of its own: it uses the synchronous form of a message to a ring.
//! Wakes are coalesced: until the ring has seen the first one, further ones cost an atomic swap and
//! no system call. Rejected: an eventfd with a read armed on it (a descriptor and two more
//! operations per wake).

use crate::syscall;
use crate::token::{self, Conn, Operation};
use io_uring::opcode::MsgRingData;
use io_uring::types::Fd;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Wakes the ring that it came from: the ring's next wait reports
/// [`OperationResult::Wake`](crate::OperationResult::Wake).
///
/// What the ring's thread is to look at must be in place before the call. Waking a ring that is
/// gone does nothing.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// A wake is on its way and has not been reported yet.
    pending: AtomicBool,
    /// The ring; gone once it is dropped. Held during the call, so that the number cannot be
    /// another file's by then.
    ring: Mutex<Option<RawFd>>,
}

impl Waker {
    pub(crate) fn new(ring: RawFd) -> Self {
        Self(Arc::new(Shared {
            pending: AtomicBool::new(false),
            ring: Mutex::new(Some(ring)),
        }))
    }

    /// Wakes the ring, from any thread. Many calls before the ring has looked make one completion.
    pub fn wake(&self) {
        if self.0.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        let ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ring) = *ring else { return };
        let user_data = token::pack(Operation::Wake, Conn::NONE);
        let message = MsgRingData::new(Fd(ring), 0, user_data, None).build();
        match syscall::send_message(&message) {
            Ok(()) => {}
            // Not started yet: the mark stays, and starting looks at it.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {}
            // Out of memory, most likely. The next call must try again.
            Err(_) => self.0.pending.store(false, Ordering::SeqCst),
        }
    }

    /// Takes the mark down, before the ring's thread looks at what it was woken for. Says whether
    /// it was up.
    pub(crate) fn taken(&self) -> bool {
        self.0.pending.swap(false, Ordering::SeqCst)
    }

    /// The ring is going: no more messages to its descriptor.
    pub(crate) fn detach(&self) {
        *self.0.ring.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
