//! SMTP with no I/O, no clock and no allocation per accepted command.
//!
//! Octets go in; events and replies come out. The caller reads, writes and keeps the time. So a
//! session is a few dozen bytes of state, and the same code runs on io_uring, in a simulation and
//! under a fuzzer.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | the session toward a client: greeting, commands, pipelining, limits, content |
//! | [`client`] | the session toward a next hop: commands out, replies in, in the same order |
//! | [`data`] | message content on the wire: dot-stuffing, chunks, line ends |
//! | [`envelope`] | MAIL and RCPT with their parameters |
//! | [`path`] | the addresses of RFC 5321, 4.1.2 |
//! | [`reply`] | replies with enhanced status codes |
//! | [`xclient`] | XCLIENT: a trusted front names its client |
//! | [`sasl`] | the mechanisms of AUTH, and base64 |
#![forbid(unsafe_code)]

pub mod client;
pub mod data;
pub mod envelope;
pub mod path;
pub mod reply;
pub mod sasl;
pub mod server;
pub mod xclient;

pub use envelope::{Mail, Rcpt, Ret};
pub use path::{Domain, Mailbox, Path};
pub use reply::{EnhancedCode, Reply};
pub use server::{Abuse, Event, LongLines, Session, Settings, Step};
