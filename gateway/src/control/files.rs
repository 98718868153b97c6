//! The files and directories that the gate needs later, as the user that it is by then.
//!
//! At the start root reads all of them. What only root can read is missed at the first reload,
//! weeks later; and a `state_dir` that cannot be written leaves the guard over lists without what
//! it compares with, at a start when it is needed. So they are tried as that user once it is taken
//! on, from time to time while the gate runs, and by `doctor`. The state directory is made if it is
//! missing. What is there already keeps its owner and its mode.
//!
//! Tried with `faccessat(2)` rather than opened: a FIFO would hang, and a file need not be writable
//! to be replaced.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, User, faccessat, geteuid};
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::user;
use super::{Control, lists};
use crate::config::{Auth, Config, Followed};

/// How often they are tried.
const TRY_EVERY: Duration = Duration::from_secs(30);
/// Of the state directory, where the gate makes it.
const STATE_DIR_MODE: u32 = 0o750;

/// A file or directory that this process cannot use as it has to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Unusable {
    /// What the configuration calls it.
    pub(crate) what: &'static str,
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) problem: String,
    /// What will not work for it.
    pub(crate) consequence: &'static str,
    /// What to do.
    pub(crate) next_step: String,
}

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Files {
    unusable: Mutex<Vec<Unusable>>,
    saves_good: AtomicU64,
    saves_failed: AtomicU64,
    last_saved: AtomicU64,
}

/// The state directory, as it is reported.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct StateDir {
    pub(super) saves_good: u64,
    pub(super) saves_failed: u64,
    /// Of the last good save of this process, in seconds since 1970; 0: there was none.
    pub(super) last_saved_at: u64,
}

impl Files {
    /// Notes whether the lists were saved.
    pub(super) fn saved(&self, is_good: bool) {
        if !is_good {
            self.saves_failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        self.last_saved.store(now, Ordering::Relaxed);
        self.saves_good.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn state_dir(&self) -> StateDir {
        StateDir {
            saves_good: self.saves_good.load(Ordering::Relaxed),
            saves_failed: self.saves_failed.load(Ordering::Relaxed),
            last_saved_at: self.last_saved.load(Ordering::Relaxed),
        }
    }

    /// What cannot be used.
    pub(super) fn unusable(&self) -> Vec<Unusable> {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        unusable.clone()
    }

    /// Tries all of them, and logs what is news.
    pub(super) fn try_all(&self, config: &Config) {
        let found = unusable(config);
        let mut known = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        for new in found.iter().filter(|new| !known.contains(new)) {
            tracing::warn!(
                path = %new.path.display(),
                "{}: {}; {} ({})", new.what, new.problem, new.consequence, new.next_step
            );
        }
        for old in known.iter() {
            if !found.iter().any(|new| new.path == old.path) {
                tracing::info!(path = %old.path.display(), "{}: can be used again", old.what);
            }
        }
        *known = found;
    }
}

/// Tries them again and again, for as long as the gate runs.
pub(super) async fn watch(control: Arc<Control>) {
    loop {
        sleep(TRY_EVERY).await;
        let control = Arc::clone(&control);
        // A network file system that hangs holds up nothing but this.
        let tried =
            spawn_blocking(move || control.files.try_all(&control.shared.config.load())).await;
        if tried.is_err() {
            tracing::error!("looking at the files ended in a panic");
        }
    }
}

/// Makes the state directory if it is missing, for the user that the gate becomes. Whether it can
/// be used is tried later.
pub(super) fn make_state_dir(config: &Config, user: Option<&user::User>) {
    let path = &config.state_dir;
    if !needs_state(config) || path.exists() {
        return;
    }
    match make_directory(path, user) {
        Ok(()) => tracing::info!(path = %path.display(), "state_dir: made, it was missing"),
        Err(error) => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "state_dir: is missing and cannot be made"
            );
        }
    }
}

fn make_directory(path: &Path, user: Option<&user::User>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(STATE_DIR_MODE).create(path)?;
    if let Some(user) = user.filter(|_| geteuid().is_root()) {
        // By descriptor: where others may write beside it, the name could be another's by now.
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        if directory.metadata()?.uid() == 0 {
            fchown(&directory, Some(user.uid()), Some(user.gid()))?;
        }
    }
    Ok(())
}

/// Whether anything is kept there under this configuration.
pub(crate) fn needs_state(config: &Config) -> bool {
    config.grants.is_some() || !config.lists.sources.is_empty() && lists::kept_at(config).is_some()
}

/// What the process as it is now cannot use.
pub(crate) fn unusable(config: &Config) -> Vec<Unusable> {
    let mut found = Vec::new();
    if needs_state(config) {
        found.extend(unusable_state_dir(config));
    }
    found.extend(unusable_dovecot(config));
    let mut look = |what, path: &Path, consequence| {
        if let Err(problem) = try_to_read(path) {
            found.push(Unusable {
                what,
                path: path.to_owned(),
                problem,
                consequence,
                next_step: match fs::symlink_metadata(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        "let it be made, or correct its path in the configuration".to_owned()
                    }
                    _ => format!(
                        "make it readable for {}, and each directory above it searchable",
                        who()
                    ),
                },
            });
        }
    };
    if let Some(path) = &config.path {
        look("configuration", path, "a reload will fail");
    }
    for path in &config.named_files {
        look("file of the configuration", path, "a reload will fail");
    }
    let followed = config.grants.iter().flat_map(|grants| &grants.follow);
    for follow in followed {
        if let Followed::Path(path) = &follow.file {
            look("log with logins", path, "no grants come of it");
        }
    }
    for (path, _) in config.lists.files() {
        look(
            "list",
            path,
            "a change of it will not come into force, and a reload will fail",
        );
    }
    found
}

