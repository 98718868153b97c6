//! Whether the files of the lists are still the ones that were read.
//!
//! The provider of a list writes a new file. The gate has to notice that by itself, and must not
//! read a copy that is half done. So a file counts as changed when two looks in a row find the same
//! state, and it is not the state that was read. A file that is written in place has to rest for
//! longer, and until its writer closes it, where that can be [known](super::writers). Rejected:
//! inotify alone, which reports no write on a network file system, and loses a file that another
//! one replaces.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What distinguishes one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// The number of a file that is gone is soon that of another.
    born: Option<SystemTime>,
    size: u64,
    modified: (i64, i64),
    /// Changes also with what is said of the file: its access list, a content whose time was set
    /// back.
    changed: (i64, i64),
    /// One that could not be read may be readable now. (The times alone have the grain of the
    /// kernel's ticks.)
    access: (u32, u32, u32),
}

impl Stamp {
    /// Of the file at a path; `None` if there is none.
    pub fn of(path: &Path) -> Option<Stamp> {
        std::fs::metadata(path).ok().as_ref().map(Stamp::from)
    }

    /// Whether it is of the same file, in whatever state.
    pub fn is_same_file(self, other: Stamp) -> bool {
        (self.device, self.inode, self.born) == (other.device, other.inode, other.born)
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
            born: metadata.created().ok(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            access: (metadata.mode(), metadata.uid(), metadata.gid()),
        }
    }
}

/// A file of the lists, as a look finds it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it is.
    pub path: PathBuf,
    /// Its stamp when it was read; `None`: there was none.
    pub read: Option<Stamp>,
    /// And now.
    pub now: Option<Stamp>,
    /// Whether it ends with a line that is whole.
    pub ends_whole: bool,
    /// Whether a process is known to have it open for writing.
    pub is_being_written: bool,
}

impl Seen {
    /// Looks at a file of lists.
    pub fn at(path: &Path, read: Option<Stamp>, is_text: bool) -> Seen {
        let now = Stamp::of(path);
        Seen {
            path: path.to_owned(),
            read,
            now,
            ends_whole: now == read || !is_text || ends_whole(path).unwrap_or(true),
            is_being_written: false,
        }
    }

    /// How many looks in a row have to find it as it is now. What was renamed into its place is
    /// whole. What is written in place, or was not there, may be written slowly; if its last line
    /// has no end, more is likely to come.
    fn rest(&self) -> u32 {
        match (self.read, self.now) {
            _ if self.is_being_written => LOOKS_HELD,
            (_, None) => LOOKS,
            (Some(read), Some(now)) if !now.is_same_file(read) => LOOKS,
            _ if self.ends_whole => LOOKS_IN_PLACE,
            _ => LOOKS_HALF_A_LINE,
        }
    }
}

/// Looks that find the same, with the first of them.
const LOOKS: u32 = 2;
const LOOKS_IN_PLACE: u32 = 5;
const LOOKS_HALF_A_LINE: u32 = 30;
/// Some programs never close a file that they have written.
const LOOKS_HELD: u32 = 300;

fn ends_whole(path: &Path) -> io::Result<bool> {
    // A pipe that took its place would hold up the opening.
    let metadata = std::fs::metadata(path)?;
    let mut last = [0];
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(true);
    }
    File::open(path)?.read_exact_at(&mut last, metadata.len() - 1)?;
    Ok(last == *b"\n")
}

/// What was seen of the files.
#[derive(Debug, Default)]
pub struct Watch {
    /// What the last look saw, and how many in a row have seen it.
    last: HashMap<PathBuf, (Option<Stamp>, u32)>,
    /// What was of no use: it is not tried again until it changes.
    refused: HashMap<PathBuf, Option<Stamp>>,
}

