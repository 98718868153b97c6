//! Follows a log that tells of logins: a file, a FIFO, or the standard input.
//!
//! Each has a thread that looks four times a second, because a file that is rotated, truncated,
//! removed or on a network file system is found again by its name and its inode alone. Rejected:
//! inotify, which tells of the same a moment earlier, not on every file system, and not reliably
//! enough to do without the looks.
//!
//! `log.rs` says what of a file is new.

mod log;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use self::log::Log;
use super::lines::Lines;
use super::{Grants, now};
use crate::config::{Follow, Followed, LoginPattern};

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
            let ended = reader.read_on(&mut io::stdin().lock(), &mut Lines::default());
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
                log.look(&mut reader, Instant::now());
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
    piece: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(grants: &'a Grants, pattern: &'a LoginPattern, name: &'a str) -> Self {
        Self {
            grants,
            pattern,
            name,
            piece: vec![0; PIECE],
        }
    }

    /// Reads until there is nothing more for now.
    fn read_on(&mut self, from: &mut impl Read, lines: &mut Lines) -> io::Result<()> {
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
            lines.feed(bytes, |line| {
                grants.counts.lines.fetch_add(1, Ordering::Relaxed);
                if let Some(login) = pattern.login(line) {
                    grants.counts.logins.fetch_add(1, Ordering::Relaxed);
                    let user = login.user.get(..login.user.len().min(USER_MAX));
                    let user = String::from_utf8_lossy(user.unwrap_or_default());
                    let by = format!("user {user} in {name}");
                    // That there is no room is logged and counted.
                    let _ = grants.add(login.address, None, &by, false, now());
                }
            });
            let long = lines.take_long();
            let counts = &self.grants.counts;
            counts.long_lines.fetch_add(long, Ordering::Relaxed);
            counts.lines.fetch_add(long, Ordering::Relaxed);
        }
    }
}

/// Bytes of a user's name that are kept.
const USER_MAX: usize = 256;
