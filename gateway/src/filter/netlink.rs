//! Requests to the kernel over netlink: which XDP program is on an interface, in which mode, and
//! what kind of interface that is.
//!
//! aya attaches programs but does not report the program that is there already, and /sys shows the
//! interfaces of the namespace in which it was mounted. A `RTM_GETLINK` request is answered for the
//! namespace of the calling thread.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedProgram {
    /// The kernel's ID of the program.
    pub(super) program: u32,
    /// Where it runs.
    pub(super) place: AttachMode,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachMode {
    Driver,
    Generic,
    Hardware,
}

// linux/if_link.h; the libc crate has none of them.
const IFLA_BROADCAST: u16 = 2;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_PI: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    /// `ARPHRD_*` of linux/if_arp.h.
    pub(super) hardware_type: u16,
    /// Its kind (`veth`, `wireguard`); empty for a hardware device.
    pub(super) kind: String,
    /// Whether packets of this TUN device begin with packet information (`IFF_TUN` without
    /// `IFF_NO_PI`).
    pub(super) tun_information: bool,
    /// Its broadcast address; for a tunnel the remote address.
    pub(super) broadcast: Vec<u8>,
}

/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg` after it.
pub(super) const HEADER: usize = 16;
/// More bytes than an answer about one interface has, without its virtual functions.
pub(super) const ANSWER_MAX: usize = 32 * 1024;

/// The programs on the interface with this index.
pub(super) fn attached(index: u32) -> io::Result<Vec<AttachedProgram>> {
    parse(&answer(index)?)
}

/// What the interface with this index is.
pub(super) fn describe(index: u32) -> io::Result<Description> {
    parse_description(&answer(index)?)
}

/// A netlink socket of this protocol, in the network namespace of the calling thread.
pub(super) fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Sends a request on a new socket of this protocol. Returns the first datagram of the answer.
pub(super) fn exchange(protocol: SockProtocol, request: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open(protocol)?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

/// The kernel's description of an interface.
fn answer(index: u32) -> io::Result<Vec<u8>> {
    exchange(SockProtocol::NetlinkRoute, &request(index))
}

fn request(index: u32) -> [u8; 2 * HEADER] {
    let mut message = [0; 2 * HEADER];
    let fields = [
        (
            0,
            u32::try_from(2 * HEADER).unwrap_or_default().to_ne_bytes(),
        ),
        (8, 1_u32.to_ne_bytes()),
        (HEADER + 4, index.to_ne_bytes()),
    ];
    for (offset, bytes) in fields {
        message[offset..offset + 4].copy_from_slice(&bytes);
    }
    message[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message
}

fn parse(answer: &[u8]) -> io::Result<Vec<AttachedProgram>> {
    error_of(answer)?;
    let attributes = answer.get(2 * HEADER..).ok_or_else(truncated)?;
    let Some((_, xdp)) = Attributes(attributes).find(|(kind, _)| *kind == IFLA_XDP) else {
        return Ok(Vec::new());
    };
    let programs = Attributes(xdp).filter_map(|(kind, value)| {
        let place = match kind {
            IFLA_XDP_DRV_PROG_ID => AttachMode::Driver,
            IFLA_XDP_SKB_PROG_ID => AttachMode::Generic,
            IFLA_XDP_HW_PROG_ID => AttachMode::Hardware,
            _ => return None,
        };
        let program = word(value, 0)?;
        Some(AttachedProgram { program, place })
    });
    Ok(programs.collect())
}

fn parse_description(answer: &[u8]) -> io::Result<Description> {
    error_of(answer)?;
    let hardware_type = half(answer, HEADER + 2).ok_or_else(truncated)?;
    let attributes = answer.get(2 * HEADER..).ok_or_else(truncated)?;
    let info = value_of(attributes, IFLA_LINKINFO).unwrap_or_default();
    // It ends with a NUL.
    let kind =
        value_of(info, IFLA_INFO_KIND).and_then(|value| value.split(|byte| *byte == 0).next());
    let data = value_of(info, IFLA_INFO_DATA).unwrap_or_default();
    Ok(Description {
        hardware_type,
        kind: String::from_utf8_lossy(kind.unwrap_or_default()).into_owned(),
        tun_information: value_of(data, IFLA_TUN_PI) != Some(&[0]),
        broadcast: value_of(attributes, IFLA_BROADCAST)
            .unwrap_or_default()
            .to_vec(),
    })
}

/// The value of the first attribute of this kind.
pub(super) fn value_of(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = Attributes(attributes).find(|(other, _)| *other == kind)?;
    Some(found.1)
}

/// The error in an answer, if it is an error message.
pub(super) fn error_of(answer: &[u8]) -> io::Result<()> {
    let kind = half(answer, 4).ok_or_else(truncated)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let negative = word(answer, HEADER).ok_or_else(truncated)?.cast_signed();
        return Err(io::Error::from_raw_os_error(-negative));
    }
    Ok(())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "truncated netlink answer")
}

/// The attributes of a message (`struct rtattr`): the kind without its flags, and the value.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(half(self.0, 0)?);
        let kind = half(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(super) fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_program_in_the_driver_is_found_among_other_attributes() {
        let xdp = [
            attribute(2, &[1]),
            attribute(IFLA_XDP_DRV_PROG_ID, &17_u32.to_ne_bytes()),
        ]
        .concat();
        let answer = [
            vec![0; 2 * HEADER],
            attribute(3, b"eth0\0"),
            attribute(IFLA_XDP | 0x8000, &xdp),
        ]
        .concat();
        let program = AttachedProgram {
            program: 17,
            place: AttachMode::Driver,
        };
        assert_eq!(parse(&answer).unwrap(), [program]);
    }

    #[test]
    fn the_kind_of_an_interface_is_found_beside_its_type() {
        let mut answer = vec![0; 2 * HEADER];
        answer[HEADER + 2..HEADER + 4].copy_from_slice(&778_u16.to_ne_bytes());
        answer.extend(attribute(IFLA_BROADCAST, &[198, 51, 100, 7]));
        let info = attribute(IFLA_INFO_KIND, b"gre\0");
        answer.extend(attribute(IFLA_LINKINFO | 0x8000, &info));
        let description = Description {
            hardware_type: 778,
            kind: "gre".to_owned(),
            tun_information: true,
            broadcast: vec![198, 51, 100, 7],
        };
        assert_eq!(parse_description(&answer).unwrap(), description);
        answer.truncate(HEADER + 3);
        assert!(parse_description(&answer).is_err());
    }

    #[test]
    fn an_error_message_becomes_that_error() {
        let mut answer = vec![0; 2 * HEADER];
        answer[4] = 2;
        answer[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(
            parse(&answer).unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
    }

    #[test]
    fn an_attribute_longer_than_the_answer_ends_the_attributes() {
        let answer = [vec![0; 2 * HEADER], vec![255, 0, 43, 0]].concat();
        assert_eq!(parse(&answer).unwrap(), []);
        assert!(parse(&[0; 5]).is_err());
    }

    #[test]
    fn the_loopback_has_no_program() {
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        assert_eq!(attached(index).unwrap(), []);
        assert!(attached(0x7fff_fff0).is_err());
    }
}
