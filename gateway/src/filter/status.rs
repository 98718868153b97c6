//! What is in force, read from the pins: it needs no running gateway.

use std::path::{Path, PathBuf};

use portcullis_ebpf_common::Action;
use portcullis_ebpf_common::layout::{self, InterfaceCounter, LAYOUT_VERSION, ListCounter};
use serde::Serialize;

use super::Error;
use super::links;
use super::lists;
use super::maps::{InterfaceSlot, Maps};
use super::netlink::Place;
use super::pins::Pins;
use super::settings::{role_name, xdp_mode_name};
use crate::config::XdpMode;

/// The filter as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where it is pinned.
    pub pin_path: PathBuf,
    /// The version of the layout of its maps.
    pub layout: u32,
    /// `enforce`, `monitor` or `off`.
    pub mode: &'static str,
    /// What becomes of a source on no list: `pass` or `drop`.
    pub unlisted: &'static str,
    /// The filtered ports.
    pub ports: Vec<u16>,
    /// The generation of lists in force; every update adds one.
    pub generation: u32,
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The lists that are in the kernel, in the order of the configuration.
    pub lists: Vec<ListStatus>,
}

/// An interface and what it has counted, in packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name when it was attached.
    pub name: String,
    /// What is behind it: `edge`.
    pub role: &'static str,
    /// Where the program runs: `driver` or `generic`.
    pub xdp_mode: &'static str,
    /// Whether the program sits on it now, as seen from this network namespace.
    pub attached: bool,
    /// To a filtered port, and let through.
    pub passed: u64,
    /// Those of them whose source a permit list names.
    pub permitted: u64,
    /// Anything but TCP to a filtered port; let through, always.
    pub other: u64,
    /// To a filtered port, and dropped.
    pub dropped: Reasons,
    /// Let through only because the mode was `monitor`; they are among `passed`.
    pub monitored: Reasons,
}

/// Packets by the reason to drop them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reasons {
    /// The source is on a drop list.
    pub listed: u64,
    /// The source is on no list, and such sources are dropped.
    pub unlisted: u64,
}

/// A list and what it has counted since it came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `drop` or `permit`.
    pub action: &'static str,
    /// Its entries, as they were written.
    pub entries: u64,
    /// Packets that it had dropped.
    pub dropped_packets: u64,
    /// Packets that it had let through.
    pub permitted_packets: u64,
    /// Packets that it would have dropped, were it not for the mode `monitor`.
    pub monitored_packets: u64,
}

/// The filter that is pinned under this path.
///
/// # Errors
/// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] if the caller may not look.
pub fn status(pin_path: &Path) -> Result<Status, Error> {
    let pins = Pins::new(pin_path);
    if !pins.exist()? {
        return Err(Error::NotAttached {
            path: pin_path.to_owned(),
            interface: None,
        });
    }
    read(&pins, &Maps::open(&pins)?)
}

/// The status of open maps.
pub(super) fn read(pins: &Pins, maps: &Maps) -> Result<Status, Error> {
    let settings = maps.settings()?;
    let (generation, lists) = lists::in_force(maps)?;
    let interfaces = maps.interfaces()?;
    Ok(Status {
        pin_path: pins.root().to_owned(),
        layout: LAYOUT_VERSION,
        mode: settings.map_or("off", |settings| settings.mode().name()),
        unlisted: match settings {
            Some(settings) if settings.drop_unlisted() => "drop",
            _ => "pass",
        },
        ports: settings.iter().flat_map(layout::Settings::ports).collect(),
        generation,
        interfaces: interfaces
            .iter()
            .map(|taken| interface(pins, maps, taken))
            .collect::<Result<_, _>>()?,
        lists: lists
            .iter()
            .map(|kept| list(maps, kept))
            .collect::<Result<_, _>>()?,
    })
}

fn interface(pins: &Pins, maps: &Maps, taken: &InterfaceSlot) -> Result<InterfaceStatus, Error> {
    let counters = maps.interface_counters(taken.slot)?;
    let count =
        |counter: InterfaceCounter| counters.get(counter as usize).copied().unwrap_or_default();
    let attached = links::attached(pins, &taken.interface.name);
    let place = attached.map(|(_, attached)| attached.place);
    let permitted = count(InterfaceCounter::Permitted);
    let monitored = Reasons {
        listed: count(InterfaceCounter::MonitoredListed),
        unlisted: count(InterfaceCounter::MonitoredUnlisted),
    };
    Ok(InterfaceStatus {
        name: taken.interface.name.clone(),
        role: role_name(taken.interface.role),
        xdp_mode: xdp_mode_name(match place {
            Some(Place::Generic) => XdpMode::Generic,
            Some(Place::Driver | Place::Hardware) => XdpMode::Driver,
            None => taken.xdp_mode,
        }),
        attached: place.is_some(),
        passed: count(InterfaceCounter::Passed) + permitted + monitored.listed + monitored.unlisted,
        permitted,
        other: count(InterfaceCounter::Other),
        dropped: Reasons {
            listed: count(InterfaceCounter::DroppedListed),
            unlisted: count(InterfaceCounter::DroppedUnlisted),
        },
        monitored,
    })
}

fn list(maps: &Maps, kept: &lists::KernelList) -> Result<ListStatus, Error> {
    let counters = maps.list_counters(kept.class.slot())?;
    let count = |counter: ListCounter| counters.get(counter as usize).copied().unwrap_or_default();
    let decided = count(ListCounter::Decided);
    let (action, dropped_packets, permitted_packets) = match kept.action {
        Action::Drop => ("drop", decided, 0),
        Action::Permit => ("permit", 0, decided),
    };
    Ok(ListStatus {
        name: kept.name.clone(),
        action,
        entries: kept.entries,
        dropped_packets,
        permitted_packets,
        monitored_packets: count(ListCounter::Monitored),
    })
}
