//! The userspace side of the XDP program: puts it on the interfaces, fills its lists, and reads
//! what it counted.
//!
//! Everything is pinned, so the filter stays when its owner ends, by whatever end, and the next
//! [`Filter::attach`] takes it over: the program is replaced inside its link and the lists inside
//! their map, each in one step, so that there is no packet unfiltered, no moment with no list and
//! none with half of one. [`detach`] is the only way to take the filter away.
//!
//! aya is used here and nowhere else, and does not appear in the interface. Everything that names
//! an interface means the network namespace of the calling thread.

mod address;
mod answers;
mod batch;
mod bpf;
mod clock;
mod control;
mod error;
mod events;
mod features;
mod foreign;
mod gate;
mod in_place;
mod interfaces;
mod link_layer;
mod links;
mod lists;
mod maps;
mod memory;
mod netlink;
mod networks;
mod pins;
mod plan;
mod settings;
mod status;
mod top;
mod trial;
mod verdicts;
mod verifier;
mod watch;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::Flock;
use portcullis_ebpf_common::layout::{self, LinkLayer, Role};

use self::answers::AnswerFaults;
use self::interfaces::HeldInterface;
use self::lists::Generation;
use self::maps::Maps;
use self::networks::LocalNetworks;
use self::pins::Pins;
use crate::config;
use crate::lists::Compiled;

pub use self::address::{verdict_network, written};
pub use self::answers::{AnswerFault, answer_fault};
pub use self::error::Error;
pub use self::events::{
    ANNOUNCE_EVERY, Event, Events, Names, READ_EVERY, Reader, TimedEvent, names,
};
pub use self::features::{InterfaceState, interface_state};
pub use self::gate::admin;
pub use self::in_place::{InPlace, in_place, in_place_under, pins_are_private, removal};
pub use self::memory::{KernelMemory, memory};
pub use self::plan::{Plan, PlannedInterface, plan, superfluous};
pub use self::status::{
    InterfaceStatus, ListStatus, Reasons, Status, TopSourceStatus, TopSources, Unread, status,
};
pub use self::trial::{Outcome, Trial};
pub use self::verdicts::{
    Cause, Exemption, Given, NewVerdict, VerdictCounts, VerdictStatus, Verdicts,
};
pub use self::verifier::VerifierLog;
pub use self::watch::{LinkEvent, LinkEvents};

/// The filter in the kernel, held by this process. Dropping it leaves the filter in place.
pub struct Filter {
    settings: config::Filter,
    /// What of them is in force, and where nothing is answered.
    in_force: layout::Settings,
    answer_faults: AnswerFaults,
    pins: Pins,
    maps: Maps,
    networks: LocalNetworks,
    verdicts: Arc<Verdicts>,
    /// Until somebody wants to read them.
    events: Option<Events>,
    /// What is in force is remembered, because looking it up takes more privileges than changing
    /// it: an owner that has given up all but `CAP_BPF` can still put lists and settings in place.
    generation: Generation,
    /// The interfaces of the settings, by name, with the programs that this process puts on them.
    interfaces: BTreeMap<String, HeldInterface>,
    /// The pins lead through it.
    _links: File,
    /// Two owners would undo each other's lists. It is on the pins' directory, and shows when that
    /// is gone.
    lock: Flock<File>,
}

impl Filter {
    /// Puts the filter in place, or takes over the one that is pinned under the same path, with its
    /// counters.
    ///
    /// Lists and settings are in force before the first packet meets the program. An interface that
    /// is pinned but not in the settings any more is let go.
    ///
    /// # Errors
    /// Every [`Error`]. What was attached before the call stays attached, but holds packets against
    /// the new lists already if what fails is the program; what the call itself attached is taken
    /// off.
    pub fn attach(settings: &config::Filter, compiled: &Compiled) -> Result<Self, Error> {
        settings::check(settings)?;
        let pins = Pins::new(&settings.pin_path);
        interfaces::check_present(settings, &pins)?;
        let lock = pins.prepare()?;
        let clean_up = |_: &Error| remove_if_unused(&pins);
        let namespace = in_place::check_namespace(&pins).inspect_err(clean_up)?;
        pins.claim_namespace(namespace).inspect_err(clean_up)?;
        let links = pins.open_links().inspect_err(clean_up)?;
        // They may be those of the user that an earlier gate became.
        pins.take_links().inspect_err(clean_up)?;
        let filled = fill(&pins, settings, compiled).inspect_err(clean_up)?;
        let mut filter = Self {
            settings: settings.clone(),
            in_force: filled.in_force,
            answer_faults: filled.answer_faults,
            maps: filled.maps,
            networks: filled.networks,
            verdicts: Arc::new(Verdicts::of(&pins).inspect_err(clean_up)?),
            events: Some(Events::of(&pins).inspect_err(clean_up)?),
            generation: filled.generation,
            pins: pins.through(&links),
            interfaces: BTreeMap::new(),
            _links: links,
            lock,
        };
        // Before a program looks at them, and so that what fails leaves nothing attached.
        let hints = filter.verdicts.set_all_hints();
        let result = hints.and_then(|()| filter.sync_interfaces());
        result.inspect_err(clean_up)?;
        // Now it is known which slot is whose, and programs are there that may be at the other end
        // of another's interface.
        filter.answer_faults = filter.answer_faults.again(settings);
        let faults = &filter.answer_faults;
        faults.log_changes(&AnswerFaults::default(), settings);
        if let Err(error) = filter.swap_settings() {
            tracing::warn!(%error, "the filter answers nothing on interfaces that it was not on before");
        }
        filter.remove_exempt_verdicts(compiled);
        // The owner before is gone.
        filter.set_admin(None)?;
        Ok(filter)
    }

