//! The layout of the maps that the program and userspace share, and of the pins under which a
//! restart finds them.
//!
//! | map | kind | written by | holds |
//! |---|---|---|---|
//! | `SETTINGS` | array of one inner array | userspace, swapped whole | [`Settings`] |
//! | `CONTROL` | array of one | userspace, mapped | what the program looks at for nearly every packet: [`Control`] |
//! | `SNAPSHOT` | array of inner arrays | userspace, mapped; swapped whole | all lists, as [`snapshot`](crate::snapshot) describes them, a block in each: [`snapshot_slot`] |
//! | `COUNTERS` | per-CPU array of one | the program | what is counted for interfaces and lists: [`Counters`] |
//! | `VERDICTS` | hash | userspace; the program counts | source, or its /64 -> [`RecentVerdict`] |
//! | `LOCAL_NETWORKS` | LPM trie | userspace | [`Source`](crate::Source) prefix -> any value |
//! | `SYN_SKETCH` | array | the program | [`SketchLine`]s: SYNs of sources in this second |
//! | `RATES` | array | the program | [`Rate`] -> [`RateUse`] |
//! | `EVENTS` | ring buffer | the program | [`Event`]s, while somebody reads |
//! | `EVENT_RATES` | per-CPU array of one | the program | [`RateUse`] of its events |
//! | `JUDGED`, `QUESTION` | per-CPU arrays of one | the program, for itself; not pinned | what has no room on its stack |
//! | `LIST_RECORDS` | array | userspace, for itself | what a list's slot means, in two banks |
//! | `INTERFACE_RECORDS` | array | userspace, for itself | what an interface's slot means |
//! | `VERDICT_COUNTERS` | array | userspace, for itself | what became of recent verdicts: [`VerdictCounter`] |
//! | `TOP_SOURCES` | array | whoever reads the events | who is dropped most: [`TopSource`], the first in front |
//! | `GATE` | array of one | the gate | where a command beside it can ask it: [`GateRecord`] |
//!
//! All lists of both address families are in one snapshot, whose first block has the header, so
//! that one update of one element puts a generation of them in place. The header holds the number
//! of the generation, whose parity says where its other blocks are, and which bank of
//! `LIST_RECORDS` describes it. So the swap of the snapshot swaps the names with it, and a crash at
//! any moment leaves one whole generation in force.

mod control;
mod interface;

use crate::encapsulation::{ENCAPSULATIONS, Encapsulation};

pub use self::control::{Control, Glance, VERDICT_HINTS, Word, hint};
pub use self::interface::{InterfaceConstant, LinkLayer};

/// Changes whenever the meaning of a map changes, that of the lines of a snapshot included. It is
/// part of the pin path, because a pinned map is taken over without a look at its shape.
pub const LAYOUT_VERSION: u32 = 6;

/// Most ports that can be filtered.
pub const PORTS_MAX: usize = 16;
/// Most lists that a generation may have in the kernel.
pub const LISTS_MAX: usize = 256;
/// Slots for lists: twice as many, so that a reload that renames every list finds free slots while
/// the generation before it still counts on its own.
pub const LIST_SLOTS: u32 = 512;
/// Most interfaces that share a pin path.
pub const INTERFACES_MAX: u32 = 64;
/// Slots for interfaces: the last is that of frames which come from none, but are run through the
/// program to try it.
pub const INTERFACE_SLOTS: u32 = INTERFACES_MAX + 1;
/// Most recent verdicts: some 50 MiB of kernel memory if there are so many, and 4 MiB if there are
/// none.
pub const VERDICTS_MAX: u32 = 262_144;
/// Bytes of the note of a recent verdict.
pub const VERDICT_NOTE_MAX: usize = 64;
/// For so long after a verdict was given only the SYNs of its source are dropped, so that a session
/// that is open can be told why and end in order; then everything is.
pub const VERDICT_GRACE_NS: u64 = 10_000_000_000;
/// Most local networks.
pub const LOCAL_NETWORKS_MAX: u32 = 65_536;
/// Lines of the SYN sketch, a power of two: 8 MiB.
pub const SKETCH_LINES: u32 = 131_072;
/// Bytes of the ring buffer of events.
pub const EVENTS_SIZE: u32 = 1 << 18;
/// Events of one CPU in one second, at most.
pub const EVENTS_PER_SECOND: u32 = 2_000;
/// Bytes of a list's name.
pub const LIST_NAME_MAX: usize = 64;
/// Bytes of an interface's name (the kernel's `IFNAMSIZ`).
pub const INTERFACE_NAME_MAX: usize = 16;

