//! Events: a sample of the packets that are dropped, and the sources that most of them came from.

#[cfg(doc)]
use super::Mode;

/// Bytes of the ring buffer of events.
pub const EVENTS_SIZE: u32 = 1 << 18;

/// Events of one CPU in one second, at most.
pub const EVENTS_PER_SECOND: u32 = 2_000;

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
    /// It has more VLAN tags than the program reads, so its source is not known.
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

/// A packet that was dropped, or in [`Mode::Monitor`] would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Its source: a [`Source`](crate::Source).
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
    /// An event from the bytes of the ring buffer; `None` if they are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |index: usize| {
            let four = bytes.get(4 * index..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*four))
        };
        let half = |index: usize| {
            let two = bytes.get(2 * index..)?.first_chunk()?;
            Some(u16::from_ne_bytes(*two))
        };
        Some(Self {
            time_ns: u64::from_ne_bytes(*bytes.first_chunk()?),
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

/// Most sources in `TOP_SOURCES`.
pub const TOP_SOURCES_MAX: u32 = 32;

/// One of the sources that are dropped most, by the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TopSource {
    /// When this was written, in nanoseconds of CLOCK_MONOTONIC; 0: the place is free.
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
