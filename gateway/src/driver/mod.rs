//! The line between what a worker decides and what the kernel does.
//!
//! A worker submits operations on connections and takes completions; it never sees an opcode, a
//! file descriptor or a clock. Connections, outcomes and buffers are named as the ring names them:
//! the trait was made for it, and a second set of the same names would only have to be converted.
//! Two drivers stand behind the trait: the ring ([`ring`]), and with the tests a simulation, which
//! runs the same worker on virtual time with seeded faults. Rejected: a readiness interface (it
//! would put the system calls back into the worker).

pub mod ring;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use portcullis_uring::{Buffer, Completion, Conn, Listener, OperationResult, ReceiveEnd};

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
    /// Takes the next connection of a listener into a free slot. Ends with
    /// [`OperationResult::Accepted`].
    fn accept(&mut self, listener: Listener, conn: Conn);
    /// Ends all outstanding accepts (each with `Accepted(Err(ECANCELED))`, unless a connection came
    /// first) and closes the listening sockets.
    fn stop_accepting(&mut self);
    /// Connects a free slot. Ends with [`OperationResult::Connected`].
    fn connect(&mut self, conn: Conn, to: SocketAddr);
    /// Receives until it is paused, starved or at the end of the stream.
    fn receive(&mut self, conn: Conn);
    /// Asks an armed receive to stop. What was received meanwhile still comes; then `ReceiveEnded`.
    fn pause(&mut self, conn: Conn);
    /// Sends the bytes of the buffer, which must not be empty. Ends with [`OperationResult::Sent`].
    fn send(&mut self, conn: Conn, buffer: Vec<u8>);
    /// Asks how much of what was sent the peer's TCP has not taken yet: a `Sent` says only that it
    /// lies in our own kernel. Of a send that is in flight the part that the kernel has taken
    /// counts. Ends with [`OperationResult::Unacknowledged`].
    fn unacknowledged(&mut self, conn: Conn);
    /// Ends the connection (`both`) or only our direction of it. No completion of its own.
    ///
    /// With `both`, whatever is outstanding ends soon: an armed receive as the end of the stream, a
    /// send with what was taken of it or an error, a connect with an error; the peer notices when
    /// the slot is [closed](Driver::close). Otherwise the peer sees the end of the stream, and an
    /// armed receive goes on until the peer's own.
    fn shutdown(&mut self, conn: Conn, both: bool);
    /// Gives the slot back. Only with no receive armed and no send in flight. Ends with
    /// [`OperationResult::Closed`].
    fn close(&mut self, conn: Conn);
    /// The bytes of a received buffer.
    fn bytes(&self, buffer: &Buffer) -> &[u8];
    /// Overwrites a received buffer with zeroes: it held a password.
    fn wipe(&mut self, buffer: &Buffer);
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
