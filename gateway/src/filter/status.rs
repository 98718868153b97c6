//! The status of a filter, read from its pins: it needs no running gate.

use std::path::{Path, PathBuf};

use portcullis_ebpf_common::encapsulation::ENCAPSULATIONS;
use portcullis_ebpf_common::layout::{
    self, InterfaceCounter, LAYOUT_VERSION, ListCounter, Reason, TopSource, unread_counter,
};
use portcullis_ebpf_common::{Action, Encapsulation, Source};
use serde::{Serialize, Serializer};

use super::Error;
use super::address::{format_network, of_verdict};
use super::clock::now_ns;
use super::events::{SlotNames, reason_name};
use super::link_layer;
use super::links::{self, AttachPoint};
use super::lists::{self, Generation};
use super::maps::{Counted, InterfaceSlot, Maps, since};
use super::netlink::AttachMode;
use super::pins::Pins;
use super::settings::{role_name, xdp_mode_name};
use super::verdicts::{VerdictCounts, Verdicts};
use crate::config::{Interface, XdpMode};

/// The filter as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where it is pinned.
    pub pin_path: PathBuf,
    /// The version of the layout of its maps.
    pub layout: u32,
    /// `enforce`, `monitor` or `off`.
    pub mode: &'static str,
    /// What happens to a source on no list: `pass` or `drop`.
    pub unlisted: &'static str,
    /// The filtered ports.
    pub ports: Vec<u16>,
    /// The generation of lists in force; every update adds one.
    pub generation: u32,
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The lists that are in the kernel, in the order of the configuration.
    pub lists: Vec<ListStatus>,
    /// Recent verdicts.
    pub verdicts: VerdictCounts,
    /// The sources with the most dropped packets.
    pub top_sources: TopSources,
}

/// An interface and its counters, in packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name when it was attached.
    pub name: String,
    /// What is behind it: `edge` or `customer`.
    pub role: &'static str,
    /// The header with which its frames begin: `ethernet` or `ip`. `None` if it is not in this
    /// network namespace.
    pub link: Option<&'static str>,
    /// Where the program runs: `driver` or `generic`.
    pub xdp_mode: &'static str,
    /// Whether the program is attached now, as seen from this network namespace.
    pub attached: bool,
    /// Whether there is an interface of this name in this network namespace.
    pub present: bool,
    /// Its new name, if it was renamed since.
    pub current_name: Option<String>,
    /// Since when it has been without the filter, in seconds since the Unix epoch. Only a running
    /// gate knows.
    pub unfiltered_since: Option<u64>,
    /// Why it is without the filter. Only a running gate knows.
    pub unfiltered_reason: Option<String>,
    /// Packets to a filtered port that passed, those of `permitted`, `granted` and `monitored`
    /// included.
    pub passed: u64,
    /// Packets of `passed` with a source or, from a customer, a destination on a permit list.
    pub permitted: u64,
    /// Packets of `passed` that would have been dropped, but for a grant of their source.
    pub granted: u64,
    /// SYNs of `passed` beyond the budget of their source, for which the kernel had no cookie.
    pub over_budget: u64,
    /// Packets that are not TCP to a filtered port; they always pass.
    pub other: u64,
    /// Packets of `other` that enclose another packet, which the filter does not read.
    pub unread: Unread,
    /// Packets to a filtered port that were dropped.
    pub dropped: Reasons,
    /// Packets from a customer that were answered with a RST instead of being dropped.
    pub resets: u64,
    /// SYNs that were answered with a cookie.
    pub syn_cookies: u64,
    /// The program answers nothing there, because answers would be lost: the peer of a veth runs no
    /// XDP program, or there is no Ethernet header.
    pub answers_lost: bool,
    /// Packets whose port cannot be read, and that count as packets to a filtered port. They are in
    /// the other counters too.
    pub hidden: u64,
    /// Packets of `passed` that passed only because of the mode `monitor`.
    pub monitored: Reasons,
}

/// Packets by the [`Reason`] to drop them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reasons {
    /// The source is on a drop list.
    pub listed: u64,
    /// The source has a recent verdict.
    pub verdict: u64,
    /// The source is on no list, and `unlisted` is `drop`.
    pub unlisted: u64,
    /// The packet came from a customer, and neither source nor destination is permitted.
    pub customer: u64,
    /// The packet has more VLAN tags than the filter reads.
    pub vlan_tags: u64,
}

impl Reasons {
    /// Each reason by its name, with its packets.
    pub fn each(&self) -> [(&'static str, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| {
            let packets = match reason {
                Reason::Listed => self.listed,
                Reason::Verdict => self.verdict,
                Reason::Unlisted => self.unlisted,
                Reason::Customer => self.customer,
                Reason::Tags => self.vlan_tags,
            };
            (reason.name(), packets)
        })
    }

    /// Packets for all reasons together.
    pub fn total(&self) -> u64 {
        self.each().iter().map(|(_, packets)| packets).sum()
    }
}