impl Watch {
    /// Takes a look. Returns the files that changed and are at rest.
    pub fn look(&mut self, seen: impl IntoIterator<Item = Seen>) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        let mut last = HashMap::new();
        for file in seen {
            let looks = match self.last.get(&file.path) {
                Some((before, looks)) if *before == file.now => looks.saturating_add(1),
                _ => 1,
            };
            let is_refused = self.refused.get(&file.path) == Some(&file.now);
            if file.now != file.read && looks >= file.rest() && !is_refused {
                changed.push(file.path.clone());
            }
            last.insert(file.path, (file.now, looks));
        }
        self.last = last;
        changed
    }

    /// What was seen last could not be used.
    pub fn refuse(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        for path in paths {
            let now = self.last.get(&path).and_then(|(now, _)| *now);
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

    /// Of a state of a file: which file, and how large.
    fn stamp(inode: u64, size: u64) -> Option<Stamp> {
        Some(Stamp {
            device: 1,
            inode,
            born: None,
            size,
            modified: (3, 4),
            changed: (5, 6),
            access: (0o644, 0, 0),
        })
    }

    fn seen(now: Option<Stamp>) -> Seen {
        Seen {
            path: PathBuf::from("list"),
            read: stamp(2, 1),
            now,
            ends_whole: true,
            is_being_written: false,
        }
    }

    /// What each look in turn reports, at the file 2 that was read with size 1.
    fn looks(watch: &mut Watch, states: &[Option<Stamp>]) -> Vec<bool> {
        let look = |now: &Option<Stamp>| !watch.look([seen(*now)]).is_empty();
        states.iter().map(look).collect()
    }

    /// The look that reports a file which does not change any more.
    fn rests(file: &Seen) -> Option<u32> {
        let mut watch = Watch::default();
        (1..=LOOKS_HELD).find(|_| !watch.look([file.clone()]).is_empty())
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_read() {
        let states = [(2, 1), (2, 1), (9, 2), (9, 3), (9, 4), (9, 4), (9, 4)];
        let states = states.map(|(inode, size)| stamp(inode, size));
        let expected = [false, false, false, false, false, true, true];
        assert_eq!(looks(&mut Watch::default(), &states), expected);
    }

    #[test]
    fn what_is_written_in_place_rests_for_longer_than_what_was_renamed_into_its_place() {
        let renamed = seen(stamp(9, 5));
        let in_place = seen(stamp(2, 5));
        let absent_before = Seen {
            read: None,
            ..renamed.clone()
        };
        let half_a_line = Seen {
            ends_whole: false,
            ..in_place.clone()
        };
        let held = Seen {
            is_being_written: true,
            ..in_place.clone()
        };
        for (file, expected) in [
            (renamed, Some(LOOKS)),
            (seen(None), Some(LOOKS)),
            (in_place, Some(LOOKS_IN_PLACE)),
            (absent_before, Some(LOOKS_IN_PLACE)),
            (half_a_line, Some(LOOKS_HALF_A_LINE)),
            (held, Some(LOOKS_HELD)),
            (seen(stamp(2, 1)), None),
        ] {
            assert_eq!(rests(&file), expected, "{file:?}");
        }
    }

    #[test]
    fn a_writer_that_pauses_after_whole_lines_is_waited_for_until_it_closes_the_file() {
        let mut watch = Watch::default();
        let mut look = |size, is_being_written| {
            let file = Seen {
                is_being_written,
                ..seen(stamp(2, size))
            };
            !watch.look([file]).is_empty()
        };
        assert!((0..60).all(|_| !look(5, true)));
        assert!((0..60).all(|_| !look(6, true)));
        // Closed, and at rest since long.
        assert!(look(6, false));
    }

    #[test]
    fn a_file_that_is_gone_for_a_moment_is_not_missed_and_one_that_stays_away_is() {
        let there = stamp(2, 1);
        let states = [there, None, there, there, None, None];
        let expected = [false, false, false, false, false, true];
        assert_eq!(looks(&mut Watch::default(), &states), expected);
    }

    #[test]
    fn what_was_refused_is_tried_again_only_when_it_changes() {
        let mut watch = Watch::default();
        let [bad, good] = [stamp(8, 2), stamp(9, 3)];
        assert_eq!(looks(&mut watch, &[bad, bad]), [false, true]);
        watch.refuse([PathBuf::from("list")]);
        assert_eq!(looks(&mut watch, &[bad, good, good]), [false, false, true]);
        watch.try_again();
        assert!(!watch.has_refused());
        assert_eq!(looks(&mut watch, &[good]), [true]);
    }

    #[test]
    fn half_a_line_at_the_end_is_seen_and_only_of_a_text_that_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, "192.0.2.1\n").unwrap();
        let read = Stamp::of(&path);
        for (content, is_text, ends_whole) in [
            ("192.0.2.1\n198.51.", true, false),
            ("192.0.2.1\n198.51.", false, true),
            ("192.0.2.1\n198.51.100.1\n", true, true),
            ("", true, true),
        ] {
            std::fs::write(&path, content).unwrap();
            let seen = Seen::at(&path, read, is_text);
            assert_eq!(seen.ends_whole, ends_whole, "{content:?}");
        }
        assert!(Seen::at(directory.path(), read, true).ends_whole);
        assert!(Seen::at(Path::new("/nonexistent"), read, true).ends_whole);
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
