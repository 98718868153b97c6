//! What it costs, beside others: side-by-side runs against the peers that a mail operator would use
//! instead.
//!
//! A figure of this project is a ratio, taken in one run, on one machine, with the same load,
//! because figures from two machines (or from the same machine on two days) say nothing. The runs
//! are library code that `cargo xtask bench` calls: the load and the servers are processes of their
//! own, so how the harness is compiled does not matter. Criterion benches of single functions are
//! in `benches/benches`.

pub mod cpu;
pub mod figures;
mod gateway;
pub mod idle;
pub mod interrupt;
pub mod machine;
pub mod process;
pub mod relay;
pub mod results;
mod servers;
pub mod table;
pub mod tls;
