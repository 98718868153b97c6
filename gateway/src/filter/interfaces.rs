//! The interfaces of a filter over time: put on at the start, let go when the configuration does
//! not name them any more, and put on again when an interface was deleted and made again.
//!
//! A program is loaded once for each interface and kept open. Putting it on an interface takes only
//! its descriptor and the directory of the links, so that a gate which has given up its privileges
//! can do it. The rejected way is a helper process with privileges: it is not needed.
//!
//! An interface of the configuration is the one that bears the name. One that is renamed keeps its
//! filter, until another with that name comes and gets it. What an operator took off stays off
//! until the configuration is read again, or the interface is made again.

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_ebpf_common::layout::{INTERFACES_MAX, InterfaceConstant, LinkLayer};

use super::links::{self, Loaded, Put, Seat};
use super::maps::InterfaceSlot;
use super::pins::Pins;
use super::status::Sight;
use super::{Error, Filter, link_layer};
use crate::config::{self, FilterMode};

/// An interface of the settings, as this process holds it.
pub(super) struct HeldInterface {
    slot: u32,
    /// For the link layer that it has; for each that it may have, if it was not there at the start.
    programs: Vec<(LinkLayer, Loaded)>,
    place: Place,
    unfiltered_since: Option<SystemTime>,
}

/// Where the program of an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// On it. What the interface is called now, if it was renamed.
    On { index: u32, renamed: Option<String> },
    /// There is no interface of the name.
    Missing,
    /// Another process took it off the interface with this index.
    Detached { index: u32 },
    /// It cannot be put on it, for this reason.
    Failed { reason: String },
}

impl Place {
    /// The interface that it is on, or was until it was taken off.
    fn index(&self) -> Option<u32> {
        match self {
            Self::On { index, .. } | Self::Detached { index } => Some(*index),
            Self::Missing | Self::Failed { .. } => None,
        }
    }

    fn is_on(&self) -> bool {
        matches!(self, Self::On { .. })
    }

    /// Whether it is not as the settings have it.
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
    /// Where its program sits in truth.
    fn seat(&self) -> Option<Seat> {
        self.seat_on(self.place.index()?)
    }

    /// How its program sits on the interface with this index, if it does.
    fn seat_on(&self, index: u32) -> Option<Seat> {
        let mut programs = self.programs.iter();
        programs.find_map(|(_, program)| links::seat_of(index, program.number))
    }

    /// The program that reads an interface.
    fn program_for(&self, interface: &str, index: u32) -> Result<&Loaded, Error> {
        let layer = link_layer::of(interface, index)?;
        let mut programs = self.programs.iter();
        let program = programs.find(|(program_layer, _)| *program_layer == layer);
        program
            .map(|(_, program)| program)
            .ok_or_else(|| Error::Unreadable {
                interface: interface.to_owned(),
                reason: "its frames begin otherwise than those of the interface that had this name at the start; \
                         restart the gate, which loads another program for it"
                    .to_owned(),
            })
    }

    fn set(&mut self, place: Place) {
        if place.is_on() {
            self.unfiltered_since = None;
        } else {
            self.unfiltered_since.get_or_insert_with(SystemTime::now);
        }
        self.place = place;
    }
}

/// Before anything is changed: whether the interfaces of the settings are there, unless they are
/// waited for.
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

/// The index of an interface. One that was renamed since it got its filter is named in the error.
pub(super) fn present(pins: &Pins, interface: &str) -> Result<u32, Error> {
    links::index(interface).map_err(|_| Error::NoSuchInterface {
        interface: interface.to_owned(),
        renamed: links::seat(pins, interface).map(|seat| seat.name),
    })
}

impl Filter {
    /// Puts the program on the interfaces of the settings, and takes it off all others.
    pub(super) fn sync_interfaces(&mut self) -> Result<(), Error> {
        self.follow_names()?;
        let mut new = Vec::new();
        for interface in self.settings.interfaces.clone() {
            match self.put(&interface) {
                Ok(Some(Put::New)) => new.push(interface.name),
                Ok(Some(Put::TakenOver) | None) => {}
                Err(error) => {
                    for name in new {
                        self.let_go(&name)?;
                    }
                    return Err(error);
                }
            }
        }
        // A filter that is off need not say where it would be: what sits there passes everything.
        if self.settings.mode != FilterMode::Off || !self.settings.interfaces.is_empty() {
            self.let_others_go()?;
        }
        self.pins.remove_other_layouts()
    }

