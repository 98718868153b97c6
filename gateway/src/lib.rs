//! Portcullis: the gate in front of TCP port 25.
//!
//! One policy, applied in two places: an XDP program that drops packets of listed sources before
//! the kernel allocates anything for them ([`filter`]), and a relay with one io_uring per core for
//! the sessions that remain ([`worker`], [`relay`]). `gateway/docs/architecture.md` has the
//! picture.

pub mod auth;
pub mod config;
pub mod control;
pub mod doctor;
pub mod driver;
pub mod explain;
pub mod filter;
pub mod fronts;
pub mod lists;
pub mod netns;
pub mod policy;
pub mod printable;
pub mod relay;
pub mod tls;
pub mod worker;
