//! The relay: where a message goes, over which connection, and what the client hears of it.
//!
//! [`transaction`] passes one transaction on; [`pool`] keeps the connections to the next hops;
//! [`received`] marks the message. None of it makes a system call: the worker moves the octets.

pub mod pool;
pub mod received;
pub mod transaction;