    /// Puts other lists in place of those in force. A list that has its name and action in both
    /// keeps its counters.
    ///
    /// # Errors
    /// The lists in force stay in force.
    pub fn update_lists(&mut self, compiled: &Compiled) -> Result<(), Error> {
        self.check_pinned()?;
        self.generation = lists::swap(&mut self.maps, &self.generation, compiled)?;
        self.remove_exempt_verdicts(compiled);
        Ok(())
    }

    /// The program passes them whatever the map says, so that it is no failure if they stay.
    fn remove_exempt_verdicts(&self, compiled: &Compiled) {
        let local = &self.settings.local_networks;
        match self.verdicts.remove_exempt(local, compiled) {
            Ok(0) => {}
            Ok(number) => tracing::info!(
                number,
                "took back verdicts on sources that are local or permitted now"
            ),
            Err(error) => {
                tracing::warn!(%error, "verdicts on sources that are local or permitted now may be left");
            }
        }
    }

    /// The recent verdicts; for as long as anybody wants, and without a look at this filter.
    pub fn verdicts(&self) -> Arc<Verdicts> {
        Arc::clone(&self.verdicts)
    }

    /// What the program drops, for one who will read it; `None` if it was given away before.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// What slots are called now.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn names(&self) -> Result<Names, Error> {
        Names::of(&self.maps, &self.generation)
    }

    /// Writes down where the gate answers, for commands beside it; `None` if it does not.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn set_admin(&mut self, admin: Option<SocketAddr>) -> Result<(), Error> {
        self.maps.set_gate(gate::record(admin))
    }

    /// Puts other settings in force, and the program on or off interfaces if those have changed.
    ///
    /// # Errors
    /// The settings in force stay in force. The pin path cannot be changed.
    pub fn update_settings(&mut self, settings: &config::Filter) -> Result<(), Error> {
        settings::check(settings)?;
        self.check_pinned()?;
        if settings.pin_path != self.settings.pin_path {
            return Err(Error::PinPathChanged {
                path: self.settings.pin_path.clone(),
            });
        }
        let before = std::mem::replace(&mut self.settings, settings.clone());
        let moved =
            before.interfaces != settings.interfaces || before.xdp_mode != settings.xdp_mode;
        let result = if moved {
            self.sync_interfaces()
        } else {
            Ok(())
        };
        result
            .and_then(|()| self.networks.sync(&settings.local_networks))
            .and_then(|()| self.sync_answers())
            .inspect_err(|_| {
                if let Err(error) = self.networks.sync(&before.local_networks) {
                    tracing::warn!(%error, "the filter has the new local networks with the old settings");
                }
                self.settings = before;
            })
    }

    /// Looks again whether what the program answers arrives, has it answer there and nowhere else,
    /// and logs what has changed. Every change of the settings does it, too; in between the owner
    /// calls it from time to time.
    ///
    /// # Errors
    /// What is in force stays in force.
    pub fn sync_answers(&mut self) -> Result<(), Error> {
        let now = self.answer_faults.again(&self.settings);
        now.log_changes(&self.answer_faults, &self.settings);
        self.answer_faults = now;
        self.swap_settings()
    }

    /// What is wrong with the interfaces on which the program is to answer.
    pub fn answer_faults(&self) -> impl Iterator<Item = &AnswerFault> {
        self.answer_faults.iter()
    }

    /// Puts the settings in force, with what is known of the interfaces.
    fn swap_settings(&mut self) -> Result<(), Error> {
        let in_kernel = in_kernel(&self.maps, &self.settings, &self.answer_faults)?;
        if in_kernel == self.in_force {
            return Ok(());
        }
        self.maps.swap_settings(in_kernel)?;
        self.in_force = in_kernel;
        Ok(())
    }

    /// Whether the filter is still the one in place: it can be detached under its owner, and
    /// another take its path.
    fn check_pinned(&self) -> Result<(), Error> {
        // A removed directory has no links left.
        match self.lock.metadata() {
            Ok(directory) if directory.nlink() > 0 => Ok(()),
            _ => Err(Error::Detached {
                path: self.settings.pin_path.clone(),
            }),
        }
    }

    /// What is in force and what was counted.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn status(&self) -> Result<Status, Error> {
        status::read(
            &self.pins,
            &self.maps,
            &self.verdicts,
            Some(self.in_force),
            &self.generation,
            &self.sights()?,
        )
    }

    /// An instance of the program to run frames through, as if they had come in on the edge.
    ///
    /// # Errors
    /// When the program cannot be loaded once more.
    pub fn trial(&self) -> Result<Trial, Error> {
        self.trial_as(Role::Edge, LinkLayer::Ethernet)
    }

    /// The same for an interface with this role and link layer.
    ///
    /// # Errors
    /// As above.
    pub fn trial_as(&self, role: Role, layer: LinkLayer) -> Result<Trial, Error> {
        Trial::new(&self.pins, role, layer)
    }
}

