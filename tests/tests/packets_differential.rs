//! The program in the kernel, on both its paths, against an independent idea of what a packet is:
//! 100,000 generated frames, malformed ones included, and the same verdict for each.
//!
//! The oracle is tcpdump, that is libpcap's filter, asked once for all frames and each number of
//! tags (0 to 8), without PPPoE and in it, and for packets without an Ethernet header, with
//!
//! ```text
//! known   FRONT tcp dst port 25 and (ip and VALID or ip6 and ip6[0] & 0xf0 = 0x60)
//! hidden  FRONT ip and VALID and ip[9] = 6 and ip[6:2] & 0x1fff = 0
//!             and len >= START + (ip[0] & 0xf) * 4 and len < START + (ip[0] & 0xf) * 4 + 4
//! or      FRONT ip6 and ip6[0] & 0xf0 = 0x60 and ip6[6] = 6
//!             and len >= START + 40 and len < START + 44
//! tags    vlan and vlan and ... (nine times)
//! FRONT   [vlan and ...] [pppoes and]
//! VALID   ip[0] & 0xf0 = 0x40 and ip[0] & 0xf >= 5
//! START   14 + 4 * tags [+ 8]; 0 without an Ethernet header
//! ```
//!
//! What libpcap cannot say are chains of IPv6 extension headers, and which packets enclose others:
//! those are taken apart by a small reader below, written from RFC 8200 and RFC 7112 and sharing
//! nothing with `ebpf/common`. Nor does it know a protocol of PPP in one octet: it is shown such a
//! frame with both. The source is then looked for in the lists one prefix after the other,
//! and a rule of arithmetic says whether it has a grant.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use portcullis::config::{self, FilterMode, Unlisted};
use portcullis::filter::{self, Filter, Trial};
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::layout::{
    InterfaceCounter, LinkLayer, Measures, Mode, Role, Settings, unread_counter,
};
use portcullis_ebpf_common::{Encapsulation, Source};
use portcullis_tests::random_frame::{PORT, frame};
use portcullis_tests::{full, root};

/// More than that is not looked past.
const EXTENSIONS_MAX: usize = 8;
const TAGS_MAX: usize = 8;
/// In the place of an EtherType: PPP that is neither IPv4 nor IPv6 nor control. It has more bits
/// than any EtherType.
const PPP_DATA: u32 = 1 << 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Known,
    Hidden,
    Tags,
    Unread(Encapsulation),
}

const PERMITTED: &[&str] = &["192.0.2.64/28", "198.51.100.77/32", "2001:db8:7::/48"];
const HARD: &[&str] = &["192.0.2.128/27", "2001:db8:8::/48"];
const DROPPED: &[&str] = &["192.0.2.0/24", "203.0.113.0/25", "2001:db8::/32", "::/16"];

fn prefixes(texts: &[&str]) -> Result<Vec<IpNet>> {
    let prefixes = texts.iter().map(|text| text.parse());
    Ok(prefixes.collect::<Result<_, _>>()?)
}

