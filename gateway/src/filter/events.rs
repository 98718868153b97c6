//! Packets that were dropped, as the program tells them to whoever reads along: a sample, because
//! there is a bound to how many it tells in a second.
//!
//! A ring buffer has one reader. It holds a lock on a directory beside the pins, and says every
//! second that it is still there: the program tells nothing to nobody. The lock is the kernel's, so
//! a reader that is killed gives it back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};
use portcullis_ebpf_common::layout::{self, Reason, TOP_SOURCES_MAX, TopSource};
use serde::{Deserialize, Serialize};

use super::Error;
use super::address::of_source;
use super::clock::{in_ns, now_ns};
use super::control::Control;
use super::error::kernel;
use super::lists;
use super::maps::{Maps, TOP_SOURCES, Value, open};
use super::pins::{Pins, pin_error};
use super::top::Ranking;
use crate::printable::printable;

/// For so long the program believes that somebody reads.
const READER_FOR: Duration = Duration::from_secs(2);
/// How often a reader is to call [`Events::announce`].
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often a reader is to empty the buffer, which holds what two CPUs tell in a second.
pub const READ_EVERY: Duration = Duration::from_millis(100);

/// The events of a filter in place, and who is dropped most by what they tell.
pub struct Events {
    /// Where the lock is.
    directory: PathBuf,
    lock: Lock,
    /// Kept open, because opening it takes privileges that are given up.
    ring_map: MapData,
    /// While it is this process's turn.
    ring: Option<RingBuf<MapData>>,
    control: Control,
    top_sources: Array<MapData, Value<TopSource>>,
    ranking: Ranking,
}

/// The directory's lock.
enum Lock {
    Free(File),
    Held {
        /// For as long as it is open.
        _file: Flock<File>,
    },
    /// Between the two.
    Lost,
}

/// Another reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its process.
    pub process: u32,
    /// What that process is called.
    pub name: String,
}

/// A packet that was dropped, or would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How long ago.
    pub age: Duration,
    /// Who sent it, as far as the packet says.
    pub source: IpAddr,
    /// Why it was dropped.
    pub reason: &'static str,
    /// The list that its source is on, if that is the reason.
    pub list: Option<String>,
    /// Where it came in.
    pub interface: Option<String>,
    /// The port it went to, if it can be read.
    pub port: Option<u16>,
    /// It passed because of the mode `monitor`.
    pub monitored: bool,
}

/// An event as it is told: with the time of day in place of its age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// When, in UTC, to the millisecond.
    pub time: String,
    /// Who sent it, as far as the packet says.
    pub source: IpAddr,
    /// Why it was dropped.
    pub reason: Cow<'static, str>,
    /// The list that its source is on, if that is the reason.
    pub list: Option<String>,
    /// Where it came in.
    pub interface: Option<String>,
    /// The port it went to, if it can be read.
    pub port: Option<u16>,
    /// It passed because of the mode `monitor`.
    pub monitored: bool,
}

impl From<Event> for TimedEvent {
    fn from(event: Event) -> Self {
        let time = SystemTime::now().checked_sub(event.age);
        let time = time.and_then(|time| jiff::Timestamp::try_from(time).ok());
        Self {
            time: time.map_or_else(String::new, |time| format!("{time:.3}")),
            source: event.source,
            reason: Cow::Borrowed(event.reason),
            list: event.list,
            interface: event.interface,
            port: event.port,
            monitored: event.monitored,
        }
    }
}

/// What slots are called.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub(super) lists: BTreeMap<u32, String>,
    pub(super) interfaces: BTreeMap<u32, String>,
}

impl Events {
    /// The events of the filter that is pinned under this path.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] if the caller may not.
    pub fn open(pin_path: &Path) -> Result<Self, Error> {
        Self::of(&Pins::attached(pin_path)?)
    }

    pub(super) fn of(pins: &Pins) -> Result<Self, Error> {
        let directory = pins.events();
        let file = File::open(&directory).map_err(pin_error(&directory))?;
        let ring_map = MapData::from_pin(pins.map("EVENTS"));
        Ok(Self {
            directory,
            lock: Lock::Free(file),
            ring_map: ring_map.map_err(kernel("opening a pinned map"))?,
            ring: None,
            control: Control::open(pins)?,
            top_sources: open(pins, TOP_SOURCES)?,
            ranking: Ranking::default(),
        })
    }

