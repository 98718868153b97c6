//! What is said to a next hop on behalf of a message, and over which of its connections.
//!
//! Nothing here makes a system call, knows a worker or reads a clock: commands are written to the
//! buffer that is handed in, the time is an argument.

pub mod client;
pub mod destination;
pub mod envelope;
pub mod hop;
pub mod login;
pub mod owner;
pub mod pool;
pub mod received;
pub mod replies;
pub mod submission;
pub mod transaction;
