//! Events of dropped packets, from the program to one reader. They are a sample: the program limits
//! the number of events per second.
//!
//! A ring buffer has one reader. It holds a lock on a directory beside the pins, and announces
//! itself every second: without a reader the program writes no events. The kernel releases the lock
//! when the reader ends, however it ends.

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

/// How long the program writes events after the last announcement of a reader.
const READER_FOR: Duration = Duration::from_secs(2);
/// How often a reader has to call [`Events::announce`].
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often a reader has to empty the buffer, which holds the events of two CPUs for a second.
pub const READ_EVERY: Duration = Duration::from_millis(100);

/// The events of an attached filter, and the top sources counted from them.
pub struct Events {
    /// Where the lock is.
    directory: PathBuf,
    lock: Lock,
    /// Kept open, because opening it takes privileges that the gate drops.
    ring_map: MapData,
    /// The buffer, while this process is the reader.
    ring: Option<RingBuf<MapData>>,
    control: Control,
    top_sources: Array<MapData, Value<TopSource>>,
    ranking: Ranking,
}

/// The directory's lock.
enum Lock {
    Free(File),
    Held {
        /// The lock ends when the file is closed.
        _file: Flock<File>,
    },
    /// The file is to be opened again.
    Lost,
}

/// Another reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its process ID.
    pub process: u32,
    /// The name of that process.
    pub name: String,
}

/// A packet that was dropped or, in the mode `monitor`, would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How long ago.
    pub age: Duration,
    /// The source address of the packet; it may be forged.
    pub source: IpAddr,
    /// The reason to drop it.
    pub reason: &'static str,
    /// The list that its source is on, if that is the reason.
    pub list: Option<String>,
    /// The interface that received it.
    pub interface: Option<String>,
    /// The destination port, if it can be read.
    pub port: Option<u16>,
    /// It passed because of the mode `monitor`.
    pub monitored: bool,
}

/// An event for users: with the time of day in place of its age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// The time in UTC, to the millisecond.
    pub time: String,
    /// The source address of the packet; it may be forged.
    pub source: IpAddr,
    /// The reason to drop it.
    pub reason: Cow<'static, str>,
    /// The list that its source is on, if that is the reason.
    pub list: Option<String>,
    /// The interface that received it.
    pub interface: Option<String>,
    /// The destination port, if it can be read.
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

/// The names of the slots of lists and interfaces.
#[derive(Clone, Debug, Default)]
pub struct SlotNames {
    pub(super) lists: BTreeMap<u32, String>,
    pub(super) interfaces: BTreeMap<u32, String>,
}

impl Events {
    /// The events of the filter that is pinned under this path.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] without privileges.
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

    /// Makes this process the reader, unless another one is. Older events are discarded.
    ///
    /// # Errors
    /// [`Error::EventsTaken`] while another process reads.
    pub fn become_reader(&mut self) -> Result<(), Error> {
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
        // A new one each time: it keeps a position, and another process may have read since.
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

    /// Tells the program that there is a reader, and publishes the top sources. The reader calls it
    /// every [`ANNOUNCE_EVERY`].
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn announce(&mut self) -> Result<(), Error> {
        let now_ns = now_ns();
        let until = now_ns.saturating_add(in_ns(READER_FOR));
        self.control.reader_until_ns.set(until);
        let mut top = self.ranking.first(TOP_SOURCES_MAX as usize, now_ns);
        top.resize(TOP_SOURCES_MAX as usize, NO_SOURCE);
        for (place, source) in (0..).zip(top) {
            self.top_sources
                .set(place, Value(source), 0)
                .map_err(kernel("writing the top sources"))?;
        }
        Ok(())
    }

    /// The next event; `None` if there is none now, or if this process is not the reader.
    pub fn next(&mut self, names: &SlotNames) -> Option<Event> {
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

    /// Counts all waiting events for the top sources.
    pub fn count_all(&mut self) {
        // At most one buffer full; events that come meanwhile wait for the next call.
        for _ in 0..layout::EVENTS_SIZE as usize / size_of::<layout::Event>() {
            if self.take().is_none() {
                return;
            }
        }
    }

    fn take(&mut self) -> Option<layout::Event> {
        let ring = self.ring.as_mut()?;
        loop {
            // An event of another size has another layout, and is skipped.
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
            // Without this the program would stop after `READER_FOR`.
            self.control.reader_until_ns.set(0);
        }
    }
}

/// The names of the slots of the filter that is pinned under this path.
///
/// # Errors
/// As of [`status`](fn@super::status).
pub fn slot_names(pin_path: &Path) -> Result<SlotNames, Error> {
    let maps = Maps::open(&Pins::attached(pin_path)?)?;
    let generation = lists::in_force(&maps)?;
    SlotNames::of(&maps, &generation)
}

impl SlotNames {
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

/// An empty place among the top sources.
const NO_SOURCE: TopSource = TopSource {
    written_ns: 0,
    last_ns: 0,
    events: 0,
    source: [0; 5],
    reason: 0,
    list_slot: layout::NO_LIST,
    interface_slot: 0,
};

/// The name of a reason from its number.
pub(super) fn reason_name(number: u32) -> &'static str {
    let known = Reason::ALL.iter().find(|reason| **reason as u32 == number);
    known.map_or("unknown", |reason| reason.name())
}

/// The process that holds the lock on a file, if `/proc/locks` of this process namespace shows it.
pub(super) fn holder(file: &File) -> Option<Reader> {
    let found = file.metadata().ok()?;
    let (device, inode) = (found.dev(), found.ino());
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let process = holder_in(&fs::read_to_string("/proc/locks").ok()?, &place)?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(Reader {
        process,
        // A process can give itself any name.
        name: printable(name.trim_end()).into_owned(),
    })
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF`. The line of a process that waits
/// for the lock has an arrow after the number.
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
    fn the_holder_of_the_lock_is_found_and_no_process_that_waits_for_it() {
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