/// Maps with everything in them that the program needs to judge.
struct Filled {
    maps: Maps,
    networks: LocalNetworks,
    generation: Generation,
    in_force: layout::Settings,
    answer_faults: AnswerFaults,
}

/// The settings as they lie in the map.
fn in_kernel(
    maps: &Maps,
    settings: &config::Filter,
    faults: &AnswerFaults,
) -> Result<layout::Settings, Error> {
    let mut in_kernel = settings.in_kernel();
    faults.silence(&mut in_kernel, &maps.interfaces()?);
    Ok(in_kernel)
}

/// Creates the maps unless they are pinned, and puts lists, networks and settings into them.
fn fill(pins: &Pins, settings: &config::Filter, compiled: &Compiled) -> Result<Filled, Error> {
    links::create_maps(pins)?;
    Maps::create_records(pins)?;
    let mut maps = Maps::open(pins)?;
    let mut networks = LocalNetworks::open(pins)?;
    networks.sync(&settings.local_networks)?;
    let before = lists::in_force(&maps)?;
    maps.sweep_snapshot(before.number);
    let generation = lists::swap(&mut maps, &before, compiled)?;
    let answer_faults = AnswerFaults::default().again(settings);
    let in_force = in_kernel(&maps, settings, &answer_faults)?;
    maps.swap_settings(in_force)?;
    Ok(Filled {
        maps,
        networks,
        generation,
        in_force,
        answer_faults,
    })
}

/// After a failure: leaves no maps behind that no program uses.
fn remove_if_unused(pins: &Pins) {
    let unused = pins.linked().is_ok_and(|linked| linked.is_empty());
    if unused && let Err(error) = pins.remove_all() {
        tracing::warn!(%error, "could not clean up after a failed start of the filter");
    }
}

/// Takes the filter off these interfaces, or off all if none is named, and removes all that was
/// pinned once it is on none.
///
/// It works while another process holds the filter: it is also the way out when that process is the
/// trouble.
///
/// # Errors
/// [`Error::NotAttached`] if there is nothing to take off; [`Error::NotPermitted`] and
/// [`Error::Pin`] if it is not possible.
pub fn detach(pin_path: &Path, interfaces: &[String]) -> Result<(), Error> {
    let pins = Pins::new(pin_path);
    let linked = pins.linked()?;
    let not_attached = |interface| Error::NotAttached {
        path: pin_path.to_owned(),
        interface,
    };
    // An interface may have another name than when it got its filter.
    let pinned_for = |name: &String| {
        let is_now =
            |linked: &&String| links::seat(&pins, linked).is_some_and(|seat| seat.name == *name);
        let found = linked.iter().find(is_now);
        found
            .or_else(|| linked.iter().find(|linked| *linked == name))
            .cloned()
            .ok_or_else(|| not_attached(Some(name.clone())))
    };
    let interfaces: Vec<String> = interfaces
        .iter()
        .map(pinned_for)
        .collect::<Result<_, _>>()?;
    if linked.is_empty() && !pins.exist()? {
        return Err(not_attached(None));
    }
    let all = interfaces.is_empty() || linked.iter().all(|name| interfaces.contains(name));
    if all {
        for name in &linked {
            links::remove(&pins, name)?;
        }
        return pins.remove_all();
    }
    let mut maps = Maps::open(&pins)?;
    for name in &interfaces {
        links::remove(&pins, name)?;
        for taken in maps.interfaces()? {
            if taken.interface.name == *name {
                maps.free_interface_slot(taken.slot)?;
            }
        }
    }
    Ok(())
}
