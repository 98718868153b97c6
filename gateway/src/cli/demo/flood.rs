//! The flood: SYNs to port 25 with sources from the lists, over raw sockets (with our own IP
//! header).
//!
//! Raw sockets are slower than a packet generator in the kernel, but every machine has them; the
//! benches use the fast way. The small send buffer keeps fewer packets in flight than the link's
//! ring can hold. So every packet counted here reaches the program, and the two counts must be
//! equal.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::scene::{GATE_V4, GATE_V6, Lists};

/// Send buffer of each socket in bytes.
const SEND_BUFFER: usize = 16 << 10;

/// Packets between two checks whether to stop.
const BATCH: u64 = 256;

/// Packets sent, by the list that their sources are on.
pub(super) type Sent = Vec<(&'static str, u64)>;

/// Sends until `stop` returns true, or until `packets` are sent: from the lists in turn, with
/// random sources of each.
pub(super) fn send(packets: u64, lists: &Lists, stop: impl Fn() -> bool) -> io::Result<Sent> {
    let v4 = raw_socket(Domain::IPV4)?;
    let v6 = raw_socket(Domain::IPV6)?;
    let to_v4 = SockAddr::from(SocketAddr::new(IpAddr::V4(GATE_V4), 0));
    let to_v6 = SockAddr::from(SocketAddr::new(IpAddr::V6(GATE_V6), 0));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut sent: Sent = lists.iter().map(|list| (list.name, 0)).collect();
    for number in 0..packets {
        if number % BATCH == 0 && stop() {
            break;
        }
        let index = usize::try_from(number).unwrap_or_default() % lists.len();
        match lists[index].source(random.next()) {
            IpAddr::V4(source) => v4.send_to(&packet_v4(source, random.next()), &to_v4)?,
            IpAddr::V6(source) => v6.send_to(&packet_v6(source, random.next()), &to_v6)?,
        };
        sent[index].1 += 1;
    }
    Ok(sent)
}

fn raw_socket(domain: Domain) -> io::Result<Socket> {
    // IPPROTO_RAW: the header comes with the packet.
    let socket = Socket::new(
        domain,
        Type::RAW,
        Some(Protocol::from(nix::libc::IPPROTO_RAW)),
    )?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    Ok(socket)
}

/// An IPv4 header (RFC 791) and a SYN; the kernel fills in the length and the header checksum.
fn packet_v4(source: Ipv4Addr, random: u64) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&40u16.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&GATE_V4.octets());
    packet[20..].copy_from_slice(&syn(random));
    packet
}

/// An IPv6 header (RFC 8200) and a SYN.
fn packet_v6(source: Ipv6Addr, random: u64) -> [u8; 60] {
    let mut packet = [0; 60];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&20u16.to_be_bytes());
    packet[6..8].copy_from_slice(&[6, 64]);
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&GATE_V6.octets());
    packet[40..].copy_from_slice(&syn(random));
    packet
}

/// A TCP header (RFC 9293) of a SYN to port 25. Its checksum is wrong, as is usual in floods: the
/// packet is dropped before anything checks it.
fn syn(random: u64) -> [u8; 20] {
    let mut header = [0; 20];
    let random = random.to_be_bytes();
    header[..2].copy_from_slice(&[0x80 | random[0], random[1]]);
    header[2..4].copy_from_slice(&25u16.to_be_bytes());
    header[4..8].copy_from_slice(&random[2..6]);
    header[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    header
}

/// xorshift64*: sources need to be spread, not secret.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
