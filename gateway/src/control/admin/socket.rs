//! The unix socket for commands: where it is made, and whose it is.
//!
//! It is made with the privileges of the start, so its directory may be root's. The gate never
//! removes it at its end, as that could be the socket of its successor; the next start removes it
//! if no process listens at it any more.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _, chown, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::unistd::geteuid;

use super::super::Error;
use super::super::user::User;
use super::caller::Access;

/// Makes the socket, for the user that the gate becomes. Its mode is 0660, with the group that it
/// admits if that is one; it is 0666 if users or several groups are admitted, which no mode can
/// say: then the credentials of each peer decide alone.
///
/// # Errors
/// When it cannot be made, or another process listens there.
pub(in super::super) fn bind(
    path: &Path,
    access: &Access,
    user: Option<&User>,
) -> Result<UnixListener, Error> {
    make(path, access, user).map_err(|error| Error::AdminSocket {
        path: path.to_owned(),
        error,
    })
}

fn make(path: &Path, access: &Access, user: Option<&User>) -> io::Result<UnixListener> {
    make_directory(path, user)?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let group = access.only_group();
    let mut is_for_group = group.is_some();
    if geteuid().is_root() {
        let gid = group.or(user.map(User::gid));
        lchown(path, user.map(User::uid), gid)?;
    } else if let Some(group) = group {
        // Possible if the user is a member.
        is_for_group = lchown(path, None, Some(group)).is_ok();
    }
    let mode = if is_for_group || !access.admits_others() {
        0o660
    } else {
        0o666
    };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A directory under /run is gone after each boot.
fn make_directory(path: &Path, user: Option<&User>) -> io::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    if directory.as_os_str().is_empty() || directory.exists() {
        return Ok(());
    }
    DirBuilder::new().mode(0o755).create(directory)?;
    match user {
        Some(user) if geteuid().is_root() => chown(directory, Some(user.uid()), Some(user.gid())),
        _ => Ok(()),
    }
}

/// Removes the socket of a gate that has ended.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("there is a file that is no socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
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
}
