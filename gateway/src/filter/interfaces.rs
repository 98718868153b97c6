//! The interfaces of a filter over time. The filter is attached at the start, detached when the
//! configuration does not name an interface any more, and attached again when an interface was
//! deleted and created again.
//!
//! A program is loaded once for each interface and kept open. Attaching it takes its descriptor and
//! the directory of the links only, so a gate that has dropped its privileges can do it. Rejected:
//! a privileged helper process; it is not needed.
//!
//! The configuration means the interface that has the name now. A renamed interface keeps its
//! filter until another interface with the old name comes and gets it. If an operator detaches the
//! filter, it stays detached until a reload, or until the interface is created again.

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_ebpf_common::layout::{INTERFACES_MAX, InterfaceConstant, LinkLayer};

use super::links::{self, AttachPoint, Loaded, PutResult};
use super::maps::InterfaceSlot;
use super::pins::Pins;
use super::status::InterfaceView;
use super::{Error, Filter, link_layer};
use crate::config::{self, FilterMode};

/// An interface of the settings, as this process holds it.
pub(super) struct HeldInterface {
    slot: u32,
    /// The program for its link layer; for every link layer, if it did not exist at the start.
    programs: Vec<(LinkLayer, Loaded)>,
    place: AttachState,
    unfiltered_since: Option<SystemTime>,
}

/// Whether the program is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AttachState {
    /// It is attached. `renamed`: the new name of the interface, if it has one.
    On { index: u32, renamed: Option<String> },
    /// There is no interface of this name.
    Missing,
    /// Another process detached it from the interface with this index.
    Detached { index: u32 },
    /// It cannot be attached, for this reason.
    Failed { reason: String },
}

impl AttachState {
    /// The index of the interface that it is attached to, or was until it was detached.
    fn index(&self) -> Option<u32> {
        match self {
            Self::On { index, .. } | Self::Detached { index } => Some(*index),
            Self::Missing | Self::Failed { .. } => None,
        }
    }

    fn is_on(&self) -> bool {
        matches!(self, Self::On { .. })
    }

    /// Whether it differs from the settings.
    fn is_odd(&self) -> bool {
        !matches!(self, Self::On { renamed: None, .. })
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::On { .. } => None,
            Self::Missing => Some("there is no such interface".to_owned()),
            Self::Detached { .. } => Some("another process took the filter off".to_owned()),
            Self::Failed { reason } => Some(reason.clone()),
        }
    }
}

impl HeldInterface {
    /// Where its program is attached now, according to the kernel.
    fn attach_point(&self) -> Option<AttachPoint> {
        self.attach_point_on(self.place.index()?)
    }

    /// How its program is attached to the interface with this index, if it is.
    fn attach_point_on(&self, index: u32) -> Option<AttachPoint> {
        let mut programs = self.programs.iter();
        programs.find_map(|(_, program)| links::attach_point_of(index, program.number))
    }

    /// The program for the link layer of an interface.
    fn program_for(&self, interface: &str, index: u32) -> Result<&Loaded, Error> {
        let layer = link_layer::of(interface, index)?;
        let mut programs = self.programs.iter();
        let program = programs.find(|(program_layer, _)| *program_layer == layer);
        program
            .map(|(_, program)| program)
            .ok_or_else(|| Error::Unreadable {
                interface: interface.to_owned(),
                reason:
                    "its frames have another kind of header than those of the interface that had \
                         this name at the start; restart the gate, which loads another program \
                         for it"
                        .to_owned(),
            })
    }

    fn set(&mut self, place: AttachState) {
        if place.is_on() {
            self.unfiltered_since = None;
        } else {
            self.unfiltered_since.get_or_insert_with(SystemTime::now);
        }
        self.place = place;
    }
}

/// Checks, before anything is changed, that the interfaces of the settings exist, unless the gate
/// waits for them.
pub(super) fn check_present(settings: &config::Filter, pins: &Pins) -> Result<(), Error> {
    for interface in &settings.interfaces {
        match present(pins, &interface.name) {
            Err(Error::NoSuchInterface { .. }) if settings.wait_for_interfaces => {}
            index => {
                link_layer::of(&interface.name, index?)?;
            }
        }
    }
    Ok(())
}

/// The index of an interface. If it was renamed since it got its filter, the error has its new
/// name.
pub(super) fn present(pins: &Pins, interface: &str) -> Result<u32, Error> {
    links::index(interface).map_err(|_| Error::NoSuchInterface {
        interface: interface.to_owned(),
        renamed: links::attach_point(pins, interface).map(|point| point.name),
    })
}

