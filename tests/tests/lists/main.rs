//! Lists: what is read in their files, checked against tables and a real rbldnsd.

mod commands;
mod gate;
mod growth;
mod rbldnsd;
mod start;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::IpNet;
use portcullis::lists::format::{self, Format};
use portcullis_tests::list_cases::{self, Case};
use portcullis_tests::wild_list;

use self::rbldnsd::Rbldnsd;

#[test]
fn each_file_of_the_tables_lists_what_it_says() -> Result<()> {
    let cases = list_cases::load()?;
    assert!(cases.len() >= 50, "only {} cases", cases.len());
    let mut faults = Vec::new();
    for case in &cases {
        let reading = format::read(case.format, &case.file[..], |_| {})?;
        faults.extend(case.differs(&reading));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn no_file_is_read_otherwise_in_pieces_or_in_another_order() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let cases = list_cases::load()?;
    for case in &cases {
        let script = wild_list::script(case);
        check(&script);
        for _ in 0..40 {
            let mut wild = script.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(1..=wild.len());
                match random.u8(..4) {
                    0 => wild.insert(at, random.u8(..)),
                    1 => wild.insert(at, *random.choice(b"\n!:/-.$0129# ").unwrap_or(&b'\n')),
                    2 => wild.truncate(at),
                    _ => wild.extend_from_within(at.saturating_sub(20).max(1)..at),
                }
            }
            check(&wild);
        }
    }
    Ok(())
}

fn check(script: &[u8]) {
    if let Err(fault) = wild_list::check(script) {
        panic!("{fault}\n{}", String::from_utf8_lossy(script));
    }
}

/// What rbldnsd calls a format.
fn dataset(format: Format) -> Option<&'static str> {
    format.as_str().strip_prefix("rbldnsd-")
}

#[test]
fn a_zone_file_lists_what_rbldnsd_answers_for() -> Result<()> {
    let mut cases = list_cases::load()?;
    cases.retain(|case| dataset(case.format).is_some() && !case.unlike_rbldnsd);
    compare(&cases)
}

#[test]
fn a_wild_zone_file_lists_what_rbldnsd_answers_for() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(25);
    let mut cases = Vec::new();
    for number in 0..40 {
        for (name, format) in Format::ALL {
            if dataset(format).is_some() {
                cases.push(Case {
                    name: format!("{name} {number}"),
                    format,
                    file: wild_zone(format, &mut random),
                    ..Case::default()
                });
            }
        }
    }
    compare(&cases)
}

/// Lines that are often good and often overlap.
fn wild_zone(format: Format, random: &mut fastrand::Rng) -> Vec<u8> {
    let is_ipv6 = matches!(format, Format::Ip6trie | Format::Ip6tset);
    let mut file = String::new();
    for _ in 0..random.usize(1..25) {
        if random.u8(..4) == 0 {
            file.push('!');
        }
        let parts = if is_ipv6 { 8 } else { 4 };
        let given = if random.bool() {
            parts / 2
        } else {
            random.usize(1..=parts)
        };
        let part = |random: &mut fastrand::Rng| match random.u8(..8) {
            0 => 255,
            1 => 128,
            2 => random.u16(..256),
            _ => random.u16(..3),
        };
        let parts: Vec<String> = (0..given)
            .map(|at| match (at, is_ipv6) {
                (0, true) => "2001".to_owned(),
                (0, false) => "10".to_owned(),
                (_, true) => format!("{:x}", part(random)),
                (_, false) => part(random).to_string(),
            })
            .collect();
        file.push_str(&parts.join(if is_ipv6 { ":" } else { "." }));
        match random.u8(..6) {
            0 | 1 => file.push_str(&format!("/{}", random.u8(..if is_ipv6 { 130 } else { 34 }))),
            2 if !is_ipv6 => file.push_str(&format!("-{}", part(random))),
            3 if !is_ipv6 => file.push_str(&format!("-10.0.{}", part(random))),
            4 if is_ipv6 => file.push_str("::"),
            _ => {}
        }
        file.push_str(["", "", " # x", " :2:y", ":3", " z", " :0", "\t"][random.usize(..8)]);
        file.push('\n');
    }
    file.into_bytes()
}

/// Asks a real rbldnsd with the same files for addresses in and around all that they name.
fn compare(cases: &[Case]) -> Result<()> {
    let zones: Vec<(&str, &[u8])> = cases
        .iter()
        .map(|case| (dataset(case.format).unwrap_or_default(), &case.file[..]))
        .collect();
    let mut rbldnsd = Rbldnsd::start(&zones)?;
    let (mut faults, mut asked, mut listed) = (Vec::new(), 0, 0);
    for (zone, case) in cases.iter().enumerate() {
        let reading = format::read(case.format, &case.file[..], |_| {})?;
        let nets: Vec<IpNet> = reading.entries.iter().collect();
        for address in addresses(case, &nets) {
            let ours = nets.iter().any(|net| net.contains(&address));
            let theirs = rbldnsd.lists(zone, address)?;
            asked += 1;
            listed += usize::from(ours);
            if ours != theirs {
                let file = String::from_utf8_lossy(&case.file);
                faults.push(format!(
                    "{}: {address}: rbldnsd says {theirs}\n{file}",
                    case.name
                ));
                break;
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(
        asked > 300 && listed > 50,
        "asked {asked}, {listed} of them listed"
    );
    Ok(())
}

/// The edges of all prefixes and of all addresses that stand in the file, abbreviated or not, and
/// what is beside them.
fn addresses(case: &Case, nets: &[IpNet]) -> Vec<IpAddr> {
    let is_ipv6 = matches!(case.format, Format::Ip6trie | Format::Ip6tset);
    let mut edges: Vec<(u128, u128)> = Vec::new();
    for net in nets {
        match net {
            IpNet::V4(net) => edges.push((
                net.network().to_bits().into(),
                net.broadcast().to_bits().into(),
            )),
            IpNet::V6(net) => edges.push((net.network().to_bits(), net.broadcast().to_bits())),
        }
    }
    let text = String::from_utf8_lossy(&case.file);
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'));
    for word in words.filter(|word| !word.is_empty()) {
        let address: Option<IpAddr> = if is_ipv6 {
            let complete = [word.to_owned(), format!("{word}::")];
            complete.iter().find_map(|word| word.parse().ok())
        } else {
            let complete = ["", ".0", ".0.0", ".0.0.0"];
            let complete = complete.map(|rest| format!("{word}{rest}"));
            complete.iter().find_map(|word| word.parse().ok())
        };
        match address {
            Some(IpAddr::V4(address)) => {
                let address = u128::from(address.to_bits());
                edges.extend([0xff, 0xffff, 0xff_ffff].map(|hosts| (address, address | hosts)));
            }
            Some(IpAddr::V6(address)) => {
                edges.push((address.to_bits(), address.to_bits() | u128::from(u64::MAX)));
            }
            None => {}
        }
    }
    let mut addresses: Vec<u128> = edges
        .iter()
        .flat_map(|&(first, last)| {
            [
                first.wrapping_sub(1),
                first,
                first / 2 + last / 2,
                last,
                last.wrapping_add(1),
            ]
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(400);
    if is_ipv6 {
        let addresses = addresses.into_iter().map(Ipv6Addr::from_bits);
        addresses.map(IpAddr::V6).collect()
    } else {
        let addresses = addresses.into_iter().map(|bits| bits as u32);
        addresses.map(Ipv4Addr::from_bits).map(IpAddr::V4).collect()
    }
}