/// The flag of hashes whose elements take memory only while they are there: `BPF_F_NO_PREALLOC`.
/// The program adds none.
pub const NO_PREALLOC: usize = 1;
/// The flag of arrays that userspace has mapped: `BPF_F_MMAPABLE`. A snapshot is written in the
/// time that memory takes, and a bit of `CONTROL` without a call. Not `BPF_F_INNER_MAP` for the
/// blocks of a snapshot: the kernel puts the look into an array of known size into the program, and
/// makes a call of any other.
pub const MAPPED: usize = 1 << 10;
/// Blocks that a snapshot can have: 4 GiB.
pub const SNAPSHOT_BLOCKS_MAX: u32 = 64;
/// Elements of `SNAPSHOT`.
pub const SNAPSHOT_SLOTS: u32 = 2 * SNAPSHOT_BLOCKS_MAX;

/// The element of `SNAPSHOT` that holds this block of a generation. The first block of the
/// generation in force is in the first element, so that one update exchanges generations; the
/// others are in the bank that the parity of the number says, where those of the generation before
/// and after it are not.
#[inline(always)]
#[must_use]
pub const fn snapshot_slot(generation: u32, block: u32) -> u32 {
    match block {
        0 => 0,
        _ => (generation & 1) * SNAPSHOT_BLOCKS_MAX + block,
    }
}

/// What the program does with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drops what is to be dropped.
    Enforce,
    /// Counts what would be dropped, and drops nothing.
    Monitor,
    /// Neither drops nor counts.
    Off,
}

impl Mode {
    /// The mode's name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
            Self::Off => "off",
        }
    }
}

/// The program's runtime settings, as they lie in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    mode: u32,
    flags: u32,
    /// SYNs that one source may send in a second before they are counted; 0: any number.
    pub syn_budget: u32,
    /// RSTs in a second, on all interfaces together; 0: none.
    pub resets_per_second: u32,
    ports: [u16; PORTS_MAX],
    /// A bit for each slot of an interface.
    silent: [u32; SILENT_WORDS],
}

/// Words of 32 slots each.
const SILENT_WORDS: usize = INTERFACE_SLOTS.div_ceil(32) as usize;

/// What the program is to do beyond its lists: the flags of [`Settings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Sources on no list are dropped.
    pub drop_unlisted: bool,
    /// SYNs for a listener of this host are answered with a cookie while its queue overflows.
    pub syn_cookies: bool,
    /// What a customer may not send is answered with a RST, as far as the rate allows; else it is
    /// dropped.
    pub customer_resets: bool,
}

impl Settings {
    const DROP_UNLISTED: u32 = 1;
    const SYN_COOKIES: u32 = 2;
    const CUSTOMER_RESETS: u32 = 4;

    /// Settings for these ports, with neither a budget nor RSTs. Ports beyond [`PORTS_MAX`] are not
    /// taken: the caller refuses them before.
    #[must_use]
    pub fn new(mode: Mode, measures: Measures, ports: &[u16]) -> Self {
        let flag = |set, flag| if set { flag } else { 0 };
        let mut settings = Self {
            mode: mode as u32,
            flags: flag(measures.drop_unlisted, Self::DROP_UNLISTED)
                | flag(measures.syn_cookies, Self::SYN_COOKIES)
                | flag(measures.customer_resets, Self::CUSTOMER_RESETS),
            syn_budget: 0,
            resets_per_second: 0,
            ports: [0; PORTS_MAX],
            silent: [0; SILENT_WORDS],
        };
        for (slot, port) in settings.ports.iter_mut().zip(ports) {
            *slot = *port;
        }
        settings
    }