/// Packets that enclose another packet, by encapsulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread([u64; ENCAPSULATIONS]);

impl Unread {
    /// The counters of all kinds.
    pub fn new(count: impl Fn(Encapsulation) -> u64) -> Self {
        Self(Encapsulation::ALL.map(count))
    }

    /// Each kind by its name, with its packets.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let names = Encapsulation::ALL.map(Encapsulation::name);
        names.into_iter().zip(self.0)
    }
}

impl Serialize for Unread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.each())
    }
}

/// The sources with the most dropped packets of late, from the sampled events that a reader counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopSources {
    /// Whether a reader counts events now. If not, these are the last counts.
    pub watched: bool,
    /// The age of the counts in seconds; `None` if there are none.
    pub age_seconds: Option<u64>,
    /// The sources, highest count first.
    pub sources: Vec<TopSourceStatus>,
}

/// A source with many dropped packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopSourceStatus {
    /// An IPv4 address, or an IPv6 /64.
    pub source: String,
    /// Sampled events; an event counts for half after a minute.
    pub recent_events: u64,
    /// The reason of the last event.
    pub reason: &'static str,
    /// The list, if that is the reason.
    pub list: Option<String>,
    /// The interface that received the packet.
    pub interface: Option<String>,
    /// Seconds since the last event.
    pub last_seconds_ago: u64,
}

/// A list and its counters since it came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `drop` or `permit`.
    pub action: &'static str,
    /// Its entries, as in its file.
    pub entries: u64,
    /// Packets dropped because of it.
    pub dropped_packets: u64,
    /// Packets permitted because of it.
    pub permitted_packets: u64,
    /// Packets that would have been dropped because of it, in the mode `monitor`.
    pub monitored_packets: u64,
}

/// The filter that is pinned under this path.
///
/// # Errors
/// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] without privileges.
pub fn status(pin_path: &Path) -> Result<Status, Error> {
    let pins = Pins::attached(pin_path)?;
    let maps = Maps::open(&pins)?;
    let taken = maps.interfaces()?;
    let views: Vec<InterfaceView> = taken
        .into_iter()
        .map(|taken| InterfaceView::of(&pins, taken))
        .collect();
    read(
        &pins,
        &maps,
        &Verdicts::of(&pins)?,
        maps.settings()?,
        &lists::in_force(&maps)?,
        &views,
    )
}

/// The state of an interface that is not in its record.
pub(super) struct InterfaceView {
    pub(super) interface: Interface,
    pub(super) slot: u32,
    pub(super) point: Option<AttachPoint>,
    pub(super) unfiltered_since: Option<u64>,
    pub(super) unfiltered_reason: Option<String>,
}

impl InterfaceView {
    /// The state as the pins and the kernel show it.
    pub(super) fn of(pins: &Pins, taken: InterfaceSlot) -> Self {
        Self {
            point: links::attach_point(pins, &taken.interface.name),
            slot: taken.slot,
            interface: taken.interface,
            unfiltered_since: None,
            unfiltered_reason: None,
        }
    }
}

/// The status from open maps. An owner knows settings, lists and interfaces; other callers look
/// them up.
pub(super) fn read(
    pins: &Pins,
    maps: &Maps,
    verdicts: &Verdicts,
    settings: Option<layout::Settings>,
    generation: &Generation,
    views: &[InterfaceView],
) -> Result<Status, Error> {
    let taken = maps.interfaces()?;
    let counted = maps.counted()?;
    let look = |view: &InterfaceView| {
        let record = taken
            .iter()
            .find(|taken| taken.slot == view.slot && taken.interface.name == view.interface.name);
        interface(&counted, record, view)
    };
    Ok(Status {
        pin_path: pins.root().to_owned(),
        layout: LAYOUT_VERSION,
        mode: settings.map_or("off", |settings| settings.mode().name()),
        unlisted: match settings {
            Some(settings) if settings.drop_unlisted() => "drop",
            _ => "pass",
        },
        ports: settings.iter().flat_map(layout::Settings::ports).collect(),
        generation: generation.number,
        interfaces: views
            .iter()
            .map(|view| InterfaceStatus {
                answers_lost: settings.is_some_and(|settings| settings.is_silent(view.slot)),
                ..look(view)
            })
            .collect(),
        lists: generation
            .lists
            .iter()
            .map(|kept| list(&counted, kept))
            .collect(),
        verdicts: verdicts.counts()?,
        top_sources: top_sources(maps, &SlotNames::of(maps, generation)?)?,
    })
}

