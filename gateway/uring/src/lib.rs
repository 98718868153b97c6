//! One io_uring per worker thread, for TCP connections and nothing else.
//!
//! A [`PreparedRing`] is made on any thread, so that listeners and memory are held before
//! privileges are dropped. The worker's thread turns it into a [`Ring`], which never leaves that
//! thread. Connections live in a table of direct descriptors: a connection is a slot number and a
//! generation ([`Conn`]), never a file descriptor.
//!
//! This crate is the only place in the gateway that talks to the kernel about rings, and it keeps
//! what that takes in unsafe code to itself: the interface is safe however it is used, including
//! when a ring is dropped with operations in flight. Rejected: a general wrapper of io_uring (the
//! gateway needs nine operations), and futures
//! (what waits for a completion is for the worker to know, and the simulated driver has no ring).
//!
//! | file | subject |
//! |---|---|
//! | `settings.rs`, `ring.rs` | setting a ring up, waiting, tearing it down |
//! | `operations.rs` | what can be submitted |
//! | `completion.rs` | what completions mean |
//! | `slots.rs` | memory that the kernel holds meanwhile: send buffers and addresses |
//! | `buffers.rs` | receive buffers |
//! | `token.rs`, `address.rs`, `mapping.rs` | user data, socket addresses, pages |
//! | `wake.rs` | waking a ring from a thread that has none |
//! | `listener.rs`, `limits.rs` | listening sockets; descriptors and cores |
//! | `support.rs` | what the kernel offers |
//! | `syscall.rs` | the system calls that the io-uring crate has no wrapper for |

mod address;
mod buffers;
mod completion;
mod limits;
mod listener;
mod mapping;
mod operations;
mod ring;
mod settings;
mod slots;
mod support;
mod syscall;
mod token;
mod wake;

pub use buffers::Buffer;
pub use completion::{Completion, OperationResult, ReceiveEnd};
pub use limits::{allowed_cores, pin_to_core, raise_descriptor_limit};
pub use listener::{ListenError, Listener, listen};
pub use ring::{PreparedRing, Ring};
pub use settings::{Settings, SetupError};
pub use support::{Missing, Unavailable, missing_features};
pub use token::{Conn, SLOTS_MAX};
pub use wake::Waker;
