//! The header with which the frames of an interface begin for the program, or why it cannot read
//! them.
//!
//! The kernel passes a packet to a generic program from its "MAC header" on. That is the Ethernet
//! header if there is one, and the IP header on PPP, WireGuard, TUN and most tunnels. On some
//! interfaces it is the header of another interface, or the outer header. A program there would
//! look healthy and filter nothing, so those interfaces are refused. The hardware type (`ARPHRD_*`
//! of linux/if_arp.h) tells the kind of an interface; where that is not enough, its driver does.

use std::io;

use portcullis_ebpf_common::layout::LinkLayer;

use super::Error;
use super::links;
use super::netlink::{self, Description};

const ETHERNET: u16 = 1;
const PPP: u16 = 512;
/// Mobile data modems.
const RAW_IP: u16 = 519;
const TUNNEL: u16 = 768;
const TUNNEL6: u16 = 769;
const LOOPBACK: u16 = 772;
const SIT: u16 = 776;
const GRE: u16 = 778;
const GRE6: u16 = 823;
const NONE: u16 = 0xfffe;

/// The header with which the frames of this interface begin.
///
/// # Errors
/// [`Error::Unreadable`] if the program cannot read its frames, [`Error::Link`] if the kernel does
/// not answer.
pub(super) fn of(interface: &str, index: u32) -> Result<LinkLayer, Error> {
    let step = "asking what kind of interface it is";
    let description =
        netlink::describe(index).map_err(links::link_error::<io::Error>(interface, step))?;
    judge(&description).map_err(|reason| Error::Unreadable {
        interface: interface.to_owned(),
        reason,
    })
}

/// The name of it in the status.
pub(super) const fn name(layer: LinkLayer) -> &'static str {
    match layer {
        LinkLayer::Ethernet => "ethernet",
        LinkLayer::RawIp | LinkLayer::Tun => "ip",
    }
}

/// The same from the kernel's description of the interface. The error is the reason, in words.
pub(super) fn judge(description: &Description) -> Result<LinkLayer, String> {
    let kind = description.kind.as_str();
    match kind {
        // No packet is received there: packets move to a VRF after all places where XDP runs.
        "vrf" => {
            return Err(
                "a VRF itself receives no packets; name the interfaces that are in it".to_owned(),
            );
        }
        // A decrypted packet keeps the header of the interface that received it.
        "xfrm" | "vti" | "vti6" => {
            return Err(format!(
                "XDP does not see where packets begin on an IPsec interface ({kind}), so that \
                 nothing would be filtered; leave it out"
            ));
        }
        _ => {}
    }
    match description.hardware_type {
        ETHERNET | LOOPBACK => Ok(LinkLayer::Ethernet),
        NONE if kind == "tun" && !description.tun_information => Ok(LinkLayer::Tun),
        PPP | RAW_IP | TUNNEL | TUNNEL6 | SIT | GRE6 | NONE => Ok(LinkLayer::RawIp),
        GRE if is_one_host(&description.broadcast) => Ok(LinkLayer::RawIp),
        GRE => Err(
            "a GRE interface without a remote address shows XDP its outer headers; \
             give it a `remote`, one interface for each"
                .to_owned(),
        ),
        other => Err(format!(
            "its frames (hardware type {other}) begin with neither Ethernet nor IP, so that \
             nothing would be filtered; leave it out, and name the interface that its packets \
             come from"
        )),
    }
}

/// Whether an IPv4 address, as the kernel gives it, is that of one host. Of a GRE interface the
/// "broadcast address" is the remote one.
fn is_one_host(address: &[u8]) -> bool {
    matches!(address, [first @ 1..224, _, _, _] if *first != 127)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(hardware_type: u16, kind: &str, broadcast: &[u8]) -> Description {
        Description {
            hardware_type,
            kind: kind.to_owned(),
            tun_information: false,
            broadcast: broadcast.to_vec(),
        }
    }

    #[test]
    fn an_interface_is_read_as_what_it_is_or_refused_with_the_reason() {
        let (ethernet, raw) = (Ok(LinkLayer::Ethernet), Ok(LinkLayer::RawIp));
        let remote = [198, 51, 100, 7].as_slice();
        let cases = [
            (ETHERNET, "", ethernet),
            (ETHERNET, "veth", ethernet),
            (ETHERNET, "vlan", ethernet),
            (ETHERNET, "bridge", ethernet),
            (ETHERNET, "bond", ethernet),
            (ETHERNET, "vxlan", ethernet),
            (ETHERNET, "tun", ethernet),
            (LOOPBACK, "", ethernet),
            (NONE, "tun", Ok(LinkLayer::Tun)),
            (NONE, "wireguard", raw),
            (NONE, "vxlan", raw),
            (PPP, "ppp", raw),
            (RAW_IP, "rmnet", raw),
            (TUNNEL, "ipip", raw),
            (TUNNEL6, "ip6tnl", raw),
            (SIT, "sit", raw),
            (GRE, "gre", raw),
            (GRE6, "ip6gre", raw),
            (ETHERNET, "vrf", Err("a VRF itself")),
            (NONE, "xfrm", Err("IPsec interface (xfrm)")),
            (TUNNEL, "vti", Err("IPsec interface (vti)")),
            (TUNNEL6, "vti6", Err("IPsec interface (vti6)")),
            // InfiniBand, WLAN in monitor mode, CAN, netlink.
            (32, "", Err("hardware type 32")),
            (803, "", Err("hardware type 803")),
            (280, "vcan", Err("neither Ethernet nor IP")),
            (824, "nlmon", Err("neither Ethernet nor IP")),
        ];
        for (hardware_type, kind, expected) in cases {
            let judged = judge(&description(hardware_type, kind, remote));
            match (expected, judged) {
                (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{hardware_type} {kind}"),
                (Err(words), Err(reason)) => assert!(reason.contains(words), "{reason}"),
                (_, judged) => panic!("{hardware_type} {kind}: {judged:?}"),
            }
        }
    }

    #[test]
    fn a_gre_interface_with_many_remotes_shows_its_outer_headers() {
        for broadcast in [[0; 4], [224, 0, 0, 9]] {
            let judged = judge(&description(GRE, "gre", &broadcast));
            assert!(judged.is_err_and(|reason| reason.contains("`remote`")));
        }
    }

    #[test]
    fn a_tun_device_with_packet_information_gets_no_answers() {
        let mut tun = description(NONE, "tun", &[]);
        tun.tun_information = true;
        assert_eq!(judge(&tun), Ok(LinkLayer::RawIp));
    }

    #[test]
    fn the_loopback_has_an_ethernet_header() {
        let index = links::index("lo").unwrap();
        assert_eq!(of("lo", index).unwrap(), LinkLayer::Ethernet);
    }
}
