//! A file or FIFO that is followed: what of it is new.
//!
//! A login of the past is no grant. What a file holds when it is seen first is passed over, unless
//! it is certain to be new: there was no file of its name before, or it took the place of one that
//! was read. A file that was trimmed goes on at its end. After an error a file is read on from
//! where it was.
//!
//! A file that was rotated is read for a minute more beside its successor: its writer writes to it
//! until it is told to open the new one. Not noticed: a file that is truncated and has grown beyond
//! its old length between two looks.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;

use super::super::lines::Lines;
use super::Reader;
use crate::printable::printable;

/// A rotated file is read for so long, and a file that could not be opened for longer is not new
/// any more.
const ROTATION_MAX: Duration = Duration::from_secs(60);

/// A file or FIFO.
pub(super) struct Log<'a> {
    path: &'a Path,
    open: Option<OpenLog>,
    /// The file that had the name before, and when another got it.
    previous: Option<(OpenLog, Instant)>,
    /// There was no file of this name: one that appears is new.
    was_absent: bool,
    /// Since when there is a file that cannot be opened.
    closed_since: Option<Instant>,
    was_looked_at: bool,
    problem: Option<String>,
}

/// An open file.
struct OpenLog {
    file: File,
    about: Metadata,
    lines: Lines,
}

impl<'a> Log<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        Self {
            path,
            open: None,
            previous: None,
            was_absent: false,
            closed_since: None,
            was_looked_at: false,
            problem: None,
        }
    }

    /// Reads what has come since the last look.
    pub(super) fn look(&mut self, reader: &mut Reader<'_>, now: Instant) {
        let read = self.read(reader, now);
        let is_first = !std::mem::replace(&mut self.was_looked_at, true);
        let problem = read.err().map(|error| error.to_string());
        if problem != self.problem {
            let path = printable(&self.path.to_string_lossy()).to_string();
            match &problem {
                Some(problem) => tracing::warn!(
                    path,
                    problem,
                    "cannot follow a log: no grants come of it until it can be read"
                ),
                None => tracing::info!(path, "the log can be followed again"),
            }
        } else if is_first {
            tracing::info!(path = %printable(&self.path.to_string_lossy()), "following a log");
        }
        self.problem = problem;
    }

    fn read(&mut self, reader: &mut Reader<'_>, now: Instant) -> io::Result<()> {
        if let Some((previous, since)) = &mut self.previous {
            let read = previous.read_on(reader);
            if read.is_err() || now.duration_since(*since) >= ROTATION_MAX {
                self.previous = None;
            }
        }
        let read = self
            .open
            .as_mut()
            .map_or(Ok(()), |open| open.read_on(reader));
        let found = fs::metadata(self.path).inspect_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                self.was_absent = true;
                self.closed_since = None;
            }
        })?;
        match &mut self.open {
            Some(open) if open.is(&found) => {
                if read.is_err() {
                    // The file may be back, but not for a descriptor of before.
                    let _ = open.open_again(self.path);
                }
                read
            }
            _ => self.open_new(reader, now),
        }
    }

    /// Opens the file that has the name now, and reads it.
    fn open_new(&mut self, reader: &mut Reader<'_>, now: Instant) -> io::Result<()> {
        let opened = OpenLog::open(self.path);
        let mut new = opened.inspect_err(|_| {
            self.closed_since.get_or_insert(now);
        })?;
        let is_new = self.was_absent || self.open.is_some();
        let is_late = |since| now.duration_since(since) >= ROTATION_MAX;
        if !is_new || self.closed_since.is_some_and(is_late) {
            new.pass_over()?;
        }
        self.was_absent = false;
        self.closed_since = None;
        let before = self.open.take();
        self.previous = before.map(|before| (before, now));
        self.open.insert(new).read_on(reader)
    }
}

