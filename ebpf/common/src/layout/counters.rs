//! What the program counts, per CPU: packets of interfaces and of lists.

use super::{INTERFACE_SLOTS, LIST_SLOTS};
#[cfg(doc)]
use super::{Mode, Reason};
use crate::encapsulation::{ENCAPSULATIONS, Encapsulation};

/// All counters of one CPU. They are never cleared: a record of a slot says where its counters
/// stood when the slot was taken.
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

/// The counters of an interface before its first packet.
pub const NOTHING_COUNTED: InterfaceCounters = [0; 40];

/// The first counter of packets within packets, which count as [`InterfaceCounter::Other`], too.
pub const FIRST_UNREAD: usize = 24;
const _: () = assert!(FIRST_UNREAD + ENCAPSULATIONS <= size_of::<InterfaceCounters>() / 8);

/// What an interface counts; every packet counts once, and those with a hidden port or of an
/// [`Encapsulation`] twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum InterfaceCounter {
    /// Not TCP to a filtered port; passed.
    Other = 0,
    /// No rule drops it; passed.
    Passed = 1,
    /// On a permit list; passed.
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
    /// From a customer, and answered with a RST for [`Reason::Customer`].
    ResetCustomer = 13,
    /// A SYN that was answered with a cookie.
    SynCookie = 14,
    /// In addition to one of the others: TCP whose port cannot be read, and so is taken for a
    /// filtered one.
    Hidden = 15,
    /// Dropped for [`Reason::Tags`].
    DroppedTags = 16,
    /// Passed because of [`Mode::Monitor`]; as [`Reason::Tags`].
    MonitoredTags = 17,
    /// Passed for a grant; otherwise it would have been dropped.
    Granted = 18,
}

/// The place of the counter of a packet within a packet.
#[inline(always)]
#[must_use]
pub const fn unread_counter(encapsulation: Encapsulation) -> usize {
    FIRST_UNREAD + encapsulation as usize
}

/// A list's counters on one CPU, indexed by [`ListCounter`].
pub type ListCounters = [u64; 2];

/// What a list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ListCounter {
    /// Packets dropped (of a drop list) or permitted (of a permit list).
    Decided = 0,
    /// Packets that a drop list would have dropped if the mode were not [`Mode::Monitor`].
    Monitored = 1,
}
