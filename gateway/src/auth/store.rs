//! Changing the user file on disk: one writer at a time, and no moment with half a file.
//!
//! The lock is on the directory, which stays when the file is replaced; a lock on the file itself
//! would be on one that is gone. A file that is a symbolic link is replaced where the link leads.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Users;
use super::users::{FileError, read_text};

/// A writer holds the lock for as long as it takes to write a file.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The user and group that a new file belongs to.
pub type Owner = (u32, u32);

/// Why a file was not changed. It is as it was.
#[derive(Debug)]
pub enum UpdateError {
    /// What was to be changed cannot be, in words.
    Refused(String),
    /// The file has faults, or would have.
    Faulty(Vec<FileError>),
    /// The file system.
    Io {
        /// What was done: "write the user file".
        step: &'static str,
        /// Its answer.
        error: io::Error,
    },
    /// Another writer has had the lock for five seconds.
    Locked,
}

/// Replaces the file by what `edit` makes of its text (empty, if there is no file) and gives the
/// users in it. The owner, and what the mode allows to owner and group, stay; a new file is for its
/// owner alone, which is `owner` if one is given.
///
/// # Errors
/// See [`UpdateError`].
pub fn update(
    path: &Path,
    owner: Option<Owner>,
    edit: impl FnOnce(&str) -> Result<String, String>,
) -> Result<Users, UpdateError> {
    let path = real_path(path);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let step = |step| move |error| UpdateError::Io { step, error };
    let lock = File::open(directory).map_err(step("open the directory of the user file"))?;
    take(&lock)?;
    let existing = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(step("read the user file")(error)),
    };
    let text = match existing {
        Some(_) => read_text(&path).map_err(|error| UpdateError::Faulty(vec![error]))?,
        None => String::new(),
    };
    let text = edit(&text).map_err(UpdateError::Refused)?;
    let users = Users::parse(&text).map_err(UpdateError::Faulty)?;

    // It begins with mode 0600.
    let mut new = tempfile::NamedTempFile::new_in(directory)
        .map_err(step("make a file beside the user file"))?;
    let write = step("write the user file");
    new.write_all(text.as_bytes()).map_err(&write)?;
    let own = new.as_file().metadata().map_err(&write)?;
    let kept = existing.as_ref().map(|file| (file.uid(), file.gid()));
    if let Some((uid, gid)) = kept.or(owner)
        && (own.uid(), own.gid()) != (uid, gid)
    {
        std::os::unix::fs::fchown(new.as_file(), Some(uid), Some(gid))
            .map_err(step("give the user file to its owner"))?;
    }
    if let Some(existing) = existing {
        let mode = existing.mode() & 0o660;
        let permissions = fs::Permissions::from_mode(mode);
        new.as_file().set_permissions(permissions).map_err(&write)?;
    }
    new.as_file().sync_all().map_err(&write)?;
    new.persist(&path).map_err(|error| write(error.error))?;
    lock.sync_all().map_err(&write)?;
    Ok(users)
}

/// Where a link leads. A file that is not there yet is where its name says.
fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn take(lock: &File) -> Result<(), UpdateError> {
    for _ in 0..LOCK_ATTEMPTS {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(error)) => {
                let step = "lock the directory of the user file";
                return Err(UpdateError::Io { step, error });
            }
        }
    }
    Err(UpdateError::Locked)
}

#[cfg(test)]
mod tests {
    use super::super::edit::{self, Fields};
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
        U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM";

    fn add(path: &Path, name: &str) -> Result<Users, UpdateError> {
        let password = Some(HASH.to_owned());
        let fields = Fields {
            password,
            ..Fields::default()
        };
        update(path, None, |text| edit::add(text, name, &fields))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_file_is_for_its_owner_alone_and_others_never_get_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        add(&path, "alice").unwrap();
        assert_eq!(mode(&path), 0o600);
        for (before, after) in [(0o640, 0o640), (0o644, 0o640), (0o400, 0o400)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            add(&path, &format!("user{before}")).unwrap();
            assert_eq!(mode(&path), after);
        }
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "nothing is left"
        );
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || add(path, &format!("user{number}")).unwrap());
            }
        });
        assert_eq!(Users::read(&path).unwrap().len(), 8);
    }

    #[test]
    fn a_link_stays_one_and_a_refused_change_leaves_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let [real, link] = ["real", "link"].map(|name| directory.path().join(name));
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        add(&link, "alice").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let before = fs::read(&real).unwrap();
        assert!(matches!(add(&link, "alice"), Err(UpdateError::Refused(_))));
        assert!(matches!(
            update(&link, None, |text| Ok(format!("{text}bob\n"))),
            Err(UpdateError::Faulty(_))
        ));
        assert_eq!(fs::read(&real).unwrap(), before);
    }

    #[test]
    fn the_owner_of_a_file_stays_and_a_new_one_gets_the_given_one() {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let owner = || {
            let metadata = fs::metadata(&path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        update(&path, Some((1234, 1235)), |_| Ok(String::new())).unwrap();
        assert_eq!(owner(), (1234, 1235));
        update(&path, Some((7, 7)), |_| Ok("# kept\n".to_owned())).unwrap();
        assert_eq!(owner(), (1234, 1235));
    }
}