impl Filter {
    /// Attaches the program to the interfaces of the settings, and detaches it from all others.
    pub(super) fn sync_interfaces(&mut self) -> Result<(), Error> {
        self.follow_names()?;
        let mut new = Vec::new();
        for interface in self.settings.interfaces.clone() {
            match self.put(&interface) {
                Ok(Some(PutResult::New)) => new.push(interface.name),
                Ok(Some(PutResult::TakenOver) | None) => {}
                Err(error) => {
                    for name in new {
                        self.detach_from(&name)?;
                    }
                    return Err(error);
                }
            }
        }
        // A filter that is off needs no interfaces in the settings: its program passes everything.
        if self.settings.mode != FilterMode::Off || !self.settings.interfaces.is_empty() {
            self.detach_from_others()?;
        }
        self.pins.remove_other_layouts()
    }

    fn detach_from_others(&mut self) -> Result<(), Error> {
        let mut others = self.pins.linked()?;
        let taken = self.maps.interfaces()?;
        others.extend(taken.into_iter().map(|taken| taken.interface.name));
        let interfaces = &self.settings.interfaces;
        others.retain(|name| !interfaces.iter().any(|kept| kept.name == *name));
        others.sort_unstable();
        others.dedup();
        for interface in others {
            self.detach_from(&interface)?;
            tracing::warn!(
                interface,
                "the filter is taken off: the configuration does not name this interface any more"
            );
        }
        Ok(())
    }

    /// Renames pins and records after their interfaces.
    fn follow_names(&mut self) -> Result<(), Error> {
        let renamed = links::follow_names(&self.pins)?;
        let taken = self.maps.interfaces()?;
        let new_name = |name: &str| renamed.iter().find(|(old, _)| old == name);
        for taken in &taken {
            let name = &taken.interface.name;
            // The interface is gone, and another has its name now.
            if new_name(name).is_none() && renamed.iter().any(|(_, new)| new == name) {
                self.maps.free_interface_slot(taken.slot)?;
            }
        }
        for mut taken in taken {
            if let Some((old, new)) = new_name(&taken.interface.name) {
                tracing::info!(
                    interface = new,
                    before = old,
                    "the filter's own program is taken over: its interface was renamed"
                );
                taken.interface.name.clone_from(new);
                self.maps.take_interface_slot(&taken)?;
            }
        }
        Ok(())
    }

    /// Attaches the program to an interface; `None` if the interface does not exist and the gate
    /// waits for it.
    fn put(&mut self, interface: &config::Interface) -> Result<Option<PutResult>, Error> {
        let taken = self.maps.interfaces()?;
        let before = taken
            .iter()
            .find(|taken| taken.interface.name == interface.name);
        let is_new = before.is_none();
        let (slot, counted_before) = match before {
            Some(before) => (before.slot, before.counted_before),
            None => {
                let slot = (0..INTERFACES_MAX)
                    .find(|slot| !taken.iter().any(|taken| taken.slot == *slot))
                    .ok_or(Error::TooMany {
                        what: "interfaces",
                        number: taken.len() + 1,
                        max: INTERFACES_MAX as usize,
                    })?;
                (slot, self.maps.counted()?.interface(slot))
            }
        };
        // Before the program counts there: if this process ends, no other may take the slot.
        self.maps.take_interface_slot(&InterfaceSlot {
            slot,
            interface: interface.clone(),
            xdp_mode: self.settings.xdp_mode,
            counted_before,
        })?;
        let result = self.put_in_slot(interface, slot);
        if result.is_err() && is_new {
            self.maps.free_interface_slot(slot)?;
        }
        result
    }

