//! The order of verdicts, the same on both paths of the program, in the tests, and where userspace
//! says what the program would do.
//!
//! | the packet | verdict |
//! |---|---|
//! | has more VLAN tags than are read | [`Verdict::Tags`] |
//! | is not TCP to a filtered port | [`Verdict::Other`] |
//! | comes from a source on a permit list | [`Verdict::Permitted`] |
//! | comes from a customer, to a destination on a permit list | [`Verdict::Permitted`] |
//! | comes from a customer | [`Verdict::Customer`] |
//! | comes from a source on a hard drop list | [`Verdict::Listed`] |
//! | would be dropped by a row below, and its source has a grant | [`Verdict::Granted`] |
//! | comes from a source on another drop list | [`Verdict::Listed`] |
//! | comes from a source with a recent verdict, which is not local | [`Verdict::Recent`] |
//! | comes from a source on no list, and those are dropped | [`Verdict::Unlisted`] |
//! | opens a connection beyond its source's budget, which is not local | [`Verdict::OverBudget`] |
//! | is anything else | [`Verdict::Passed`] |
//!
//! [`Verdict::reason`] says which of them are dropped. Behind too many tags no source is read, so
//! none could be permitted; a customer gets a RST, if it is to have one; and a SYN that passes may
//! be answered with a cookie.
//!
//! The first two rows come from the headers alone ([`judge`](crate::slow_path::judge)); from the
//! third on, [`decide`] is the table. The source of a SYN may be forged, so a budget drops nothing:
//! a sender of SYNs in the name of an honest source would lock that source out.
//!
//! Where several lists cover a source, the compile has settled which one decides: a lookup has one
//! answer.

use crate::layout::{InterfaceCounter, ListCounter, Mode, Reason, Role};

/// What a list does with the packets of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Passes them, whatever else is said of the source.
    Permit,
    /// Drops them, unless their source has a grant.
    Drop,
    /// Drops them, whether their source has a grant or not.
    HardDrop,
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
    const HARD_DROP: u32 = 3;

    /// The class of the list in this slot.
    #[must_use]
    pub const fn new(action: Action, slot: u16) -> Self {
        let action = match action {
            Action::Permit => Self::PERMIT,
            Action::Drop => Self::DROP,
            Action::HardDrop => Self::HARD_DROP,
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
            Self::HARD_DROP => Some(Action::HardDrop),
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

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not TCP to a filtered port.
    Other,
    /// It has more VLAN tags than are read.
    Tags,
    /// The list in this slot permits its source or, if a customer sent it, its destination.
    Permitted(u32),
    /// It would be dropped, but its source has a grant and is on no hard drop list.
    Granted,
    /// The list in this slot has its source dropped.
    Listed(u32),
    /// Its source has a recent verdict.
    Recent,
    /// Its source is on no list, and such sources are dropped.
    Unlisted,
    /// Its source has sent more SYNs in this second than it may; there is no other reason.
    OverBudget,
    /// A customer sent it, and neither source nor destination is permitted.
    Customer,
    /// There is no reason to drop it.
    Passed,
}

/// The facts about a TCP segment to a filtered port. [`decide`] asks for each at most once, and
/// only if those before it have not decided.
pub trait Facts {
    /// Why a fact cannot be known here; [`Infallible`](core::convert::Infallible) where all can.
    type Unknown;

    /// What is behind the interface that it came in on.
    fn role(&self) -> Role;

    /// What the lists say of its source.
    ///
    /// # Errors
    /// It cannot be known here.
    fn source(&self) -> Result<Class, Self::Unknown>;

    /// What the lists say of its destination.
    ///
    /// # Errors
    /// It cannot be known here.
    fn destination(&self) -> Result<Class, Self::Unknown>;

    /// Whether its source has a grant.
    ///
    /// # Errors
    /// It cannot be known here.
    fn granted(&self) -> Result<bool, Self::Unknown>;

    /// Whether it is dropped for a recent verdict on its source.
    ///
    /// # Errors
    /// It cannot be known here.
    fn recent_verdict(&self) -> Result<bool, Self::Unknown>;

    /// Whether sources on no list are dropped.
    fn drop_unlisted(&self) -> bool;

    /// Whether it opens a connection beyond the budget of its source.
    ///
    /// # Errors
    /// It cannot be known here.
    fn over_budget(&self) -> Result<bool, Self::Unknown>;
}

/// The verdict on a TCP segment to a filtered port.
///
/// # Errors
/// The first fact that it depends on and that cannot be known here.
#[inline(always)]
pub fn decide<F: Facts>(facts: &F) -> Result<Verdict, F::Unknown> {
    let source = facts.source()?;
    match (source.action(), facts.role()) {
        (Some(Action::Permit), _) => Ok(Verdict::Permitted(source.slot())),
        (_, Role::Customer) => {
            let destination = facts.destination()?;
            match destination.action() {
                Some(Action::Permit) => Ok(Verdict::Permitted(destination.slot())),
                Some(Action::Drop | Action::HardDrop) | None => Ok(Verdict::Customer),
            }
        }
        (Some(Action::HardDrop), Role::Edge) => Ok(Verdict::Listed(source.slot())),
        (Some(Action::Drop), Role::Edge) => unless_granted(facts, Verdict::Listed(source.slot())),
        (None, Role::Edge) if facts.recent_verdict()? => unless_granted(facts, Verdict::Recent),
        (None, Role::Edge) if facts.drop_unlisted() => unless_granted(facts, Verdict::Unlisted),
        (None, Role::Edge) if facts.over_budget()? => Ok(Verdict::OverBudget),
        (None, Role::Edge) => Ok(Verdict::Passed),
    }
}

/// A grant matters only to a source that would be dropped, so that is where it is looked up.
#[inline(always)]
fn unless_granted<F: Facts>(facts: &F, otherwise: Verdict) -> Result<Verdict, F::Unknown> {
    Ok(if facts.granted()? {
        Verdict::Granted
    } else {
        otherwise
    })
}

impl Verdict {
    /// Why the packet is dropped or answered with a RST, if it is.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Other | Self::Permitted(_) | Self::Granted | Self::OverBudget | Self::Passed => {
                None
            }
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
            (Self::Granted, _) => InterfaceCounter::Granted,
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