    /// The mode in force. A number that no version has written means that nothing is to be touched.
    #[inline(always)]
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.mode {
            0 => Mode::Enforce,
            1 => Mode::Monitor,
            _ => Mode::Off,
        }
    }

    /// Whether a source on no list is dropped.
    #[inline(always)]
    #[must_use]
    pub fn drop_unlisted(&self) -> bool {
        self.flags & Self::DROP_UNLISTED != 0
    }

    /// Whether SYNs for a listener of this host may be answered with a cookie.
    #[inline(always)]
    #[must_use]
    pub fn syn_cookies(&self) -> bool {
        self.flags & Self::SYN_COOKIES != 0
    }

    /// Whether a customer is told by a RST what it may not send.
    #[inline(always)]
    #[must_use]
    pub fn customer_resets(&self) -> bool {
        self.flags & Self::CUSTOMER_RESETS != 0
    }

    /// The filtered ports.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied().take_while(|port| *port != 0)
    }

    /// From now on nothing is answered on the interface in this slot: what the program sends there
    /// is lost on its way.
    pub fn set_silent(&mut self, slot: u32) {
        if let Some(word) = self.silent.get_mut(slot as usize / 32) {
            *word |= 1 << (slot % 32);
        }
    }

    /// Whether nothing is to be answered on the interface in this slot.
    #[inline(always)]
    #[must_use]
    pub fn is_silent(&self, slot: u32) -> bool {
        match self.silent.get(slot as usize / 32) {
            Some(word) => word >> (slot % 32) & 1 != 0,
            None => true,
        }
    }

    /// Whether packets to this TCP port are held against the lists. Port 0 ends the table and is
    /// never filtered.
    #[inline(always)]
    #[must_use]
    pub fn filters(&self, port: u16) -> bool {
        for filtered in &self.ports {
            if *filtered == 0 {
                return false;
            }
            if *filtered == port {
                return true;
            }
        }
        false
    }
}

/// What is behind an interface, and so which packets are held back on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// The outside: packets that come in are held against their source.
    Edge = 0,
    /// Customers: packets that go out pass only if their source or their destination is on a permit
    /// list.
    Customer = 1,
}

/// Why a packet was dropped, or in [`Mode::Monitor`] would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Its source is on a drop list.
    Listed = 0,
    /// Its source has a recent verdict.
    Verdict = 1,
    /// Its source is on no list, and such sources are dropped.
    Unlisted = 2,
    /// It comes from a customer, and neither source nor destination is permitted.
    Customer = 3,
    /// It has more VLAN tags than are read, so that its source cannot be, either.
    Tags = 4,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Listed,
        Self::Verdict,
        Self::Unlisted,
        Self::Customer,
        Self::Tags,
    ];

    /// The reason's name in events, the status and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Verdict => "verdict",
            Self::Unlisted => "unlisted",
            Self::Customer => "customer",
            Self::Tags => "vlan-tags",
        }
    }
}

/// All counters of one CPU. They are never cleared: whoever takes a slot writes down where its
/// counters stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// By the slot of the interface.
    pub interfaces: [InterfaceCounters; INTERFACE_SLOTS as usize],
    /// By the slot of the list.
    pub lists: [ListCounters; LIST_SLOTS as usize],
}

/// The kernel takes no larger element of a per-CPU map (PCPU_MIN_UNIT_SIZE of linux/percpu.h).
const _: () = assert!(size_of::<Counters>() <= 32 << 10);

