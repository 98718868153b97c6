//! The lists: from their files, whatever their format, to the snapshot that the filter and the policy look into.
//!
//! | file | subject |
//! |---|---|
//! | `entries.rs` | the prefixes of one list |
//! | `format/` | how files are read |

pub mod entries;
pub mod format;
