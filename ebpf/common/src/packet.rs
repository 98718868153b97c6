//! Reads the source address and the destination port out of a frame that carries TCP: an Ethernet
//! frame, perhaps with VLAN tags and PPPoE, or IP with nothing in front of it.
//!
//! Another protocol, a later fragment (useless without the first) and a packet that is cut off
//! before it says what it is are [`Content::Other`], and pass: the filter must never be the reason
//! why something that is not mail does not arrive. The same holds for what only the end of a tunnel
//! opens ([`Content::Unread`]).
//!
//! TCP that hides its ports (a first fragment that ends before them, whatever the frame has behind
//! it, more extension headers than [`EXTENSION_HEADERS_MAX`], a header in a part of the frame that
//! cannot be read) is judged as if it went to a filtered port: honest mail does not come in such
//! packets, and a listed source must not get past by a trick.
//!
//! Linux takes any number of VLAN tags off, and answers what is behind them. Behind more than
//! [`VLAN_TAGS_MAX`] no source is read, and so there is none that could be permitted:
//! [`Content::TooManyTags`].

mod link;

use self::link::Start;
use crate::encapsulation::Encapsulation;
use crate::layout::{LinkLayer, VerdictKey};

pub use self::link::{ETHERNET_HEADER, Framing, NETWORK_MAX, VLAN_TAGS_MAX};
pub(crate) use self::link::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PPP_IPV4, PPP_IPV6, PPP_PROTOCOL};

/// Extension headers (hop-by-hop, routing, destination options, fragment) that are looked past.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;

/// No TCP header begins further inside of a frame.
pub const TRANSPORT_MAX: usize = NETWORK_MAX + IPV6_HEADER + EXTENSION_HEADERS_MAX * 2048;

const HOP_BY_HOP: u8 = 0;
pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The bytes of a frame. Every read is checked against the end of the packet.
///
/// There is no read of one byte: its check, `offset >= end` after optimisation, proves nothing to
/// the verifier when the offset is not a constant. Headers are read in pairs of bytes instead.
pub trait Packet {
    /// The two bytes at this offset, in network byte order.
    fn half(&self, offset: usize) -> Option<u16>;
    /// The four bytes at this offset as they lie in memory.
    fn word(&self, offset: usize) -> Option<u32>;
    /// `N` words from this offset on, as they lie in memory.
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.word(offset + at * 4)?;
        }
        Some(words)
    }
    /// Whether there is more of the packet than can be read: a frame in several buffers, of which
    /// the program sees the first.
    fn continues(&self) -> bool;
    /// The same offset. In the kernel the verifier forgets all of it but a bound near
    /// [`TRANSPORT_MAX`], so it follows what comes after once, and not once for every way that
    /// leads to an offset.
    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        offset
    }
}

impl Packet for [u8] {
    fn half(&self, offset: usize) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn word(&self, offset: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn continues(&self) -> bool {
        false
    }
}

/// Where a packet comes from, as the key of the lists: the family (4 or 6), then the address, each
/// word as it lies in memory. An IPv4 address is followed by zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Source(pub [u32; 5]);

/// Bits of a whole [`Source`].
pub const SOURCE_BITS: u32 = 160;

/// Bits before the address in a [`Source`].
pub const FAMILY_BITS: u32 = 32;

impl Source {
    /// The first word of an IPv4 address.
    pub const FAMILY_IPV4: u32 = 4_u32.to_be();
    /// The first word of an IPv6 address.
    pub const FAMILY_IPV6: u32 = 6_u32.to_be();

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.0[0] == Self::FAMILY_IPV4
    }

    /// The key of an IPv4 address, given as the bytes on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(bytes: [u8; 4]) -> Self {
        Self([Self::FAMILY_IPV4, u32::from_ne_bytes(bytes), 0, 0, 0])
    }

    /// The key of an IPv6 address, given as the bytes on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn ipv6(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            Self::FAMILY_IPV6,
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The key under which its recent verdict is kept and its SYNs are counted: the address, or of
    /// IPv6 the /64, which is what one host may choose its addresses from.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> VerdictKey {
        // The second word of an IPv4 address is zero.
        [self.0[0], self.0[1], self.0[2]]
    }
}

