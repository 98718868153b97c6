//! The program in the kernel against somebody else's idea of what a packet is: 100,000 generated frames, malformed ones
//! included, and the same verdict for each.
//!
//! The oracle is tcpdump, that is libpcap's filter, asked once for all frames and each number of tags (0 to 2), with
//!
//! ```text
//! known   [vlan and ...] tcp dst port 25 and (ip and VALID or ip6 and ip6[0] & 0xf0 = 0x60)
//! hidden  [vlan and ...] ip and VALID and ip[9] = 6 and ip[6:2] & 0x1fff = 0
//!             and len >= START + (ip[0] & 0xf) * 4 and len < START + (ip[0] & 0xf) * 4 + 4
//! or      [vlan and ...] ip6 and ip6[0] & 0xf0 = 0x60 and ip6[6] = 6 and len >= START + 40 and len < START + 44
//! VALID   ip[0] & 0xf0 = 0x40 and ip[0] & 0xf >= 5
//! START   14 + 4 * tags
//! ```
//!
//! What libpcap cannot say are chains of IPv6 extension headers: frames that have any are taken apart by a small reader
//! below, written from RFC 8200 and RFC 7112 and sharing nothing with `ebpf/common`. The source is then looked for in the
//! lists one prefix after the other.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use portcullis::config::{self, FilterMode, Unlisted};
use portcullis::filter::{self, Filter};
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::layout::{InterfaceCounter, Measures, Mode, Settings};
use portcullis_tests::{full, root};

const PORT: u16 = 25;
/// More than that is not looked past.
const EXTENSIONS_MAX: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Known,
    Hidden,
}

const PERMITTED: &[&str] = &["192.0.2.64/28", "198.51.100.77/32", "2001:db8:7::/48"];
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
    let frames: Vec<Vec<u8>> = (0..number).map(|_| frame(&mut random)).collect();
    let kinds = kinds(&frames)?;
    let (permitted, dropped) = (prefixes(PERMITTED)?, prefixes(DROPPED)?);
    let lists = Compiled::new(vec![
        (
            "permitted".to_owned(),
            ListAction::Permit,
            permitted.clone(),
        ),
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
    let mut trial = filter.trial()?;
    let mut seen = [0_u64; 6];
    for drop_unlisted in [false, true] {
        let measures = Measures {
            drop_unlisted,
            ..Measures::default()
        };
        trial.set_settings(Settings::new(Mode::Enforce, measures, &[PORT]))?;
        let half = frames.iter().zip(&kinds).enumerate();
        for (index, (frame, kind)) in half.skip(usize::from(drop_unlisted)).step_by(2) {
            let before = trial.counted()?;
            let outcome = trial.run(frame, 1)?;
            let after = trial.counted()?;
            let counter = expected(frame, *kind, &permitted, &dropped, drop_unlisted)?;
            let mut counters = before;
            counters[counter as usize] += 1;
            counters[InterfaceCounter::Hidden as usize] += u64::from(*kind == Kind::Hidden);
            let what = || format!("frame {index}, {kind:?}, {counter:?}: {frame:02x?}");
            assert_eq!(after, counters, "{}", what());
            let drops = !matches!(
                counter,
                InterfaceCounter::Other | InterfaceCounter::Passed | InterfaceCounter::Permitted
            );
            assert_eq!(outcome.dropped, drops, "{}", what());
            seen[counter as usize] += 1;
        }
    }
    println!("of each counter's verdict: {seen:?}");
    let hidden = kinds.iter().filter(|kind| **kind == Kind::Hidden).count();
    let verdicts = [0, 1, 2, 3, 5].map(|counter| seen[counter]);
    ensure!(
        verdicts.iter().all(|verdicts| *verdicts > 1000) && hidden > 500,
        "too few of a kind to show anything: {seen:?}, {hidden} hidden"
    );
    Ok(())
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = filter::detach(&self.0, &[]);
    }
}

/// What the program has to count for a frame.
fn expected(
    frame: &[u8],
    kind: Kind,
    permitted: &[IpNet],
    dropped: &[IpNet],
    drop_unlisted: bool,
) -> Result<InterfaceCounter> {
    if kind == Kind::Other {
        return Ok(InterfaceCounter::Other);
    }
    let source = source(frame).context("a source")?;
    let covers = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&source));
    Ok(if covers(permitted) {
        InterfaceCounter::Permitted
    } else if covers(dropped) {
        InterfaceCounter::DroppedListed
    } else if drop_unlisted {
        InterfaceCounter::DroppedUnlisted
    } else {
        InterfaceCounter::Passed
    })
}

