//! What the program sends back, taken apart by an own reader, which also adds up the checksums.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};

/// What is to be sent back: layers and words, each of which the reply has to have.
#[derive(Clone, Debug)]
pub struct Reply(Vec<Vec<String>>);

impl Reply {
    pub(super) fn parse(text: &str) -> Self {
        let words = |layer: &str| layer.split_whitespace().map(str::to_owned).collect();
        Self(text.split('|').map(words).collect())
    }

    /// Whether this is what was sent in answer to a frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, frame: &[u8], sent: &[u8]) -> Result<()> {
        let layers = layers(frame, sent)?;
        let shown = || format!("{layers:?}");
        ensure!(
            layers.len() == self.0.len(),
            "it has other layers: {}",
            shown()
        );
        for (expected, found) in self.0.iter().zip(&layers) {
            for word in expected {
                ensure!(found.contains(word), "{word} is missing: {}", shown());
            }
        }
        Ok(())
    }
}

/// The layers of a reply, by the first byte (the cases have no Ethernet address that begins with 4
/// or 6) at once or behind Ethernet addresses, tags and PPPoE, which are those of the frame it
/// answers.
fn layers(frame: &[u8], sent: &[u8]) -> Result<Vec<Vec<String>>> {
    if frame[0] >> 4 == 4 {
        return ipv4(sent);
    }
    if frame[0] >> 4 == 6 {
        return ipv6(sent);
    }
    ensure!(
        sent[..6] == frame[6..12] && sent[6..12] == frame[..6],
        "the Ethernet addresses"
    );
    let mut at = 12;
    while matches!(sent[at..at + 2], [0x81, 0] | [0x88, 0xa8] | [0x91, 0]) {
        at += 4;
    }
    let is_pppoe = sent[at..at + 2] == [0x88, 0x64];
    at += 2;
    ensure!(sent[12..at] == frame[12..at], "the tags");
    if is_pppoe {
        ensure!(sent[at..at + 4] == frame[at..at + 4], "the session");
        let (length, behind) = (half(sent, at + 4), sent.len() - at - 6);
        ensure!(
            length == behind,
            "the length of PPPoE is {length}, not {behind}"
        );
        ensure!(
            sent[at + 6..at + 8] == frame[at + 6..at + 8],
            "the protocol of PPP"
        );
        at += 8;
    }
    let packet = &sent[at..];
    if packet[0] >> 4 == 4 {
        ipv4(packet)
    } else {
        ipv6(packet)
    }
}

fn ipv4(packet: &[u8]) -> Result<Vec<Vec<String>>> {
    let (header, rest) = packet.split_at_checked(20).context("no IPv4 header")?;
    ensure!(header[0] == 0x45, "IPv4 with options");
    ensure!(half(header, 2) == packet.len(), "the length of the packet");
    ensure!(folded(sum(header)) == 0xffff, "the checksum of the header");
    ensure!(
        header[6..8] == [0x40, 0] && header[8] > 32 && header[9] == 6,
        "the header"
    );
    let [source, destination] = [12, 16].map(|at| bytes::<4>(header, at).map(Ipv4Addr::from));
    let words = [
        "ipv4".to_owned(),
        format!("src={}", source?),
        format!("dst={}", destination?),
    ];
    let pseudo = sum(&header[12..]) + 6 + rest.len();
    Ok(vec![words.to_vec(), tcp(rest, pseudo)?])
}

fn ipv6(packet: &[u8]) -> Result<Vec<Vec<String>>> {
    let (header, rest) = packet.split_at_checked(40).context("no IPv6 header")?;
    ensure!(header[..4] == [0x60, 0, 0, 0], "IPv6 with a class or label");
    ensure!(half(header, 4) == rest.len(), "the length of the packet");
    ensure!(header[6] == 6 && header[7] > 32, "the header");
    let [source, destination] = [8, 24].map(|at| bytes::<16>(header, at).map(Ipv6Addr::from));
    let words = [
        "ipv6".to_owned(),
        format!("src={}", source?),
        format!("dst={}", destination?),
    ];
    let pseudo = sum(&header[8..]) + 6 + rest.len();
    Ok(vec![words.to_vec(), tcp(rest, pseudo)?])
}

fn tcp(segment: &[u8], pseudo: usize) -> Result<Vec<String>> {
    ensure!(segment.len() >= 20, "no TCP header");
    ensure!(
        usize::from(segment[12] >> 4) * 4 == segment.len(),
        "data behind the TCP header"
    );
    ensure!(
        folded(pseudo + sum(segment)) == 0xffff,
        "the checksum of the segment"
    );
    let word = |at| bytes::<4>(segment, at).map(u32::from_be_bytes);
    let letters = "FSRPAUEC".chars().enumerate();
    let flags = letters.filter(|(bit, _)| segment[13] >> bit & 1 == 1);
    let flags: String = flags.map(|(_, letter)| letter).collect();
    let mut words = vec![
        "tcp".to_owned(),
        format!("sport={}", half(segment, 0)),
        format!("dport={}", half(segment, 2)),
        format!("seq={}", word(4)?),
        format!("ack={}", word(8)?),
        format!("flags={flags}"),
        format!("window={}", half(segment, 14)),
    ];
    if let [2, 4, high, low] = segment[20..] {
        words.push(format!("mss={}", u16::from_be_bytes([high, low])));
    } else {
        ensure!(segment.len() == 20, "options other than MSS");
    }
    Ok(words)
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn bytes<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes[at..].first_chunk().copied().context("it is cut off")
}

/// RFC 1071, with nothing clever.
fn sum(bytes: &[u8]) -> usize {
    let pairs = bytes.chunks(2);
    pairs
        .map(|pair| usize::from(pair[0]) << 8 | usize::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn folded(mut sum: usize) -> usize {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
