//! Large snapshots of lists: compared with a simple search, and the kernel's lookup with ours.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process;

use anyhow::Result;
use ipnet::IpNet;
use portcullis::config::{self, FilterMode, Unlisted, XdpMode};
use portcullis::filter::{self, Filter};
use portcullis::lists::{Compiled, List, ListAction, Listing};
use portcullis_tests::root;

const ACTIONS: [ListAction; 8] = [
    ListAction::Drop,
    ListAction::Permit,
    ListAction::Drop,
    ListAction::Reject,
    ListAction::Drop,
    ListAction::Permit,
    ListAction::Reject,
    ListAction::HardDrop,
];

/// The lengths of longer IPv4 prefixes: few enough for the search to ask for each. All others are
/// for the property tests.
const LENGTHS4: [u8; 5] = [25, 27, 28, 30, 31];

/// The lengths of IPv6 prefixes, as above.
const LENGTHS6: [u8; 12] = [20, 29, 32, 40, 48, 56, 63, 64, 65, 96, 127, 128];

/// A prefix of either family, as its first address, in the upper bits, and its length.
#[derive(Clone, Copy)]
struct Prefix {
    is_ipv4: bool,
    bits: u128,
    length: u8,
}

impl Prefix {
    fn new(is_ipv4: bool, bits: u128, length: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self {
            is_ipv4,
            bits: bits & mask,
            length,
        }
    }

    fn last(self) -> u128 {
        self.bits | u128::MAX.checked_shr(self.length.into()).unwrap_or(0)
    }

    fn net(self) -> IpNet {
        IpNet::new(address(self.is_ipv4, self.bits), self.length).expect("a length of its family")
    }
}

fn address(is_ipv4: bool, bits: u128) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::from_bits((bits >> 96) as u32).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

/// Prefixes of which many lie within others, and some in several lists.
fn prefixes(random: &mut fastrand::Rng, number: usize) -> Vec<Vec<Prefix>> {
    let mut lists = vec![Vec::new(); ACTIONS.len()];
    let mut last: Vec<Prefix> = Vec::new();
    for _ in 0..number {
        let is_ipv4 = random.bool();
        let outer = match last.len() {
            0 => None,
            length => Some(last[random.usize(length.saturating_sub(2_000)..length)]),
        };
        let outer = outer.filter(|outer| outer.is_ipv4 == is_ipv4 && random.u8(..3) > 0);
        let (bits, shortest) = match outer {
            // Within another, beside its beginning, or the same.
            Some(outer) => (
                outer.bits | random.u128(..) >> outer.length.min(127),
                outer.length,
            ),
            None if is_ipv4 => (random.u128(..), 0),
            None => (0x2001 << 112 | random.u128(..) >> 16, 0),
        };
        let length = if is_ipv4 {
            match random.u8(..100) {
                0 => [12, 16, 19, 23][random.usize(..4)],
                1..10 => 24,
                10..40 => LENGTHS4[random.usize(..LENGTHS4.len())],
                _ => 32,
            }
        } else {
            LENGTHS6[random.usize(..LENGTHS6.len())]
        };
        let prefix = Prefix::new(is_ipv4, bits, length.max(shortest));
        last.push(prefix);
        lists[random.usize(..ACTIONS.len())].push(prefix);
        if random.u8(..20) == 0 {
            lists[random.usize(..ACTIONS.len())].push(prefix);
        }
    }
    lists
}

fn compiled(lists: &[Vec<Prefix>], in_kernel: bool) -> Compiled {
    let lists = lists.iter().zip(ACTIONS).enumerate();
    let lists = lists.map(|(number, (prefixes, action))| {
        let list = List {
            name: format!("list-{number}"),
            action,
            entries: prefixes.len() as u64,
            ipv6_entries: 0,
            covered: None,
            file: None,
        };
        (list, prefixes.iter().map(|prefix| prefix.net()).collect())
    });
    let allocate = if in_kernel {
        filter::memory
    } else {
        portcullis::lists::private
    };
    Compiled::build(lists.collect(), allocate)
}

/// A simple search: for an address it looks up each prefix length, the longest first.
struct Naive {
    /// The first list of each action that has the prefix.
    listed: HashMap<(bool, u8, u128), [Option<u16>; 4]>,
    lengths: [Vec<u8>; 2],
}

impl Naive {
    fn new(lists: &[Vec<Prefix>]) -> Self {
        let mut listed: HashMap<_, [Option<u16>; 4]> = HashMap::new();
        for (number, (prefixes, action)) in (0..).zip(lists.iter().zip(ACTIONS)) {
            for prefix in prefixes {
                let key = (prefix.is_ipv4, prefix.length, prefix.bits);
                listed.entry(key).or_default()[action as usize].get_or_insert(number);
            }
        }
        let lengths = [false, true].map(|is_ipv4| {
            let of_family = |length: &u8| {
                lists
                    .iter()
                    .flatten()
                    .any(|prefix| prefix.is_ipv4 == is_ipv4 && prefix.length == *length)
            };
            (0..=128).rev().filter(of_family).collect()
        });
        Self { listed, lengths }
    }