    fn let_others_go(&mut self) -> Result<(), Error> {
        let mut others = self.pins.linked()?;
        let taken = self.maps.interfaces()?;
        others.extend(taken.into_iter().map(|taken| taken.interface.name));
        let interfaces = &self.settings.interfaces;
        others.retain(|name| !interfaces.iter().any(|kept| kept.name == *name));
        others.sort_unstable();
        others.dedup();
        for interface in others {
            self.let_go(&interface)?;
            tracing::warn!(
                interface,
                "the filter is taken off: the configuration does not name this interface any more"
            );
        }
        Ok(())
    }

    /// Pins and records get the names that their interfaces have now.
    fn follow_names(&mut self) -> Result<(), Error> {
        let renamed = links::follow_names(&self.pins)?;
        let taken = self.maps.interfaces()?;
        let new_name = |name: &str| renamed.iter().find(|(old, _)| old == name);
        for taken in &taken {
            let name = &taken.interface.name;
            // Of an interface that is no more, and whose name another has now.
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

    /// Puts the program on an interface; `None` if it is not there and is waited for.
    fn put(&mut self, interface: &config::Interface) -> Result<Option<Put>, Error> {
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
        // Before the program counts there: nobody else is to take the slot if this process ends.
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
    ) -> Result<Option<Put>, Error> {
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
            place: Place::Missing,
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
                let taken_over = put == Put::TakenOver;
                let link = held
                    .programs
                    .first()
                    .map(|(layer, _)| link_layer::name(*layer));
                tracing::info!(interface = name, link, taken_over, "the filter is in place");
                let renamed = None;
                (Some(put), Place::On { index, renamed })
            }
            Err(Error::NoSuchInterface { .. }) if self.settings.wait_for_interfaces => {
                tracing::warn!(
                    interface = name,
                    "there is no such interface; it gets the filter when it comes"
                );
                (None, Place::Missing)
            }
            Err(error) => return Err(error),
        };
        held.set(place);
        self.interfaces.insert(name.clone(), held);
        Ok(put)
    }

    fn let_go(&mut self, interface: &str) -> Result<(), Error> {
        links::remove(&self.pins, interface)?;
        self.interfaces.remove(interface);
        let taken = self.maps.interfaces()?;
        if let Some(taken) = taken.iter().find(|taken| taken.interface.name == interface) {
            self.maps.free_interface_slot(taken.slot)?;
        }
        Ok(())
    }

    /// The interfaces of the settings that are not there.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let held = self.interfaces.iter();
        held.filter(|(_, held)| held.place == Place::Missing)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Lets a user keep the filter on its interfaces: what [`Filter::mend`] needs once this process
    /// is that user's.
    ///
    /// # Errors
    /// [`Error::Pin`] and [`Error::NotPermitted`].
    pub fn give_links(&self, uid: u32, gid: u32) -> Result<(), Error> {
        // By their path, which is root's: what leads through the open directory is a link in
        // itself.
        Pins::new(self.pins.root()).give_links(uid, gid)
    }

    /// Compares the kernel's state with the settings, logs what has changed, and puts the program
    /// back on interfaces that were made again. `gone` are the indexes of interfaces that were
    /// deleted since the last call. What another process took off is put back only if `all` says
    /// so; what is not as the settings have it is then told again. Returns the interfaces that have
    /// the filter again.
    pub fn mend(&mut self, gone: &[u32], all: bool) -> Vec<String> {
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
            let place = match looked_at(held, &name, gone, all) {
                Look::Is(place) => place,
                Look::Attach => match self.attach_again(&name) {
                    Ok(index) => Place::On {
                        index,
                        renamed: None,
                    },
                    Err(Error::NoSuchInterface { .. }) => Place::Missing,
                    Err(error) => Place::Failed {
                        reason: error.to_string(),
                    },
                },
            };
            if let Some(held) = self.interfaces.get_mut(&name) {
                // One that was made again between two looks is another interface.
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
            tracing::warn!(%error, "whether answers arrive on interfaces that came back is not known yet");
        }
        again
    }