    /// Makes this process the reader, unless another is. What the buffer held before is thrown
    /// away.
    ///
    /// # Errors
    /// [`Error::EventsTaken`] while another process reads.
    pub fn take_turn(&mut self) -> Result<(), Error> {
        let file = match std::mem::replace(&mut self.lock, Lock::Lost) {
            Lock::Free(file) => file,
            Lock::Lost => File::open(&self.directory).map_err(pin_error(&self.directory))?,
            held @ Lock::Held { .. } => {
                self.lock = held;
                return Ok(());
            }
        };
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((file, errno)) => {
                let reader = holder(&file);
                self.lock = Lock::Free(file);
                return Err(match errno {
                    Errno::EWOULDBLOCK => Error::EventsTaken { reader },
                    errno => pin_error(&self.directory)(errno.into()),
                });
            }
        };
        // Made anew for every turn: it remembers where it was, and others have read since.
        let mut ring = self
            .ring()
            .map_err(kernel("opening the buffer of events"))?;
        while ring.next().is_some() {}
        self.ring = Some(ring);
        self.lock = Lock::Held { _file: held };
        self.announce()
    }

    fn ring(&self) -> Result<RingBuf<MapData>, MapError> {
        let descriptor = self.ring_map.fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(descriptor.map_err(MapError::IoError)?)?;
        RingBuf::try_from(Map::from_map_data(data)?)
    }

    /// Tells the program that somebody reads, and everybody who looks who is dropped most. To be
    /// called every [`ANNOUNCE_EVERY`].
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn announce(&mut self) -> Result<(), Error> {
        let now_ns = now_ns();
        let until = now_ns.saturating_add(in_ns(READER_FOR));
        self.control.reader_until_ns.set(until);
        let mut top = self.ranking.first(TOP_SOURCES_MAX as usize, now_ns);
        top.resize(TOP_SOURCES_MAX as usize, NOBODY);
        for (place, source) in (0..).zip(top) {
            self.top_sources
                .set(place, Value(source), 0)
                .map_err(kernel("writing the top sources"))?;
        }
        Ok(())
    }

    /// The next event; `None` for now, or if it is not this process's turn.
    pub fn next(&mut self, names: &Names) -> Option<Event> {
        let event = self.take()?;
        Some(Event {
            age: Duration::from_nanos(now_ns().saturating_sub(event.time_ns)),
            source: of_source(event.source),
            reason: reason_name(event.reason),
            list: names.lists.get(&event.list_slot).cloned(),
            interface: names.interfaces.get(&event.interface_slot).cloned(),
            port: (event.port != 0).then_some(event.port),
            monitored: event.monitored != 0,
        })
    }

    /// Counts all that there is for the top sources.
    pub fn count_all(&mut self) {
        // What comes in faster than it is counted waits for the next time.
        for _ in 0..layout::EVENTS_SIZE as usize / size_of::<layout::Event>() {
            if self.take().is_none() {
                return;
            }
        }
    }

    fn take(&mut self) -> Option<layout::Event> {
        let ring = self.ring.as_mut()?;
        loop {
            // One of another size would be of another layout, which has a buffer of its own.
            let event = layout::Event::from_bytes(&ring.next()?);
            if let Some(event) = event {
                self.ranking.add(&event);
                return Some(event);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if matches!(self.lock, Lock::Held { .. }) {
            // The program stops by itself soon enough.
            self.control.reader_until_ns.set(0);
        }
    }
}

/// What slots are called in the filter that is pinned under this path.
///
/// # Errors
/// As of [`status`](fn@super::status).
pub fn names(pin_path: &Path) -> Result<Names, Error> {
    let maps = Maps::open(&Pins::attached(pin_path)?)?;
    let generation = lists::in_force(&maps)?;
    Names::of(&maps, &generation)
}

impl Names {
    pub(super) fn of(maps: &Maps, generation: &lists::Generation) -> Result<Self, Error> {
        let lists = generation.lists.iter();
        let interfaces = maps.interfaces()?.into_iter();
        Ok(Self {
            lists: lists
                .map(|list| (list.class.slot(), list.name.clone()))
                .collect(),
            interfaces: interfaces
                .map(|taken| (taken.slot, taken.interface.name))
                .collect(),
        })
    }
}

/// A place that is not taken.
const NOBODY: TopSource = TopSource {
    written_ns: 0,
    last_ns: 0,
    events: 0,
    source: [0; 5],
    reason: 0,
    list_slot: layout::NO_LIST,
    interface_slot: 0,
};

/// A reason's name from its number.
pub(super) fn reason_name(number: u32) -> &'static str {
    let known = Reason::ALL.iter().find(|reason| **reason as u32 == number);
    known.map_or("unknown", |reason| reason.name())
}

/// The process that holds the lock on a file, as far as `/proc/locks` of this process namespace
/// tells.
pub(super) fn holder(file: &File) -> Option<Reader> {
    let found = file.metadata().ok()?;
    let (device, inode) = (found.dev(), found.ino());
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let process = holder_in(&fs::read_to_string("/proc/locks").ok()?, &place)?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(Reader {
        process,
        // A process calls itself what it likes.
        name: printable(name.trim_end()).into_owned(),
    })
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF`; who waits has an arrow behind the number.
fn holder_in(locks: &str, wanted: &str) -> Option<u32> {
    locks.lines().find_map(
        |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "FLOCK", _, _, process, place, ..] if place == wanted => process.parse().ok(),
            _ => None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_the_lock_is_found_and_nobody_who_waits_for_it() {
        // The same inode of another file system is another file.
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1f:5678 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:01:5678 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 00:1f:15678 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 33 00:1f:5678 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 44 00:1f:5678 0 EOF\n";
        assert_eq!(holder_in(locks, "00:1f:5678"), Some(33));
        assert_eq!(holder_in(locks, "00:1f:1"), None);
    }

    #[test]
    fn a_reason_of_a_later_version_does_not_hide_the_event() {
        assert_eq!(reason_name(Reason::Customer as u32), "customer");
        assert_eq!(reason_name(99), "unknown");
    }
}
