//! The directory of the pins, which keep the filter when its owner ends.
//!
//! ```text
//! /sys/fs/bpf/portcullis/       locked with flock(2) by the process that owns the filter
//!     links/eth0                one per interface: keeps the program attached
//!     netns-4026531840/         the network namespace of the interfaces, by its inode number
//!     events/                   locked with flock(2) by the process that reads the events
//!     v6/SETTINGS, ...          the maps, in a directory named after the version of their layout
//! ```
//!
//! Links are outside of the versioned directory, because a link outlives a layout: a new version
//! has its own maps, and takes an interface over by putting its program into the existing link.
//! Programs have no pin of their own; the links keep them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{getegid, geteuid};
use portcullis_ebpf_common::layout::LAYOUT_VERSION;

use super::Error;

/// The standard mount point of the BPF file system.
pub(super) const BPF_FS: &str = "/sys/fs/bpf";
/// The prefix of the directory that records the network namespace.
const NAMESPACE: &str = "netns-";

/// The paths under one pin path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    root: PathBuf,
    links: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            links: root.join("links"),
        }
    }

    /// Opens the directory of the links.
    pub(super) fn open_links(&self) -> Result<File, Error> {
        File::open(&self.links).map_err(pin_error(&self.links))
    }

    /// The same pins, with the path of their links through the open directory: `/sys/fs/bpf` is
    /// closed to users other than root, but a process can always use a directory that it has open.
    pub(super) fn through(&self, links: &File) -> Self {
        let descriptor = format!("/proc/self/fd/{}", links.as_raw_fd());
        Self {
            root: self.root.clone(),
            links: descriptor.into(),
        }
    }

    /// Gives the links and their directory to a user, who can create and remove links from then on.
    pub(super) fn chown_links(&self, uid: u32, gid: u32) -> Result<(), Error> {
        for interface in self.linked()? {
            chown(&self.link(&interface), uid, gid)?;
        }
        // Last: from then on the user's processes can change the directory.
        chown(&self.links, uid, gid)
    }

    /// Makes this process's user the owner of the links again. The user who owned them may have put
    /// anything into the directory: everything that is not a pin is removed, so that no operation
    /// on a name reaches another file.
    pub(super) fn reclaim_links(&self) -> Result<(), Error> {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        chown(&self.links, uid, gid)?;
        for name in names(&self.links)? {
            let path = self.links.join(name);
            if is_pin(&path) {
                chown(&path, uid, gid)?;
            } else {
                tracing::warn!(path = %path.display(), "removed what is no link of a filter");
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// The pins of an attached filter.
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

    /// The directory that the reader of the events locks with flock(2).
    pub(super) fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    /// The link of an interface. A dot is escaped: a BPF file system refuses it, and names of VLAN
    /// interfaces have one.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links
            .join(interface.replace('%', "%25").replace('.', "%2e"))
    }

    /// The interfaces that have a link, sorted.
    pub(super) fn linked(&self) -> Result<Vec<String>, Error> {
        let mut names = names(&self.links)?;
        names.retain(|name| is_pin(&self.links.join(name)));
        let mut interfaces: Vec<String> = names
            .iter()
            .map(|name| name.replace("%2e", ".").replace("%25", "%"))
            .collect();
        interfaces.sort_unstable();
        Ok(interfaces)
    }

    /// Creates the directories, mounts a BPF file system if there is none, and takes the lock.
    pub(super) fn prepare(&self) -> Result<Flock<File>, Error> {
        self.ensure_bpf_fs()?;
        for directory in [
            self.root.clone(),
            self.maps(),
            self.links.clone(),
            self.events(),
        ] {
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

    /// Refuses a pin path that is not on a BPF file system, and where none would be mounted.
    pub(super) fn check_bpf_fs(&self) -> Result<(), Error> {
        if self.is_on_bpf_fs() || self.root.starts_with(BPF_FS) {
            return Ok(());
        }
        Err(Error::NoBpfFs {
            path: self.root.clone(),
            source: None,
        })
    }

    fn ensure_bpf_fs(&self) -> Result<(), Error> {
        self.check_bpf_fs()?;
        if self.is_on_bpf_fs() {
            return Ok(());
        }
        let failed = |source| Error::NoBpfFs {
            path: self.root.clone(),
            source,
        };
        // Of two processes that start at once, neither may mount over the other's pins.
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

    /// Whether the pin path, or its first parent that exists, is on a BPF file system.
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
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Renames the pin of an interface's link.
    pub(super) fn rename_link(&self, interface: &str, new: &str) -> Result<(), Error> {
        let path = self.link(interface);
        fs::rename(&path, self.link(new)).map_err(pin_error(&path))
    }

    /// The network namespace in which the filter was attached, if that is known.
    pub(super) fn namespace(&self) -> Result<Option<u64>, Error> {
        let names = names(&self.root)?;
        let mut numbers = names
            .iter()
            .filter_map(|name| name.strip_prefix(NAMESPACE)?.parse().ok());
        Ok(numbers.next())
    }

    /// Records the network namespace of the interfaces.
    pub(super) fn claim_namespace(&self, namespace: u64) -> Result<(), Error> {
        let mark = format!("{NAMESPACE}{namespace}");
        for name in names(&self.root)? {
            if name.starts_with(NAMESPACE) && name != mark {
                remove_tree(&self.root.join(name))?;
            }
        }
        let path = self.root.join(mark);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(pin_error(&path))
    }

    /// Removes one pin. A missing pin is no error.
    pub(super) fn remove(path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes all pins, and the directories.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        // The links first: they keep the programs that use the maps.
        remove_tree(&self.links)?;
        remove_tree(&self.root)
    }

    /// Whether anything is pinned here.
    pub(super) fn exist(&self) -> Result<bool, Error> {
        let maps = self.maps();
        maps.try_exists().map_err(pin_error(&maps))
    }
}

/// Whether the BPF file system at this path, or the one that the gate would mount there, is visible
/// only in this process's mount namespace: then all pins vanish with its last process. `None` if
/// that is not known.
pub(super) fn is_private(path: &Path) -> Option<bool> {
    // The mounts of the first process of the machine (or of the container) stay.
    let lasting = fs::read_to_string("/proc/1/mountinfo").ok()?;
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    if statfs(existing).ok()?.filesystem_type() != BPF_FS_MAGIC {
        let own = fs::read_to_string("/proc/self/mountinfo").ok()?;
        // A mount has a number; its copy in another namespace has another one.
        return Some(root_mount(&own)? != root_mount(&lasting)?);
    }
    let device = fs::metadata(existing).ok()?.dev();
    let wanted = format!("{}:{}", major(device), minor(device));
    let mut devices = lasting.lines().filter_map(|line| line.split(' ').nth(2));
    Some(!devices.any(|device| device == wanted))
}

/// The number of the mount at `/`, from lines such as
/// `23 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw`.
fn root_mount(mounts: &str) -> Option<&str> {
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| {
        let number = fields.next()?;
        (fields.nth(3)? == "/").then_some(number)
    })
}

/// The network namespace of this thread, by its inode number, as in `lsns -t net` and
/// `/proc/PID/ns/net`.
pub(super) fn own_namespace() -> Result<u64, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    let metadata = fs::metadata(path).map_err(pin_error(path))?;
    Ok(metadata.ino())
}

/// Whether there is a pin at this path. Anything else (a symbolic link, a directory) is not a pin.
pub(super) fn is_pin(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Changes the owner of a file or a directory. Does not follow a symbolic link.
fn chown(path: &Path, uid: u32, gid: u32) -> Result<(), Error> {
    let owner = fs::symlink_metadata(path).map_err(pin_error(path))?;
    if (owner.uid(), owner.gid()) == (uid, gid) {
        return Ok(());
    }
    lchown(path, Some(uid), Some(gid)).map_err(pin_error(path))
}

/// Removes a pin, or a directory with its contents, without following symbolic links. A missing one
/// is no error.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !is_directory {
        return Pins::remove(path);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path)(error)),
        _ => Ok(()),
    }
}

