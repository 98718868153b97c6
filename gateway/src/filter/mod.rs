//! The userspace side of the XDP program: attaches it to the interfaces, fills its lists, and reads
//! its counters.
//!
//! Everything is pinned, so the filter stays when its owner ends or crashes. The next
//! [`Filter::attach`] takes it over: the program is replaced inside its link and the lists inside
//! their map, each in one step. No packet passes unfiltered meanwhile, and there is always one
//! complete set of lists. Only [`detach`] removes the filter.
//!
//! aya is used here and nowhere else, and does not appear in the interface. All interface names are
//! names in the network namespace of the calling thread.

mod address;
mod answers;
mod attached;
mod batch;
mod bpf;
mod clock;
mod control;
mod error;
mod events;
mod features;
mod foreign;
mod gate;
mod grants;
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

pub use self::address::{format_network, verdict_network};
pub use self::answers::{AnswerFault, answer_fault};
pub use self::attached::{
    AttachedFilter, attached_filter, attached_filters, detach_command, pins_are_private,
};
pub use self::error::Error;
pub use self::events::{
    ANNOUNCE_EVERY, Event, Events, READ_EVERY, Reader, SlotNames, TimedEvent, slot_names,
};
pub use self::features::{InterfaceState, interface_state};
pub use self::gate::admin;
pub use self::grants::Grants;
pub use self::memory::{KernelMemory, memory};
pub use self::plan::{Plan, PlannedInterface, plan, unconfigured_interfaces};
pub use self::status::{
    InterfaceStatus, ListStatus, Reasons, Status, TopSourceStatus, TopSources, Unread, status,
};
pub use self::trial::{Trial, TrialResult};
pub use self::verdicts::{
    AddResult, Cause, Exemption, NewVerdict, VerdictCounts, VerdictStatus, Verdicts,
};
pub use self::verifier::VerifierLog;
pub use self::watch::{LinkEvent, LinkEvents};

/// The filter in the kernel, held by this process. Dropping it leaves the filter in place.
pub struct Filter {
    settings: config::Filter,
    /// The settings in force, with the interfaces on which the program answers nothing.
    in_force: layout::Settings,
    answer_faults: AnswerFaults,
    pins: Pins,
    maps: Maps,
    networks: LocalNetworks,
    verdicts: Arc<Verdicts>,
    /// Until the gate takes them.
    grants: Option<Grants>,
    /// Until a reader takes them.
    events: Option<Events>,
    /// The lists in force. Reading them from the kernel takes more privileges than changing them:
    /// an owner with `CAP_BPF` alone can still update lists and settings.
    generation: Generation,
    /// The interfaces of the settings, by name, with the programs that this process attaches.
    interfaces: BTreeMap<String, HeldInterface>,
    /// The directory of the links, held open: the paths of the pins lead through it.
    _links: File,
    /// Keeps out a second owner, which would undo this one's lists. It is on the directory of the
    /// pins, and so also shows when that is removed.
    lock: Flock<File>,
}

impl Filter {
    /// Attaches the filter, or takes over the one that is pinned under the same path, with its
    /// counters.
    ///
    /// Lists and settings are in force before the first packet reaches the program. The filter is
    /// detached from an interface that is pinned but no longer in the settings.
    ///
    /// # Errors
    /// Every [`Error`]. What was attached before the call stays attached; if the program is what
    /// fails, the old one checks packets against the new lists already. What the call itself
    /// attached is detached.
    pub fn attach(settings: &config::Filter, compiled: &Compiled) -> Result<Self, Error> {
        settings::check(settings)?;
        let pins = Pins::new(&settings.pin_path);
        interfaces::check_present(settings, &pins)?;
        let lock = pins.prepare()?;
        let clean_up = |_: &Error| remove_if_unused(&pins);
        let namespace = attached::check_namespace(&pins).inspect_err(clean_up)?;
        pins.claim_namespace(namespace).inspect_err(clean_up)?;
        let links = pins.open_links().inspect_err(clean_up)?;
        // They may belong to the user that an earlier gate became.
        pins.reclaim_links().inspect_err(clean_up)?;
        let filled = fill(&pins, settings, compiled).inspect_err(clean_up)?;
        let mut filter = Self {
            settings: settings.clone(),
            in_force: filled.in_force,
            answer_faults: filled.answer_faults,
            maps: filled.maps,
            networks: filled.networks,
            verdicts: Arc::new(Verdicts::of(&pins).inspect_err(clean_up)?),
            grants: Some(Grants::of(&pins).inspect_err(clean_up)?),
            events: Some(Events::of(&pins).inspect_err(clean_up)?),
            generation: filled.generation,
            pins: pins.through(&links),
            interfaces: BTreeMap::new(),
            _links: links,
            lock,
        };
        // Before a program reads them. A failure here leaves nothing attached.
        let hints = filter.verdicts.set_all_hints();
        let result = hints.and_then(|()| filter.sync_interfaces());
        result.inspect_err(clean_up)?;
        // Now each slot has its interface, and programs run that may be on the peer of another
        // interface.
        filter.answer_faults = filter.answer_faults.again(settings);
        let faults = &filter.answer_faults;
        faults.log_changes(&AnswerFaults::default(), settings);
        if let Err(error) = filter.swap_settings() {
            tracing::warn!(
                %error,
                "the filter answers nothing on interfaces that it was not on before"
            );
        }
        filter.remove_exempt_verdicts(compiled);
        // The endpoint of the owner before this one is gone.
        filter.set_admin(None)?;
        Ok(filter)
    }

