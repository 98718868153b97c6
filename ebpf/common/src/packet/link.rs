//! What is in front of a packet of IPv4 or IPv6: an Ethernet header, VLAN tags and a PPPoE session,
//! or nothing.

use super::{Packet, pair};
use crate::encapsulation::ETHERTYPE_PPP;
use crate::layout::LinkLayer;

/// Tags (802.1Q, 802.1ad) that are looked past. Networks have one or two, and rarely a third.
pub const VLAN_TAGS_MAX: usize = 8;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
const VLAN_TAG: usize = 4;
/// The header of PPPoE (RFC 2516, section 4), and the protocol of PPP behind it.
const PPPOE_HEADER: usize = 6;
pub(crate) const PPP_PROTOCOL: usize = 2;

/// No header of IPv4 or IPv6 begins further inside of a frame.
pub const NETWORK_MAX: usize =
    ETHERNET_HEADER + VLAN_TAGS_MAX * VLAN_TAG + PPPOE_HEADER + PPP_PROTOCOL;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// No EtherType, but a length of 802.3: nothing that concerns the filter.
const ETHERTYPE_NONE: u16 = 0;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88a8;
/// What provider tags had before 802.1ad gave them a type; still in use.
const ETHERTYPE_OLD_PROVIDER_VLAN: u16 = 0x9100;
const ETHERTYPE_PPPOE_SESSION: u16 = 0x8864;

pub(crate) const PPP_IPV4: u16 = 0x0021;
pub(crate) const PPP_IPV6: u16 = 0x0057;
/// From here on a protocol of PPP is control (RFC 1661, section 2).
const PPP_CONTROL: u16 = 0x8000;

/// What is in front of the header of IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Framing {
    /// Ethernet, perhaps with VLAN tags.
    Ethernet,
    /// The same, and PPPoE.
    Pppoe,
    /// The same, with the protocol of PPP in one octet (RFC 1661, section 6.5).
    PppoeShort,
    /// Nothing.
    Nothing,
    /// Nothing, on a TUN device.
    Tun,
}

/// Where the packet in a frame begins, and its EtherType, or the one that stands for what PPP
/// carries, or [`ETHERTYPE_NONE`]. A plain struct with a number: of a `Result`, or of an enum with
/// what is carried, the compiler leaves registers unwritten, which the verifier refuses.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) ether_type: u16,
    pub(super) framing: Framing,
    pub(super) network: usize,
}

/// Behind up to [`VLAN_TAGS_MAX`] tags, and PPPoE.
#[inline(always)]
pub(super) fn ethernet<P: Packet + ?Sized>(frame: &P) -> Start {
    let mut network = ETHERNET_HEADER;
    let mut ether_type = frame.half(network - 2).unwrap_or(ETHERTYPE_NONE);
    for _ in 0..VLAN_TAGS_MAX {
        if !is_tag(ether_type) {
            break;
        }
        network += VLAN_TAG;
        ether_type = frame.half(network - 2).unwrap_or(ETHERTYPE_NONE);
    }
    if ether_type == ETHERTYPE_PPPOE_SESSION {
        return pppoe(frame, network);
    }
    Start {
        ether_type,
        framing: Framing::Ethernet,
        network,
    }
}

/// Whether it announces a tag.
#[inline(always)]
pub(super) const fn is_tag(ether_type: u16) -> bool {
    matches!(
        ether_type,
        ETHERTYPE_VLAN | ETHERTYPE_PROVIDER_VLAN | ETHERTYPE_OLD_PROVIDER_VLAN
    )
}

/// RFC 2516, section 4. Version, type and code are not looked at, because Linux does not, either.
/// Nor is the length: no host takes a packet that it cuts short.
#[inline(always)]
fn pppoe<P: Packet + ?Sized>(frame: &P, header: usize) -> Start {
    let protocol = frame.half(header + PPPOE_HEADER).unwrap_or(PPP_CONTROL);
    let (first, _) = pair(protocol);
    // RFC 1661, section 6.5: the first octet is even unless it is the only one.
    let (protocol, protocol_bytes, framing) = if first & 1 == 1 {
        (u16::from(first), PPP_PROTOCOL - 1, Framing::PppoeShort)
    } else {
        (protocol, PPP_PROTOCOL, Framing::Pppoe)
    };
    let ether_type = match protocol {
        PPP_IPV4 => ETHERTYPE_IPV4,
        PPP_IPV6 => ETHERTYPE_IPV6,
        PPP_CONTROL.. => ETHERTYPE_NONE,
        _ => ETHERTYPE_PPP,
    };
    Start {
        ether_type,
        framing,
        network: header + PPPOE_HEADER + protocol_bytes,
    }
}

/// A packet with nothing in front of it: its version says what it is.
#[inline(always)]
pub(super) fn raw_ip<P: Packet + ?Sized>(frame: &P, layer: LinkLayer) -> Start {
    let ether_type = match frame.half(0).unwrap_or(0) >> 12 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => ETHERTYPE_NONE,
    };
    let framing = if layer == LinkLayer::Tun {
        Framing::Tun
    } else {
        Framing::Nothing
    };
    Start {
        ether_type,
        framing,
        network: 0,
    }
}
