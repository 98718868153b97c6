//! Prefixes as they are added, sorted, merged and taken out.

use core::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn entries(nets: &[&str]) -> Entries {
    nets.iter()
        .map(|net| net.parse::<IpNet>().unwrap())
        .collect()
}

fn written(entries: &Entries) -> Vec<String> {
    entries.iter().map(|net| net.to_string()).collect()
}

#[test]
fn the_same_prefix_is_never_there_twice_and_a_covered_one_stays() {
    let mut list = entries(&[
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "10.0.0.0/8",
        "192.0.2.1/32",
        "2001:db8::/32",
        "::ffff:192.0.2.1/128",
        "::ffff:172.16.0.0/108",
        "::/0",
    ]);
    assert_eq!(list.finish(Entries::default(), Precedence::Length), 5);
    let expected = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "172.16.0.0/12",
        "192.0.2.1/32",
        "::/0",
        "2001:db8::/32",
    ];
    assert_eq!(written(&list), expected);
}

#[test]
fn a_mapped_prefix_is_ipv4_and_never_more_than_an_8_of_it() {
    let cases = [
        ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
        ("::ffff:10.9.8.7/104", Ok("10.9.8.7/8")),
        ("::ffff:192.0.2.1/128", Ok("192.0.2.1/32")),
        ("::ffff:10.0.0.0/103", Err(MappedTooWide)),
        ("::ffff:0:0/96", Err(MappedTooWide)),
        ("::ffff:192.0.2.0/24", Err(MappedTooWide)),
        ("10.0.0.0/7", Ok("10.0.0.0/7")),
        ("0.0.0.0/0", Ok("0.0.0.0/0")),
        // Around the mapped ones, and no packet's source is in there.
        ("::/90", Ok("::/90")),
        ("::/0", Ok("::/0")),
        // Compatible, translated and 6to4 addresses are no IPv4.
        ("::192.0.2.0/120", Ok("::192.0.2.0/120")),
        ("64:ff9b::192.0.2.0/120", Ok("64:ff9b::c000:200/120")),
        ("2002:c000:0200::/40", Ok("2002:c000:200::/40")),
    ];
    for (text, expected) in cases {
        let net: IpNet = text.parse().unwrap();
        let expected = expected.map(|net| net.parse::<IpNet>().unwrap());
        assert_eq!(unmapped(net), expected, "{text}");
    }
    assert!(entries(&["::ffff:0:0/96", "::ffff:0:0/97"]).is_empty());
}

#[test]
fn a_range_is_covered_by_the_fewest_prefixes() {
    let cases: [(&str, &str, &[&str]); 6] = [
        ("10.0.0.1", "10.0.0.1", &["10.0.0.1/32"]),
        (
            "10.0.0.1",
            "10.0.0.6",
            &["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"],
        ),
        ("0.0.0.0", "255.255.255.255", &["0.0.0.0/0"]),
        (
            "255.255.255.254",
            "255.255.255.255",
            &["255.255.255.254/31"],
        ),
        ("10.0.0.2", "10.0.0.1", &[]),
        (
            "2001:db8::",
            "2001:db8:0:ffff:ffff:ffff:ffff:ffff",
            &["2001:db8::/48"],
        ),
    ];
    for (first, last, expected) in cases {
        let mut list = Entries::default();
        match (first.parse().unwrap(), last.parse().unwrap()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                list.push_ipv4_range(first.to_bits(), last.to_bits());
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                list.push_ipv6_range(first.to_bits(), last.to_bits());
            }
            _ => unreachable!(),
        }
        assert_eq!(written(&list), expected, "{first}-{last}");
    }
}

#[test]
fn an_exclusion_splits_what_encloses_it_and_leaves_what_it_encloses() {
    let list = entries(&["10.0.0.0/30", "10.0.0.3/32", "10.0.1.0/24"]);
    let excluded = entries(&["10.0.0.2/31", "10.0.1.0/24"]);
    let mut by_length = list.clone();
    by_length.finish(excluded.clone(), Precedence::Length);
    assert_eq!(
        written(&by_length),
        ["10.0.0.0/31", "10.0.0.3/32", "10.0.1.0/24"]
    );
    let mut by_octets = list;
    by_octets.finish(excluded, Precedence::Octets);
    assert_eq!(written(&by_octets), ["10.0.0.0/31"]);
}

