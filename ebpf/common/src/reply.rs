//! The headers of what the program sends by itself: a RST to a customer, a SYN-ACK with a cookie to
//! a client.
//!
//! Everything here is arithmetic on words as they lie in memory, so the host can test it; the
//! program only writes the words into the frame. An answer has neither IPv4 options nor extension
//! headers; its VLAN tags and its PPPoE session are those of the frame that it answers.

use core::num::NonZeroU16;

use crate::packet::{
    self, Framing, IPV4_HEADER, IPV6_HEADER, PPP_IPV4, PPP_IPV6, PPP_PROTOCOL, Packet, Segment,
    TCP_HEADER, flags, pair,
};

/// How far in front of the IP header the length of PPPoE is. It counts what is behind it: the
/// protocol of PPP, and the packet.
pub const PPPOE_LENGTH: usize = 2 + PPP_PROTOCOL;
/// Bytes of the MSS option (RFC 9293, section 3.7.1).
pub const MSS_OPTION: usize = 4;

const TCP: u32 = packet::TCP as u32;
const TIME_TO_LIVE: u32 = 64;
/// As in the kernel's own cookies.
const WINDOW: u32 = 64_240;

/// What a TCP header says, apart from its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpReply {
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number.
    pub acknowledgement: u32,
    /// Its [`flags`].
    pub flags: u16,
    /// The MSS option, if it has one.
    pub mss: Option<NonZeroU16>,
}

impl TcpReply {
    /// The SYN-ACK that carries a cookie.
    #[inline(always)]
    #[must_use]
    pub const fn cookie(cookie: u32, sequence: u32, mss: Option<NonZeroU16>) -> Self {
        Self {
            sequence: cookie,
            acknowledgement: sequence.wrapping_add(1),
            flags: flags::SYN | flags::ACK,
            mss,
        }
    }

    /// Bytes of the TCP header.
    #[inline(always)]
    #[must_use]
    pub const fn tcp_bytes(&self) -> u32 {
        let option = if self.mss.is_some() { MSS_OPTION } else { 0 };
        (TCP_HEADER + option) as u32
    }
}

/// The RST for a segment, if it is one that may be answered: not a RST, no fragment, nothing that
/// came from or went to more than one host, and with lengths that fit together.
///
/// Without an Ethernet header there is an answer on a TUN device only: once the program has changed
/// the first bytes of a frame, the kernel reads an Ethernet header there, and PPP, WireGuard and
/// tunnels send only what the kernel takes for IP. Nor is there one where the protocol of PPP has
/// one octet: a customer that writes it so may be unable to read it.
///
/// RFC 9293, section 3.10.7.1. The length of the payload comes from the IP header: a short frame is
/// padded, and a RST that counts the padding would acknowledge bytes that were never sent, and be
/// ignored.
#[inline(always)]
pub fn reset<P: Packet + ?Sized>(frame: &P, segment: &Segment) -> Option<TcpReply> {
    let (group, _) = pair(frame.half(0)?);
    let to_many = group & 1 != 0 && segment.framing != Framing::Tun;
    if segment.port.is_hidden() || segment.fragment || to_many {
        return None;
    }
    let network = segment.network;
    let room = match segment.framing {
        Framing::Ethernet | Framing::Tun => usize::MAX,
        Framing::Pppoe => {
            let length = frame.forget(network - PPPOE_LENGTH);
            usize::from(frame.half(length)?)
        }
        Framing::PppoeShort | Framing::Nothing => return None,
    };
    let packet = if segment.source.is_ipv4() {
        let [source, destination] = [frame.word(network + 12)?, frame.word(network + 16)?];
        if !is_host_ipv4(source) || !is_host_ipv4(destination) {
            return None;
        }
        usize::from(frame.half(network + 2)?)
    } else {
        if !is_host_ipv6(frame, network + 8)? || !is_host_ipv6(frame, network + 24)? {
            return None;
        }
        usize::from(frame.half(network + 4)?) + IPV6_HEADER
    };
    let header = frame.half(segment.transport + 12)?;
    // The last bytes of a header without options.
    frame.half(segment.transport + 18)?;
    let tcp = usize::from(header >> 12) * 4;
    let headers = segment.transport - network + tcp;
    let fits = tcp >= TCP_HEADER && packet >= headers && room >= packet + PPP_PROTOCOL;
    if !fits || header & flags::RST != 0 {
        return None;
    }
    if header & flags::ACK != 0 {
        return Some(TcpReply {
            sequence: u32::from_be(frame.word(segment.transport + 8)?),
            acknowledgement: 0,
            flags: flags::RST,
            mss: None,
        });
    }
    let sequence = u32::from_be(frame.word(segment.transport + 4)?);
    // SYN and FIN take one sequence number each.
    let controls = ((header & flags::SYN) >> 1) + (header & flags::FIN);
    let length = (packet - headers) as u32 + u32::from(controls);
    Some(TcpReply {
        sequence: 0,
        acknowledgement: sequence.wrapping_add(length),
        flags: flags::RST | flags::ACK,
        mss: None,
    })
}

/// Whether an address, as it lies in memory, can be one host's: not 0/8, not 127/8, not from 224/4
/// on.
#[inline(always)]
const fn is_host_ipv4(address: u32) -> bool {
    let first = u32::from_be(address) >> 24;
    first != 0 && first != 127 && first < 224
}

/// Whether an address can be one host's: not `::`, not `::1`, not in `ff00::/8`.
#[inline(always)]
fn is_host_ipv6<P: Packet + ?Sized>(frame: &P, offset: usize) -> Option<bool> {
    let first = u32::from_be(frame.word(offset)?);
    let middle = frame.word(offset + 4)? | frame.word(offset + 8)?;
    let last = u32::from_be(frame.word(offset + 12)?);
    Some(first >> 24 != 0xff && (first | middle != 0 || last > 1))
}

