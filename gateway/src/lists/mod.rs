//! The lists: from their files, whatever their format, to the snapshot that the filter and the policy look into.
//!
//! | file | subject |
//! |---|---|
//! | `entries.rs` | the prefixes of one list |
//! | `compiled.rs` | all lists together: what an address is listed as |
//! | `build/` | how overlaps are settled and a snapshot is made |
//! | `file.rs` | a compiled snapshot on disk |
//! | `snapshot.rs` | a snapshot in memory, the kernel's or our own |

mod build;
pub mod cidr;
mod compiled;
pub mod entries;
pub mod file;
pub mod snapshot;

pub use self::compiled::{Compiled, List, ListAction, Listing};
pub use self::snapshot::{Allocate, Memory, Snapshot};
