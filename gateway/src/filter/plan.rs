//! What putting the filter in place would do, without doing it:
//! `portcullis filter attach --dry-run`.
//!
//! Everything that can refuse is asked beforehand, the kernel's verifier too: it walks a program
//! whose maps are pinned nowhere, and which is gone when the answer is there. What a driver says to
//! a program is only known once it has one.

use std::path::PathBuf;

use portcullis_ebpf_common::layout::{InterfaceConstant, LinkLayer};

use super::features::{InterfaceState, interface_state};
use super::pins::Pins;
use super::settings;
use super::{Error, in_place, link_layer, links, pins};
use crate::config;

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The interfaces of the settings.
    pub interfaces: Vec<PlannedInterface>,
    /// Interfaces that have the filter and would lose it.
    pub let_go: Vec<String>,
    /// The process that holds the filter: nothing can be put in place beside it.
    pub holder: Option<String>,
    /// Where the pins would be.
    pub pin_path: PathBuf,
    /// Whether the pins would be gone with the last process of this mount namespace.
    pub is_private: bool,
}

/// What would be done with an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInterface {
    /// Its name.
    pub name: String,
    /// How it is; `None`: it is not there, and would be waited for.
    pub state: Option<InterfaceState>,
}

/// Looks at everything that [`Filter::attach`](super::Filter::attach) would change, and changes
/// nothing.
///
/// # Errors
/// What `attach` would say, as far as it can be known beforehand.
pub fn plan(settings: &config::Filter) -> Result<Plan, Error> {
    settings::check(settings)?;
    let pins = Pins::new(&settings.pin_path);
    pins.check_bpf_fs()?;
    in_place::check_namespace(&pins)?;
    let mut interfaces = Vec::new();
    for interface in &settings.interfaces {
        let state = match interface_state(settings, interface) {
            Err(Error::NoSuchInterface { .. }) if settings.wait_for_interfaces => None,
            result => Some(result?),
        };
        interfaces.push(PlannedInterface {
            name: interface.name.clone(),
            state,
        });
        let layer = match links::index(&interface.name) {
            Ok(index) => link_layer::of(&interface.name, index)?,
            Err(_) => LinkLayer::Ethernet,
        };
        let role = interface.role.in_kernel();
        links::unpinned(InterfaceConstant::new(0, role, layer))?;
    }
    Ok(Plan {
        interfaces,
        let_go: superfluous(settings)?,
        holder: in_place::holder(&pins),
        is_private: pins::is_private(&settings.pin_path) == Some(true),
        pin_path: settings.pin_path.clone(),
    })
}

/// The interfaces that the filter of these settings sits on and that they do not name: the next
/// start takes it off.
///
/// # Errors
/// [`Error::NotPermitted`] and [`Error::Pin`] if the pins cannot be looked at.
pub fn superfluous(settings: &config::Filter) -> Result<Vec<String>, Error> {
    let pins = Pins::new(&settings.pin_path);
    let linked = pins.linked()?;
    let seats = linked.iter().filter_map(|name| links::seat(&pins, name));
    let mut names: Vec<String> = seats.map(|seat| seat.name).collect();
    names.retain(|name| !settings.interfaces.iter().any(|kept| kept.name == *name));
    Ok(names)
}
