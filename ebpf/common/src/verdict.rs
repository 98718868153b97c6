//! The order of verdicts, the same in the kernel and in the tests.
//!
//! | the packet | verdict |
//! |---|---|
//! | has more VLAN tags than are read | [`Verdict::Tags`]: dropped, because no source can be permitted |
//! | is not TCP to a filtered port | [`Verdict::Other`]: passes, always |
//! | comes from a source on a permit list | [`Verdict::Permitted`] |
//! | comes from a customer, to a destination on a permit list | [`Verdict::Permitted`] |
//! | comes from a customer | [`Verdict::Customer`]: a RST, or dropped |
//! | comes from a source on a drop list | [`Verdict::Listed`], counted against that list |
//! | comes from a source that has a recent verdict | [`Verdict::Recent`], if the source is not local |
//! | comes from a source on no list, and those are dropped | [`Verdict::Unlisted`] |
//! | opens a connection, beyond what its source may in a second | [`Verdict::OverBudget`], if the source is not local: passes as the next one does |
//! | is anything else | [`Verdict::Passed`], perhaps with the answer of a SYN cookie |
//!
//! The source of a SYN may be forged, so a budget drops nothing: a sender of SYNs in the name of an
//! honest source would lock that source out.
//!
//! Which list speaks for a source that several cover was settled when the lists were compiled: a
//! lookup has one answer.

use crate::layout::{
    InterfaceCounter, ListCounter, Mode, Reason, Role, Settings, VERDICT_GRACE_NS, VerdictKey,
};
use crate::packet::{self, Content, Packet, Segment, Source};

/// What a list does with the packets of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Passes them, whatever else is said of the source.
    Permit,
    /// Drops them.
    Drop,
}

/// What the lists say of a source: an action in the upper half, the slot of the list in the lower.
/// Zero: nothing.
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

/// What is remembered of sources from one packet to the next.
pub trait Memory {
    /// A recent verdict, where it lies.
    type Recent: Recent;

    /// The recent verdict on a source, expired or not.
    fn recent(&self, key: &VerdictKey) -> Option<Self::Recent>;
    /// Whether a source is in a local network.
    fn is_local(&self, source: &Source) -> bool;
    /// Nanoseconds of CLOCK_MONOTONIC, as exact as a tick.
    fn now_ns(&self) -> u64;
    /// Takes a SYN from what a source may send in this second; whether there was nothing left.
    fn exhausts(&self, key: &VerdictKey, budget: u32) -> bool;
}

/// A recent verdict, where it lies.
pub trait Recent {
    /// When it was given.
    fn added_ns(&self) -> u64;
    /// From when on it means nothing.
    fn expires_ns(&self) -> u64;
    /// Counts a packet against it.
    fn count(&self, now_ns: u64);
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not TCP to a filtered port.
    Other,
    /// It has more VLAN tags than are read.
    Tags,
    /// The list in this slot permits its source or, if a customer sent it, its destination.
    Permitted(u32),
    /// The list in this slot has its source dropped.
    Listed(u32),
    /// Its source has a recent verdict.
    Recent,
    /// Its source is on no list, and such sources are dropped.
    Unlisted,
    /// Its source has sent more SYNs in this second than it may: nothing else speaks against it.
    OverBudget,
    /// A customer sent it, and neither source nor destination is permitted.
    Customer,
    /// Nothing speaks against it.
    Passed,
}

/// The verdict on a frame, in which [`packet::read`] has found this.
#[inline(always)]
pub fn judge<P, L, M>(
    frame: &P,
    content: &Content,
    role: Role,
    settings: &Settings,
    lists: &L,
    memory: &M,
) -> Verdict
where
    P: Packet + ?Sized,
    L: Lookup,
    M: Memory,
{
    let segment = match content {
        Content::Segment(segment) => segment,
        Content::TooManyTags => return Verdict::Tags,
        Content::Unread(_) | Content::Other => return Verdict::Other,
    };
    if !segment.hidden && !settings.filters(segment.port) {
        return Verdict::Other;
    }
    let class = lists.class(&segment.source);
    match (class.action(), role) {
        (Some(Action::Permit), _) => Verdict::Permitted(class.slot()),
        (_, Role::Customer) => customer(frame, segment, lists),
        (Some(Action::Drop), Role::Edge) => Verdict::Listed(class.slot()),
        (None, Role::Edge) => stranger(frame, segment, settings, memory),
    }
}

