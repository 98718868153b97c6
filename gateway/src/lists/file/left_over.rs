//! What a process that was killed while it wrote a snapshot left beside it: up to hundreds of
//! megabytes each time.
//!
//! A snapshot is written to `.lists-PID-RANDOM` in the same directory, locked while it is written,
//! and renamed. The next writer removes what is left: files of that name that begin as ours do, are
//! not locked, and whose process has ended or that are an hour old. The lock protects files of
//! processes in a container, whose number means another process here. Rejected: unnamed files
//! (`O_TMPFILE`), which not every file system has, and which cannot take the place of a file
//! without a name in between.

use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{FILE_MAGIC, HEADER};

const PREFIX: &str = ".lists-";
/// Characters that are drawn for a name.
const RANDOM: usize = 6;
/// No compile takes so long.
const OLD: Duration = Duration::from_secs(3_600);
/// How each description begins: it is written first, the header last.
const BEGINNING: &[u8] = b"{\"compiled_at\":";

/// How the name of a file begins that this process is about to write.
pub(super) fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Tells others that this file is being written, for as long as it is open.
pub(super) fn hold(file: &File) {
    // Where there are no locks, the number of the process and the age have to do.
    let _ = file.try_lock();
}

/// Removes what is left in a directory; what cannot be removed stays.
pub(super) fn remove(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if is_left_over(&entry) && fs::remove_file(entry.path()).is_ok() {
            tracing::info!(
                file = %entry.path().display(),
                "removed what a compile of lists that was killed had left"
            );
        }
    }
}

fn is_left_over(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let Some(process) = name.to_str().and_then(process_of) else {
        return false;
    };
    let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    let is_over = process.is_some_and(is_gone) || age.is_some_and(|age| age >= OLD);
    is_file && is_over && is_ours_and_not_held(&entry.path()).unwrap_or(false)
}

/// Whose file this name is of; `Some(None)`: of a version that did not say so. `None`: it is no
/// name of ours.
fn process_of(name: &str) -> Option<Option<i32>> {
    let rest = name.strip_prefix(PREFIX)?;
    let (process, random) = match rest.split_once('-') {
        Some((process, random)) => (Some(process.parse().ok().filter(|pid| *pid > 0)?), random),
        None => (None, rest),
    };
    let is_random =
        random.len() == RANDOM && random.bytes().all(|octet| octet.is_ascii_alphanumeric());
    is_random.then_some(process)
}

fn is_gone(process: i32) -> bool {
    kill(Pid::from_raw(process), None) == Err(nix::errno::Errno::ESRCH)
}

/// Whether it begins as far as it was written as a snapshot does, and no process writes it.
fn is_ours_and_not_held(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut octets = [0; HEADER + BEGINNING.len()];
    let mut length = 0;
    while length < octets.len() {
        match file.read_at(&mut octets[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    let (header, beginning) = octets.split_at(HEADER);
    let magic = &header[..FILE_MAGIC.len()];
    let is_ours = (magic == FILE_MAGIC || header.iter().all(|octet| *octet == 0))
        && (length <= HEADER || beginning.starts_with(BEGINNING));
    Ok(is_ours && file.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A process that is gone.
    fn gone() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = child.id();
        child.wait().unwrap();
        process
    }

    fn half_written() -> Vec<u8> {
        let mut octets = vec![0; HEADER];
        octets.extend_from_slice(b"{\"compiled_at\":1,\"lists\":[");
        octets
    }

    #[test]
    fn only_what_a_dead_compile_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (gone, own) = (gone(), std::process::id());
        let half = half_written();
        let old = SystemTime::now() - 2 * OLD;
        let cases: [(String, &[u8], Option<SystemTime>, bool); 10] = [
            (format!(".lists-{gone}-aB3dE9"), &half, None, false),
            (format!(".lists-{gone}-empty0"), b"", None, false),
            (".lists-oldone".to_owned(), &half, Some(old), false),
            (format!(".lists-{own}-older0"), &half, Some(old), false),
            (format!(".lists-{own}-aB3dE9"), &half, None, true),
            (".lists-recent".to_owned(), &half, None, true),
            (
                format!(".lists-{gone}-other0"),
                b"someone else's",
                Some(old),
                true,
            ),
            (".lists-of-the-year".to_owned(), &half, Some(old), true),
            (format!(".lists-{gone}-toolong"), &half, Some(old), true),
            ("lists.snapshot".to_owned(), &half, Some(old), true),
        ];
        for (name, content, modified, _) in &cases {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            if let Some(modified) = modified {
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(*modified).unwrap();
            }
        }
        remove(directory.path());
        for (name, _, _, stays) in cases {
            assert_eq!(directory.path().join(&name).exists(), stays, "{name}");
        }
    }

    #[test]
    fn what_is_being_written_stays_whatever_the_process_is_called_here() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!(".lists-{}-aB3dE9", gone()));
        fs::write(&path, half_written()).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        hold(&file);
        remove(directory.path());
        assert!(path.exists());
        drop(file);
        remove(directory.path());
        assert!(!path.exists());
    }
}
