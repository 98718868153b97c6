//! The control plane: starts the workers, watches over them, and talks to the people and programs around the gate.
//!
//! One thread with a tokio runtime. It shares with the workers what [`crate::worker::Shared`] holds, and nothing waits for it:
//! mail goes on while it reloads, resolves or answers.

pub mod interrupt;
pub mod log;
pub mod serve;
pub mod start;