/// The word in front of the IP header of an answer in PPPoE: the length, and the protocol, which
/// stays.
#[inline(always)]
#[must_use]
pub const fn pppoe(packet: usize, is_ipv4: bool) -> u32 {
    let protocol = if is_ipv4 { PPP_IPV4 } else { PPP_IPV6 };
    (((packet + PPP_PROTOCOL) as u32) << 16 | protocol as u32).to_be()
}

/// The IPv4 header of an answer, up to its addresses, of which `addresses` is the [`sum`].
#[inline(always)]
#[must_use]
pub fn ipv4(addresses: u64, answer: &TcpReply) -> [u32; 3] {
    let length = IPV4_HEADER as u32 + answer.tcp_bytes();
    // No identification and "do not fragment", as the kernel's own.
    let mut words = [
        (0x4500_0000 | length).to_be(),
        0x4000_u32.to_be(),
        (TIME_TO_LIVE << 24 | TCP << 16).to_be(),
    ];
    let [first, second] = checksum(addresses + sum(&words)).to_ne_bytes();
    words[2] |= u32::from_ne_bytes([0, 0, first, second]);
    words
}

/// The IPv6 header of an answer, up to its addresses.
#[inline(always)]
#[must_use]
pub fn ipv6(answer: &TcpReply) -> [u32; 2] {
    [
        0x6000_0000_u32.to_be(),
        (answer.tcp_bytes() << 16 | TCP << 8 | TIME_TO_LIVE).to_be(),
    ]
}

/// The TCP header of an answer, the last word of which is its option, if it has one. `ports` are
/// those of the answer as they lie in memory, `addresses` the [`sum`] of both addresses.
#[inline(always)]
#[must_use]
pub fn tcp(ports: u32, addresses: u64, answer: &TcpReply) -> [u32; 6] {
    let length = answer.tcp_bytes();
    let reset = answer.flags & flags::RST != 0;
    let window = if reset { 0 } else { WINDOW };
    let option = match answer.mss {
        Some(mss) => (0x0204_0000 | u32::from(mss.get())).to_be(),
        None => 0,
    };
    let mut words = [
        ports,
        answer.sequence.to_be(),
        answer.acknowledgement.to_be(),
        (length << 26 | u32::from(answer.flags) << 16 | window).to_be(),
        0,
        option,
    ];
    // The pseudo header: the addresses, the protocol and the length.
    let pseudo = addresses + u64::from((TCP << 16 | length).to_be());
    let [first, second] = checksum(pseudo + sum(&words)).to_ne_bytes();
    words[4] = u32::from_ne_bytes([first, second, 0, 0]);
    words
}

/// The sum of words as they lie in memory, to be folded by [`checksum`].
#[inline(always)]
#[must_use]
pub fn sum(words: &[u32]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// The Internet checksum (RFC 1071) of what was summed up, as it lies in memory.
#[inline(always)]
#[must_use]
pub const fn checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn words(bytes: &[u8]) -> Vec<u32> {
        let chunks = bytes.chunks_exact(4);
        chunks
            .map(|bytes| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect()
    }

    #[test]
    fn checksums_are_those_of_known_headers() {
        // The example of RFC 1071, section 3, and an IPv4 header that is quoted everywhere; the
        // checksums taken out.
        let cases: [(&[u8], [u8; 2]); 3] = [
            (
                &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7],
                [0x22, 0x0d],
            ),
            (
                &[
                    0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0,
                    0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
                ],
                [0xb8, 0x61],
            ),
            (&[0xff; 8], [0, 0]),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                checksum(sum(&words(bytes))).to_ne_bytes(),
                expected,
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn a_sum_that_carries_again_and_again_is_folded_whole() {
        for sum in [
            0xffff,
            0x1_ffff,
            0xffff_ffff,
            0x1_ffff_fffe,
            u64::MAX,
            0xfffe_0001_ffff,
        ] {
            let mut folded = sum;
            while folded > 0xffff {
                folded = (folded & 0xffff) + (folded >> 16);
            }
            assert_eq!(u64::from(!checksum(sum)), folded, "{sum:x}");
        }
    }

    #[test]
    fn a_reset_and_a_cookie_lie_in_memory_as_they_go_over_the_wire() {
        let addresses = words(&[192, 0, 2, 1, 192, 0, 2, 9]);
        let sum = sum(&addresses);
        let reset = TcpReply {
            sequence: 0,
            acknowledgement: 2,
            flags: flags::RST | flags::ACK,
            mss: None,
        };
        let ports = words(&[0, 25, 0x9c, 0x41])[0];
        let header = ipv4(sum, &reset);
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0xb6, 0xc5]);
        let segment = tcp(ports, sum, &reset);
        let bytes: Vec<u8> = segment.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(
            bytes[..16],
            [0, 25, 0x9c, 0x41, 0, 0, 0, 0, 0, 0, 0, 2, 0x50, 0x14, 0, 0]
        );

        let cookie = TcpReply::cookie(0x0102_0304, u32::MAX, NonZeroU16::new(1460));
        assert_eq!((cookie.acknowledgement, cookie.tcp_bytes()), (0, 24));
        let segment = tcp(ports, sum, &cookie);
        let bytes: Vec<u8> = segment.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(
            bytes[4..16],
            [1, 2, 3, 4, 0, 0, 0, 0, 0x60, 0x12, 0xfa, 0xf0]
        );
        assert_eq!(bytes[20..], [2, 4, 0x05, 0xb4]);
        let header = ipv6(&cookie);
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, [0x60, 0, 0, 0, 0, 24, 6, 64]);
    }
}
