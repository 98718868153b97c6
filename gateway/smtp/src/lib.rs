//! SMTP with no I/O, no clock and no allocation per accepted command.
//!
//! Octets go in, events and replies come out; who reads and writes, and when, is somebody else's
//! business. This is what makes a session a few dozen octets of state, and what lets the same code
//! run on io_uring, in a simulation and under a fuzzer.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | the session toward a client: greeting, commands, pipelining, limits, message content |
//! | [`client`] | the session toward a next hop: commands out, replies in, in order |
//! | [`data`] | the transfer forms of message content: dot-stuffing, chunks, line ends |
//! | [`envelope`] | MAIL and RCPT with their parameters |
//! | [`path`] | the addresses of RFC 5321, 4.1.2 |
//! | [`reply`] | replies with enhanced status codes |
#![forbid(unsafe_code)]

pub mod client;
pub mod data;
pub mod envelope;
pub mod path;
pub mod reply;
pub mod server;

pub use envelope::{Mail, Rcpt, Ret};
pub use path::{Domain, Mailbox, Path};
pub use reply::{EnhancedCode, Reply};
pub use server::{Abuse, Event, LongLines, Session, Settings, Step};
