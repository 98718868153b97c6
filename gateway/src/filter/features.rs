//! What the kernel reports about an interface without a program attached to it: for
//! `portcullis doctor`, and for the answers of the program ([`answers`](super::answers)).
//!
//! The kernel reports whether a driver runs XDP programs (generic netlink, family `netdev`, since
//! Linux 6.3). Rejected: attaching a program as a test. Some drivers reset their queues for it, and
//! the interface may be in use.

use nix::libc;
use nix::sys::socket::SockProtocol;
use std::collections::BTreeSet;
use std::io;

use super::maps::Maps;
use super::netlink::{
    AttachMode, AttachedProgram, Attributes, HEADER, error_of, exchange, half, value_of,
};
use super::pins::Pins;
use super::settings::{role_name, xdp_mode_name};
use super::{Error, attached, config, interfaces, link_layer, links};
use crate::config::{Interface, XdpMode};

/// The state of an interface that has no other XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Whether the filter of this pin path is attached to it.
    pub is_ours: bool,
    /// The differences from the settings, in words; the next start removes them.
    pub differences: Vec<String>,
    /// Whether its driver runs XDP programs; `None` if the kernel does not report it.
    pub driver_mode: Option<bool>,
}

/// The state of an interface. This changes nothing.
///
/// # Errors
/// [`Error::NoSuchInterface`], [`Error::Unreadable`], [`Error::Occupied`], and [`Error::Link`] if
/// the kernel does not answer.
pub fn interface_state(
    settings: &config::Filter,
    interface: &Interface,
) -> Result<InterfaceState, Error> {
    let pins = Pins::new(&settings.pin_path);
    let index = interfaces::present(&pins, &interface.name)?;
    link_layer::of(&interface.name, index)?;
    let ours = links::ours_on(&pins, &interface.name)?;
    Ok(InterfaceState {
        is_ours: ours.is_some(),
        differences: differences(&pins, settings, interface, ours),
        driver_mode: driver_mode(index).unwrap_or_default(),
    })
}

/// The differences between an interface and the settings, in words.
fn differences(
    pins: &Pins,
    settings: &config::Filter,
    interface: &Interface,
    ours: Option<AttachedProgram>,
) -> Vec<String> {
    let taken = Maps::open(pins).and_then(|maps| maps.interfaces());
    let taken = taken.unwrap_or_default();
    let record = taken
        .iter()
        .find(|taken| taken.interface.name == interface.name);
    let Some(ours) = ours else {
        let lost = match record {
            Some(_) => Some("it had the filter, and is without it now".to_owned()),
            // A detached interface has no record. Another process may hold the filter with another
            // configuration.
            None => attached::holder(pins)
                .map(|holder| format!("{holder} holds the filter, and does not have it here")),
        };
        return lost.into_iter().collect();
    };
    let mut differences = Vec::new();
    let mode = xdp_mode_name(match ours.place {
        AttachMode::Generic => XdpMode::Generic,
        AttachMode::Driver | AttachMode::Hardware => XdpMode::Driver,
    });
    let wanted = xdp_mode_name(settings.xdp_mode);
    if mode != wanted {
        differences.push(format!(
            "it runs in the {mode} mode, and filter.xdp_mode is \"{wanted}\""
        ));
    }
    match record {
        None => differences.push(
            "the interface was renamed, or another version of the gate put it there".to_owned(),
        ),
        Some(record) if record.interface.role != interface.role => differences.push(format!(
            "it has the role {}, and the configuration says {}",
            role_name(record.interface.role),
            role_name(interface.role)
        )),
        Some(_) => {}
    }
    differences
}

// linux/genetlink.h and linux/netdev.h; the libc crate has few of them.
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;

// linux/ethtool_netlink.h, since Linux 5.6.
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
/// The flag of an attribute that contains attributes.
const NLA_F_NESTED: u16 = 1 << 15;

/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const GENERIC_HEADER: usize = HEADER + 4;

fn driver_mode(index: u32) -> io::Result<Option<bool>> {
    let Some(family) = family(b"netdev\0")? else {
        return Ok(None);
    };
    let index = index.to_ne_bytes();
    let answer = ask(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index)?;
    let features = value_of(&answer, NETDEV_A_DEV_XDP_FEATURES);
    let features = features.and_then(|value| Some(u64::from_ne_bytes(*value.first_chunk()?)));
    Ok(features.map(|features| features & NETDEV_XDP_ACT_BASIC != 0))
}

