//! What a completion means for a connection.

#![expect(unsafe_code, reason = "taking memory back that the kernel held")]

use crate::buffers::Buffers;
use crate::slots::{Released, Slots};
use crate::token::{self, Conn, Operation};
use crate::wake::Waker;
use io_uring::cqueue;
use std::io;
use std::net::SocketAddr;

/// What became of an operation, and the connection it was submitted for (meaningless for
/// [`Outcome::Wake`]).
#[derive(Debug)]
pub struct Event {
    /// As it was given when the operation was submitted: perhaps an old use of the slot.
    pub conn: Conn,
    /// What happened.
    pub outcome: Outcome,
}

impl Event {
    pub(crate) const WAKE: Self = Self {
        conn: Conn {
            slot: 0,
            generation: 0,
        },
        outcome: Outcome::Wake,
    };
}

/// The results of the operations of a [`Ring`](crate::Ring).
#[derive(Debug)]
pub enum Outcome {
    /// An accept: the slot holds a connection from this peer, or nothing.
    Accepted(io::Result<SocketAddr>),
    /// A connect. On an error the slot has to be closed nevertheless.
    Connected(io::Result<()>),
    /// A receive: this many octets in this buffer, which is the caller's until it is recycled.
    Received {
        /// Which buffer.
        buffer: u16,
        /// How many octets from its beginning.
        length: u32,
    },
    /// A receive is not armed any more.
    ReceiveEnded(ReceiveEnd),
    /// A send: the buffer, and how much of it the kernel took.
    Sent(Vec<u8>, io::Result<usize>),
    /// Octets handed to the kernel that the peer's TCP has not acknowledged.
    Unacknowledged(io::Result<u32>),
    /// A close: the slot is free.
    Closed,
    /// Somebody used a [`Waker`].
    Wake,
}

/// Why a receive is not armed any more.
#[derive(Debug)]
pub enum ReceiveEnd {
    /// The peer has sent everything, or the connection was shut down from this side.
    EndOfStream,
    /// There was no buffer.
    Starved,
    /// It was paused.
    Paused,
    /// It ended with nothing wrong, for instance because the completion queue was full.
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
    /// Outcomes that are known without asking the kernel.
    pub(crate) ready: Vec<Event>,
    /// Closes that waited for a shutdown and need to wait no longer.
    pub(crate) deferred: Vec<Conn>,
}

impl Tables {
    /// Takes one completion, giving up to two events to the sink.
    pub(crate) fn complete(&mut self, entry: &cqueue::Entry, sink: &mut impl FnMut(Event)) {
        let Some((operation, conn)) = token::unpack(entry.user_data()) else {
            return;
        };
        let counted = !matches!(operation, Operation::Cancel | Operation::Wake);
        if counted && !cqueue::more(entry.flags()) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        let result = outcome(entry.result());
        let outcome = match operation {
            Operation::Receive => return self.received(conn, entry, result, sink),
            Operation::Shutdown => return self.shut_down(conn),
            Operation::Cancel => return,
            Operation::Accept => Outcome::Accepted(self.accepted(conn, result)),
            Operation::Connect => {
                // SAFETY: the chain of a connect reports once, when nothing of it is left.
                unsafe { self.slots.release(conn) };
                Outcome::Connected(result.map(drop))
            }
            Operation::Send => {
                // SAFETY: this is the completion of the one send that a slot can have.
                let buffer = match unsafe { self.slots.release(conn) } {
                    Released::Buffer(buffer) => buffer,
                    Released::Nothing | Released::Address(_) => Vec::new(),
                };
                Outcome::Sent(buffer, result.map(|octets| octets as usize))
            }
            Operation::Unacknowledged => Outcome::Unacknowledged(result),
            // An error would be that the slot was empty, which is what was wanted.
            Operation::Close => Outcome::Closed,
            Operation::Wake => {
                self.waker.taken();
                Outcome::Wake
            }
        };
        sink(Event { conn, outcome });
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
        sink: &mut impl FnMut(Event),
    ) {
        let more = cqueue::more(entry.flags());
        let mut shut = false;
        if let Some(slot) = self.slots.present(conn)
            && !more
        {
            slot.receiving = false;
            shut = slot.shut;
        }
        let length = *result.as_ref().unwrap_or(&0);
        if let Some(buffer) = cqueue::buffer_select(entry.flags())
            && self.buffers.lend(buffer)
        {
            if length > 0 {
                let outcome = Outcome::Received { buffer, length };
                sink(Event { conn, outcome });
            } else {
                self.buffers.recycle(buffer);
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
        // Nobody should be led to arm a receive again that was to end for good.
        let end = match end {
            ReceiveEnd::Rearm | ReceiveEnd::Starved | ReceiveEnd::Paused if shut => {
                ReceiveEnd::EndOfStream
            }
            end => end,
        };
        let outcome = Outcome::ReceiveEnded(end);
        sink(Event { conn, outcome });
    }
}

/// The result field of a completion: a count, or an error number made negative.
fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}