/// An interface's counters on one CPU, indexed by [`InterfaceCounter`], and from [`FIRST_UNREAD`]
/// on by the number of an [`Encapsulation`]: five cache lines, of which most packets need the
/// first.
pub type InterfaceCounters = [u64; 40];

/// What is counted before anything is.
pub const NOTHING_COUNTED: InterfaceCounters = [0; 40];

/// Where packets within packets are counted, in addition to [`InterfaceCounter::Other`].
pub const FIRST_UNREAD: usize = 24;
const _: () = assert!(FIRST_UNREAD + ENCAPSULATIONS <= size_of::<InterfaceCounters>() / 8);

/// What an interface counts; every packet counts once, and those with a hidden port or of an
/// [`Encapsulation`] twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum InterfaceCounter {
    /// Not TCP to a filtered port.
    Other = 0,
    /// Nothing speaks against it, and passed.
    Passed = 1,
    /// On a permit list.
    Permitted = 2,
    /// Dropped for [`Reason::Listed`].
    DroppedListed = 3,
    /// Dropped for [`Reason::Verdict`].
    DroppedVerdict = 4,
    /// Dropped for [`Reason::Unlisted`].
    DroppedUnlisted = 5,
    /// A SYN beyond the budget of its source, and passed: the kernel has no cookie for it.
    OverBudget = 6,
    /// Dropped for [`Reason::Customer`].
    DroppedCustomer = 7,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Listed`].
    MonitoredListed = 8,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Verdict`].
    MonitoredVerdict = 9,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Unlisted`].
    MonitoredUnlisted = 10,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Customer`].
    MonitoredCustomer = 12,
    /// From a customer, and answered with a RST: [`Reason::Customer`], politely.
    ResetCustomer = 13,
    /// A SYN that was answered with a cookie.
    SynCookie = 14,
    /// In addition to one of the others: TCP whose port cannot be read, so that it is held to be a
    /// filtered one.
    Hidden = 15,
    /// Dropped for [`Reason::Tags`].
    DroppedTags = 16,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Tags`].
    MonitoredTags = 17,
}

/// The counter of a packet within a packet.
#[inline(always)]
#[must_use]
pub const fn unread_counter(encapsulation: Encapsulation) -> usize {
    FIRST_UNREAD + encapsulation as usize
}

/// The key of a recent verdict.
pub type VerdictKey = [u32; 3];

/// Keeps the packets of a source out for a while: what the relay has learned, or an operator has
/// said. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecentVerdict {
    /// From then on it means nothing.
    pub expires_ns: u64,
    /// When it was given; a renewal does not move it.
    pub added_ns: u64,
    /// The last packet that it had dropped; the program writes it.
    pub last_ns: u64,
    /// Packets that it had dropped; the program counts them.
    pub packets: u64,
    /// Who says so: a number that only userspace understands.
    pub cause: u32,
    /// Keeps what follows in place.
    pub reserved: u32,
    /// For people: the list that names the source, filled up with zeros.
    pub note: [u8; VERDICT_NOTE_MAX],
}

/// A packet that was dropped, or in [`Mode::Monitor`] would have been, for somebody who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Who sent it: a [`Source`](crate::Source).
    pub source: [u32; 5],
    /// The TCP port; 0 if it cannot be read.
    pub port: u16,
    /// 1 if it passed because of [`Mode::Monitor`].
    pub monitored: u16,
    /// The [`Reason`].
    pub reason: u32,
    /// The slot of the list, or [`NO_LIST`].
    pub list_slot: u32,
    /// The slot of the interface.
    pub interface_slot: u32,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}

impl Event {
    /// An event from the ring buffer; `None` if it is none.
    #[must_use]
    pub fn from_octets(octets: &[u8]) -> Option<Self> {
        let word = |index: usize| {
            let four = octets.get(4 * index..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*four))
        };
        let half = |index: usize| {
            let two = octets.get(2 * index..)?.first_chunk()?;
            Some(u16::from_ne_bytes(*two))
        };
        Some(Self {
            time_ns: u64::from_ne_bytes(*octets.first_chunk()?),
            source: [word(2)?, word(3)?, word(4)?, word(5)?, word(6)?],
            port: half(14)?,
            monitored: half(15)?,
            reason: word(8)?,
            list_slot: word(9)?,
            interface_slot: word(10)?,
            reserved: word(11)?,
        })
    }
}

/// In an [`Event`]: no list.
pub const NO_LIST: u32 = u32::MAX;

/// What is used up of a rate in one second: the second in the upper half, the number in the lower.
pub type RateUse = u64;

/// A line of the SYN sketch: one cache line of cells.
pub type SketchLine = [RateUse; 8];

/// The rates that the program keeps in `RATES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rate {
    /// RSTs to customers.
    Resets = 0,
}