    /// The answer for an address: permitted or dropped, and rejected.
    fn search(&self, is_ipv4: bool, bits: u128) -> [Option<(u16, IpNet)>; 2] {
        let mut of_action = [None; 4];
        for length in &self.lengths[usize::from(is_ipv4)] {
            let prefix = Prefix::new(is_ipv4, bits, *length);
            let Some(lists) = self.listed.get(&(is_ipv4, *length, prefix.bits)) else {
                continue;
            };
            for (found, list) in of_action.iter_mut().zip(lists) {
                *found = found.or(list.map(|list| (list, prefix.net())));
            }
        }
        let [permit, drop, hard_drop, reject] = of_action;
        [
            permit.or(hard_drop).or(drop),
            reject.filter(|_| permit.is_none()),
        ]
    }
}

/// Addresses in, at the edges of and beside a prefix.
fn probes(random: &mut fastrand::Rng, prefix: Prefix) -> [u128; 4] {
    let step = if prefix.is_ipv4 { 1 << 96 } else { 1 };
    [
        prefix.bits.wrapping_sub(step),
        prefix.bits,
        prefix.bits | random.u128(..) >> prefix.length.min(127),
        prefix.last().wrapping_add(1),
    ]
}

#[test]
fn a_million_nested_prefixes_answer_as_a_search_of_each_does() {
    let mut random = fastrand::Rng::with_seed(17);
    let lists = prefixes(&mut random, 1_000_000);
    let compiled = compiled(&lists, false);
    let naive = Naive::new(&lists);
    let said = |listing: Option<Listing>| listing.map(|listing| (listing.list, listing.prefix));
    let (mut asked, mut listed, mut rejected) = (0, 0, 0);
    for prefix in lists.iter().flatten().step_by(4) {
        for bits in probes(&mut random, *prefix) {
            let address = address(prefix.is_ipv4, bits);
            let found = [compiled.filtered(address), compiled.rejected(address)].map(said);
            let expected = naive.search(prefix.is_ipv4, bits);
            assert_eq!(found, expected, "{address}");
            asked += 1;
            listed += u64::from(found[0].is_some());
            rejected += u64::from(found[1].is_some());
        }
    }
    assert!(asked >= 1_000_000, "only {asked} addresses");
    assert!(
        listed > asked / 4 && rejected > asked / 20,
        "{listed}, {rejected}"
    );
}

/// A SYN to port 25.
fn syn(address: IpAddr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match address {
        IpAddr::V4(address) => {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            frame.extend(address.octets());
            frame.extend([192, 0, 2, 1]);
        }
        IpAddr::V6(address) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(address.octets());
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
    }
    frame.extend([
        0x80, 0, 0, 25, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame
}

struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = filter::detach(&self.0, &[]);
    }
}

#[test]
fn the_kernel_drops_and_counts_what_userspace_finds_in_the_same_lines() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let pins = Pinned(format!("/sys/fs/bpf/portcullis-test-{}-snapshot", process::id()).into());
    let settings = config::Filter {
        interfaces: Vec::new(),
        ports: vec![25],
        mode: FilterMode::Enforce,
        unlisted: Unlisted::Pass,
        xdp_mode: XdpMode::Driver,
        pin_path: pins.0.clone(),
        ..config::Filter::default()
    };
    let mut random = fastrand::Rng::with_seed(18);
    let lists = prefixes(&mut random, 60_000);
    let compiled = compiled(&lists, true);
    assert!(
        compiled.filtered.memory::<filter::KernelMemory>().is_some(),
        "one copy for both"
    );
    let filter = Filter::attach(&settings, &compiled)?;
    let mut trial = filter.trial()?;
    let mut counted = [0; ACTIONS.len()];
    for prefix in lists.iter().flatten().step_by(3) {
        for bits in probes(&mut random, *prefix) {
            let address = address(prefix.is_ipv4, bits);
            let listing = compiled.filtered(address);
            let drops = listing.is_some_and(|listing| listing.action != ListAction::Permit);
            let outcome = trial.run(&syn(address), 1)?;
            assert_eq!(outcome.dropped, drops, "{address}: {listing:?}");
            if let Some(listing) = listing {
                counted[usize::from(listing.list)] += 1;
            }
        }
    }
    for list in filter.status()?.lists {
        let number = list.name.trim_start_matches("list-").parse::<usize>()?;
        let packets = list.dropped_packets + list.permitted_packets;
        assert_eq!(packets, counted[number], "{}", list.name);
        assert!(packets > 1_000, "{}: {packets}", list.name);
    }
    Ok(())
}