#[test]
fn tcpdump_and_a_naive_search_come_to_the_verdict_of_the_program() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let number = if full() { 1_000_000 } else { 100_000 };
    let mut random = fastrand::Rng::with_seed(0x706f_7274);
    let (permitted, dropped) = (prefixes(PERMITTED)?, prefixes(DROPPED)?);
    let lists = Compiled::new(vec![
        (
            "permitted".to_owned(),
            ListAction::Permit,
            permitted.clone(),
        ),
        ("hard".to_owned(), ListAction::HardDrop, prefixes(HARD)?),
        ("dropped".to_owned(), ListAction::Drop, dropped.clone()),
    ]);
    let pin_path = PathBuf::from(format!(
        "/sys/fs/bpf/portcullis-test-{}-oracle",
        process::id()
    ));
    let _guard = Detach(pin_path.clone());
    let settings = config::Filter {
        ports: vec![PORT],
        mode: FilterMode::Enforce,
        unlisted: Unlisted::Pass,
        pin_path,
        ..config::Filter::default()
    };
    let filter = Filter::attach(&settings, &lists)?;
    for (layer, number) in [
        (LinkLayer::Ethernet, number),
        (LinkLayer::RawIp, number / 5),
    ] {
        let mut trial = filter.trial_as(Role::Edge, layer)?;
        for last in 0..=u8::MAX {
            for address in [[192, 0, 2, last], [203, 0, 113, last]] {
                let until_ns = if last % 4 == 1 { 1 } else { u64::MAX };
                if last % 4 < 2 {
                    trial.set_grant(Source::ipv4(address), until_ns)?;
                }
            }
        }
        for last in 0..GRANTED6 {
            for third in [6, 8] {
                let address = Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, last);
                trial.set_grant(Source::ipv6(address.octets()), u64::MAX)?;
            }
        }
        let written = (0..number).map(|_| frame(&mut random, layer));
        let frames: Vec<Vec<u8>> = written.collect();
        compare(&mut trial, &frames, layer, &permitted, &dropped)?;
    }
    Ok(())
}

/// Runs the frames through the program, and asks tcpdump and the lists what it should make of them.
fn compare(
    trial: &mut Trial,
    frames: &[Vec<u8>],
    layer: LinkLayer,
    permitted: &[IpNet],
    dropped: &[IpNet],
) -> Result<()> {
    let shown: Vec<Vec<u8>> = frames.iter().map(|frame| with_both(frame, layer)).collect();
    let kinds = kinds(&shown, layer)?;
    let mut seen = [0_u64; 19];
    let mut unread = 0;
    let mut counters = trial.counted()?;
    for drop_unlisted in [false, true] {
        let measures = Measures {
            drop_unlisted,
            ..Measures::default()
        };
        trial.set_settings(Settings::new(Mode::Enforce, measures, &[PORT]))?;
        let half = frames.iter().zip(&shown).zip(&kinds).enumerate();
        let half = half.skip(usize::from(drop_unlisted)).step_by(2);
        let half: Vec<_> = half.collect();
        // The fast path decides on nothing but what tcpdump finds.
        let found = half.iter().filter(|(_, (_, kind))| **kind == Kind::Known);
        let found: Vec<_> = found.copied().collect();
        for (path, frames) in [("its path", half), ("the slow path", found)] {
            for (index, ((frame, shown), kind)) in frames {
                let outcome = trial.run(frame, 1)?;
                let packet = packet(shown, layer);
                let counter = expected(packet, *kind, permitted, dropped, drop_unlisted)?;
                counters[counter as usize] += 1;
                counters[InterfaceCounter::Hidden as usize] += u64::from(*kind == Kind::Hidden);
                if let Kind::Unread(encapsulation) = kind {
                    counters[unread_counter(*encapsulation)] += 1;
                    unread += 1;
                }
                let what = || format!("frame {index} on {path}, {kind:?}: {frame:02x?}");
                assert_eq!(trial.counted()?, counters, "{}", what());
                assert_eq!(outcome.dropped, drops(counter), "{}", what());
                seen[counter as usize] += 1;
            }
            trial.slow_path_only();
        }
    }
    let hidden = kinds.iter().filter(|kind| **kind == Kind::Hidden).count();
    println!("{layer:?}: of each counter's verdict: {seen:?}, {hidden} hidden, {unread} unread");
    let verdicts = [0, 1, 2, 3, 5, 18].map(|counter| seen[counter]);
    let tags = seen[InterfaceCounter::DroppedTags as usize];
    ensure!(
        verdicts.iter().all(|verdicts| *verdicts > 300) && hidden > 200 && unread > 200,
        "too few of a kind to show anything: {seen:?}, {hidden} hidden, {unread} unread"
    );
    ensure!(
        (layer == LinkLayer::RawIp) == (tags == 0),
        "{tags} frames with too many tags"
    );
    Ok(())
}