/// Prefixes in a few addresses, so that they lie within each other.
fn crowded() -> impl Strategy<Value = Vec<Ipv4Prefix>> {
    let length = prop_oneof![0..=32u8, 22..=32u8];
    let prefix = (0..1024u32, length)
        .prop_map(|(low, length)| Ipv4Prefix::around(0x0a00_0000 | low, length));
    prop::collection::vec(prefix, 0..12)
}

/// The rule as the documentation of [`Precedence`] states it.
fn is_listed(
    address: u32,
    listed: &[Ipv4Prefix],
    excluded: &[Ipv4Prefix],
    precedence: Precedence,
) -> bool {
    let rank = |prefixes: &[Ipv4Prefix]| {
        let covering = prefixes
            .iter()
            .filter(|prefix| (prefix.first()..=prefix.last()).contains(&address));
        covering
            .map(|prefix| match precedence {
                Precedence::Length => prefix.length,
                Precedence::Octets => prefix.length.max(1).div_ceil(8) * 8,
            })
            .max()
    };
    match (rank(listed), rank(excluded)) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(listed), Some(excluded)) if precedence == Precedence::Octets => listed > excluded,
        (Some(listed), Some(excluded)) => listed >= excluded,
    }
}

proptest! {
    #[test]
    fn what_is_left_is_what_the_precedence_says(
        listed in crowded(),
        excluded in crowded(),
        precedence in prop::sample::select(vec![Precedence::Length, Precedence::Octets]),
    ) {
        let mut list = Entries { ipv4: listed.clone(), ipv6: Vec::new() };
        list.finish(Entries { ipv4: excluded.clone(), ipv6: Vec::new() }, precedence);
        prop_assert!(list.ipv4.is_sorted_by(|a, b| a < b));
        for prefix in &list.ipv4 {
            prop_assert_eq!(*prefix, Ipv4Prefix::around(prefix.address, prefix.length));
        }
        for address in (0x09ff_ff00..0x0a00_0500).chain([0, u32::MAX]) {
            let mut prefixes = list.ipv4.iter();
            let found =
                prefixes.any(|prefix| (prefix.first()..=prefix.last()).contains(&address));
            let expected = is_listed(address, &listed, &excluded, precedence);
            prop_assert_eq!(found, expected, "{}", Ipv4Addr::from_bits(address));
        }
    }

    #[test]
    fn a_range_is_covered_and_nothing_beside_it(
        first in any::<u128>(),
        length in any::<u128>(),
        shift in 0..128u32,
    ) {
        let last = first.saturating_add(length >> shift);
        let mut list = Entries::default();
        list.push_ipv6_range(first, last);
        let mut next = first;
        for (at, prefix) in list.ipv6.iter().enumerate() {
            prop_assert_eq!(prefix.address, next);
            prop_assert!(at + 1 < list.ipv6.len() || prefix.last() == last);
            next = prefix.last().wrapping_add(1);
        }
        prop_assert!(list.ipv6.len() <= 254);
    }
}

#[test]
fn what_the_prefixes_cover_is_what_each_of_them_says() {
    let nets = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "192.0.2.1/32",
        "::/1",
        "2001:db8::1/128",
    ];
    let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
    let mut entries: Entries = nets.iter().copied().collect();
    entries.finish(Entries::default(), Precedence::Length);
    for address in [
        "10.255.0.1",
        "11.0.0.0",
        "9.255.255.255",
        "192.0.2.1",
        "192.0.2.0",
        "::1",
        "8000::",
        "2001:db8::1",
        "ffff::",
    ] {
        let address: IpAddr = address.parse().unwrap();
        let expected = nets.iter().any(|net| net.contains(&address));
        assert_eq!(entries.cover(address), expected, "{address}");
    }
    assert!(!Entries::default().cover("192.0.2.1".parse().unwrap()));
}
