//! Whether the configuration fits into the maps. The configuration has checked its own limits;
//! these are the limits of the maps.

use portcullis_ebpf_common::layout::{INTERFACES_MAX, LISTS_MAX, LOCAL_NETWORKS_MAX, PORTS_MAX};

use super::Error;
use crate::config::{Filter, Role, XdpMode};

/// Refuses settings that the maps cannot hold.
pub(super) fn check(settings: &Filter) -> Result<(), Error> {
    fits(
        "interfaces",
        settings.interfaces.len(),
        INTERFACES_MAX as usize,
    )?;
    fits("ports", settings.ports.len(), PORTS_MAX)?;
    // Half of the map: new networks are added before old ones are removed.
    fits(
        "local networks (relay.networks)",
        settings.local_networks.len(),
        LOCAL_NETWORKS_MAX as usize / 2,
    )?;
    if settings.ports.is_empty() || settings.ports.contains(&0) {
        return Err(Error::Ports);
    }
    for (index, interface) in settings.interfaces.iter().enumerate() {
        let mut before = settings.interfaces.iter().take(index);
        if before.any(|other| other.name == interface.name) {
            return Err(Error::InterfaceTwice {
                interface: interface.name.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses more lists than there are slots for.
pub(super) fn check_list_count(number: usize) -> Result<(), Error> {
    fits("lists with the action drop or permit", number, LISTS_MAX)
}

fn fits(what: &'static str, number: usize, max: usize) -> Result<(), Error> {
    if number > max {
        return Err(Error::TooMany { what, number, max });
    }
    Ok(())
}

/// The name of a role in the configuration.
pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Edge => "edge",
        Role::Customer => "customer",
    }
}

/// The name of an XDP mode in the configuration.
pub(super) const fn xdp_mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Driver => "driver",
        XdpMode::Generic => "generic",
    }
}