/// A connection to a unix socket takes the right to write to it.
fn unusable_dovecot(config: &Config) -> Option<Unusable> {
    let socket = config.auth.as_ref().and_then(Auth::dovecot)?;
    let errno = access(socket, AccessFlags::W_OK).err()?;
    Some(Unusable {
        what: "auth.dovecot",
        path: socket.to_owned(),
        problem: describe(socket, errno),
        consequence: "clients that authenticate hear 454",
        next_step: format!(
            "run Dovecot, with a `unix_listener` in its `service auth` whose `user` or `group` and \
             `mode` let {} write to it",
            who()
        ),
    })
}

/// The directory in which lists are kept has to have room for them.
fn unusable_state_dir(config: &Config) -> Option<Unusable> {
    let path = &config.state_dir;
    let lists = config.policy.lists();
    let needed = lists.filtered.size() + lists.rejected.size();
    let (problem, next_step) = match try_to_write(path, needed) {
        Ok(()) => return None,
        Err(Errno::ENOSPC) => (
            format!("full: the lists take {} KiB", needed.div_ceil(1024)),
            "make room, or choose another directory".to_owned(),
        ),
        Err(errno @ Errno::EROFS) => (
            errno.desc().to_lowercase(),
            "choose a directory on a file system that can be written".to_owned(),
        ),
        Err(errno) => (
            describe(path, errno),
            format!("install -d -m 750 -o {} {}", who(), path.display()),
        ),
    };
    Some(Unusable {
        what: "state_dir",
        path: path.clone(),
        problem,
        consequence: "lists and grants in force are not kept: the next start has nothing to \
                      compare its lists with, and users have to log in again",
        next_step,
    })
}

fn try_to_write(path: &Path, needed: u64) -> Result<(), Errno> {
    if !fs::metadata(path).map_err(|error| errno(&error))?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    access(path, AccessFlags::W_OK | AccessFlags::X_OK)?;
    let room = statvfs(path)?;
    // Some network file systems say that they have more than there can be.
    let free = (room.blocks_available() as u64).saturating_mul(room.fragment_size() as u64);
    if free <= needed {
        return Err(Errno::ENOSPC);
    }
    Ok(())
}

fn try_to_read(path: &Path) -> Result<(), String> {
    access(path, AccessFlags::R_OK).map_err(|errno| describe(path, errno))
}

/// What is wrong, with the directory that is in the way if it is not the file itself.
fn describe(path: &Path, errno: Errno) -> String {
    let what = errno.desc().to_lowercase();
    let mut above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .filter(|above| *above != Path::new(""))
        .collect();
    above.reverse();
    let blocking = above
        .iter()
        .find(|above| access(above, AccessFlags::X_OK).is_err());
    match blocking {
        Some(directory) if errno == Errno::EACCES => {
            format!("{what} for {}, by {}", who(), directory.display())
        }
        _ if errno == Errno::EACCES => format!("{what} for {}", who()),
        _ => what,
    }
}

/// With the effective user and groups, which are what counts when a file is opened.
fn access(path: &Path, wanted: AccessFlags) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The user that this process is.
fn who() -> String {
    let uid = geteuid();
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config_with(state_dir: &Path, list: &Path) -> Config {
        let text = format!(
            "state_dir = \"{}\"\n[[listener]]\naddress = \"127.0.0.1:2525\"\n[[route]]\n\
             domains = [\"*\"]\nnext_hop = [\"discard\"]\n[[list]]\nname = \"drop\"\n\
             file = \"{}\"\naction = \"reject\"\n",
            state_dir.display(),
            list.display()
        );
        config::parse(Path::new("test"), &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn a_missing_state_directory_is_made_and_one_that_is_no_directory_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        fs::write(&list, "192.0.2.1\n").unwrap();
        let state_dir = directory.path().join("a/b");
        let mut config = config_with(&state_dir, &list);
        config.path = None;
        assert_eq!(unusable(&config).len(), 1);
        make_state_dir(&config, None);
        assert_eq!(unusable(&config), []);
        assert_eq!(fs::metadata(&state_dir).unwrap().mode() & 0o777, 0o750);
        let files = Files::default();
        files.try_all(&config);
        fs::remove_dir(&state_dir).unwrap();
        fs::write(&state_dir, "").unwrap();
        fs::remove_file(&list).unwrap();
        files.try_all(&config);
        let told: Vec<_> = files.unusable().iter().map(|found| found.what).collect();
        assert_eq!(told, ["state_dir", "list"]);
    }

    #[test]
    fn a_gate_that_keeps_nothing_needs_no_state_directory() {
        let mut config = Config::default_gate();
        config.state_dir = "/nonexistent/portcullis".into();
        assert_eq!(unusable(&config), []);
        make_state_dir(&config, None);
        assert!(!config.state_dir.exists());
    }
}
