//! The line between what a worker decides and what the kernel does.
//!
//! A worker submits operations on connections and takes completions; it never sees an opcode, a
//! file descriptor or a clock. Two drivers stand behind the trait: the ring ([`ring`]), and the
//! simulation ([`sim`]), which runs the same worker on virtual time with seeded faults. Rejected:
//! async functions per connection (a future per idle session costs more memory than the session),
//! and a readiness interface (it would put the system calls back into the worker).

#[cfg(test)]
mod conformance;
pub mod ring;
pub mod sim;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// A connection as both sides name it: a slot of the worker's table, and which use of that slot is
/// meant.
///
/// The kernel may deliver completions for an old use of a slot after the slot was taken again; a
/// completion whose generation is not the slot's present one is dropped by the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conn {
    /// Index into the table of connections.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// Which of the worker's listening sockets, in the order in which they were given to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener(pub u16);

/// A received piece of the stream, in memory that belongs to the driver until it is
/// [recycled](Driver::recycle).
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which of the driver's buffers.
    pub id: u16,
    /// Where in that buffer the bytes begin.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The connection the operation was submitted for (for [`Outcome::Wake`] it means nothing).
    pub conn: Conn,
    /// What happened.
    pub outcome: Outcome,
}

/// The results of the operations of [`Driver`].
#[derive(Debug)]
pub enum Outcome {
    /// [`Driver::accept`]: the slot now holds a connection from this peer. On an error the slot
    /// holds nothing.
    Accepted(io::Result<SocketAddr>),
    /// [`Driver::connect`]: the slot is connected. On an error it still has to be
    /// [closed](Driver::close).
    Connected(io::Result<()>),
    /// [`Driver::receive`]: some bytes; the receive stays armed.
    Received(Buffer),
    /// [`Driver::receive`] has ended, and why. Nothing more comes from this connection until it is
    /// armed again.
    ReceiveEnded(ReceiveEnd),
    /// [`Driver::send`]: the buffer comes back with how much of it was taken (always some), or the
    /// error.
    Sent {
        /// The buffer that was given to `send`.
        buffer: Vec<u8>,
        /// Octets from its beginning that the kernel took; fewer than all is no error.
        result: io::Result<usize>,
    },
    /// [`Driver::unacknowledged`]: octets that were sent and that the peer's TCP has not taken yet.
    Unacknowledged(io::Result<u32>),
    /// [`Driver::close`]: the slot is free.
    Closed,
    /// Somebody used the [`Waker`](ring::Waker): look at the shared state.
    Wake,
}

/// Why an armed receive stopped.
#[derive(Debug)]
pub enum ReceiveEnd {
    /// The peer has sent all it will send.
    EndOfStream,
    /// There was no free buffer; arm again once one was recycled.
    Starved,
    /// [`Driver::pause`] stopped it.
    Paused,
    /// The kernel ended a receive for its own reasons and nothing is wrong with the connection: arm
    /// again.
    Rearm,
    /// The connection is broken.
    Failed(io::Error),
}

/// The operations of a worker. Nothing happens before the next [`wait`](Driver::wait), which
/// submits the whole batch.
///
/// Per connection at most one `receive` is armed and at most one `send` is in flight: the worker
/// sees to it, and a driver may assert it.
pub trait Driver {
    /// Time since an arbitrary moment before the driver was made; it never goes back. It is read
    /// once per [`wait`](Driver::wait), so that everything done for one batch of completions
    /// happens at one moment.
    fn now(&self) -> Duration;
    /// The time of day as seconds since 1970-01-01 UTC, read as rarely as `now`.
    fn unix_time(&self) -> u64;
    /// Takes the next connection of a listener into a free slot. Ends with [`Outcome::Accepted`].
    fn accept(&mut self, listener: Listener, conn: Conn);
    /// Ends all outstanding accepts (each with `Accepted(Err(ECANCELED))`, unless a connection came
    /// first) and closes the listening sockets.
    fn stop_accepting(&mut self);
    /// Connects a free slot. Ends with [`Outcome::Connected`].
    fn connect(&mut self, conn: Conn, to: SocketAddr);
    /// Receives until it is paused, starved or at the end of the stream.
    fn receive(&mut self, conn: Conn);
    /// Asks an armed receive to stop. What was received meanwhile still comes; then `ReceiveEnded`.
    fn pause(&mut self, conn: Conn);
    /// Sends the bytes of the buffer, which must not be empty. Ends with [`Outcome::Sent`].
    fn send(&mut self, conn: Conn, buffer: Vec<u8>);
    /// Asks how much of what was sent the peer's TCP has not taken yet: a `Sent` says only that it
    /// lies in our own kernel. Of a send that is in flight the part that the kernel has taken
    /// counts. Ends with [`Outcome::Unacknowledged`].
    fn unacknowledged(&mut self, conn: Conn);
    /// Ends the connection (`both`) or only our direction of it. No completion of its own.
    ///
    /// With `both`, whatever is outstanding ends soon: an armed receive as the end of the stream, a
    /// send with what was taken of it or an error, a connect with an error; the peer notices when
    /// the slot is [closed](Driver::close). Otherwise the peer sees the end of the stream, and an
    /// armed receive goes on until the peer's own.
    fn shutdown(&mut self, conn: Conn, both: bool);
    /// Gives the slot back. Only with no receive armed and no send in flight. Ends with
    /// [`Outcome::Closed`].
    fn close(&mut self, conn: Conn);
    /// The bytes of a received buffer.
    fn bytes(&self, buffer: &Buffer) -> &[u8];
    /// Gives a received buffer back.
    fn recycle(&mut self, buffer: Buffer);
    /// Submits what was asked for and collects what has completed, waiting for at least one
    /// completion or until `timeout` has passed (zero: do not wait). Completions are appended to
    /// `completions`.
    ///
    /// # Errors
    /// Only when the ring itself is broken; a worker cannot go on after that.
    fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> io::Result<()>;
}
