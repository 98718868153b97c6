//! Trusted fronts. `headers.rs`: the table of PROXY headers. `scenes.rs` and `xclient.rs`: what a
//! session behind a front is, in the simulation. `real.rs`: HAProxy and nginx in front of the real
//! gate.

mod headers;
mod real;
mod scenes;
mod xclient;
