//! The lists: from their files, whatever their format, to the snapshot that the filter and the policy look into.
//!
//! | file | subject |
//! |---|---|
//! | `entries.rs` | the prefixes of one list |
//! | `format/` | how files are read |
//! | `guard.rs` | what is too great a loss to be true |
//! | `source.rs` | where a list comes from, and what is wrong with it |
//! | `watch.rs` | which files have changed |

pub mod entries;
pub mod format;
pub mod guard;
pub mod source;
pub mod watch;
