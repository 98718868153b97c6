//! The made-up traffic as userspace sees it: the frame, parts of the sequence of sources, and the
//! list of such a part.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_ebpf_common::traffic::{self, Kind};
use serde::Serialize;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    const fn kind(self) -> Kind {
        match self {
            Self::Ipv4 => Kind::Ipv4,
            Self::Ipv6 => Kind::Ipv6,
        }
    }
}

/// A part of a sequence of sources ([`traffic`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    /// Which sequence.
    pub(crate) kind: Kind,
    /// The place of the first one.
    pub(crate) first: u32,
    /// How many there are.
    pub(crate) number: u32,
}

impl Sequence {
    /// So many sources that every list of at least as many entries has.
    pub(crate) const fn listed(family: Family, number: u32) -> Self {
        Self {
            kind: family.kind(),
            first: 0,
            number,
        }
    }

    /// So many sources that no list has.
    pub(crate) const fn unlisted(family: Family, number: u32) -> Self {
        Self {
            kind: family.kind(),
            first: 1 << 31,
            number,
        }
    }

    /// So many IPv4 sources of one /15.
    pub(crate) const fn near(number: u32) -> Self {
        Self {
            kind: Kind::Ipv4Near,
            first: 0,
            number,
        }
    }

    /// One IPv4 source.
    pub(crate) const fn of_one(source: Ipv4Addr) -> Self {
        Self {
            kind: Kind::Ipv4,
            first: source.to_bits(),
            number: 1,
        }
    }

    /// The first ones of it.
    pub(crate) fn at_most(self, number: u32) -> Self {
        Self {
            number: self.number.min(number),
            ..self
        }
    }

    /// Each of its sources, as a /32 or a /64.
    pub(crate) fn list(self) -> impl Iterator<Item = IpNet> {
        let ipv4 = |address| Ipv4Net::from(Ipv4Addr::from_bits(address)).into();
        let ipv6 = |upper| Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::from(upper) << 64), 64);
        (0..self.number).map(move |place| {
            let place = self.first.wrapping_add(place);
            match self.kind {
                Kind::Ipv4 => ipv4(traffic::ipv4(place)),
                Kind::Ipv4Near => ipv4(traffic::ipv4_near(place)),
                Kind::Ipv6 => ipv6(traffic::ipv6(place)).into(),
            }
        })
    }

    /// The addresses of an IPv4 sequence.
    pub(crate) fn ipv4(self) -> impl Iterator<Item = Ipv4Addr> {
        self.list().filter_map(|network| match network {
            IpNet::V4(network) => Some(network.addr()),
            IpNet::V6(_) => None,
        })
    }
}

/// The flags of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// Opens a connection.
    Syn = 0x02,
    /// Belongs to one: nothing but the lists has a say about it.
    Ack = 0x10,
}

/// A TCP segment (RFC 9293) to port 25 in an Ethernet frame. Its checksums are wrong: no host is
/// to read it.
pub(crate) fn frame(family: Family, flags: Flags) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match family {
        Family::Ipv4 => {
            frame.extend([0x08, 0x00]);
            frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
            frame.extend(Ipv4Addr::new(198, 51, 100, 2).octets());
            frame.extend(TARGET.octets());
        }
        Family::Ipv6 => {
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
            frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
        }
    }
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(25_u16.to_be_bytes());
    frame.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        0x50,
        flags as u8,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    // The least length of a frame on a wire, without its checksum.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The address that floods are sent to.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The address of the Ethernet interface that they are sent to.
pub(crate) const TARGET_INTERFACE: &str = "02:00:00:00:00:01";

/// A SYN whose checksums are right for a source, an identification and a source port that add up to
/// nothing: those are for the generator to fill in.
pub(crate) fn syn_without_source() -> Vec<u8> {
    let mut frame = frame(Family::Ipv4, Flags::Syn);
    frame.truncate(54);
    let (ip, tcp) = (14, 34);
    frame[ip + 4..ip + 6].fill(0);
    frame[ip + 12..ip + 16].fill(0);
    frame[tcp..tcp + 2].fill(0);
    frame[tcp + 8..tcp + 12].fill(0);
    let header = checksum(&frame[ip..tcp], 0);
    frame[ip + 10..ip + 12].copy_from_slice(&header.to_be_bytes());
    // The pseudo header (RFC 9293, section 3.1): the addresses, the protocol and the length.
    let length = (frame.len() - tcp) as u32;
    let pseudo = sum(&frame[ip + 12..tcp]) + 6 + length;
    let segment = checksum(&frame[tcp..], pseudo);
    frame[tcp + 16..tcp + 18].copy_from_slice(&segment.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// RFC 1071, with what was summed up before.
fn checksum(octets: &[u8], before: u32) -> u16 {
    let mut sum = sum(octets) + before;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn sum(octets: &[u8]) -> u32 {
    let pairs = octets.chunks_exact(2);
    pairs
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_source_comes_twice_and_none_of_the_unlisted_is_listed() {
        let listed: HashSet<_> = Sequence::listed(Family::Ipv4, 100_000).ipv4().collect();
        assert_eq!(listed.len(), 100_000);
        let mut unlisted = Sequence::unlisted(Family::Ipv4, 100_000).ipv4();
        assert!(unlisted.all(|address| !listed.contains(&address)));
        let near: HashSet<_> = Sequence::near(1 << 17).ipv4().collect();
        assert_eq!(near.len(), 1 << 17);
    }

    #[test]
    fn the_sources_are_spread_over_the_whole_of_what_they_are_from() {
        let spread = |sequence: Sequence, octet: usize| {
            let octets: HashSet<_> = sequence
                .ipv4()
                .map(|address| address.octets()[octet])
                .collect();
            octets.len()
        };
        assert_eq!(spread(Sequence::listed(Family::Ipv4, 10_000), 0), 256);
        assert_eq!(spread(Sequence::near(10_000), 0), 1);
        assert_eq!(spread(Sequence::near(10_000), 1), 2);
    }
}
