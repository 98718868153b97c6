//! Writes a PROXY header for a next hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ppp::{v1, v2};

use super::{Endpoints, Header};

/// Appends the text header. What it cannot say is `UNKNOWN`, a connection of the gate itself
/// ([`Header::Local`]) too.
pub fn write_v1(header: &Header, out: &mut Vec<u8>) {
    let addresses = match header {
        Header::Client(endpoints) => v1::Addresses::from(of_one_family(endpoints)),
        Header::Local | Header::Unknown => v1::Addresses::Unknown,
    };
    out.extend_from_slice(addresses.to_string().as_bytes());
}

/// Appends the binary header, without TLVs.
pub fn write_v2(header: &Header, out: &mut Vec<u8>) {
    let (command, protocol, addresses) = match header {
        Header::Client(endpoints) => (
            v2::Command::Proxy,
            v2::Protocol::Stream,
            v2::Addresses::from(of_one_family(endpoints)),
        ),
        Header::Local => (
            v2::Command::Local,
            v2::Protocol::Unspecified,
            v2::Addresses::Unspecified,
        ),
        Header::Unknown => (
            v2::Command::Proxy,
            v2::Protocol::Unspecified,
            v2::Addresses::Unspecified,
        ),
    };
    out.extend_from_slice(v2::PROTOCOL_PREFIX);
    out.push(v2::Version::Two | command);
    out.push(addresses.address_family() | protocol);
    out.extend(u16::from(addresses.address_family()).to_be_bytes());
    match addresses {
        v2::Addresses::IPv4(it) => {
            out.extend(it.source_address.octets());
            out.extend(it.destination_address.octets());
            out.extend(it.source_port.to_be_bytes());
            out.extend(it.destination_port.to_be_bytes());
        }
        v2::Addresses::IPv6(it) => {
            out.extend(it.source_address.octets());
            out.extend(it.destination_address.octets());
            out.extend(it.source_port.to_be_bytes());
            out.extend(it.destination_port.to_be_bytes());
        }
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => {}
    }
}

/// A header has room for two addresses of one family. XCLIENT can name an IPv4 client on a
/// connection over IPv6, and the reverse; then the client is what counts, and the address that it
/// connected to is left open.
fn of_one_family(endpoints: &Endpoints) -> (SocketAddr, SocketAddr) {
    let (client, server) = (endpoints.client(), endpoints.server());
    if client.is_ipv4() == server.is_ipv4() {
        return (client, server);
    }
    let open: IpAddr = if client.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    (client, SocketAddr::new(open, server.port()))
}
