//! Frames at random that are nearly what they should be, for the comparison with tcpdump: in most
//! of them TCP to one port, behind tags, in sessions and behind extension headers, and in many of
//! them something is wrong.

use std::net::{Ipv4Addr, Ipv6Addr};

use portcullis_ebpf_common::layout::LinkLayer;
use portcullis_ebpf_common::packet::{EXTENSION_HEADERS_MAX, VLAN_TAGS_MAX};

/// The port that most of them go to.
pub const PORT: u16 = 25;

/// A random frame: rarely what it should be.
#[must_use]
pub fn frame(random: &mut fastrand::Rng, layer: LinkLayer) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut packet = Vec::new();
    let is_ipv4 = random.bool();
    if is_ipv4 {
        ipv4(random, &mut packet);
    } else {
        ipv6(random, &mut packet);
    }
    if layer == LinkLayer::Ethernet {
        ethernet(random, is_ipv4, &mut frame);
    }
    frame.extend(packet);
    let tunnel = [1701, 2152, 4500, 4789, 4790, 6081, 8472][random.usize(..7)];
    let port = [PORT, PORT, PORT, PORT, 80, tunnel, random.u16(..)][random.usize(..7)];
    frame.extend(random.u16(..).to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0x50,
        random.u8(..),
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    frame.extend(vec![0; random.usize(..60)]);
    if random.usize(..3) == 0 {
        for _ in 0..random.usize(1..4) {
            // The headers, mostly: behind them there is nothing to be wrong.
            let end = if random.bool() {
                frame.len()
            } else {
                frame.len().min(60)
            };
            let first = if layer == LinkLayer::Ethernet { 12 } else { 0 };
            let at = random.usize(first..end);
            frame[at] = if random.bool() {
                random.u8(..)
            } else {
                frame[at] ^ 1 << random.u8(..8)
            };
        }
    }
    match random.usize(..6) {
        0 => frame.truncate(random.usize(14..=frame.len())),
        // Where the ports are.
        1 => frame.truncate(frame.len().saturating_sub(random.usize(10..80)).max(14)),
        _ => {}
    }
    frame
}

/// Addresses, tags, sometimes PPPoE, and what is behind them.
fn ethernet(random: &mut fastrand::Rng, is_ipv4: bool, frame: &mut Vec<u8>) {
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let tags = match random.usize(..4) {
        0 => 0,
        1 => random.usize(1..3),
        _ => random.usize(..VLAN_TAGS_MAX + 3),
    };
    for _ in 0..tags {
        let kind: u16 = [0x8100, 0x8100, 0x88a8, 0x9100][random.usize(..4)];
        frame.extend(kind.to_be_bytes());
        frame.extend(random.u16(..).to_be_bytes());
    }
    let (ether_type, protocol): (u16, u8) = if is_ipv4 {
        (0x0800, 0x21)
    } else {
        (0x86dd, 0x57)
    };
    match random.usize(..24) {
        0 => frame.extend([[0x88, 0x47], [0x88, 0xe5], [0x88, 0xe7]][random.usize(..3)]),
        1..8 => {
            frame.extend([0x88, 0x64, 0x11, 0, random.u8(..), random.u8(..), 0, 60]);
            match random.usize(..8) {
                0 => frame.extend([random.u8(..), random.u8(..)]),
                1 | 2 => frame.push(protocol),
                _ => frame.extend([0, protocol]),
            }
        }
        _ => frame.extend(ether_type.to_be_bytes()),
    }
}

fn protocol(random: &mut fastrand::Rng) -> u8 {
    let enclosing = [4, 41, 47, 50, 51, 97, 115, 17][random.usize(..8)];
    [6, 6, 6, 6, 6, 6, 6, 6, 17, 58, enclosing, random.u8(..)][random.usize(..12)]
}

fn ipv4(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    let options = if random.usize(..4) == 0 {
        random.u8(..11)
    } else {
        0
    };
    let words = if random.usize(..12) == 0 {
        random.u8(..16)
    } else {
        5 + options
    };
    let fragment: u16 = match random.usize(..8) {
        0 => random.u16(..),
        1 => 0x2000,
        2 => 0x4000,
        _ => 0,
    };
    let source = match random.usize(..5) {
        0 => Ipv4Addr::from(random.u32(..)),
        1 => Ipv4Addr::from([203, 0, 113, random.u8(..)]),
        2 => Ipv4Addr::from([198, 51, 100, 76 + random.u8(..3)]),
        _ => Ipv4Addr::from([192, 0, 2, random.u8(..)]),
    };
    frame.extend([0x40 | words, 0, 0, 60, 0, 1]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol(random), 0, 0]);
    frame.extend(source.octets());
    frame.extend([192, 0, 2, 1]);
    frame.extend((0..options * 4).map(|_| random.u8(..)));
}

fn ipv6(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    let source = match random.usize(..5) {
        0 => Ipv6Addr::from(random.u128(..)),
        1 => Ipv6Addr::from(random.u128(..) >> random.u32(..127)),
        _ => {
            let third = 6 + random.u16(..3);
            Ipv6Addr::new(
                0x2001,
                0xdb8 + random.u16(..2),
                third,
                0,
                0,
                0,
                0,
                random.u16(..),
            )
        }
    };
    let chain: Vec<u8> = if random.bool() {
        Vec::new()
    } else {
        let headers = random.usize(..EXTENSION_HEADERS_MAX + 3);
        (0..headers)
            .map(|_| [0, 43, 44, 60, 60][random.usize(..5)])
            .collect()
    };
    let last = protocol(random);
    let announced = |at: usize| chain.get(at).copied().unwrap_or(last);
    frame.extend([0x60, 0, 0, 0, 0, 40, announced(0), 64]);
    frame.extend(source.octets());
    frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
    for (at, header) in chain.iter().enumerate() {
        frame.push(announced(at + 1));
        if *header == 44 {
            let field = [0, 0, 1, 1, random.u16(..)][random.usize(..5)];
            frame.extend([0, (field >> 8) as u8, field as u8, 0, 0, 0, 1]);
        } else {
            let words = if random.usize(..6) == 0 {
                random.u8(..6)
            } else {
                0
            };
            frame.push(words);
            frame.extend((0..6 + 8 * usize::from(words)).map(|_| random.u8(..)));
        }
    }
}