    /// The pins are gone, or another filter has taken their place.
    fn all_detached(&mut self, error: &Error) {
        let is_news = self.interfaces.values().any(|held| held.place.is_on());
        if is_news {
            tracing::warn!("{error}");
        }
        for held in self.interfaces.values_mut() {
            if let Some(index) = held.place.index() {
                held.set(Place::Detached { index });
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
            // It was given back when the filter was taken off this interface.
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

    /// What this process knows of its interfaces, for the status.
    pub(super) fn sights(&self) -> Result<Vec<Sight>, Error> {
        let sight = |(name, held): (&String, &HeldInterface)| {
            let seat = held.seat();
            let since = match &seat {
                Some(_) => None,
                None => Some(held.unfiltered_since.unwrap_or_else(SystemTime::now)),
            };
            let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
            let settings = self.settings.interfaces.iter();
            let role = settings
                .clone()
                .find(|interface| interface.name == *name)
                .map_or(config::Role::Edge, |interface| interface.role);
            Sight {
                interface: config::Interface {
                    name: name.clone(),
                    role,
                },
                slot: held.slot,
                seat,
                unfiltered_since: since.map(|since| since.as_secs()),
                unfiltered_reason: held.place.reason(),
            }
        };
        let mut sights: Vec<Sight> = self.interfaces.iter().map(sight).collect();
        // What an earlier owner left, and a filter that is off does not name.
        for taken in self.maps.interfaces()? {
            if !self.interfaces.values().any(|held| held.slot == taken.slot) {
                sights.push(Sight::of(&self.pins, taken));
            }
        }
        Ok(sights)
    }
}

/// What a look at an interface found.
enum Look {
    /// It is so, and nothing is to be done.
    Is(Place),
    /// The program belongs there.
    Attach,
}

fn looked_at(held: &HeldInterface, name: &str, gone: &[u32], all: bool) -> Look {
    let known = held.place.index().filter(|index| !gone.contains(index));
    let seat = known.and_then(|index| held.seat_on(index));
    let now = links::index(name).ok();
    match (seat, now) {
        (Some(seat), now) if now.is_none() || now == Some(seat.index) => Look::Is(Place::On {
            index: seat.index,
            renamed: (seat.name != name).then_some(seat.name),
        }),
        (_, None) => Look::Is(Place::Missing),
        (_, Some(index)) => match held.seat_on(index) {
            // It was elsewhere meanwhile.
            Some(_) => Look::Is(Place::On {
                index,
                renamed: None,
            }),
            None if known == Some(index) && !all => match links::is_free(index) {
                true => Look::Is(Place::Detached { index }),
                false => Look::Attach,
            },
            None => Look::Attach,
        },
    }
}

/// Tells what is new about an interface.
fn log_change(interface: &str, held: &HeldInterface, place: &Place) {
    match place {
        Place::On {
            renamed: Some(now), ..
        } => tracing::warn!(
            interface,
            now,
            "the interface was renamed and keeps its filter; name it so in filter.interfaces"
        ),
        Place::On { .. } if held.place.is_on() => {
            tracing::info!(
                interface,
                "the filter is on the interface of this name again"
            );
        }
        Place::On { .. } => {
            let since = held.unfiltered_since.and_then(|since| since.elapsed().ok());
            let missed_ms = since.map_or(0, |since| since.as_millis());
            tracing::info!(interface, missed_ms, "the filter is attached again");
        }
        Place::Missing => tracing::warn!(
            interface,
            "the interface is gone, and the filter with it; it gets the filter again when it is back"
        ),
        Place::Detached { .. } => tracing::warn!(
            interface,
            "another process took the filter off this interface: it is unfiltered; a reload (SIGHUP) or a restart puts it back"
        ),
        Place::Failed { reason } => tracing::error!(
            interface,
            error = reason,
            "the interface is unfiltered: the filter cannot be put on it; trying again"
        ),
    }
}