/// The packet in a frame behind its tags, with the type that announces it.
fn packet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut rest = frame.get(12..)?;
    for tag in 0.. {
        let (kind, behind) = rest.split_first_chunk::<2>()?;
        match (u16::from_be_bytes(*kind), tag) {
            (0x8100 | 0x88a8 | 0x9100, 0 | 1) => rest = behind.get(2..)?,
            (kind, _) => return Some((kind, behind)),
        }
    }
    None
}

fn source(frame: &[u8]) -> Option<IpAddr> {
    match packet(frame)? {
        (0x0800, packet) => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        (_, packet) => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
    }
}

/// What each frame is.
fn kinds(frames: &[Vec<u8>]) -> Result<Vec<Kind>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("frames.pcap");
    write_pcap(&file, frames)?;
    let valid = "ip[0] & 0xf0 = 0x40 and ip[0] & 0xf >= 5";
    let six = "ip6 and ip6[0] & 0xf0 = 0x60";
    let (mut known, mut hidden) = (HashSet::new(), HashSet::new());
    for tags in 0..3 {
        let vlan = "vlan and ".repeat(tags);
        let start = 14 + 4 * tags;
        let expression = format!("{vlan} tcp dst port {PORT} and ((ip and {valid}) or ({six}))");
        known.extend(matching(&file, &expression)?);
        let header = format!("{start} + (ip[0] & 0xf) * 4");
        let expression = format!(
            "{vlan} ip and {valid} and ip[9] = 6 and ip[6:2] & 0x1fff = 0 and len >= {header} and len < {header} + 4"
        );
        hidden.extend(matching(&file, &expression)?);
        let end = start + 40;
        let expression =
            format!("{vlan} {six} and ip6[6] = 6 and len >= {end} and len < {end} + 4");
        hidden.extend(matching(&file, &expression)?);
    }
    let kinds = frames.iter().enumerate().map(|(index, frame)| {
        if let Some(kind) = by_the_rfcs(frame) {
            kind
        } else if hidden.contains(&index) {
            Kind::Hidden
        } else if known.contains(&index) {
            Kind::Known
        } else {
            Kind::Other
        }
    });
    Ok(kinds.collect())
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
fn write_pcap(file: &Path, frames: &[Vec<u8>]) -> Result<()> {
    let mut octets = Vec::new();
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65_535, 1] {
        octets.extend(word.to_le_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        let length = u32::try_from(frame.len())?;
        for word in [u32::try_from(number)?, 0, length, length] {
            octets.extend(word.to_le_bytes());
        }
        octets.extend(frame);
    }
    Ok(fs::write(file, octets)?)
}

/// What a frame with IPv6 extension headers is; `None`: it has none, and tcpdump knows better.
fn by_the_rfcs(frame: &[u8]) -> Option<Kind> {
    let (0x86dd, packet) = packet(frame)? else {
        return None;
    };
    let (header, mut rest) = packet.split_at_checked(40)?;
    let mut next = header[6];
    if header[0] >> 4 != 6 || !is_extension(next) {
        return None;
    }
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
        let octets = if next == 44 {
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
        match rest.get(octets..) {
            Some(behind) => rest = behind,
            // It leads beyond the end.
            None if next == 6 || is_extension(next) => return cut(first_of_several),
            None => return Some(Kind::Other),
        }
    }
    Some(match (next, rest) {
        (6, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) == PORT => Kind::Known,
        (6, [_, _, _, _, ..]) => Kind::Other,
        (6, _) => Kind::Hidden,
        _ => Kind::Other,
    })
}

/// Hop-by-hop options, routing, fragment, destination options.
fn is_extension(header: u8) -> bool {
    [0, 43, 44, 60].contains(&header)
}

/// A frame that nobody wrote: rarely what it should be.
fn frame(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3][random.usize(..12)] {
        let kind: u16 = [0x8100, 0x8100, 0x88a8, 0x9100][random.usize(..4)];
        frame.extend(kind.to_be_bytes());
        frame.extend(random.u16(..).to_be_bytes());
    }
    if random.bool() {
        ipv4(random, &mut frame);
    } else {
        ipv6(random, &mut frame);
    }
    let port = [PORT, PORT, PORT, PORT, 80, random.u16(..)][random.usize(..6)];
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
            let at = random.usize(12..end);
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

fn protocol(random: &mut fastrand::Rng) -> u8 {
    [6, 6, 6, 6, 6, 6, 6, 17, 58, random.u8(..)][random.usize(..10)]
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
    frame.extend([8, 0, 0x40 | words, 0, 0, 60, 0, 1]);
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
        let headers = random.usize(..EXTENSIONS_MAX + 3);
        (0..headers)
            .map(|_| [0, 43, 44, 60, 60][random.usize(..5)])
            .collect()
    };
    let last = protocol(random);
    let announced = |at: usize| chain.get(at).copied().unwrap_or(last);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, announced(0), 64]);
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
