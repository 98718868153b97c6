//! What is new, by hand and by asking for every address.

use core::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::super::entries::Precedence;
use super::*;
use crate::policy::prefixes::tests::crowded_prefix;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn what_a_list_covers_is_counted_once_and_ipv6_in_what_is_assigned() {
    let entries = |texts: &[&str]| {
        let mut entries: Entries = nets(texts).into_iter().collect();
        entries.finish(Entries::default(), Precedence::Length);
        Covered::of(&entries)
    };
    let covered = entries(&[
        "10.0.0.0/8",
        "10.1.0.0/16",
        "192.0.2.1/32",
        "255.255.255.255/32",
    ]);
    assert_eq!(
        covered,
        Covered {
            ipv4: (1 << 24) + 2,
            ipv6: 0
        }
    );
    assert_eq!(entries(&["0.0.0.0/0", "1.0.0.0/8"]).ipv4, 1 << 32);
    assert_eq!(entries(&["::/1", "2001:db8::/32"]).ipv6, IPV6_ALL);
    assert_eq!(entries(&["::/0"]).ipv6, IPV6_ALL);
    assert_eq!(entries(&["fc00::/7", "::/8"]).ipv6, 0);
    assert_eq!(entries(&["2a00::/12"]).ipv6, 1 << 116);
    for (texts, percent, is_more) in [
        (&["0.0.0.0/1"][..], 49, true),
        (&["0.0.0.0/1"], 50, false),
        (&["2000::/4"], 49, true),
        (&["2000::/4"], 50, false),
        (&["0.0.0.0/0", "::/0"], 100, false),
        (&["192.0.2.1/32"], 0, true),
        (&["2001:db8::/32"], 0, true),
        (&["fe80::/10"], 0, false),
    ] {
        assert_eq!(entries(texts).is_more_than(percent), is_more, "{texts:?}");
    }
}

#[test]
fn a_part_of_the_internet_for_another_is_new() {
    let with = |texts: &[&str]| Compiled::new([("drop".to_owned(), ListAction::Drop, nets(texts))]);
    let newly = newly(
        &with(&["48.0.0.0/5", "2000::/4"]),
        &with(&["56.0.0.0/5", "3000::/4"]),
        Families::BOTH,
    );
    let half = Covered {
        ipv4: 1 << 27,
        ipv6: IPV6_ALL / 2,
    };
    assert_eq!(newly, [half]);
}

#[test]
fn what_another_list_had_refused_or_a_permit_takes_out_is_not_new() {
    use ListAction::{Drop, Permit, Reject};
    let lists = |wide: &str| {
        Compiled::new([
            (
                "friends".to_owned(),
                Permit,
                nets(&["10.1.0.0/16", "2001:db8::/32"]),
            ),
            (
                "other".to_owned(),
                Reject,
                nets(&["10.2.0.0/16", "2001:db9::/32"]),
            ),
            (
                "drop".to_owned(),
                Drop,
                nets(&["10.0.0.1/32", wide, "2001:db8::/30"]),
            ),
        ])
    };
    let newly = newly(&lists("192.0.2.1/32"), &lists("10.0.0.0/8"), Families::BOTH);
    let expected = (1 << 24) - (1 << 16) - (1 << 16) - 1;
    assert_eq!(
        newly[2],
        Covered {
            ipv4: expected,
            ipv6: 0
        }
    );
    assert_eq!(newly[..2], [Covered::default(); 2]);
}

type Sources = Vec<(ListAction, Vec<IpNet>)>;

fn sources() -> impl Strategy<Value = Sources> {
    use ListAction::{Drop, Permit, Reject};
    let action = prop::sample::select(vec![Permit, Drop, Reject]);
    // Within little, so that all of it can be asked for.
    let near = crowded_prefix().prop_map(|net| match net {
        IpNet::V4(net) => {
            let [_, _, c, d] = net.addr().octets();
            let length = 23 + net.prefix_len() % 10;
            IpNet::new([10, 0, c & 1, d].into(), length)
                .unwrap()
                .trunc()
        }
        IpNet::V6(net) => {
            let low = (net.addr().to_bits() >> 64) as u8 ^ net.addr().to_bits() as u8;
            let address = 0x2001_0db8_u128 << 96 | u128::from(low) << 60;
            let length = 58 + net.prefix_len() % 12;
            IpNet::new(IpAddr::V6(address.into()), length)
                .unwrap()
                .trunc()
        }
    });
    prop::collection::vec((action, prop::collection::vec(near, 0..8)), 0..4)
}

fn compile(sources: &Sources) -> Compiled {
    Compiled::new(
        (0..)
            .zip(sources)
            .map(|(number, (action, nets))| (format!("list-{number}"), *action, nets.clone())),
    )
}

fn refused(compiled: &Compiled, address: IpAddr) -> Option<u16> {
    let found = compiled
        .filtered(address)
        .or_else(|| compiled.rejected(address));
    found
        .filter(|listing| listing.action != ListAction::Permit)
        .map(|listing| listing.list)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_new_is_what_lookups_of_all_addresses_find(before in sources(), after in sources()) {
        let (before, after) = (compile(&before), compile(&after));
        let mut expected = vec![Covered::default(); after.lists.len()];
        let mut ask = |address: IpAddr, size: u128| {
            if let (Some(list), None) = (refused(&after, address), refused(&before, address)) {
                match address {
                    IpAddr::V4(_) => expected[usize::from(list)].ipv4 += 1,
                    IpAddr::V6(_) => expected[usize::from(list)].ipv6 += size,
                }
            }
        };
        for low in 0..512_u32 {
            ask(IpAddr::from((0x0a00_0000 | low).to_be_bytes()), 1);
        }
        // In steps that no prefix is shorter than.
        for step in 0..1_u128 << 11 {
            let address = 0x2001_0db8_u128 << 96 | step << 59;
            ask(IpAddr::V6(address.into()), 1 << 59);
        }
        prop_assert_eq!(newly(&before, &after, Families::BOTH), expected);
    }
}
