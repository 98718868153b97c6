//! What attaching the filter would do, without doing it: `portcullis filter attach --dry-run`.
//!
//! This makes every check that can be made beforehand, the kernel's verifier included: it verifies
//! a program whose maps are not pinned and that is dropped afterwards. Only whether the driver
//! accepts the program is not known before it is attached.

use std::path::PathBuf;

use portcullis_ebpf_common::layout::{InterfaceConstant, LinkLayer};

use super::features::{InterfaceState, interface_state};
use super::pins::Pins;
use super::settings;
use super::{Error, attached, link_layer, links, pins};
use crate::config;

/// What attaching would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The interfaces of the settings.
    pub interfaces: Vec<PlannedInterface>,
    /// Interfaces that would lose the filter.
    pub to_detach: Vec<String>,
    /// The process that holds the filter: while it runs, no other process can attach it.
    pub holder: Option<String>,
    /// Where the pins would be.
    pub pin_path: PathBuf,
    /// Whether the pins would vanish with the last process of this mount namespace.
    pub is_private: bool,
}

/// What attaching would do to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInterface {
    /// Its name.
    pub name: String,
    /// Its state now; `None`: it does not exist, and the gate would wait for it.
    pub state: Option<InterfaceState>,
}

/// Checks everything that [`Filter::attach`](super::Filter::attach) would change, and changes
/// nothing.
///
/// # Errors
/// The error of `attach`, as far as it is known beforehand.
pub fn plan(settings: &config::Filter) -> Result<Plan, Error> {
    settings::check(settings)?;
    let pins = Pins::new(&settings.pin_path);
    pins.check_bpf_fs()?;
    attached::check_namespace(&pins)?;
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
        to_detach: unconfigured_interfaces(settings)?,
        holder: attached::holder(&pins),
        is_private: pins::is_private(&settings.pin_path) == Some(true),
        pin_path: settings.pin_path.clone(),
    })
}

/// The interfaces that have the filter and that these settings do not name: the next start detaches
/// it from them.
///
/// # Errors
/// [`Error::NotPermitted`] and [`Error::Pin`] if the pins cannot be looked at.
pub fn unconfigured_interfaces(settings: &config::Filter) -> Result<Vec<String>, Error> {
    let pins = Pins::new(&settings.pin_path);
    let linked = pins.linked()?;
    let points = linked
        .iter()
        .filter_map(|name| links::attach_point(&pins, name));
    let mut names: Vec<String> = points.map(|point| point.name).collect();
    names.retain(|name| !settings.interfaces.iter().any(|kept| kept.name == *name));
    Ok(names)
}
