//! The order of verdicts, the same in the kernel and in the tests.
//!
//! | the packet | verdict |
//! |---|---|
//! | is not TCP to a filtered port | [`Verdict::Other`]: passes, always |
//! | comes from a source on a permit list | [`Verdict::Permitted`] |
//! | comes from a source on a drop list | [`Verdict::Listed`], counted against that list |
//! | comes from a source on no list, and those are dropped | [`Verdict::Unlisted`] |
//! | is anything else | [`Verdict::Passed`] |
//!
//! Which list speaks for a source that several cover was settled when the lists were compiled: a lookup has one answer.

use crate::layout::{InterfaceCounter, ListCounter, Mode, Settings};
use crate::packet::{self, Packet, Source};

/// What a list does with the packets of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Passes them, whatever else is said of the source.
    Permit,
    /// Drops them.
    Drop,
}

/// What the lists say of a source: an action in the upper half, the slot of the list in the lower. Zero: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Class(pub u32);

impl Class {
    /// On no list.
    pub const NONE: Self = Self(0);

    const PERMIT: u32 = 1;
    const DROP: u32 = 2;

    /// The class of the list in this slot.
    #[must_use]
    pub const fn new(action: Action, slot: u16) -> Self {
        let action = match action {
            Action::Permit => Self::PERMIT,
            Action::Drop => Self::DROP,
        };
        Self(action << 16 | slot as u32)
    }

    /// The action, unless there is none.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Option<Action> {
        match self.0 >> 16 {
            Self::PERMIT => Some(Action::Permit),
            Self::DROP => Some(Action::Drop),
            _ => None,
        }
    }

    /// The slot of the list.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 & 0xffff
    }
}

/// Where a source is looked up.
pub trait Lookup {
    /// The class of the longest prefix that covers the source, or [`Class::NONE`].
    fn class(&self, source: &Source) -> Class;
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not TCP to a filtered port.
    Other,
    /// The list in this slot permits its source.
    Permitted(u32),
    /// The list in this slot has its source dropped.
    Listed(u32),
    /// Its source is on no list, and such sources are dropped.
    Unlisted,
    /// Nothing speaks against it.
    Passed,
}

/// The verdict on a frame.
#[inline(always)]
pub fn judge<P, L>(frame: &P, settings: &Settings, lists: &L) -> Verdict
where
    P: Packet + ?Sized,
    L: Lookup,
{
    let Some(segment) = packet::segment(frame) else {
        return Verdict::Other;
    };
    if !settings.filters(segment.port) {
        return Verdict::Other;
    }
    let class = lists.class(&segment.source);
    match class.action() {
        Some(Action::Permit) => Verdict::Permitted(class.slot()),
        Some(Action::Drop) => Verdict::Listed(class.slot()),
        None if settings.drop_unlisted() => Verdict::Unlisted,
        None => Verdict::Passed,
    }
}

impl Verdict {
    /// Whether the packet is dropped in this mode.
    #[inline(always)]
    #[must_use]
    pub fn drops(self, mode: Mode) -> bool {
        mode == Mode::Enforce && matches!(self, Self::Listed(_) | Self::Unlisted)
    }

    /// The counter of the interface that the packet belongs to.
    #[inline(always)]
    #[must_use]
    pub fn interface_counter(self, mode: Mode) -> InterfaceCounter {
        match self {
            Self::Other => InterfaceCounter::Other,
            Self::Passed => InterfaceCounter::Passed,
            Self::Permitted(_) => InterfaceCounter::Permitted,
            Self::Listed(_) if mode == Mode::Enforce => InterfaceCounter::DroppedListed,
            Self::Listed(_) => InterfaceCounter::MonitoredListed,
            Self::Unlisted if mode == Mode::Enforce => InterfaceCounter::DroppedUnlisted,
            Self::Unlisted => InterfaceCounter::MonitoredUnlisted,
        }
    }

    /// The slot of the list that decided, and which of its counters the packet belongs to.
    #[inline(always)]
    #[must_use]
    pub fn list_counter(self, mode: Mode) -> Option<(u32, ListCounter)> {
        match self {
            Self::Permitted(slot) => Some((slot, ListCounter::Decided)),
            Self::Listed(slot) if mode == Mode::Enforce => Some((slot, ListCounter::Decided)),
            Self::Listed(slot) => Some((slot, ListCounter::Monitored)),
            Self::Other | Self::Unlisted | Self::Passed => None,
        }
    }
}
