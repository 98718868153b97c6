//! The filters attached to interfaces of this network namespace, configured or not.
//!
//! A filter outlives its gate, and the configuration that it came from. So that none drops packets
//! unseen, this searches the BPF file system for the pins of all filters. Rejected: a file of our
//! own with their paths; if it were lost, a filter would stay unseen.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::maps::Maps;
use super::pins::{self, BPF_FS, Pins};
use super::{Error, events, links};

/// How many directories of the BPF file system are searched, and how deep.
const DIRECTORIES_MAX: usize = 1_000;
const DEPTH_MAX: usize = 3;

/// A filter attached to interfaces of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedFilter {
    /// Where it is pinned.
    pub pin_path: PathBuf,
    /// `enforce`, `monitor` or `off`; `None` if another version has attached it.
    pub mode: Option<&'static str>,
    /// The interfaces, by the names that they have now.
    pub interfaces: Vec<String>,
    /// The process that holds it, as `process 17 (portcullis)`.
    pub holder: Option<String>,
}

impl AttachedFilter {
    /// Whether it drops packets. If the mode is not known, it may.
    #[must_use]
    pub fn drops(&self) -> bool {
        !matches!(self.mode, Some("off" | "monitor"))
    }

    /// The command that detaches it.
    #[must_use]
    pub fn detach_command(&self) -> String {
        detach_command(&self.pin_path)
    }
}

/// The command that detaches the filter under a pin path.
#[must_use]
pub fn detach_command(pin_path: &Path) -> String {
    if pin_path == Path::new(crate::config::PIN_PATH) {
        "portcullis filter detach".to_owned()
    } else {
        format!("portcullis filter detach --pin-path {}", pin_path.display())
    }
}

/// All filters that this process may see: those of root only as root.
#[must_use]
pub fn attached_filters() -> Vec<AttachedFilter> {
    all_pins().iter().filter_map(look).collect()
}

/// The filter under this pin path, if it is attached in this network namespace.
#[must_use]
pub fn attached_filter(pin_path: &Path) -> Option<AttachedFilter> {
    look(&Pins::new(pin_path))
}

fn look(pins: &Pins) -> Option<AttachedFilter> {
    let linked = pins.linked().ok()?;
    let points = linked
        .iter()
        .filter_map(|name| links::attach_point(pins, name));
    let interfaces: Vec<String> = points.map(|point| point.name).collect();
    if interfaces.is_empty() {
        return None;
    }
    let settings = Maps::open(pins).and_then(|maps| maps.settings());
    let mode = settings.ok().flatten();
    Some(AttachedFilter {
        pin_path: pins.root().to_owned(),
        mode: mode.map(|settings| settings.mode().name()),
        interfaces,
        holder: holder(pins),
    })
}

/// The process that holds the filter of these pins, in words.
pub(super) fn holder(pins: &Pins) -> Option<String> {
    let directory = File::open(pins.root()).ok()?;
    let holder = events::holder(&directory)?;
    Some(format!("process {} ({})", holder.process, holder.name))
}

/// The pin path under which a link is pinned, if it is that of a filter.
pub(super) fn pinned_as(link: u32) -> Option<PathBuf> {
    let is_there = |pins: &&Pins| {
        let linked = pins.linked().unwrap_or_default();
        let mut links = linked.iter().filter_map(|name| links::pinned(pins, name));
        links.any(|pinned| pinned.id == link)
    };
    let found = all_pins();
    let found = found.iter().find(is_there)?;
    Some(found.root().to_owned())
}

/// The pins of every filter on the BPF file system, of any version: directories with `links` and
/// `events` in them.
fn all_pins() -> Vec<Pins> {
    let mut found = Vec::new();
    let mut left = vec![(PathBuf::from(BPF_FS), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = left.pop() {
        seen += 1;
        if seen > DIRECTORIES_MAX {
            break;
        }
        let inside = directories(&directory);
        let is_ours = |name: &str| inside.iter().any(|path| path.ends_with(name));
        if is_ours("links") && is_ours("events") {
            found.push(Pins::new(&directory));
        } else if depth < DEPTH_MAX {
            left.extend(inside.into_iter().map(|path| (path, depth + 1)));
        }
    }
    found.sort_unstable_by(|a, b| a.root().cmp(b.root()));
    found
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries
        .filter(is_directory)
        .map(|entry| entry.path())
        .collect()
}

/// Refuses to take over a filter on interfaces of another network namespace: it would be detached
/// there from the interfaces that this configuration does not name.
pub(super) fn check_namespace(pins: &Pins) -> Result<u64, Error> {
    let own = pins::own_namespace()?;
    let recorded = pins.namespace()?;
    if recorded != Some(own) {
        let interfaces = links::elsewhere(pins)?;
        if !interfaces.is_empty() {
            return Err(Error::OtherNamespace {
                path: pins.root().to_owned(),
                interfaces,
                namespace: recorded,
            });
        }
    }
    Ok(own)
}

/// Whether the pins vanish with the last process of this mount namespace, as under `ip netns exec`,
/// which mounts a `/sys` of its own. `None` if that is not known.
#[must_use]
pub fn pins_are_private(pin_path: &Path) -> Option<bool> {
    pins::is_private(pin_path)
}