/// The names in a directory; none if it does not exist.
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
    fn files_of_the_user_who_owns_the_links_lead_to_nothing_outside() {
        if !geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(&directory.path().join("pins"));
        let (inside, victim) = (pins.links.join("a/b"), directory.path().join("victim"));
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("file"), "").unwrap();
        fs::write(&victim, "").unwrap();
        fs::write(pins.link("eth0"), "").unwrap();
        std::os::unix::fs::symlink(&victim, pins.link("eth1")).unwrap();
        lchown(pins.link("eth1"), Some(65534), Some(65534)).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();

        assert_eq!(pins.linked().unwrap(), ["eth0"]);
        pins.chown_links(65533, 65533).unwrap();
        assert_eq!(
            (owner(&pins.links), owner(&pins.link("eth0"))),
            (65533, 65533)
        );
        assert_eq!(owner(&victim), 0, "a link was followed");
        pins.reclaim_links().unwrap();
        assert_eq!((owner(&pins.links), owner(&pins.link("eth0"))), (0, 0));
        assert_eq!(names(&pins.links).unwrap(), ["eth0"]);
        assert_eq!(owner(&victim), 0, "a link was followed");

        fs::create_dir_all(&inside).unwrap();
        std::os::unix::fs::symlink(&victim, inside.join("link")).unwrap();
        pins.remove_all().unwrap();
        assert!(!pins.root.exists() && victim.exists());
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
