//! What a completion means for a connection.

#![expect(unsafe_code, reason = "taking memory back that the kernel held")]

use crate::buffers::{Buffer, Buffers};
use crate::slots::{Released, Slots};
use crate::token::{self, Conn, Operation};
use crate::wake::Waker;
use io_uring::cqueue;
use std::io;
use std::net::SocketAddr;

/// An operation that ended or made progress, and its result.
#[derive(Debug)]
pub struct Completion {
    /// The connection as it was given when the operation was submitted: perhaps an old use of the
    /// slot; [`Conn::NONE`] for [`OperationResult::Wake`].
    pub conn: Conn,
    /// What happened.
    pub outcome: OperationResult,
}

impl Completion {
    pub(crate) const WAKE: Self = Self {
        conn: Conn::NONE,
        outcome: OperationResult::Wake,
    };
}

/// The result of an operation of a [`Ring`](crate::Ring).
#[derive(Debug)]
pub enum OperationResult {
    /// An accept: the slot now holds a connection from this peer. On an error the slot holds
    /// nothing.
    Accepted(io::Result<SocketAddr>),
    /// A connect: the slot is connected. On an error it still has to be closed.
    Connected(io::Result<()>),
    /// A receive: some bytes, whose buffer is the caller's until it is recycled; the receive stays
    /// armed.
    Received(Buffer),
    /// A receive has ended, and why. Nothing more comes from this connection until it is armed
    /// again.
    ReceiveEnded(ReceiveEnd),
    /// A send: the buffer comes back with how much of it was taken (always some), or the error.
    Sent {
        /// The buffer that was given to the send.
        buffer: Vec<u8>,
        /// Octets from its beginning that the kernel took; fewer than all is no error.
        result: io::Result<usize>,
    },
    /// Octets that were sent and that the peer's TCP has not acknowledged yet.
    Unacknowledged(io::Result<u32>),
    /// A close: the slot is free.
    Closed,
    /// A [`Waker`] was used: look at what is shared with its thread.
    Wake,
}

/// Why an armed receive stopped.
#[derive(Debug)]
pub enum ReceiveEnd {
    /// The peer has sent all it will send, or the connection was shut down from this side.
    EndOfStream,
    /// There was no free buffer; arm again once one was recycled.
    Starved,
    /// It was paused.
    Paused,
    /// It ended with nothing wrong, for instance because the completion queue was full: arm again.
    Rearm,
    /// The connection is broken.
    Failed(io::Error),
}

/// Everything of a ring that a completion can touch; the ring itself is borrowed while completions
/// are read.
pub(crate) struct Tables {
    pub(crate) slots: Slots,
    pub(crate) buffers: Buffers,
    pub(crate) waker: Waker,
    /// Operations that the kernel may still touch memory for.
    pub(crate) in_flight: usize,
    /// Completions that are known without asking the kernel.
    pub(crate) ready: Vec<Completion>,
    /// Closes that waited for a shutdown and need to wait no longer.
    pub(crate) deferred: Vec<Conn>,
}

impl Tables {
    /// Takes one entry of the kernel's queue, which makes up to two completions.
    pub(crate) fn complete(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let Some((operation, conn)) = token::unpack(entry.user_data()) else {
            return;
        };
        let counted = !matches!(operation, Operation::Cancel | Operation::Wake);
        if counted && !cqueue::more(entry.flags()) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        let result = outcome(entry.result());
        let outcome = match operation {
            Operation::Receive => return self.received(conn, entry, result, completions),
            Operation::Shutdown => return self.shut_down(conn),
            Operation::Cancel => return,
            Operation::Accept => OperationResult::Accepted(self.accepted(conn, result)),
            Operation::Connect => {
                // SAFETY: the chain of a connect reports once, when nothing of it is left.
                unsafe { self.slots.release(conn) };
                OperationResult::Connected(result.map(drop))
            }
            Operation::Send => {
                // SAFETY: this is the completion of the one send that a slot can have.
                let buffer = match unsafe { self.slots.release(conn) } {
                    Released::Buffer(buffer) => buffer,
                    Released::Nothing | Released::Address(_) => Vec::new(),
                };
                OperationResult::Sent {
                    buffer,
                    result: result.map(|octets| octets as usize),
                }
            }
            Operation::Unacknowledged => OperationResult::Unacknowledged(result),
            // An error would be that the slot was empty, which is what was wanted.
            Operation::Close => OperationResult::Closed,
            Operation::Wake => {
                self.waker.taken();
                OperationResult::Wake
            }
        };
        completions.push(Completion { conn, outcome });
    }

    fn accepted(&mut self, conn: Conn, result: io::Result<u32>) -> io::Result<SocketAddr> {
        // SAFETY: this is the completion of the accept that the address was for.
        let released = unsafe { self.slots.release(conn) };
        result?;
        match released {
            Released::Address(Some(peer)) => Ok(peer),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn shut_down(&mut self, conn: Conn) {
        let Some(slot) = self.slots.present(conn) else {
            return;
        };
        slot.shutting = false;
        if std::mem::take(&mut slot.closing) {
            self.deferred.push(conn);
        }
    }

    fn received(
        &mut self,
        conn: Conn,
        entry: &cqueue::Entry,
        result: io::Result<u32>,
        completions: &mut Vec<Completion>,
    ) {
        let more = cqueue::more(entry.flags());
        let mut shut = false;
        if let Some(slot) = self.slots.present(conn)
            && !more
        {
            slot.receiving = false;
            shut = slot.shut;
        }
        let len = *result.as_ref().unwrap_or(&0);
        if let Some(id) = cqueue::buffer_select(entry.flags())
            && self.buffers.lend(id)
        {
            if len > 0 {
                let outcome = OperationResult::Received(Buffer { id, offset: 0, len });
                completions.push(Completion { conn, outcome });
            } else {
                self.buffers.recycle(id);
            }
        }
        if more {
            return;
        }
        let end = match result {
            Ok(0) => ReceiveEnd::EndOfStream,
            Ok(_) => ReceiveEnd::Rearm,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) => ReceiveEnd::Starved,
                Some(libc::ECANCELED) => ReceiveEnd::Paused,
                _ => ReceiveEnd::Failed(error),
            },
        };
        // A receive that was to end for good must not look like one to be armed again.
        let end = match end {
            ReceiveEnd::Rearm | ReceiveEnd::Starved | ReceiveEnd::Paused if shut => {
                ReceiveEnd::EndOfStream
            }
            end => end,
        };
        let outcome = OperationResult::ReceiveEnded(end);
        completions.push(Completion { conn, outcome });
    }
}

/// The result field of a completion: a count, or an error number made negative.
fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}