/// The features of an interface as `ethtool -k` shows them, with the kernel's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Features that are on.
    pub(super) active: BTreeSet<String>,
    /// Features that can be switched on or off.
    pub(super) changeable: BTreeSet<String>,
}

/// The features of the interface with this index; `None` if the kernel does not report them.
pub(super) fn features(index: u32) -> io::Result<Option<Features>> {
    let Some(family) = family(b"ethtool\0")? else {
        return Ok(None);
    };
    let header = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    let kind = ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED;
    let answer = ask(family, ETHTOOL_MSG_FEATURES_GET, kind, &header)?;
    let set = |kind| value_of(&answer, kind).map(names).unwrap_or_default();
    Ok(Some(Features {
        active: set(ETHTOOL_A_FEATURES_ACTIVE),
        changeable: set(ETHTOOL_A_FEATURES_HW),
    }))
}

/// The names of the bits that are set in a bitset. A bitset without a mask contains set bits only.
fn names(bitset: &[u8]) -> BTreeSet<String> {
    let all = value_of(bitset, ETHTOOL_A_BITSET_NOMASK).is_some();
    let bits = Attributes(value_of(bitset, ETHTOOL_A_BITSET_BITS).unwrap_or_default());
    bits.filter(|(_, bit)| all || value_of(bit, ETHTOOL_A_BITSET_BIT_VALUE).is_some())
        .filter_map(|(_, bit)| value_of(bit, ETHTOOL_A_BITSET_BIT_NAME))
        .map(|name| String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned())
        .collect()
}

/// The number of a generic netlink family; `None` if this kernel was built without it.
fn family(name: &[u8]) -> io::Result<Option<u16>> {
    let answer = ask(
        libc::GENL_ID_CTRL as u16,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        name,
    );
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => Ok(value_of(&answer?, CTRL_ATTR_FAMILY_ID).and_then(|value| half(value, 0))),
    }
}

/// Sends a request with one attribute and returns the attributes of the answer.
fn ask(family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let request = request(family, command, kind, value);
    let answer = exchange(SockProtocol::NetlinkGeneric, &request)?;
    error_of(&answer)?;
    Ok(answer.get(GENERIC_HEADER..).unwrap_or_default().to_vec())
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = attribute(kind, value);
    let total = GENERIC_HEADER + attribute.len();
    let mut message = Vec::with_capacity(total);
    message.extend((total as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // One request needs no sequence number and no port.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attribute);
    message
}

/// A `struct nlattr` with its value, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // It fits: the values are indexes and short names.
    let length = (4 + value.len()) as u16;
    let mut attribute = Vec::from(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_that_it_says() {
        let request = request(16, 3, 2, b"netdev\0");
        assert_eq!(request.len(), 32);
        assert_eq!(request[..4], 32_u32.to_ne_bytes());
        assert_eq!(request[20..22], 11_u16.to_ne_bytes());
    }

    #[test]
    fn the_loopback_is_known_to_have_no_driver_for_it() {
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        // Before Linux 6.3 there is no such family.
        assert_ne!(driver_mode(index).unwrap(), Some(true));
    }

    #[test]
    fn the_features_of_the_loopback_are_those_that_ethtool_shows() {
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        let features = features(index).unwrap().unwrap();
        let has = |set: &BTreeSet<String>, name: &str| set.contains(name);
        assert!(has(&features.active, "loopback"), "{features:?}");
        assert!(
            !has(&features.changeable, "loopback"),
            "it is fixed: {features:?}"
        );
        assert!(has(&features.changeable, "tx-tcp-segmentation"));
        assert!(!has(&features.active, "rx-vlan-hw-parse"));
    }

    #[test]
    fn what_is_masked_and_not_set_is_off() {
        let bit = |name: &str, set: bool| {
            let mut bit = attribute(ETHTOOL_A_BITSET_BIT_NAME, name.as_bytes());
            if set {
                bit.extend(attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
            }
            attribute(1 | NLA_F_NESTED, &bit)
        };
        let bits = [bit("a\0", true), bit("b\0", false)].concat();
        let bits = attribute(ETHTOOL_A_BITSET_BITS | NLA_F_NESTED, &bits);
        assert_eq!(names(&bits), BTreeSet::from(["a".to_owned()]));
        let listed = [attribute(ETHTOOL_A_BITSET_NOMASK, &[]), bits].concat();
        assert_eq!(names(&listed).len(), 2);
    }
}
