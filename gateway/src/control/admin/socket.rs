//! The unix socket for commands: where it is made, and whose it is.
//!
//! It is made with the privileges of the start, so its directory may be root's. The gate never
//! removes it at its end, as that could be the socket of its successor; the next start removes it
//! if no process listens at it any more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown,
};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, AccessFlags, Gid, Uid, getegid, geteuid, getgroups};

use super::super::Error;
use super::super::user::User;
use super::caller::Access;

/// Makes the socket, for the user that the gate becomes. Its mode is 0660, with the group that it
/// admits if that is one; it is 0666 if users or several groups are admitted, which no mode can
/// say: then the credentials of each peer decide alone.
///
/// The directory may be that user's, and the gate is root still. So the socket is made with its
/// mode, and its owner is changed by a descriptor: the name could lead elsewhere by then.
///
/// # Errors
/// When it cannot be made, or another process listens there.
pub(in super::super) fn bind(
    path: &Path,
    access: &Access,
    user: Option<&User>,
) -> Result<UnixListener, Error> {
    make(path, access, user).map_err(|error| broken(path, error))
}

/// Whether a start could make the socket, as far as that can be told without making it.
///
/// # Errors
/// Why it could not. That a process listens there is none: it may be the gate.
pub(super) fn try_bind(path: &Path) -> Result<(), Error> {
    let is_no_socket = |found: fs::Metadata| !found.file_type().is_socket();
    let tried = if fs::symlink_metadata(path).is_ok_and(is_no_socket) {
        Err(no_socket())
    } else {
        try_directory(path)
    };
    tried.map_err(|error| broken(path, error))
}

fn broken(path: &Path, error: io::Error) -> Error {
    Error::AdminSocket {
        path: path.to_owned(),
        error,
    }
}

fn no_socket() -> io::Error {
    io::Error::other("there is a file that is no socket")
}

fn make(path: &Path, access: &Access, user: Option<&User>) -> io::Result<UnixListener> {
    make_directory(path, user)?;
    remove_stale(path)?;
    let group = access.only_group().map(Gid::from_raw);
    let is_root = geteuid().is_root();
    // Who is not root can give it to a group of its own.
    let group = group.filter(|group| is_root || is_member(*group));
    let listener = if group.is_some() || !access.admits_others() {
        bind_with(path, Mode::from_bits_truncate(0o660))?
    } else {
        bind_with(path, Mode::from_bits_truncate(0o666))?
    };
    listener.set_nonblocking(true)?;
    if is_root {
        let gid = group.or(user.map(|user| Gid::from_raw(user.gid())));
        let uid = user.map(|user| Uid::from_raw(user.uid()));
        give(path, uid, gid)?;
    } else if group.is_some() {
        give(path, None, group)?;
    }
    Ok(listener)
}

fn is_member(group: Gid) -> bool {
    getegid() == group || getgroups().is_ok_and(|groups| groups.contains(&group))
}

/// Binds to a path whose socket has this mode from its first moment.
fn bind_with(path: &Path, mode: Mode) -> io::Result<UnixListener> {
    // Of this process as a whole: other threads make no files while the gate starts.
    let before = umask(Mode::from_bits_truncate(0o777) & !mode);
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Gives the socket that was made to its user and group.
fn give(path: &Path, uid: Option<Uid>, gid: Option<Gid>) -> io::Result<()> {
    let made = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let about = made.metadata()?;
    let is_ours =
        about.file_type().is_socket() && about.nlink() == 1 && about.uid() == geteuid().as_raw();
    if !is_ours {
        return Err(io::Error::other("another process has put a file there"));
    }
    unistd::fchownat(&made, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    Ok(())
}

/// The directory of a path, if it is not the current one.
fn directory_of(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|directory| !directory.as_os_str().is_empty())
}

/// A directory under /run is gone after each boot.
fn make_directory(path: &Path, user: Option<&User>) -> io::Result<()> {
    let Some(directory) = directory_of(path).filter(|directory| !directory.exists()) else {
        return Ok(());
    };
    DirBuilder::new().mode(0o755).create(directory)?;
    if let Some(user) = user.filter(|_| geteuid().is_root()) {
        let made: File = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(directory)?;
        if made.metadata()?.uid() == 0 {
            fchown(&made, Some(user.uid()), Some(user.gid()))?;
        }
    }
    Ok(())
}

/// Whether the directory is there and this process can write to it, or can make it.
fn try_directory(path: &Path) -> io::Result<()> {
    let directory = match directory_of(path) {
        Some(missing) if !missing.exists() => directory_of(missing),
        directory => directory,
    };
    let directory = directory.unwrap_or(Path::new("."));
    if !fs::metadata(directory)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    unistd::access(directory, AccessFlags::W_OK | AccessFlags::X_OK)?;
    Ok(())
}

/// Removes the socket of a gate that has ended.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(no_socket());
    }
    let address = UnixAddr::new(path)?;
    // A process that listens and accepts nothing would hold this one up for ever.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(stream.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EAGAIN) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_socket_is_replaced_only_if_no_process_listens_at_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run").join("admin.sock");
        let access = Access::default();
        let first = make(&path, &access, None).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = make(&path, &access, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = make(&path, &access, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(make(&path, &access, None).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_process_that_listens_and_accepts_nothing_does_not_hold_up_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let flags = SockFlag::SOCK_CLOEXEC;
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let address = UnixAddr::new(&path).unwrap();
        nix::sys::socket::bind(busy.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let (to, result) = mpsc::channel();
        let name = path.clone();
        std::thread::spawn(move || to.send(make(&name, &Access::default(), None)));
        let made = result.recv_timeout(Duration::from_secs(5));
        let error = made.expect("the backlog is full").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn what_took_the_place_of_the_socket_keeps_its_owner_and_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let other = directory.path().join("other");
        fs::write(&other, "").unwrap();
        let me = Some(geteuid());
        symlink(&other, &path).unwrap();
        assert!(give(&path, me, None).is_err(), "a symbolic link");
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(other.with_extension("sock")).unwrap();
        fs::hard_link(other.with_extension("sock"), &path).unwrap();
        assert!(give(&path, me, None).is_err(), "another name of a socket");
        fs::remove_file(&path).unwrap();
        let _ours = bind_with(&path, Mode::from_bits_truncate(0o666)).unwrap();
        assert!(give(&path, me, None).is_ok());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666, "whatever the umask is");
    }

    #[test]
    fn a_socket_that_a_start_could_not_make_is_found_before() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| try_bind(&directory.path().join(name));
        assert!(at("admin.sock").is_ok());
        assert!(at("run/admin.sock").is_ok(), "a start makes one directory");
        assert!(at("no/run/admin.sock").is_err());
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(at("file").is_err());
        assert!(at("file/admin.sock").is_err());
    }
}
