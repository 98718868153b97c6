//! What the XDP program and userspace share: how a packet is read, how its source is looked up, the
//! order of verdicts, and the layout of the maps.
//!
//! The program in the kernel and the tests on the host run the same [`judge()`] and
//! [`fast_path::judge`]; only the reader of the packet and the lookup of a source differ. Nothing
//! here allocates, and everything on a packet's way is inlined: the verifier has to see each bounds
//! check beside the read it protects.

#![no_std]
#![forbid(unsafe_code)]

pub mod budget;
pub mod encapsulation;
pub mod fast_path;
mod hash;
pub mod layout;
pub mod packet;
pub mod reply;
pub mod slow_path;
pub mod snapshot;
pub mod traffic;
pub mod verdict;

pub use encapsulation::Encapsulation;
pub use packet::{Content, Framing, Packet, Port, Segment, Source};
pub use slow_path::{Lookup, Memory, Recent, judge};
pub use verdict::{Action, Class, Facts, Verdict, decide};