impl OpenLog {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            // The open of a FIFO would wait for a writer.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let about = file.metadata()?;
        if !about.is_file() && !about.file_type().is_fifo() {
            return Err(io::Error::other("neither a file nor a FIFO"));
        }
        Ok(Self {
            file,
            about,
            lines: Lines::default(),
        })
    }

    fn is(&self, other: &Metadata) -> bool {
        (self.about.dev(), self.about.ino()) == (other.dev(), other.ino())
    }

    /// Opens the same file once more, at the place where it was read to.
    fn open_again(&mut self, path: &Path) -> io::Result<()> {
        let position = self.file.stream_position()?;
        let mut again = Self::open(path)?;
        if self.is(&again.about) {
            again.file.seek(SeekFrom::Start(position))?;
            self.file = again.file;
        }
        Ok(())
    }

    /// Goes to the end of what there is.
    fn pass_over(&mut self) -> io::Result<()> {
        if !self.about.is_file() {
            return Ok(());
        }
        let end = self.file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if end > 0 {
            self.file.read_exact_at(&mut last, end - 1)?;
        }
        if last == [b'\n'] {
            self.lines.reset();
        } else {
            self.lines.skip_rest();
        }
        Ok(())
    }

    fn read_on(&mut self, reader: &mut Reader<'_>) -> io::Result<()> {
        if self.about.is_file() {
            let length = self.file.metadata()?.len();
            if length < self.file.stream_position()? {
                self.pass_over()?;
            }
        }
        reader.read_on(&mut self.file, &mut self.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::super::super::{Grants, now};
    use super::*;
    use crate::config::{self, LoginPattern};
    use crate::policy::Granted;

    struct Scene {
        directory: tempfile::TempDir,
        grants: Grants,
        pattern: LoginPattern,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let settings = config::Grants {
                time: Duration::from_secs(60),
                max: 100,
                follow: Vec::new(),
            };
            let granted = Arc::new(Granted::default());
            let grants = Grants::open(&settings, directory.path(), granted, None, now());
            let pattern = LoginPattern::parse("^(?P<ip>[0-9.]+)$").unwrap();
            Self {
                directory,
                grants,
                pattern,
            }
        }

        /// The last octets of the addresses with a grant.
        fn granted(&self) -> Vec<u8> {
            let last = |(address, _)| match address {
                IpAddr::V4(address) => std::net::Ipv4Addr::octets(&address)[3],
                IpAddr::V6(_) => 0,
            };
            self.grants.list().into_iter().map(last).collect()
        }
    }

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_log_is_followed_over_rotation_and_truncation_and_its_past_is_passed_over() {
        let scene = Scene::new();
        let path = scene.directory.path().join("log");
        append(&path, "192.0.2.1\n192.0.2.");
        let mut reader = Reader::new(&scene.grants, &scene.pattern, "log");
        let (mut log, now) = (Log::new(&path), Instant::now());
        log.look(&mut reader, now);
        append(&path, "99\n192.0.2.2\n192.0.2.3");
        log.look(&mut reader, now);
        assert_eq!(scene.granted(), [2], "neither the past nor half a line");
        // Rotated: the rest of the old file, then the new one from its beginning.
        append(&path, "\n192.0.2.4\n");
        fs::rename(&path, scene.directory.path().join("log.1")).unwrap();
        append(&path, "192.0.2.5\n");
        log.look(&mut reader, now);
        assert_eq!(scene.granted(), [2, 3, 4, 5]);
        // Truncated in place.
        fs::write(&path, "").unwrap();
        log.look(&mut reader, now);
        append(&path, "192.0.2.6\n");
        log.look(&mut reader, now);
        assert_eq!(scene.granted(), [2, 3, 4, 5, 6]);
        // Away for a while.
        fs::remove_file(&path).unwrap();
        log.look(&mut reader, now);
        assert!(log.problem.is_some());
        append(&path, "garbage\n192.0.2.7\n");
        log.look(&mut reader, now);
        assert_eq!(
            (scene.granted(), &log.problem),
            (vec![2, 3, 4, 5, 6, 7], &None)
        );
        assert_eq!(scene.grants.report().logins, 6);
    }

    #[test]
    fn a_fifo_is_followed_over_its_writers() {
        let scene = Scene::new();
        let path = scene.directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = Reader::new(&scene.grants, &scene.pattern, "fifo");
        let (mut log, now) = (Log::new(&path), Instant::now());
        log.look(&mut reader, now);
        for host in 1..=2 {
            append(&path, &format!("192.0.2.{host}\n"));
            log.look(&mut reader, now);
        }
        assert_eq!(scene.granted(), [1, 2]);
    }

    #[test]
    fn the_past_of_a_log_never_becomes_a_grant() {
        let scene = Scene::new();
        let path = scene.directory.path().join("log");
        let mut reader = Reader::new(&scene.grants, &scene.pattern, "log");
        // There is a file at the start, and it cannot be read: a directory stands for that.
        fs::create_dir(&path).unwrap();
        let (mut log, now) = (Log::new(&path), Instant::now());
        log.look(&mut reader, now);
        fs::remove_dir(&path).unwrap();
        append(&path, "192.0.2.1\n");
        log.look(&mut reader, now);
        append(&path, "192.0.2.2\n");
        log.look(&mut reader, now);
        assert_eq!(scene.granted(), [2], "unreadable at the start");
        // Trimmed in place, and within a line.
        fs::write(&path, "192.0.2.3\n192.0.2").unwrap();
        log.look(&mut reader, now);
        append(&path, ".4\n192.0.2.5\n");
        log.look(&mut reader, now);
        assert_eq!(scene.granted(), [2, 5], "trimmed");
        // A read fails: this descriptor can only write.
        let mut broken = OpenOptions::new().append(true).open(&path).unwrap();
        broken.seek(SeekFrom::End(0)).unwrap();
        append(&path, "192.0.2.6\n");
        log.open.as_mut().unwrap().file = broken;
        log.look(&mut reader, now);
        assert!(log.problem.is_some());
        log.look(&mut reader, now);
        assert_eq!(log.problem, None);
        assert_eq!(scene.granted(), [2, 5, 6], "after an error");
    }

    #[test]
    fn a_new_log_that_was_closed_to_the_gate_for_long_is_not_new_any_more() {
        for (wait, granted) in [(ROTATION_MAX / 2, vec![1, 2]), (ROTATION_MAX, vec![2])] {
            let scene = Scene::new();
            let path = scene.directory.path().join("log");
            let mut reader = Reader::new(&scene.grants, &scene.pattern, "log");
            let (mut log, now) = (Log::new(&path), Instant::now());
            log.look(&mut reader, now);
            fs::create_dir(&path).unwrap();
            log.look(&mut reader, now);
            fs::remove_dir(&path).unwrap();
            append(&path, "192.0.2.1\n");
            log.look(&mut reader, now + wait);
            append(&path, "192.0.2.2\n");
            log.look(&mut reader, now + wait);
            assert_eq!(scene.granted(), granted, "{wait:?}");
        }
    }

    #[test]
    fn logins_that_still_go_into_a_rotated_log_are_read_for_a_minute() {
        let scene = Scene::new();
        let path = scene.directory.path().join("log");
        let old = scene.directory.path().join("log.1");
        append(&path, "");
        let mut reader = Reader::new(&scene.grants, &scene.pattern, "log");
        let (mut log, now) = (Log::new(&path), Instant::now());
        log.look(&mut reader, now);
        append(&path, "192.0.2.");
        fs::rename(&path, &old).unwrap();
        append(&path, "192.0.2.2\n192.0.2.");
        log.look(&mut reader, now);
        append(&old, "3\n");
        append(&path, "4\n");
        log.look(&mut reader, now + ROTATION_MAX / 2);
        assert_eq!(scene.granted(), [2, 3, 4], "each has its own lines");
        append(&old, "192.0.2.5\n");
        log.look(&mut reader, now + ROTATION_MAX);
        append(&old, "192.0.2.6\n");
        log.look(&mut reader, now + ROTATION_MAX);
        assert_eq!(scene.granted(), [2, 3, 4, 5], "not for ever");
    }
}
