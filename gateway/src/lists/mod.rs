//! The lists: from their files, whatever their format, to the snapshot that the filter and the
//! policy look into.
//!
//! | file | subject |
//! |---|---|
//! | `source.rs`, `format/` | where a list comes from, what is wrong with it; formats of files |
//! | `entries.rs` | the prefixes of one list |
//! | `read.rs`, `check.rs` | the one way from files into force: read, compared, placed |
//! | `compiled.rs` | all lists together: what an address is listed as |
//! | `build/` | how overlaps are settled and a snapshot is made |
//! | `file.rs` | a compiled snapshot on disk |
//! | `snapshot.rs` | a snapshot in memory, of whatever kind |
//! | `guard.rs`, `coverage.rs` | a loss or growth too great to be true; how much is newly refused |
//! | `watch.rs`, `writers.rs` | which files have changed and are at rest; which are being written |

mod build;
mod check;
mod compiled;
mod coverage;
pub mod entries;
pub mod file;
pub mod format;
pub mod guard;
mod read;
pub mod snapshot;
pub mod source;
pub mod watch;
pub mod writers;

pub use self::check::{Before, Checked, Placed, Refusal};
pub use self::compiled::{Compiled, List, ListAction, Listing};
pub use self::coverage::Covered;
pub use self::read::{Attempt, Read, ReadObserver};
pub use portcullis_ebpf_common::snapshot::LISTS_MAX;

pub use self::snapshot::{Allocate, Memory, Snapshot, private};