    fn put_in_slot(
        &mut self,
        interface: &config::Interface,
        slot: u32,
    ) -> Result<Option<PutResult>, Error> {
        let name = &interface.name;
        let index = links::index(name).ok();
        let layers = match index {
            Some(index) => vec![link_layer::of(name, index)?],
            None if self.settings.wait_for_interfaces => {
                vec![LinkLayer::Ethernet, LinkLayer::RawIp, LinkLayer::Tun]
            }
            None => Vec::new(),
        };
        let role = interface.role.in_kernel();
        let open = |layer| {
            let constant = InterfaceConstant::new(slot, role, layer);
            Ok((layer, links::open(&self.pins, constant)?))
        };
        let programs: Result<Vec<_>, Error> = layers.into_iter().map(open).collect();
        let mut held = HeldInterface {
            slot,
            programs: programs?,
            place: AttachState::Missing,
            unfiltered_since: None,
        };
        let result = match index {
            Some(index) => {
                let program = held.program_for(name, index)?;
                links::put(&self.pins, name, program, self.settings.xdp_mode)
            }
            None => Err(Error::NoSuchInterface {
                interface: name.clone(),
                renamed: None,
            }),
        };
        let (put, place) = match result {
            Ok((put, index)) => {
                let taken_over = put == PutResult::TakenOver;
                let link = held
                    .programs
                    .first()
                    .map(|(layer, _)| link_layer::name(*layer));
                tracing::info!(interface = name, link, taken_over, "the filter is in place");
                let renamed = None;
                (Some(put), AttachState::On { index, renamed })
            }
            Err(Error::NoSuchInterface { .. }) if self.settings.wait_for_interfaces => {
                tracing::warn!(
                    interface = name,
                    "there is no such interface; it gets the filter when it comes"
                );
                (None, AttachState::Missing)
            }
            Err(error) => return Err(error),
        };
        held.set(place);
        self.interfaces.insert(name.clone(), held);
        Ok(put)
    }

    fn detach_from(&mut self, interface: &str) -> Result<(), Error> {
        links::remove(&self.pins, interface)?;
        self.interfaces.remove(interface);
        let taken = self.maps.interfaces()?;
        if let Some(taken) = taken.iter().find(|taken| taken.interface.name == interface) {
            self.maps.free_interface_slot(taken.slot)?;
        }
        Ok(())
    }

    /// The interfaces of the settings that do not exist.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let held = self.interfaces.iter();
        held.filter(|(_, held)| held.place == AttachState::Missing)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Gives the links to a user: [`Filter::reattach`] needs that once this process runs as that
    /// user.
    ///
    /// # Errors
    /// [`Error::Pin`] and [`Error::NotPermitted`].
    pub fn chown_links(&self, uid: u32, gid: u32) -> Result<(), Error> {
        // By the real path: the path through the open directory is itself a symbolic link.
        Pins::new(self.pins.root()).chown_links(uid, gid)
    }

    /// Compares the kernel's state with the settings, logs what has changed, and attaches the
    /// program again to interfaces that were created again. Returns the interfaces that have the
    /// filter again.
    ///
    /// `gone` are the indexes of interfaces that were deleted since the last call. With `all`, the
    /// program is also attached where another process detached it, and every difference from the
    /// settings is logged again.
    pub fn reattach(&mut self, gone: &[u32], all: bool) -> Vec<String> {
        if let Err(error) = self.check_pinned() {
            self.all_detached(&error);
            return Vec::new();
        }
        let names: Vec<String> = self.interfaces.keys().cloned().collect();
        let mut again = Vec::new();
        for name in names {
            let Some(held) = self.interfaces.get(&name) else {
                continue;
            };
            let place = match check_interface(held, &name, gone, all) {
                Finding::Is(place) => place,
                Finding::Attach => match self.attach_again(&name) {
                    Ok(index) => AttachState::On {
                        index,
                        renamed: None,
                    },
                    Err(Error::NoSuchInterface { .. }) => AttachState::Missing,
                    Err(error) => AttachState::Failed {
                        reason: error.to_string(),
                    },
                },
            };
            if let Some(held) = self.interfaces.get_mut(&name) {
                // An interface that was created again between two checks is another interface.
                let is_another = held.place.index() != place.index();
                if place.is_on() && (is_another || !held.place.is_on()) {
                    again.push(name.clone());
                }
                let is_news = held.place != place;
                if is_news || (all && place.is_odd()) {
                    log_change(&name, held, &place);
                }
                held.set(place);
            }
        }
        if !again.is_empty()
            && let Err(error) = self.sync_answers()
        {
            tracing::warn!(
                %error,
                "whether answers arrive on interfaces that came back is not known yet"
            );
        }
        again
    }

    /// The pins are gone, or belong to another filter.
    fn all_detached(&mut self, error: &Error) {
        let is_news = self.interfaces.values().any(|held| held.place.is_on());
        if is_news {
            tracing::warn!("{error}");
        }
        for held in self.interfaces.values_mut() {
            if let Some(index) = held.place.index() {
                held.set(AttachState::Detached { index });
            }
        }
    }