/// Whether a frame that is counted so is dropped.
fn drops(counter: InterfaceCounter) -> bool {
    use InterfaceCounter::{Granted, Other, Passed, Permitted};
    !matches!(counter, Granted | Other | Passed | Permitted)
}

/// IPv6 addresses with a grant in each of two /64s.
const GRANTED6: u16 = 16_384;

/// Whether a grant for the source is in force.
fn is_granted(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(address) => {
            let [a, b, c, last] = address.octets();
            [[192, 0, 2], [203, 0, 113]].contains(&[a, b, c]) && last % 4 == 0
        }
        IpAddr::V6(address) => {
            let [0x2001, 0xdb8, 6 | 8, 0, 0, 0, 0, last] = address.segments() else {
                return false;
            };
            last < GRANTED6
        }
    }
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = filter::detach(&self.0, &[]);
    }
}

/// What the program has to count for a frame.
fn expected(
    packet: Option<(u32, &[u8])>,
    kind: Kind,
    permitted: &[IpNet],
    dropped: &[IpNet],
    drop_unlisted: bool,
) -> Result<InterfaceCounter> {
    match kind {
        Kind::Other | Kind::Unread(_) => return Ok(InterfaceCounter::Other),
        Kind::Tags => return Ok(InterfaceCounter::DroppedTags),
        Kind::Known | Kind::Hidden => {}
    }
    let source = packet.and_then(source).context("a source")?;
    let covers = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&source));
    let hard = prefixes(HARD)?;
    let keeps_out = covers(dropped) || drop_unlisted;
    Ok(if covers(permitted) {
        InterfaceCounter::Permitted
    } else if covers(&hard) {
        InterfaceCounter::DroppedListed
    } else if keeps_out && is_granted(source) {
        InterfaceCounter::Granted
    } else if covers(dropped) {
        InterfaceCounter::DroppedListed
    } else if drop_unlisted {
        InterfaceCounter::DroppedUnlisted
    } else {
        InterfaceCounter::Passed
    })
}

/// What a frame has behind its tags: the type, and the bytes behind it.
fn behind_tags(frame: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = frame.get(12..)?;
    loop {
        let (kind, behind) = rest.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*kind) {
            0x8100 | 0x88a8 | 0x9100 => rest = behind.get(2..)?,
            kind => return Some((u32::from(kind), behind)),
        }
    }
}

/// RFC 1661, section 6.5: the frame with both octets of the protocol of PPP, if it had one.
fn with_both(frame: &[u8], layer: LinkLayer) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if layer == LinkLayer::Ethernet
        && let Some((0x8864, behind)) = behind_tags(&frame)
        && let [first, _, ..] = behind.get(6..).unwrap_or_default()
        && first % 2 == 1
    {
        frame.insert(frame.len() - behind.len() + 6, 0);
    }
    frame
}

/// The packet in a frame behind its tags and PPPoE, with the EtherType that announces it.
fn packet(frame: &[u8], layer: LinkLayer) -> Option<(u32, &[u8])> {
    if layer == LinkLayer::RawIp {
        return match frame[0] >> 4 {
            4 => Some((0x0800, frame)),
            6 => Some((0x86dd, frame)),
            _ => None,
        };
    }
    match behind_tags(frame)? {
        (0x8864, session) => {
            let (protocol, packet) = session.get(6..)?.split_first_chunk::<2>()?;
            match protocol {
                [0, 0x21] => Some((0x0800, packet)),
                [0, 0x57] => Some((0x86dd, packet)),
                [high, _] if high >> 7 == 0 => Some((PPP_DATA, packet)),
                _ => None,
            }
        }
        found => Some(found),
    }
}

fn source(packet: (u32, &[u8])) -> Option<IpAddr> {
    match packet {
        (0x0800, packet) => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        (_, packet) => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
    }
}