/// How many rates there are.
pub const RATES: usize = 1;

/// A list's counters on one CPU, indexed by [`ListCounter`].
pub type ListCounters = [u64; 2];

/// What a list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ListCounter {
    /// Packets dropped (of a drop list) or permitted (of a permit list).
    Decided = 0,
    /// Packets that a drop list would have dropped, were it not for [`Mode::Monitor`].
    Monitored = 1,
}

/// What userspace remembers of a list's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListRecord {
    /// The name, filled up with zeros. Empty: the slot is free.
    pub name: [u8; LIST_NAME_MAX],
    /// The slot's [`Class`](crate::Class).
    pub class: u32,
    /// Where the list stands in the configuration.
    pub position: u32,
    /// Entries of the list as it was written, before overlaps were settled.
    pub entries: u64,
    /// What the slot had counted, on all CPUs together, when the list took it.
    pub counted_before: ListCounters,
}

/// What userspace remembers of an interface's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceRecord {
    /// The name, filled up with zeros. Empty: the slot is free.
    pub name: [u8; INTERFACE_NAME_MAX],
    /// 0: the edge of the network.
    pub role: u32,
    /// 0: in the driver; 1: generic.
    pub xdp_mode: u32,
    /// What the slot had counted, on all CPUs together, when the interface took it.
    pub counted_before: InterfaceCounters,
}

/// What userspace counts of recent verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum VerdictCounter {
    /// Given to a source that had none.
    Added = 0,
    /// Given to a source that had one.
    Renewed = 1,
    /// Taken back.
    Removed = 2,
    /// Found to be past their time.
    Expired = 3,
    /// Given up for others, because there is no room for more.
    Evicted = 4,
    /// Not given: the source is permitted or local.
    Refused = 5,
    /// Not given: there is no room, and what a person added is not given up.
    NoRoom = 6,
}

/// How many counters recent verdicts have.
pub const VERDICT_COUNTERS: u32 = 7;

/// Most sources in `TOP_SOURCES`.
pub const TOP_SOURCES_MAX: u32 = 32;

/// One of the sources that are dropped most, as events have told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TopSource {
    /// Nanoseconds of CLOCK_MONOTONIC when this was written; 0: nobody is here.
    pub written_ns: u64,
    /// The last event, in nanoseconds of CLOCK_MONOTONIC.
    pub last_ns: u64,
    /// Events, each of which counts for less the older it is.
    pub events: u64,
    /// The address, or the first one of the /64: a [`Source`](crate::Source).
    pub source: [u32; 5],
    /// The [`Reason`] of the last event.
    pub reason: u32,
    /// Its list's slot, or [`NO_LIST`].
    pub list_slot: u32,
    /// Its interface's slot.
    pub interface_slot: u32,
}

/// Where the gate that holds the filter answers, so that a command needs no configuration to find
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GateRecord {
    /// The address of its admin endpoint: a [`Source`](crate::Source).
    pub admin: [u32; 5],
    /// The port of it; 0: it has none.
    pub port: u32,
}
