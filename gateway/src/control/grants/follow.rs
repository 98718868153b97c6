//! Follows a log that tells of logins: a file, a FIFO, or the standard input.
//!
//! Each has a thread that looks four times a second, because a file that is rotated, truncated,
//! removed or on a network file system is found again by its name and its inode alone. Rejected:
//! inotify, which tells of the same a moment earlier, not on every file system, and not reliably
//! enough to do without the looks.
//!
//! What a file holds at the start is passed over: those logins are over, or kept as grants. A file
//! that takes the place of another is read from its beginning, after the rest of the old one. One
//! that is truncated and has grown beyond its old length between two looks is not noticed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::libc;

use super::Grants;
use super::lines::Lines;
use crate::config::{Follow, Followed, LoginPattern};
use crate::printable::printable;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Bytes of one read.
const PIECE: usize = 1 << 16;

/// Starts the thread.
pub(super) fn start(grants: &Arc<Grants>, follow: &Follow) {
    let (grants, follow) = (Arc::clone(grants), follow.clone());
    let started = thread::Builder::new()
        .name("follow".to_owned())
        .spawn(move || run(&grants, &follow));
    if let Err(error) = started {
        tracing::error!(%error, "cannot start the thread that follows a log: no grants come of it");
    }
}

fn run(grants: &Grants, follow: &Follow) {
    match &follow.file {
        Followed::StandardInput => {
            let mut reader = Reader::new(grants, &follow.pattern, "the standard input");
            let ended = reader.read_on(&mut io::stdin().lock());
            match ended {
                Ok(()) => tracing::warn!("the standard input has ended: no more grants come of it"),
                Err(error) => tracing::warn!(%error, "cannot read the standard input any more"),
            }
        }
        Followed::Path(path) => {
            let name = path.to_string_lossy();
            let mut log = Log::new(path);
            let mut reader = Reader::new(grants, &follow.pattern, &name);
            loop {
                log.look(&mut reader);
                thread::sleep(LOOK_EVERY);
            }
        }
    }
}

/// Makes grants of the lines of a log.
struct Reader<'a> {
    grants: &'a Grants,
    pattern: &'a LoginPattern,
    name: &'a str,
    lines: Lines,
    piece: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(grants: &'a Grants, pattern: &'a LoginPattern, name: &'a str) -> Self {
        Self {
            grants,
            pattern,
            name,
            lines: Lines::default(),
            piece: vec![0; PIECE],
        }
    }

    /// Reads until there is nothing more for now.
    fn read_on(&mut self, from: &mut impl Read) -> io::Result<()> {
        loop {
            let number = match from.read(&mut self.piece) {
                Ok(0) => return Ok(()),
                Ok(number) => number,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (grants, pattern, name) = (self.grants, self.pattern, self.name);
            let bytes = self.piece.get(..number).unwrap_or_default();
            self.lines.feed(bytes, |line| {
                grants.counts.lines.fetch_add(1, Ordering::Relaxed);
                if let Some(login) = pattern.login(line) {
                    grants.counts.logins.fetch_add(1, Ordering::Relaxed);
                    let user = login.user.get(..login.user.len().min(USER_MAX));
                    let user = String::from_utf8_lossy(user.unwrap_or_default());
                    let by = format!("user {user} in {name}");
                    // That there is no room is logged and counted.
                    let _ = grants.add(login.address, None, &by, false);
                }
            });
            let long = self.lines.take_long();
            let counts = &self.grants.counts;
            counts.long_lines.fetch_add(long, Ordering::Relaxed);
            counts.lines.fetch_add(long, Ordering::Relaxed);
        }
    }
}

/// Bytes of a user's name that are kept.
const USER_MAX: usize = 256;

/// A file or FIFO.
struct Log<'a> {
    path: &'a Path,
    open: Option<(File, Metadata)>,
    /// It was looked at before, so a file that appears is new and read from its beginning.
    is_later: bool,
    problem: Option<String>,
}

impl<'a> Log<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            open: None,
            is_later: false,
            problem: None,
        }
    }

    /// Reads what has come since the last look.
    fn look(&mut self, reader: &mut Reader<'_>) {
        let read = self.read(reader);
        let is_first = !std::mem::replace(&mut self.is_later, true);
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

    fn read(&mut self, reader: &mut Reader<'_>) -> io::Result<()> {
        if let Some((file, about)) = &mut self.open {
            // Truncated: what is there now is new.
            if about.is_file() && file.metadata()?.len() < file.stream_position()? {
                file.seek(SeekFrom::Start(0))?;
                reader.lines.reset();
            }
            if let Err(error) = reader.read_on(file) {
                self.open = None;
                return Err(error);
            }
        }
        let now = std::fs::metadata(self.path)?;
        let is_same =
            |(_, about): &(File, Metadata)| (about.dev(), about.ino()) == (now.dev(), now.ino());
        if self.open.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        let mut file = OpenOptions::new()
            .read(true)
            // The open of a FIFO would wait for a writer.
            .custom_flags(libc::O_NONBLOCK)
            .open(self.path)?;
        let about = file.metadata()?;
        if !about.is_file() && !about.file_type().is_fifo() {
            return Err(io::Error::other("neither a file nor a FIFO"));
        }
        if about.is_file() && !self.is_later {
            file.seek(SeekFrom::End(0))?;
        }
        reader.lines.reset();
        let read = reader.read_on(&mut file);
        self.open = Some((file, about));
        read
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::net::IpAddr;

    use super::*;
    use crate::config;
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
            let grants = Grants::open(&settings, directory.path(), granted, None);
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
        let mut log = Log::new(&path);
        log.look(&mut reader);
        append(&path, "99\n192.0.2.2\n192.0.2.3");
        log.look(&mut reader);
        assert_eq!(scene.granted(), [2], "neither the past nor half a line");
        // Rotated: the rest of the old file, then the new one from its beginning.
        append(&path, "\n192.0.2.4\n");
        fs::rename(&path, scene.directory.path().join("log.1")).unwrap();
        append(&path, "192.0.2.5\n");
        log.look(&mut reader);
        assert_eq!(scene.granted(), [2, 3, 4, 5]);
        // Truncated in place.
        fs::write(&path, "").unwrap();
        log.look(&mut reader);
        append(&path, "192.0.2.6\n");
        log.look(&mut reader);
        assert_eq!(scene.granted(), [2, 3, 4, 5, 6]);
        // Away for a while.
        fs::remove_file(&path).unwrap();
        log.look(&mut reader);
        assert!(log.problem.is_some());
        append(&path, "garbage\n192.0.2.7\n");
        log.look(&mut reader);
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
        let mut log = Log::new(&path);
        log.look(&mut reader);
        for host in 1..=2 {
            append(&path, &format!("192.0.2.{host}\n"));
            log.look(&mut reader);
        }
        assert_eq!(scene.granted(), [1, 2]);
    }
}