/// What each frame is.
fn kinds(frames: &[Vec<u8>], layer: LinkLayer) -> Result<Vec<Kind>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("frames.pcap");
    write_pcap(&file, frames, layer)?;
    let valid = "ip[0] & 0xf0 = 0x40 and ip[0] & 0xf >= 5";
    let six = "ip6 and ip6[0] & 0xf0 = 0x60";
    let (mut known, mut hidden) = (HashSet::new(), HashSet::new());
    let mut tags = HashSet::new();
    let fronts = match layer {
        LinkLayer::RawIp | LinkLayer::Tun => vec![(String::new(), 0)],
        LinkLayer::Ethernet => {
            tags.extend(matching(&file, &["vlan"; TAGS_MAX + 1].join(" and "))?);
            let front = |tags| ("vlan and ".repeat(tags), 14 + 4 * tags);
            let fronts = (0..=TAGS_MAX).map(front);
            let session = |(front, start)| (format!("{front} pppoes and "), start + 8);
            fronts.clone().chain(fronts.map(session)).collect()
        }
    };
    for (front, start) in fronts {
        let expression = format!("{front} tcp dst port {PORT} and ((ip and {valid}) or ({six}))");
        known.extend(matching(&file, &expression)?);
        let header = format!("{start} + (ip[0] & 0xf) * 4");
        let expression = format!(
            "{front} ip and {valid} and ip[9] = 6 and ip[6:2] & 0x1fff = 0 \
             and len >= {header} and len < {header} + 4"
        );
        hidden.extend(matching(&file, &expression)?);
        let end = start + 40;
        let expression =
            format!("{front} {six} and ip6[6] = 6 and len >= {end} and len < {end} + 4");
        hidden.extend(matching(&file, &expression)?);
    }
    let kinds = frames.iter().enumerate().map(|(index, frame)| {
        let packet = packet(frame, layer);
        if tags.contains(&index) {
            Kind::Tags
        } else if let Some(kind) = packet.and_then(by_the_rfcs) {
            kind
        } else if hidden.contains(&index) {
            Kind::Hidden
        } else if known.contains(&index) {
            Kind::Known
        } else {
            packet.and_then(enclosing).map_or(Kind::Other, Kind::Unread)
        }
    });
    Ok(kinds.collect())
}

/// What encloses another packet, in front of which there are no extension headers.
fn enclosing(packet: (u32, &[u8])) -> Option<Encapsulation> {
    match packet {
        (0x0800, packet) => {
            let header = packet.get(..20)?;
            let bytes = usize::from(header[0] & 0xf) * 4;
            let is_first = header[6] & 0x1f == 0 && header[7] == 0;
            if header[0] >> 4 != 4 || bytes < 20 || !is_first {
                return None;
            }
            announced(header[9], packet.get(bytes..).unwrap_or_default())
        }
        (0x86dd, packet) => {
            let (header, behind) = packet.split_at_checked(40)?;
            (header[0] >> 4 == 6).then(|| announced(header[6], behind))?
        }
        (0x8847 | 0x8848, _) => Some(Encapsulation::Mpls),
        (0x88e7, _) => Some(Encapsulation::MacInMac),
        (0x88e5, _) => Some(Encapsulation::Macsec),
        (PPP_DATA | 0x880b, _) => Some(Encapsulation::Ppp),
        _ => None,
    }
}

/// By the registries of the IANA.
fn announced(protocol: u8, behind: &[u8]) -> Option<Encapsulation> {
    Some(match protocol {
        4 | 41 => Encapsulation::IpInIp,
        47 => Encapsulation::Gre,
        50 => Encapsulation::Esp,
        51 => Encapsulation::Ah,
        97 => Encapsulation::EtherIp,
        115 => Encapsulation::L2tp,
        17 => match u16::from_be_bytes(*behind.get(2..)?.first_chunk()?) {
            4789 | 4790 | 8472 => Encapsulation::Vxlan,
            6081 => Encapsulation::Geneve,
            2152 => Encapsulation::Gtp,
            1701 => Encapsulation::L2tp,
            4500 => Encapsulation::Esp,
            _ => return None,
        },
        _ => return None,
    })
}