    fn attach_again(&mut self, name: &str) -> Result<u32, Error> {
        let (Some(held), Some(interface)) = (
            self.interfaces.get(name),
            self.settings
                .interfaces
                .iter()
                .find(|interface| interface.name == name),
        ) else {
            return Err(Error::NoSuchInterface {
                interface: name.to_owned(),
                renamed: None,
            });
        };
        // Two interfaces may have exchanged their names: the pins follow, the slots stay with the
        // names.
        links::follow_names(&self.pins)?;
        let taken = self.maps.interfaces()?;
        if !taken.iter().any(|taken| taken.slot == held.slot) {
            // It was freed when the filter was detached from this interface.
            self.maps.take_interface_slot(&InterfaceSlot {
                slot: held.slot,
                interface: interface.clone(),
                xdp_mode: self.settings.xdp_mode,
                counted_before: self.maps.counted()?.interface(held.slot),
            })?;
        }
        let program = held.program_for(name, links::index(name)?)?;
        let (_, index) = links::put(&self.pins, name, program, self.settings.xdp_mode)?;
        Ok(index)
    }

    /// What this process knows about its interfaces, for the status.
    pub(super) fn views(&self) -> Result<Vec<InterfaceView>, Error> {
        let view = |(name, held): (&String, &HeldInterface)| {
            let point = held.attach_point();
            let since = match &point {
                Some(_) => None,
                None => Some(held.unfiltered_since.unwrap_or_else(SystemTime::now)),
            };
            let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
            let settings = self.settings.interfaces.iter();
            let role = settings
                .clone()
                .find(|interface| interface.name == *name)
                .map_or(config::Role::Edge, |interface| interface.role);
            InterfaceView {
                interface: config::Interface {
                    name: name.clone(),
                    role,
                },
                slot: held.slot,
                point,
                unfiltered_since: since.map(|since| since.as_secs()),
                unfiltered_reason: held.place.reason(),
            }
        };
        let mut views: Vec<InterfaceView> = self.interfaces.iter().map(view).collect();
        // Interfaces that an earlier owner left, and that a filter that is off does not name.
        for taken in self.maps.interfaces()? {
            if !self.interfaces.values().any(|held| held.slot == taken.slot) {
                views.push(InterfaceView::of(&self.pins, taken));
            }
        }
        Ok(views)
    }
}

/// The result of a check of an interface.
enum Finding {
    /// Its state; nothing has to be done.
    Is(AttachState),
    /// The program has to be attached.
    Attach,
}

fn check_interface(held: &HeldInterface, name: &str, gone: &[u32], all: bool) -> Finding {
    let known = held.place.index().filter(|index| !gone.contains(index));
    let point = known.and_then(|index| held.attach_point_on(index));
    let now = links::index(name).ok();
    match (point, now) {
        (Some(point), now) if now.is_none() || now == Some(point.index) => {
            Finding::Is(AttachState::On {
                index: point.index,
                renamed: (point.name != name).then_some(point.name),
            })
        }
        (_, None) => Finding::Is(AttachState::Missing),
        (_, Some(index)) => match held.attach_point_on(index) {
            // The interface of this name has changed, and has the program.
            Some(_) => Finding::Is(AttachState::On {
                index,
                renamed: None,
            }),
            None if known == Some(index) && !all => match links::is_free(index) {
                true => Finding::Is(AttachState::Detached { index }),
                false => Finding::Attach,
            },
            None => Finding::Attach,
        },
    }
}

/// Logs the new state of an interface.
fn log_change(interface: &str, held: &HeldInterface, place: &AttachState) {
    match place {
        AttachState::On {
            renamed: Some(now), ..
        } => tracing::warn!(
            interface,
            now,
            "the interface was renamed and keeps its filter; name it so in filter.interfaces"
        ),
        AttachState::On { .. } if held.place.is_on() => {
            tracing::info!(
                interface,
                "the filter is on the interface of this name again"
            );
        }
        AttachState::On { .. } => {
            let since = held.unfiltered_since.and_then(|since| since.elapsed().ok());
            let missed_ms = since.map_or(0, |since| since.as_millis());
            tracing::info!(interface, missed_ms, "the filter is attached again");
        }
        AttachState::Missing => tracing::warn!(
            interface,
            "the interface is gone, and the filter with it; it gets the filter again when it is \
             back"
        ),
        AttachState::Detached { .. } => tracing::warn!(
            interface,
            "another process took the filter off this interface: it is unfiltered; a reload \
             (SIGHUP) or a restart puts it back"
        ),
        AttachState::Failed { reason } => tracing::error!(
            interface,
            error = reason,
            "the interface is unfiltered: the filter cannot be put on it; trying again"
        ),
    }
}
