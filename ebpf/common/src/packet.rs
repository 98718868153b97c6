//! Reads the source address and the destination port out of an Ethernet frame that carries TCP.
//!
//! Only what the first segment of a packet says is looked at. What cannot be read (another protocol, a truncated header,
//! a later fragment, more extension headers than [`EXTENSION_HEADERS_MAX`]) is `None`, and passes: the filter must never
//! be the reason why something that is not mail does not arrive, and the relay behind it judges again.

use crate::layout::VerdictKey;

/// Extension headers (hop-by-hop, routing, destination options, fragment) that are looked past.
pub const EXTENSION_HEADERS_MAX: usize = 4;

const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The bytes of a frame. Every read is checked against the end of the packet.
///
/// There is no read of one octet: its check, `offset >= end` after optimisation, proves nothing to the verifier when the
/// offset is not a constant. Headers are read in pairs of octets instead.
pub trait Packet {
    /// The two octets at this offset, in network byte order.
    fn half(&self, offset: usize) -> Option<u16>;
    /// The four octets at this offset as they lie in memory.
    fn word(&self, offset: usize) -> Option<u32>;
}

impl Packet for [u8] {
    fn half(&self, offset: usize) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn word(&self, offset: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }
}

/// Where a packet comes from, as the key of the lists: the family (4 or 6), then the address, each word as it lies in
/// memory. An IPv4 address is followed by zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Source(pub [u32; 5]);

/// Bits of a whole [`Source`].
pub const SOURCE_BITS: u32 = 160;

/// Bits before the address in a [`Source`].
pub const FAMILY_BITS: u32 = 32;

impl Source {
    const FAMILY_IPV4: u32 = 4_u32.to_be();
    const FAMILY_IPV6: u32 = 6_u32.to_be();

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.0[0] == Self::FAMILY_IPV4
    }

    /// The key of an IPv4 address, given as the octets on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(octets: [u8; 4]) -> Self {
        Self([Self::FAMILY_IPV4, u32::from_ne_bytes(octets), 0, 0, 0])
    }

    /// The key of an IPv6 address, given as the octets on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn ipv6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            Self::FAMILY_IPV6,
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The key under which its recent verdict is kept and its SYNs are counted: the address, or of IPv6 the /64, which is
    /// what one host may choose its addresses from.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> VerdictKey {
        // The second word of an IPv4 address is zero.
        [self.0[0], self.0[1], self.0[2]]
    }
}

/// What the verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it, as far as the packet says.
    pub source: Source,
    /// The TCP port it goes to.
    pub port: u16,
}

/// The segment in an Ethernet frame.
#[inline(always)]
pub fn segment<P: Packet + ?Sized>(frame: &P) -> Option<Segment> {
    match frame.half(12)? {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => None,
    }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn ipv4<P: Packet + ?Sized>(frame: &P) -> Option<Segment> {
    let (version_and_length, _) = pair(frame.half(ETHERNET_HEADER)?);
    let header = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || header < 20 {
        return None;
    }
    // Only the first fragment has ports; the others are of no use to anybody without it.
    let fragment_offset = frame.half(ETHERNET_HEADER + 6)? & 0x1fff;
    let (_, protocol) = pair(frame.half(ETHERNET_HEADER + 8)?);
    if protocol != TCP || fragment_offset != 0 {
        return None;
    }
    let address = frame.word(ETHERNET_HEADER + 12)?;
    let port = frame.half(ETHERNET_HEADER + header + 2)?;
    Some(Segment {
        source: Source([Source::FAMILY_IPV4, address, 0, 0, 0]),
        port,
    })
}

/// RFC 8200, section 3.
#[inline(always)]
fn ipv6<P: Packet + ?Sized>(frame: &P) -> Option<Segment> {
    if frame.half(ETHERNET_HEADER)? >> 12 != 6 {
        return None;
    }
    let address = ETHERNET_HEADER + 8;
    let source = Source([
        Source::FAMILY_IPV6,
        frame.word(address)?,
        frame.word(address + 4)?,
        frame.word(address + 8)?,
        frame.word(address + 12)?,
    ]);
    let (mut header, _) = pair(frame.half(ETHERNET_HEADER + 6)?);
    let mut offset = ETHERNET_HEADER + IPV6_HEADER;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if header == TCP {
            break;
        }
        let (next, length) = pair(frame.half(offset)?);
        match header {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => offset += (usize::from(length) + 1) * 8,
            // RFC 8200, section 4.5: only the first fragment, at offset 0, holds what follows.
            FRAGMENT if frame.half(offset + 2)? & 0xfff8 == 0 => offset += 8,
            _ => return None,
        }
        header = next;
    }
    if header != TCP {
        return None;
    }
    let port = frame.half(offset + 2)?;
    Some(Segment { source, port })
}

/// The two octets of a half word.
#[inline(always)]
const fn pair(half: u16) -> (u8, u8) {
    let [first, second] = half.to_be_bytes();
    (first, second)
}