/// A packet of a customer that is not permitted by itself.
#[inline(always)]
fn customer<P, L>(frame: &P, segment: &Segment, lists: &L) -> Verdict
where
    P: Packet + ?Sized,
    L: Lookup,
{
    let Some(destination) = packet::destination(frame, segment) else {
        return Verdict::Customer;
    };
    let class = lists.class(&destination);
    match class.action() {
        Some(Action::Permit) => Verdict::Permitted(class.slot()),
        Some(Action::Drop) | None => Verdict::Customer,
    }
}

/// A packet of a source that is on no list.
#[inline(always)]
fn stranger<P, M>(frame: &P, segment: &Segment, settings: &Settings, memory: &M) -> Verdict
where
    P: Packet + ?Sized,
    M: Memory,
{
    let key = segment.source.key();
    if let Some(recent) = memory.recent(&key) {
        let now_ns = memory.now_ns();
        let grace = now_ns.wrapping_sub(recent.added_ns()) < VERDICT_GRACE_NS;
        if now_ns < recent.expires_ns()
            && (!grace || packet::opens(frame, segment))
            && !memory.is_local(&segment.source)
        {
            recent.count(now_ns);
            return Verdict::Recent;
        }
    }
    if settings.drop_unlisted() {
        return Verdict::Unlisted;
    }
    if settings.syn_budget != 0
        && packet::opens(frame, segment)
        && memory.exhausts(&key, settings.syn_budget)
        && !memory.is_local(&segment.source)
    {
        return Verdict::OverBudget;
    }
    Verdict::Passed
}

impl Verdict {
    /// Why the packet is dropped or answered with a RST, if it is.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Other | Self::Permitted(_) | Self::OverBudget | Self::Passed => None,
            Self::Listed(_) => Some(Reason::Listed),
            Self::Recent => Some(Reason::Verdict),
            Self::Unlisted => Some(Reason::Unlisted),
            Self::Customer => Some(Reason::Customer),
            Self::Tags => Some(Reason::Tags),
        }
    }

    /// Whether the packet is kept out in this mode.
    #[inline(always)]
    #[must_use]
    pub fn drops(self, mode: Mode) -> bool {
        mode == Mode::Enforce && self.reason().is_some()
    }

    /// The counter of the interface that the packet belongs to, unless it is answered.
    #[inline(always)]
    #[must_use]
    pub fn interface_counter(self, mode: Mode) -> InterfaceCounter {
        match (self, mode) {
            (Self::Other, _) => InterfaceCounter::Other,
            (Self::Passed, _) => InterfaceCounter::Passed,
            (Self::OverBudget, _) => InterfaceCounter::OverBudget,
            (Self::Permitted(_), _) => InterfaceCounter::Permitted,
            (Self::Listed(_), Mode::Enforce) => InterfaceCounter::DroppedListed,
            (Self::Listed(_), _) => InterfaceCounter::MonitoredListed,
            (Self::Recent, Mode::Enforce) => InterfaceCounter::DroppedVerdict,
            (Self::Recent, _) => InterfaceCounter::MonitoredVerdict,
            (Self::Unlisted, Mode::Enforce) => InterfaceCounter::DroppedUnlisted,
            (Self::Unlisted, _) => InterfaceCounter::MonitoredUnlisted,
            (Self::Customer, Mode::Enforce) => InterfaceCounter::DroppedCustomer,
            (Self::Customer, _) => InterfaceCounter::MonitoredCustomer,
            (Self::Tags, Mode::Enforce) => InterfaceCounter::DroppedTags,
            (Self::Tags, _) => InterfaceCounter::MonitoredTags,
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
            _ => None,
        }
    }
}