/// The numbers of the frames that an expression matches: they come back in the place of the time.
fn matching(file: &Path, expression: &str) -> Result<Vec<usize>> {
    let output = Command::new("tcpdump")
        .args(["-w", "-", "-r"])
        .arg(file)
        .arg(expression)
        .output()
        .context("tcpdump (see `cargo xtask setup`)")?;
    ensure!(
        output.status.success(),
        "tcpdump {expression}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut rest = output.stdout.get(24..).context("no header of the file")?;
    let mut numbers = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<16>() {
        let word = |at: usize| -> Result<usize> {
            let word = header[at..].first_chunk().context("a word")?;
            Ok(usize::try_from(u32::from_le_bytes(*word))?)
        };
        numbers.push(word(0)?);
        rest = behind.get(word(8)?..).context("a frame is cut off")?;
    }
    Ok(numbers)
}

/// The format of libpcap: a header, then each frame behind its time and its lengths.
fn write_pcap(file: &Path, frames: &[Vec<u8>], layer: LinkLayer) -> Result<()> {
    let mut bytes = Vec::new();
    let link_type = match layer {
        LinkLayer::Ethernet => 1,
        LinkLayer::RawIp | LinkLayer::Tun => 101,
    };
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65_535, link_type] {
        bytes.extend(word.to_le_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        let length = u32::try_from(frame.len())?;
        for word in [u32::try_from(number)?, 0, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    Ok(fs::write(file, bytes)?)
}

/// What a frame with IPv6 extension headers is; `None`: it has none, and tcpdump knows better.
fn by_the_rfcs(packet: (u32, &[u8])) -> Option<Kind> {
    let (0x86dd, packet) = packet else {
        return None;
    };
    let (header, mut rest) = packet.split_at_checked(40)?;
    let mut next = header[6];
    if header[0] >> 4 != 6 || !is_extension(next) {
        return None;
    }
    let (mut at, end) = (
        40,
        40 + usize::from(u16::from_be_bytes([header[4], header[5]])),
    );
    // Only the first fragment has what is behind its header, and RFC 7112 wants all headers in it.
    let mut first_of_several = false;
    let cut = |first_of_several| {
        Some(if first_of_several {
            Kind::Hidden
        } else {
            Kind::Other
        })
    };
    for before in 0..=EXTENSIONS_MAX {
        if !is_extension(next) {
            break;
        }
        let [following, words, high, low, ..] = *rest else {
            return cut(first_of_several);
        };
        let bytes = if next == 44 {
            let field = u16::from_be_bytes([high, low]);
            if field >> 3 != 0 {
                return Some(Kind::Other);
            }
            first_of_several |= field & 1 == 1;
            8
        } else {
            8 + 8 * usize::from(words)
        };
        if before == EXTENSIONS_MAX {
            return Some(Kind::Hidden);
        }
        next = following;
        match rest.get(bytes..) {
            Some(behind) => {
                at += bytes;
                rest = match first_of_several {
                    // What is behind the packet is not put together.
                    true => &behind[..behind.len().min(end.saturating_sub(at))],
                    false => behind,
                };
            }
            // It leads beyond the end.
            None if next == 6 || is_extension(next) => return cut(first_of_several),
            None => rest = &[],
        }
    }
    Some(match (next, rest) {
        (6, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) == PORT => Kind::Known,
        (6, [_, _, _, _, ..]) => Kind::Other,
        (6, _) => Kind::Hidden,
        _ => announced(next, rest).map_or(Kind::Other, Kind::Unread),
    })
}

/// Hop-by-hop options, routing, fragment, destination options.
fn is_extension(header: u8) -> bool {
    [0, 43, 44, 60].contains(&header)
}