/// What the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The source address that the packet claims.
    pub source: Source,
    /// The TCP port that it goes to.
    pub port: Port,
    /// It is the first fragment of a packet.
    pub fragment: bool,
    /// What is in front of the header of IPv4 or IPv6.
    pub framing: Framing,
    /// Where the header of IPv4 or IPv6 begins.
    pub network: usize,
    /// Where the TCP header begins, unless that is hidden.
    pub transport: usize,
}

/// The port that a segment goes to, or that it is hidden: the packet is TCP, or may well be, but
/// its ports cannot be read.
///
/// A word, because of an `Option` the compiler leaves the value of `None` unwritten, and the
/// verifier refuses the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(u32);

impl Port {
    /// It cannot be read.
    pub const HIDDEN: Self = Self(1 << 16);

    /// This port.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port as u32)
    }

    /// The port; `None` if it is hidden.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> Option<u16> {
        if self.is_hidden() {
            None
        } else {
            Some(self.0 as u16)
        }
    }

    /// Whether it is hidden.
    #[inline(always)]
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        self.0 == Self::HIDDEN.0
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// TCP, or what may well be TCP.
    Segment(Segment),
    /// A packet within a packet, which is not looked into.
    Unread(Encapsulation),
    /// More than [`VLAN_TAGS_MAX`] tags, whatever is behind them.
    TooManyTags,
    /// Anything else.
    Other,
}

impl Content {
    /// The segment, if it is one.
    #[must_use]
    pub const fn segment(&self) -> Option<Segment> {
        match self {
            Self::Segment(segment) => Some(*segment),
            _ => None,
        }
    }
}

/// What a frame of an interface with this link layer holds.
#[inline(always)]
pub fn read<P: Packet + ?Sized>(frame: &P, layer: LinkLayer) -> Content {
    let mut start = match layer {
        LinkLayer::Ethernet => link::ethernet(frame),
        LinkLayer::RawIp | LinkLayer::Tun => link::raw_ip(frame, layer),
    };
    start.network = frame.forget(start.network);
    match start.ether_type {
        ETHERTYPE_IPV4 => ipv4(frame, start),
        ETHERTYPE_IPV6 => ipv6(frame, start),
        tag if link::is_tag(tag) => Content::TooManyTags,
        other => unread(Encapsulation::of_ether_type(other)),
    }
}

