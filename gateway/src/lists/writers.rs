//! Which files of lists a process has open for writing, as inotify tells it: a download into the
//! file itself may pause for as long as the network does, and what is there meanwhile looks whole.
//!
//! A write is followed by the close of its writer, however it ends. Where there are no events (a
//! network file system, a limit of the system) no writer is known, and the time that the file has
//! been at rest decides. Rejected: a read lease (`F_SETLEASE`), which also reports earlier writers,
//! but only to the owner of the file.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::watch::{Seen, Stamp};

/// At one look; each takes some hundred events.
const READS_MAX: usize = 1_000;

/// The files that are watched, and those with a writer.
#[derive(Debug, Default)]
pub struct Writers {
    inotify: Option<Inotify>,
    watched: HashMap<PathBuf, (Stamp, WatchDescriptor)>,
    written: HashSet<WatchDescriptor>,
}

impl Writers {
    /// Says of each file whether it is being written.
    pub fn look(&mut self, files: &mut [Seen]) {
        if self.inotify.is_none() {
            let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
            self.inotify = Inotify::init(flags).ok();
        }
        self.read_events();
        self.watched
            .retain(|path, _| files.iter().any(|file| file.path == *path));
        for file in files {
            file.is_being_written = self.is_written(&file.path, file.now);
        }
    }

    fn read_events(&mut self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        // Until there are no more, or a writer is as fast as we are.
        for _ in 0..READS_MAX {
            let Ok(events) = inotify.read_events() else {
                return;
            };
            for event in events {
                note(&mut self.written, event.wd, event.mask);
            }
        }
    }

    fn is_written(&mut self, path: &Path, now: Option<Stamp>) -> bool {
        let (Some(inotify), Some(now)) = (&self.inotify, now) else {
            return false;
        };
        match self.watched.get(path) {
            Some((stamp, watch)) if stamp.is_same_file(now) => {
                return self.written.contains(watch);
            }
            Some((_, watch)) => {
                let _ = inotify.rm_watch(*watch);
                self.written.remove(watch);
                self.watched.remove(path);
            }
            None => {}
        }
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        if let Ok(watch) = inotify.add_watch(path, events) {
            self.watched.insert(path.to_owned(), (now, watch));
        }
        false
    }
}

fn note(written: &mut HashSet<WatchDescriptor>, watch: WatchDescriptor, mask: AddWatchFlags) {
    if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        // Closes may be among what there was no room for, and a writer that goes on is seen again.
        written.clear();
    } else if mask.contains(AddWatchFlags::IN_MODIFY) {
        written.insert(watch);
    } else {
        // Closed, or gone.
        written.remove(&watch);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_being_written_until_its_writer_closes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, "192.0.2.1\n").unwrap();
        let mut writers = Writers::default();
        let mut is_written = || {
            let mut files = [Seen::at(&path, None, true)];
            writers.look(&mut files);
            files[0].is_being_written
        };
        assert!(!is_written());
        let mut file = File::options().append(true).open(&path).unwrap();
        assert!(!is_written(), "nothing was written");
        file.write_all(b"192.0.2.2\n").unwrap();
        assert!(is_written() && is_written());
        file.write_all(b"192.0.2.3\n").unwrap();
        drop(file);
        assert!(!is_written());
        // Another file in its place is watched in turn.
        let other = directory.path().join("other");
        fs::write(&other, "192.0.2.1\n").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!is_written());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"192.0.2.2\n").unwrap();
        assert!(is_written());
        drop(file);
        assert!(!is_written());
        fs::remove_file(&path).unwrap();
        assert!(!is_written());
    }
    #[test]
    fn where_events_were_lost_no_file_is_waited_for_whose_close_may_be_among_them() {
        let directory = tempfile::tempdir().unwrap();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        let watch = inotify.add_watch(directory.path(), events).unwrap();
        let mut written = HashSet::new();
        note(&mut written, watch, AddWatchFlags::IN_MODIFY);
        assert!(written.contains(&watch));
        note(&mut written, watch, AddWatchFlags::IN_Q_OVERFLOW);
        assert!(written.is_empty());
    }
}
