//! What is known of an interface before anything is put on it, for `portcullis doctor`.
//!
//! Whether a driver runs XDP programs is asked of the kernel (generic netlink, family `netdev`, since Linux 6.3). Putting a
//! program there to see was rejected: some drivers reset their queues for it, and the interface may be in use.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use portcullis_ebpf_common::layout::LinkLayer;

use super::maps::Maps;
use super::netlink::{ANSWER_MAX, Attached, Attributes, HEADER, Place, error_of, half};
use super::pins::Pins;
use super::settings::{role_name, xdp_mode_name};
use super::{Error, config, interfaces, link_layer, links};
use crate::config::{Interface, XdpMode};

/// An interface without a foreign program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Whether the filter of this pin path sits on it.
    pub is_ours: bool,
    /// What differs from the settings, in words: what the next start changes.
    pub differences: Vec<String>,
    /// Whether its driver runs XDP programs; `None` if the kernel does not tell.
    pub driver_mode: Option<bool>,
    /// Whether what the program refuses there can be answered. Without an Ethernet header most drivers send no answer.
    pub answers: bool,
}

/// Looks at an interface, and changes nothing.
///
/// # Errors
/// [`Error::NoSuchInterface`], [`Error::Unreadable`], [`Error::Occupied`], and [`Error::Link`] if the kernel cannot be asked.
pub fn interface_state(
    settings: &config::Filter,
    interface: &Interface,
) -> Result<InterfaceState, Error> {
    let pins = Pins::new(&settings.pin_path);
    let index = interfaces::present(&pins, &interface.name)?;
    let layer = link_layer::of(&interface.name, index)?;
    let ours = links::ours_on(&pins, &interface.name)?;
    Ok(InterfaceState {
        is_ours: ours.is_some(),
        differences: differences(&pins, settings, interface, ours),
        driver_mode: driver_mode(index).unwrap_or_default(),
        answers: layer != LinkLayer::RawIp,
    })
}

/// What is in force on an interface and not as the settings have it.
fn differences(
    pins: &Pins,
    settings: &config::Filter,
    interface: &Interface,
    ours: Option<Attached>,
) -> Vec<String> {
    let taken = Maps::open(pins).and_then(|maps| maps.interfaces());
    let taken = taken.unwrap_or_default();
    let record = taken
        .iter()
        .find(|taken| taken.interface.name == interface.name);
    let Some(ours) = ours else {
        let lost = "it had the filter, and is without it now";
        return record.map(|_| lost.to_owned()).into_iter().collect();
    };
    let mut differences = Vec::new();
    let mode = xdp_mode_name(match ours.place {
        Place::Generic => XdpMode::Generic,
        Place::Driver | Place::Hardware => XdpMode::Driver,
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

/// Octets of `struct nlmsghdr` and `struct genlmsghdr`.
const GENERIC_HEADER: usize = HEADER + 4;

fn driver_mode(index: u32) -> io::Result<Option<bool>> {
    let family = ask(
        libc::GENL_ID_CTRL as u16,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        b"netdev\0",
        CTRL_ATTR_FAMILY_ID,
    )?;
    let Some(family) = family.and_then(|value| half(&value, 0)) else {
        return Ok(None);
    };
    let features = ask(
        family,
        NETDEV_CMD_DEV_GET,
        NETDEV_A_DEV_IFINDEX,
        &index.to_ne_bytes(),
        NETDEV_A_DEV_XDP_FEATURES,
    )?;
    let features = features.and_then(|value| Some(u64::from_ne_bytes(*value.first_chunk()?)));
    Ok(features.map(|features| features & NETDEV_XDP_ACT_BASIC != 0))
}

/// Asks with one attribute and gives the wanted attribute of the answer.
fn ask(
    family: u16,
    command: u8,
    kind: u16,
    value: &[u8],
    wanted: u16,
) -> io::Result<Option<Vec<u8>>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkGeneric,
    )?;
    let request = request(family, command, kind, value);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    error_of(answer)?;
    let attributes = answer.get(GENERIC_HEADER..).unwrap_or_default();
    let found = Attributes(attributes).find(|(kind, _)| *kind == wanted);
    Ok(found.map(|(_, value)| value.to_vec()))
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    // Both fit: the values are an index and a short name.
    let attribute = (4 + value.len()) as u16;
    let total = GENERIC_HEADER + usize::from(attribute).next_multiple_of(4);
    let mut message = Vec::with_capacity(total);
    message.extend((total as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // No sequence number and no port are needed for one question.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attribute.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(total, 0);
    message
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
        match driver_mode(index) {
            Ok(answer) => assert_ne!(answer, Some(true)),
            // Before Linux 6.3 there is no such family.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT)),
        }
    }
}
