//! Socket addresses in the kernel's form.
//!
//! The bytes are written and read by hand, which needs no unsafe code and no zeroed structures:
//! both families fit in the 28 bytes of a `sockaddr_in6`, the port at the same place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Size of a `sockaddr_in6`, the larger of the two.
pub(crate) const SIZE: usize = 28;
const SIZE_V4: usize = 16;

/// A `sockaddr_in` or `sockaddr_in6`, and how much of it there is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct RawAddress {
    pub(crate) bytes: [u8; SIZE],
    /// A `socklen_t`: for the kernel both the room there is and the room it took.
    pub(crate) length: u32,
}

impl RawAddress {
    /// Room for the kernel to write an address into.
    pub(crate) const ROOM: Self = Self {
        bytes: [0; SIZE],
        length: SIZE as u32,
    };

    /// The address family to make a socket with, `AF_INET` or `AF_INET6`.
    pub(crate) fn family(address: SocketAddr) -> i32 {
        match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        }
    }

    pub(crate) fn new(address: SocketAddr) -> Self {
        let mut raw = Self::ROOM;
        raw.bytes[0..2].copy_from_slice(&(Self::family(address) as u16).to_ne_bytes());
        raw.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                raw.bytes[4..8].copy_from_slice(&v4.ip().octets());
                raw.length = SIZE_V4 as u32;
            }
            SocketAddr::V6(v6) => {
                raw.bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                raw.bytes[8..24].copy_from_slice(&v6.ip().octets());
                raw.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        raw
    }

    /// The address that the kernel wrote, v4-mapped addresses as the IPv4 addresses that they are:
    /// a policy must not be passed by coming through a dual-stack socket. Nothing if it is of
    /// neither family.
    pub(crate) fn parse(&self) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(self.part(0)));
        let port = u16::from_be_bytes(self.part(2));
        match family {
            libc::AF_INET => Some((Ipv4Addr::from(self.part::<4>(4)), port).into()),
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.part::<16>(8));
                Some(match ip.to_canonical() {
                    IpAddr::V4(v4) => (v4, port).into(),
                    IpAddr::V6(v6) => {
                        let flowinfo = u32::from_ne_bytes(self.part(4));
                        let scope = u32::from_ne_bytes(self.part(24));
                        SocketAddrV6::new(v6, port, flowinfo, scope).into()
                    }
                })
            }
            _ => None,
        }
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[at + i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["192.0.2.7:25", "[2001:db8::19]:587", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::new(address).parse(), Some(address), "{text}");
        }
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 25, 7, 3).into();
        assert_eq!(RawAddress::new(scoped).parse(), Some(scoped));
    }

    #[test]
    fn v4_mapped_address_does_not_hide_an_ipv4_peer() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:25".parse().unwrap();
        let plain: SocketAddr = "192.0.2.7:25".parse().unwrap();
        assert_eq!(RawAddress::new(mapped).parse(), Some(plain));
    }

    #[test]
    fn address_of_another_family_is_not_taken_for_one_of_ours() {
        assert_eq!(RawAddress::ROOM.parse(), None);
    }
}
