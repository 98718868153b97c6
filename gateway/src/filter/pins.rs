//! The directory in which the filter outlives its owner.
//!
//! ```text
//! /sys/fs/bpf/portcullis/          held with flock(2) by the process that owns the filter
//!     links/eth0                   one per interface: what keeps the program attached
//!     events/                      held with flock(2) by the process that reads the events
//!     v6/SETTINGS, v6/SNAPSHOT, ... the maps, in a directory named after the version of their layout
//! ```
//!
//! Links lie outside of the versioned directory, because a link outlives a layout: a new version has its own maps, and
//! takes the interface over by putting its program into the link that is there. Programs have no pin of their own; the
//! links hold them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use portcullis_ebpf_common::layout::LAYOUT_VERSION;

use super::Error;

/// Where the kernel expects its BPF file system.
const BPF_FS: &str = "/sys/fs/bpf";

/// The paths under one pin path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Those of a filter that is in place.
    pub(super) fn attached(root: &Path) -> Result<Self, Error> {
        let pins = Self::new(root);
        if pins.exist()? {
            return Ok(pins);
        }
        Err(Error::NotAttached {
            path: root.to_owned(),
            interface: None,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The maps of this version's layout.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn maps(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// What the reader of the events holds with flock(2).
    pub(super) fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The link of an interface. A BPF file system refuses names with a dot, and VLAN interfaces have one.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links()
            .join(interface.replace('%', "%25").replace('.', "%2e"))
    }

    /// The interfaces that have a link, sorted.
    pub(super) fn linked(&self) -> Result<Vec<String>, Error> {
        let mut interfaces: Vec<String> = names(&self.links())?
            .iter()
            .map(|name| name.replace("%2e", ".").replace("%25", "%"))
            .collect();
        interfaces.sort_unstable();
        Ok(interfaces)
    }

    /// Makes the directories, on a BPF file system that is mounted if there is none, and takes the lock.
    pub(super) fn prepare(&self) -> Result<Flock<File>, Error> {
        self.ensure_bpf_fs()?;
        for directory in [self.root.clone(), self.maps(), self.links(), self.events()] {
            let result = DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory);
            result.map_err(pin_error(&directory))?;
        }
        let directory = File::open(&self.root).map_err(pin_error(&self.root))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::InUse {
                path: self.root.clone(),
            },
            errno => pin_error(&self.root)(errno.into()),
        })
    }

    fn ensure_bpf_fs(&self) -> Result<(), Error> {
        if self.is_on_bpf_fs() {
            return Ok(());
        }
        let failed = |source| Error::NoBpfFs {
            path: self.root.clone(),
            source,
        };
        if !self.root.starts_with(BPF_FS) {
            return Err(failed(None));
        }
        // Two processes that start at once must not mount one over the other's pins.
        let turn = File::open(BPF_FS).map_err(|source| failed(Some(source)))?;
        let _turn = Flock::lock(turn, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed(Some(errno.into())))?;
        if self.is_on_bpf_fs() {
            return Ok(());
        }
        mount(
            Some("bpf"),
            BPF_FS,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .map_err(|errno| failed(Some(errno.into())))?;
        tracing::info!(path = BPF_FS, "mounted a BPF file system");
        Ok(())
    }

    /// Whether the pin path, or what there is of it, lies on a BPF file system.
    fn is_on_bpf_fs(&self) -> bool {
        let existing = self.root.ancestors().find(|ancestor| ancestor.exists());
        existing
            .and_then(|ancestor| statfs(ancestor).ok())
            .is_some_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
    }

    /// Removes the maps of other layouts, once no link leads to a program that uses them.
    pub(super) fn remove_other_layouts(&self) -> Result<(), Error> {
        for name in names(&self.root)? {
            let path = self.root.join(&name);
            if name.starts_with('v') && path != self.maps() {
                remove_directory(&path)?;
            }
        }
        Ok(())
    }

    /// Removes one pin; that there is none is no error.
    pub(super) fn remove(path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes everything that is pinned, and the directories.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        remove_directory(&self.links())?;
        for name in names(&self.root)? {
            remove_directory(&self.root.join(name))?;
        }
        remove_directory(&self.root)
    }

    /// Whether anything is pinned here.
    pub(super) fn exist(&self) -> Result<bool, Error> {
        let maps = self.maps();
        maps.try_exists().map_err(pin_error(&maps))
    }
}

/// Removes a directory and the pins in it; that there is none is no error.
fn remove_directory(path: &Path) -> Result<(), Error> {
    for name in names(path)? {
        Pins::remove(&path.join(name))?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path)(error)),
        _ => Ok(()),
    }
}

/// What is in a directory; nothing if there is no such directory.
fn names(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(pin_error(path))?,
    };
    let names: io::Result<Vec<String>> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.map_err(pin_error(path))
}

pub(super) fn pin_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NotPermitted {
            what: "the directory of the pinned filter",
        },
        _ => Error::Pin {
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_interface_has_a_pin_without_a_dot() {
        let pins = Pins::new(Path::new("/sys/fs/bpf/portcullis"));
        assert_eq!(
            pins.link("eth0.100"),
            Path::new("/sys/fs/bpf/portcullis/links/eth0%2e100")
        );
        assert_eq!(
            pins.link("a%2e"),
            Path::new("/sys/fs/bpf/portcullis/links/a%252e")
        );
    }

    #[test]
    fn a_pin_path_off_the_bpf_file_system_is_refused_and_not_mounted_over() {
        let directory = tempfile::tempdir().unwrap();
        let error = Pins::new(&directory.path().join("pins"))
            .prepare()
            .unwrap_err();
        assert!(
            matches!(error, Error::NoBpfFs { source: None, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("mount -t bpf"));
    }
}
