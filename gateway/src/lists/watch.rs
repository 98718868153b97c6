//! Whether the files of the lists are still the ones that were read.
//!
//! Whoever provides a list writes a new file, and the gate has to notice by itself, and not read half of a copy: a file
//! counts as changed when two looks in a row see the same, which is not what was read. Rejected: inotify, which tells of
//! each write of a copy and of none on a network file system, and loses the file when it is replaced by another.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Changes also with what is said of the file: its access list, a content whose time was set back.
    changed: (i64, i64),
    /// One that could not be read may be readable now. (The times alone have the grain of the kernel's ticks.)
    access: (u32, u32, u32),
}

impl Stamp {
    /// Of the file at a path; `None` if there is none.
    pub fn of(path: &Path) -> Option<Stamp> {
        std::fs::metadata(path).ok().as_ref().map(Stamp::from)
    }

    /// An error if the file has changed since: half of it may be of the one, half of the other.
    ///
    /// # Errors
    /// See above.
    pub fn is_still(self, metadata: &Metadata) -> io::Result<()> {
        if Stamp::from(metadata) == self {
            return Ok(());
        }
        Err(io::Error::other(
            "changed while it was read: write lists to a temporary file beside it, and rename that",
        ))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            access: (metadata.mode(), metadata.uid(), metadata.gid()),
        }
    }
}

/// What was seen of the files.
#[derive(Debug, Default)]
pub struct Watch {
    last: HashMap<PathBuf, Option<Stamp>>,
    /// What was of no use: it is not tried again until it changes.
    refused: HashMap<PathBuf, Option<Stamp>>,
}

impl Watch {
    /// Takes a look. `seen` names the files, with their stamps when they were read and now (`None`: there was none, or is
    /// none). Returns those that changed and are at rest.
    pub fn look<'a>(
        &mut self,
        seen: impl IntoIterator<Item = (&'a Path, Option<Stamp>, Option<Stamp>)>,
    ) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        let mut last = HashMap::new();
        for (path, read, now) in seen {
            let is_at_rest = self.last.get(path) == Some(&now);
            let is_refused = self.refused.get(path) == Some(&now);
            if now != read && is_at_rest && !is_refused {
                changed.push(path.to_owned());
            }
            last.insert(path.to_owned(), now);
        }
        self.last = last;
        changed
    }

    /// What was seen last could not be used.
    pub fn refuse(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        for path in paths {
            let now = self.last.get(&path).copied().flatten();
            self.refused.insert(path, now);
        }
    }

    /// Whether something was of no use since the last success.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// What was of no use may be of use now.
    pub fn try_again(&mut self) {
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn stamp(size: u64) -> Option<Stamp> {
        Some(Stamp {
            device: 1,
            inode: 2,
            size,
            modified: (3, 4),
            changed: (5, 6),
            access: (0o644, 0, 0),
        })
    }

    /// What each look in turn reports, at a file that was read with size 1.
    fn looks(watch: &mut Watch, sizes: &[Option<Stamp>]) -> Vec<bool> {
        let path = Path::new("list");
        let look = |&now| !watch.look([(path, stamp(1), now)]).is_empty();
        sizes.iter().map(look).collect()
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_read() {
        let sizes = [1, 1, 2, 3, 4, 4, 4].map(stamp);
        let expected = [false, false, false, false, false, true, true];
        assert_eq!(looks(&mut Watch::default(), &sizes), expected);
    }

    #[test]
    fn a_file_that_is_gone_for_a_moment_is_not_missed_and_one_that_stays_away_is() {
        let sizes = [stamp(1), None, stamp(1), stamp(1), None, None];
        let expected = [false, false, false, false, false, true];
        assert_eq!(looks(&mut Watch::default(), &sizes), expected);
    }

    #[test]
    fn what_was_refused_is_tried_again_only_when_it_changes() {
        let mut watch = Watch::default();
        assert_eq!(looks(&mut watch, &[stamp(2), stamp(2)]), [false, true]);
        watch.refuse([PathBuf::from("list")]);
        assert_eq!(
            looks(&mut watch, &[stamp(2), stamp(3), stamp(3)]),
            [false, false, true]
        );
        watch.try_again();
        assert!(!watch.has_refused());
        assert_eq!(looks(&mut watch, &[stamp(3)]), [true]);
    }

    #[test]
    fn every_way_to_replace_a_file_changes_its_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        assert_eq!(Stamp::of(&path), None);
        std::fs::write(&path, "192.0.2.1\n").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert!(first.is_still(&std::fs::metadata(&path).unwrap()).is_ok());
        let other = directory.path().join("other");
        std::fs::copy(&path, &other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = Stamp::of(&path).unwrap();
        assert!(first.is_still(&std::fs::metadata(&path).unwrap()).is_err());
        // Read when it was not this user's to read, it may be now.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert_ne!(Stamp::of(&path), Some(second));
    }
}
