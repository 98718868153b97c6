//! Events of interfaces: they are created, deleted and renamed.
//!
//! The kernel sends them on a netlink socket, which any process may open. The socket belongs to the
//! network namespace of the thread that opened it. An event is only a reason to check an interface:
//! the state itself comes from a request.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, bind, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::netlink::{self, ANSWER_MAX, Attributes, HEADER, half, word};

/// Size of the receive buffer in bytes: thousands of interfaces may be created at once.
const BUFFER: usize = 1 << 20;
/// linux/rtnetlink.h: the group with the events of all interfaces.
const RTMGRP_LINK: u32 = 1;

/// An event of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// The index of the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It was deleted, or has left this network namespace.
    pub is_gone: bool,
}

/// Events of all interfaces of a network namespace, from now on.
#[derive(Debug)]
pub struct LinkEvents {
    socket: OwnedFd,
}

impl LinkEvents {
    /// The events of this thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let socket = netlink::open(SockProtocol::NetlinkRoute)?;
        // The system's limit may allow less. Then more events are lost, and `take` says so.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        Ok(Self { socket })
    }

    /// Waits up to `wait_max` for an event. Returns all events so far; `None` if some were lost, so
    /// that every interface has to be checked.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn take(&self, wait_max: Duration) -> io::Result<Option<Vec<LinkEvent>>> {
        // For the kernel a timeout of 0 is none.
        let wait_max = TimeVal::new(
            wait_max.as_secs() as i64,
            wait_max.subsec_micros().max(1).into(),
        );
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &wait_max)?;
        let mut events = Vec::new();
        let mut is_complete = true;
        let mut message = vec![0; ANSWER_MAX];
        let mut flags = MsgFlags::empty();
        loop {
            match recv(self.socket.as_raw_fd(), &mut message, flags) {
                Ok(length) => events.extend(parse(message.get(..length).unwrap_or_default())),
                Err(Errno::EAGAIN) => return Ok(is_complete.then_some(events)),
                Err(Errno::ENOBUFS) => is_complete = false,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
    }
}

/// The messages of one datagram.
fn parse(mut datagram: &[u8]) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    while let Some(length) = word(datagram, 0) {
        let length = length as usize;
        let Some(message) = datagram.get(..length).filter(|_| length >= 2 * HEADER) else {
            break;
        };
        events.extend(event(message));
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    events
}

// linux/if_link.h.
const IFLA_IFNAME: u16 = 3;

fn event(message: &[u8]) -> Option<LinkEvent> {
    let is_gone = match half(message, 4)? {
        libc::RTM_NEWLINK => false,
        libc::RTM_DELLINK => true,
        _ => return None,
    };
    // A port that leaves a bridge is deleted in the bridge family only: the interface stays.
    if *message.get(HEADER)? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let (_, name) =
        Attributes(message.get(2 * HEADER..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(LinkEvent {
        index: word(message, HEADER + 4)?,
        name: String::from_utf8_lossy(name).into_owned(),
        is_gone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, index: u32, name: &[u8]) -> Vec<u8> {
        let mut attribute = (4 + name.len() as u16).to_ne_bytes().to_vec();
        attribute.extend(IFLA_IFNAME.to_ne_bytes());
        attribute.extend(name);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let mut message = vec![0; 2 * HEADER];
        let length = (message.len() + attribute.len()) as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER] = family;
        message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
        message.extend(attribute);
        message
    }

    #[test]
    fn an_interface_that_goes_is_told_from_a_port_that_leaves_a_bridge() {
        let datagram = [
            message(libc::RTM_NEWLINK, 0, 7, b"eth0\0"),
            message(libc::RTM_DELLINK, libc::AF_BRIDGE as u8, 7, b"eth0\0"),
            message(libc::RTM_DELLINK, 0, 8, b"ppp12\0"),
        ]
        .concat();
        let event = |index, name: &str, is_gone| LinkEvent {
            index,
            name: name.to_owned(),
            is_gone,
        };
        let expected = [event(7, "eth0", false), event(8, "ppp12", true)];
        assert_eq!(parse(&datagram), expected);
        // A truncated message has no event, and does not panic.
        for length in 0..datagram.len() {
            assert!(parse(&datagram[..length]).len() <= 2);
        }
    }

    #[test]
    fn a_socket_without_events_returns_at_once() {
        let events = LinkEvents::open().unwrap();
        assert!(events.take(Duration::ZERO).is_ok());
    }
}