    /// Replaces the lists in force. A list that has the same name and action in both keeps its
    /// counters.
    ///
    /// # Errors
    /// The lists in force stay in force.
    pub fn update_lists(&mut self, compiled: &Compiled) -> Result<(), Error> {
        self.check_pinned()?;
        self.generation = lists::swap(&mut self.maps, &self.generation, compiled)?;
        self.remove_exempt_verdicts(compiled);
        Ok(())
    }

    /// Removes verdicts on sources that are local or permitted now. The program passes those
    /// sources whatever the map says, so it is no failure if the verdicts stay.
    fn remove_exempt_verdicts(&self, compiled: &Compiled) {
        let local = &self.settings.local_networks;
        match self.verdicts.remove_exempt(local, compiled) {
            Ok(0) => {}
            Ok(number) => tracing::info!(
                number,
                "removed verdicts on sources that are local or permitted now"
            ),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "verdicts on sources that are local or permitted now may be left"
                );
            }
        }
    }

    /// The recent verdicts. They can be used without a lock on this filter, and outlive it.
    pub fn verdicts(&self) -> Arc<Verdicts> {
        Arc::clone(&self.verdicts)
    }

    /// The grants in the kernel, for the one that holds all grants; `None` if they were taken
    /// before.
    pub fn take_grants(&mut self) -> Option<Grants> {
        self.grants.take()
    }

    /// The events of dropped packets, for their one reader; `None` if they were taken before.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The names that slots have now.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn slot_names(&self) -> Result<SlotNames, Error> {
        SlotNames::of(&self.maps, &self.generation)
    }

    /// Records the admin endpoint of the gate, for commands on the same host. `None` if it has
    /// none.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn set_admin(&mut self, admin: Option<SocketAddr>) -> Result<(), Error> {
        self.maps.set_gate(gate::record(admin))
    }

    /// Replaces the settings in force. If the interfaces have changed, attaches and detaches the
    /// program.
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
                    tracing::warn!(
                        %error,
                        "the filter has the new local networks with the old settings"
                    );
                }
                self.settings = before;
            })
    }

    /// Checks again on which interfaces the answers of the program arrive, lets it answer on those
    /// only, and logs what has changed. Every change of the settings does it too; the owner also
    /// calls it from time to time.
    ///
    /// # Errors
    /// The settings in force stay in force.
    pub fn sync_answers(&mut self) -> Result<(), Error> {
        let now = self.answer_faults.again(&self.settings);
        now.log_changes(&self.answer_faults, &self.settings);
        self.answer_faults = now;
        self.swap_settings()
    }

    /// The faults of the interfaces on which the program should answer.
    pub fn answer_faults(&self) -> impl Iterator<Item = &AnswerFault> {
        self.answer_faults.iter()
    }

    /// Writes the settings to the kernel, with what is known of the interfaces.
    fn swap_settings(&mut self) -> Result<(), Error> {
        let in_kernel = in_kernel(&self.maps, &self.settings, &self.answer_faults)?;
        if in_kernel == self.in_force {
            return Ok(());
        }
        self.maps.swap_settings(in_kernel)?;
        self.in_force = in_kernel;
        Ok(())
    }

    /// Whether this filter is still attached: another process can detach it, and attach another one
    /// under the same path.
    fn check_pinned(&self) -> Result<(), Error> {
        // A removed directory has no links left.
        match self.lock.metadata() {
            Ok(directory) if directory.nlink() > 0 => Ok(()),
            _ => Err(Error::Detached {
                path: self.settings.pin_path.clone(),
            }),
        }
    }

    /// What is in force, and the counters.
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
            &self.views()?,
        )
    }

    /// An instance of the program to run frames through, as if an edge interface had received them.
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

/// The maps, filled with all that the program needs.
struct Filled {
    maps: Maps,
    networks: LocalNetworks,
    generation: Generation,
    in_force: layout::Settings,
    answer_faults: AnswerFaults,
}

/// The settings in the layout of the map.
fn in_kernel(
    maps: &Maps,
    settings: &config::Filter,
    faults: &AnswerFaults,
) -> Result<layout::Settings, Error> {
    let mut in_kernel = settings.in_kernel();
    faults.silence(&mut in_kernel, &maps.interfaces()?);
    Ok(in_kernel)
}

/// Creates the maps unless they are pinned, and writes lists, networks and settings into them.
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

/// After a failure: removes the maps if no program uses them.
fn remove_if_unused(pins: &Pins) {
    let unused = pins.linked().is_ok_and(|linked| linked.is_empty());
    if unused && let Err(error) = pins.remove_all() {
        tracing::warn!(%error, "could not clean up after a failed start of the filter");
    }
}

/// Detaches the filter from these interfaces, or from all if none is named. Removes all pins once
/// it is attached to none.
///
/// It works while another process holds the filter: an operator needs it most when that process
/// hangs.
///
/// # Errors
/// [`Error::NotAttached`] if there is nothing to detach; [`Error::NotPermitted`] and [`Error::Pin`]
/// if it is not possible.
pub fn detach(pin_path: &Path, interfaces: &[String]) -> Result<(), Error> {
    let pins = Pins::new(pin_path);
    let linked = pins.linked()?;
    let not_attached = |interface| Error::NotAttached {
        path: pin_path.to_owned(),
        interface,
    };
    // An interface may have been renamed since it got its filter.
    let pinned_for = |name: &String| {
        let is_now = |linked: &&String| {
            links::attach_point(&pins, linked).is_some_and(|point| point.name == *name)
        };
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