fn top_sources(maps: &Maps, names: &SlotNames) -> Result<TopSources, Error> {
    let now_ns = now_ns();
    let seconds_since = |then_ns: u64| now_ns.saturating_sub(then_ns) / 1_000_000_000;
    let top = maps.top_sources()?;
    let status = |top: &TopSource| TopSourceStatus {
        source: format_network(&of_verdict(Source(top.source).key())),
        recent_events: top.events,
        reason: reason_name(top.reason),
        list: names.lists.get(&top.list_slot).cloned(),
        interface: names.interfaces.get(&top.interface_slot).cloned(),
        last_seconds_ago: seconds_since(top.last_ns),
    };
    Ok(TopSources {
        watched: maps.control().reader_until_ns.get() > now_ns,
        age_seconds: top.first().map(|first| seconds_since(first.written_ns)),
        sources: top.iter().map(status).collect(),
    })
}

/// The status of an interface. Without a record its slot is free, and its counters are 0.
fn interface(
    counted: &Counted,
    record: Option<&InterfaceSlot>,
    view: &InterfaceView,
) -> InterfaceStatus {
    let now = counted.interface(view.slot);
    let counters = since(now, record.map_or(now, |record| record.counted_before));
    let count =
        |counter: InterfaceCounter| counters.get(counter as usize).copied().unwrap_or_default();
    let InterfaceView {
        interface, point, ..
    } = view;
    let place = point.as_ref().map(|point| point.attached.place);
    let current_name = point.as_ref().map(|point| &point.name);
    let xdp_mode = record.map_or(XdpMode::Driver, |record| record.xdp_mode);
    let permitted = count(InterfaceCounter::Permitted);
    let granted = count(InterfaceCounter::Granted);
    let over_budget = count(InterfaceCounter::OverBudget);
    let monitored = Reasons {
        listed: count(InterfaceCounter::MonitoredListed),
        verdict: count(InterfaceCounter::MonitoredVerdict),
        unlisted: count(InterfaceCounter::MonitoredUnlisted),
        customer: count(InterfaceCounter::MonitoredCustomer),
        vlan_tags: count(InterfaceCounter::MonitoredTags),
    };
    let index = point.as_ref().map(|point| point.index);
    let index = index.or_else(|| links::index(&interface.name).ok());
    let layer = index.and_then(|index| link_layer::of(&interface.name, index).ok());
    InterfaceStatus {
        name: interface.name.clone(),
        role: role_name(interface.role),
        link: layer.map(link_layer::name),
        xdp_mode: xdp_mode_name(match place {
            Some(AttachMode::Generic) => XdpMode::Generic,
            Some(AttachMode::Driver | AttachMode::Hardware) => XdpMode::Driver,
            None => xdp_mode,
        }),
        attached: place.is_some(),
        present: place.is_some() || index.is_some(),
        current_name: current_name.filter(|now| **now != interface.name).cloned(),
        unfiltered_since: view.unfiltered_since,
        unfiltered_reason: view.unfiltered_reason.clone(),
        passed: count(InterfaceCounter::Passed)
            + permitted
            + granted
            + over_budget
            + monitored.total(),
        permitted,
        granted,
        over_budget,
        other: count(InterfaceCounter::Other),
        unread: Unread::new(|kind| {
            let counter = counters.get(unread_counter(kind));
            counter.copied().unwrap_or_default()
        }),
        dropped: Reasons {
            listed: count(InterfaceCounter::DroppedListed),
            verdict: count(InterfaceCounter::DroppedVerdict),
            unlisted: count(InterfaceCounter::DroppedUnlisted),
            customer: count(InterfaceCounter::DroppedCustomer),
            vlan_tags: count(InterfaceCounter::DroppedTags),
        },
        resets: count(InterfaceCounter::ResetCustomer),
        syn_cookies: count(InterfaceCounter::SynCookie),
        answers_lost: false,
        hidden: count(InterfaceCounter::Hidden),
        monitored,
    }
}

fn list(counted: &Counted, kept: &lists::KernelList) -> ListStatus {
    let counters = since(counted.list(kept.class.slot()), kept.counted_before);
    let count = |counter: ListCounter| counters.get(counter as usize).copied().unwrap_or_default();
    let decided = count(ListCounter::Decided);
    let (action, dropped_packets, permitted_packets) = match kept.action {
        Action::Drop => ("drop", decided, 0),
        Action::HardDrop => ("hard-drop", decided, 0),
        Action::Permit => ("permit", 0, decided),
    };
    ListStatus {
        name: kept.name.clone(),
        action,
        entries: kept.entries,
        dropped_packets,
        permitted_packets,
        monitored_packets: count(ListCounter::Monitored),
    }
}