#[inline(always)]
const fn unread(encapsulation: Option<Encapsulation>) -> Content {
    match encapsulation {
        Some(encapsulation) => Content::Unread(encapsulation),
        None => Content::Other,
    }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn ipv4<P: Packet + ?Sized>(frame: &P, start: Start) -> Content {
    let Start {
        network, framing, ..
    } = start;
    // The destination is read where it matters; without it the header is not whole.
    let Some([start, middle, protocol, source, _]) = frame.words::<5>(network) else {
        return Content::Other;
    };
    let header = (u32::from_be(start) >> 24 & 0x0f) as usize * 4;
    if u32::from_be(start) >> 28 != 4 || header < IPV4_HEADER {
        return Content::Other;
    }
    let fragment = u32::from_be(middle) & 0xffff;
    let protocol = (u32::from_be(protocol) >> 16) as u8;
    if fragment & 0x1fff != 0 {
        return Content::Other;
    }
    let transport = network + header;
    if protocol != TCP {
        return unread(not_tcp(frame, protocol, transport));
    }
    let Some(port) = port(frame, transport) else {
        return Content::Other;
    };
    Content::Segment(Segment {
        source: Source([Source::FAMILY_IPV4, source, 0, 0, 0]),
        port,
        fragment: fragment & 0x2000 != 0,
        framing,
        network,
        transport,
    })
}

/// What encloses a packet of a protocol that is not TCP, if anything does.
#[inline(always)]
fn not_tcp<P: Packet + ?Sized>(frame: &P, protocol: u8, transport: usize) -> Option<Encapsulation> {
    if protocol == UDP {
        Encapsulation::of_udp_port(frame.half(transport + 2)?)
    } else {
        Encapsulation::of_protocol(protocol)
    }
}

/// RFC 8200, section 3.
#[inline(always)]
fn ipv6<P: Packet + ?Sized>(frame: &P, start: Start) -> Content {
    let Start {
        network, framing, ..
    } = start;
    let Some([start, second, a, b, c, d, ..]) = frame.words::<10>(network) else {
        return Content::Other;
    };
    if u32::from_be(start) >> 28 != 6 {
        return Content::Other;
    }
    let mut header = (u32::from_be(second) >> 8) as u8;
    // What a frame has behind its packet is cut off before fragments are put together.
    let end = network + IPV6_HEADER + (u32::from_be(second) >> 16) as usize;
    let mut segment = Segment {
        source: Source([Source::FAMILY_IPV6, a, b, c, d]),
        port: Port::HIDDEN,
        fragment: false,
        framing,
        network,
        transport: network + IPV6_HEADER,
    };
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let is_extension = matches!(
            header,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
        );
        // RFC 7112: a first fragment holds all headers. One that does not has something to hide.
        if segment.fragment
            && segment.transport + 4 > end
            && (is_extension || header == TCP || header == UDP)
        {
            return hidden_if(header != UDP, segment);
        }
        if header == TCP {
            let Some(port) = port(frame, segment.transport) else {
                return hidden_if(segment.fragment, segment);
            };
            segment.port = port;
            return Content::Segment(segment);
        }
        if !is_extension {
            return unread(not_tcp(frame, header, segment.transport));
        }
        let (Some(start), Some(fragment)) = (
            frame.half(segment.transport),
            frame.half(segment.transport + 2),
        ) else {
            return hidden_if(segment.fragment || frame.continues(), segment);
        };
        let (next, length) = pair(start);
        if header == FRAGMENT {
            // RFC 8200, section 4.5: only the first fragment, at offset 0, holds what follows.
            if fragment & 0xfff8 != 0 {
                return Content::Other;
            }
            segment.fragment |= fragment & 1 != 0;
            segment.transport += 8;
        } else {
            segment.transport += (usize::from(length) + 1) * 8;
        }
        segment.transport = frame.forget(segment.transport);
        header = next;
    }
    Content::Segment(segment)
}

#[inline(always)]
const fn hidden_if(condition: bool, segment: Segment) -> Content {
    if condition {
        Content::Segment(segment)
    } else {
        Content::Other
    }
}

/// The port that a TCP header names, or that it is hidden. `None`: the packet is cut off in front
/// of the header.
#[inline(always)]
fn port<P: Packet + ?Sized>(frame: &P, transport: usize) -> Option<Port> {
    if let Some(port) = frame.half(transport + 2) {
        return Some(Port::new(port));
    }
    if frame.continues() || frame.half(transport - 2).is_some() {
        return Some(Port::HIDDEN);
    }
    None
}

/// The destination of a segment.
#[inline(always)]
pub fn destination<P: Packet + ?Sized>(frame: &P, segment: &Segment) -> Option<Source> {
    let network = segment.network;
    Some(if segment.source.is_ipv4() {
        Source([Source::FAMILY_IPV4, frame.word(network + 16)?, 0, 0, 0])
    } else {
        Source([
            Source::FAMILY_IPV6,
            frame.word(network + 24)?,
            frame.word(network + 28)?,
            frame.word(network + 32)?,
            frame.word(network + 36)?,
        ])
    })
}

/// Bits of a TCP header's flags.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u16 = 0x01;
    /// The first segment of a connection.
    pub const SYN: u16 = 0x02;
    /// The connection is over.
    pub const RST: u16 = 0x04;
    /// The acknowledgement number means something.
    pub const ACK: u16 = 0x10;
}

/// Whether a segment may open a connection: a SYN without an ACK, or one whose flags cannot be
/// read.
#[inline(always)]
pub fn opens<P: Packet + ?Sized>(frame: &P, segment: &Segment) -> bool {
    if segment.port.is_hidden() {
        return true;
    }
    match frame.half(segment.transport + 12) {
        Some(half) => half & (flags::SYN | flags::ACK) == flags::SYN,
        None => true,
    }
}

/// The two bytes of a half word.
#[inline(always)]
pub(crate) const fn pair(half: u16) -> (u8, u8) {
    let [first, second] = half.to_be_bytes();
    (first, second)
}
