//! All lists of a configuration, with their overlaps settled.
//!
//! An address has one answer, and who asks need not know about precedence:
//!
//! 1. A permit wins over every drop and every reject, whatever the prefix lengths.
//! 2. A drop wins over a reject: where the filter runs, the packet never arrives to be rejected.
//! 3. A hard drop wins over every other drop: it holds for sources with a grant, too.
//! 4. Among lists of the same action the longest prefix answers, then the list that comes first in
//!    the configuration.
//!
//! What only SMTP acts on, the reject lists, is in a snapshot of its own, which the kernel never
//! sees: where drops are only monitored, a source can be on both.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::coverage::Covered;
use super::entries::Entries;
use super::read::Plan;
use super::snapshot::{Allocate, Snapshot, private};

/// What being on a list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListAction {
    /// Passes the filter and is never refused by another list or by a limit. It does not make a
    /// client local.
    Permit,
    /// Dropped by the filter; where a connection arrives nevertheless, refused like a reject. A
    /// source with a grant passes.
    Drop,
    /// The same, and a grant makes no difference.
    HardDrop,
    /// Refused with a 554 when the connection is accepted.
    Reject,
}

impl ListAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Drop, Self::HardDrop, Self::Reject, Self::Permit];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ListAction::Permit => "permit",
            ListAction::Drop => "drop",
            ListAction::HardDrop => "hard-drop",
            ListAction::Reject => "reject",
        }
    }

    /// Where lists of several actions cover an address in the filter, the highest rank decides.
    pub(super) const fn rank(self) -> u8 {
        match self {
            ListAction::Drop | ListAction::Reject => 0,
            ListAction::HardDrop => 1,
            ListAction::Permit => 2,
        }
    }
}

/// A list of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Its name, for people: in replies, in the log and in the metrics.
    pub name: String,
    /// What being on it means.
    pub action: ListAction,
    /// How many prefixes were read, before overlaps were settled.
    pub entries: u64,
    /// How many of them are IPv6.
    #[serde(default)]
    pub ipv6_entries: u64,
    /// What they cover, each address counted once; unknown of a snapshot of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covered: Option<Covered>,
    /// The file that it was read from.
    pub file: Option<PathBuf>,
}

/// That an address is on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which of [`Compiled::lists`].
    pub list: u16,
    /// What that list says.
    pub action: ListAction,
    /// The prefix that covers the address, as it was listed.
    pub prefix: IpNet,
}

/// All lists of a configuration, with their overlaps settled.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// In the order of the configuration.
    pub lists: Vec<List>,
    /// What the filter needs: the permit and drop lists.
    pub filtered: Snapshot,
    /// The reject lists.
    pub rejected: Snapshot,
}

impl Compiled {
    /// Settles the overlaps of these lists, given in the order of the configuration, in memory of
    /// this process.
    ///
    /// # Panics
    /// As [`Compiled::build`].
    pub fn new(sources: impl IntoIterator<Item = (String, ListAction, Vec<IpNet>)>) -> Compiled {
        let lists = sources.into_iter().map(|(name, action, prefixes)| {
            let list = List {
                name,
                action,
                entries: prefixes.len() as u64,
                ipv6_entries: prefixes.iter().filter(|net| net.addr().is_ipv6()).count() as u64,
                covered: None,
                file: None,
            };
            (list, prefixes.into_iter().collect())
        });
        Compiled::build(lists.collect(), private)
    }

    /// Settles the overlaps of these lists, given in the order of the configuration. What the
    /// filter needs is built into the memory that is asked for.
    ///
    /// # Panics
    /// With more lists than a snapshot has classes for (256): a configuration has no more.
    pub fn build(lists: Vec<(List, Entries)>, allocate: Allocate) -> Compiled {
        Plan::of(lists).write(allocate)
    }

    /// What the permit and drop lists say about an address: the answer of the filter.
    pub fn filtered(&self, address: IpAddr) -> Option<Listing> {
        self.listing(self.filtered.lookup(address)?)
    }

    /// What the reject lists say about an address. One that a permit covers is not rejected.
    pub fn rejected(&self, address: IpAddr) -> Option<Listing> {
        let rejected = self.listing(self.rejected.lookup(address)?)?;
        let filtered = self.filtered(address);
        let is_permitted = filtered.is_some_and(|listing| listing.action == ListAction::Permit);
        (!is_permitted).then_some(rejected)
    }

    fn listing(&self, found: (u16, IpNet)) -> Option<Listing> {
        listing(&self.lists, found)
    }
}

/// What a snapshot found, in the terms of these lists.
pub(super) fn listing(lists: &[List], (list, prefix): (u16, IpNet)) -> Option<Listing> {
    lists.get(usize::from(list)).map(|found| Listing {
        list,
        action: found.action,
        prefix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::prefixes::tests::{crowded_address, crowded_prefix};
    use proptest::prelude::*;

    fn action() -> impl Strategy<Value = ListAction> {
        prop::sample::select(vec![
            ListAction::Permit,
            ListAction::Drop,
            ListAction::Reject,
        ])
    }

    /// The rules at the head of this file, word for word and without any cleverness.
    fn naive(
        sources: &[(String, ListAction, Vec<IpNet>)],
        address: IpAddr,
    ) -> Option<(u16, ListAction, IpNet)> {
        [ListAction::Permit, ListAction::Drop, ListAction::Reject]
            .into_iter()
            .find_map(|wanted| {
                (0..)
                    .zip(sources)
                    .filter(|(_, (_, action, _))| *action == wanted)
                    .flat_map(|(number, (_, _, nets))| {
                        nets.iter().map(move |net| (number, wanted, *net))
                    })
                    .filter(|(_, _, net)| net.contains(&address))
                    .max_by_key(|(number, _, net)| (net.prefix_len(), std::cmp::Reverse(*number)))
            })
    }

    /// The forms that one /24 with a few addresses can take in the snapshot. Every address of it is
    /// looked up.
    #[test]
    fn every_address_of_a_small_network_answers_for_itself() {
        use ListAction::{Drop, Permit};
        type Lists<'a> = &'a [(ListAction, &'a [&'a str])];
        let cases: [(&str, Lists<'_>); 11] = [
            ("one", &[(Drop, &["1/32"])]),
            ("two, one in each half", &[(Drop, &["0/32", "255/32"])]),
            ("two in a half", &[(Drop, &["129/32", "128/32"])]),
            ("the same two again", &[(Drop, &["7/32", "9/32", "7/32"])]),
            ("one twice", &[(Drop, &["7/32", "7/32"])]),
            ("two of two lists", &[(Drop, &["7/32"]), (Drop, &["8/32"])]),
            (
                "two, of which another list has one, too",
                &[(Drop, &["7/32", "8/32"]), (Drop, &["8/32"])],
            ),
            (
                "two, of which one is permitted",
                &[(Drop, &["7/32", "8/32"]), (Permit, &["8/32"])],
            ),
            ("two in a prefix", &[(Drop, &["7/32", "8/32", "0/26"])]),
            ("two that are a prefix", &[(Drop, &["6/31"])]),
            ("three", &[(Drop, &["0/32", "127/32", "128/32"])]),
        ];
        for (case, lists) in cases {
            let sources: Vec<_> = (0..)
                .zip(lists)
                .map(|(number, (action, nets))| {
                    let net = |net: &&str| format!("198.51.100.{net}").parse::<IpNet>().unwrap();
                    (
                        format!("list-{number}"),
                        *action,
                        nets.iter().map(net).collect(),
                    )
                })
                .collect();
            let compiled = Compiled::new(sources.clone());
            for octet in 0..=255 {
                for address in [[198, 51, 100, octet], [198, 51, 101, octet]].map(IpAddr::from) {
                    let found = compiled.filtered(address);
                    let found = found.map(|listing| (listing.list, listing.action, listing.prefix));
                    assert_eq!(found, naive(&sources, address), "{case}: {address}");
                }
            }
        }
    }

    /// The memory of the IPv4 presence bits holds nothing else, even when no list has IPv4 entries.
    #[test]
    fn lists_of_ipv6_say_nothing_of_ipv4() {
        let net = |number: u64| {
            let upper = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let address = (u128::from(upper) << 64).into();
            IpNet::new(IpAddr::V6(address), 64).unwrap()
        };
        let lists = [ListAction::Drop, ListAction::Reject].map(|action| {
            let nets = (1..=20_000).map(net).collect();
            (action.as_str().to_owned(), action, nets)
        });
        let compiled = Compiled::new(lists);
        assert!(compiled.filtered(net(7).addr()).is_some());
        // What was taken for entries of IPv4 would be that of the first addresses.
        for address in (0..1_u32 << 25).step_by(61) {
            let address = IpAddr::from(address.to_be_bytes());
            assert_eq!(compiled.filtered(address), None, "{address}");
            assert_eq!(compiled.rejected(address), None, "{address}");
        }
    }

    /// The lower half of each is the upper one times a number that hashes are made with: when the
    /// halves met without a seed between them, all four had one hash under every seed, and no table
    /// had room for them.
    #[test]
    fn addresses_that_were_chosen_to_collide_find_room() {
        let nets = [
            "2001:db8:0:1:22:b9d1:7f4a:7c15/128",
            "2001:db8:0:2:9e5a:338a:fe94:f82a/128",
            "2001:db8:0:3:3c91:ad44:7ddf:743f/128",
            "2001:db8:0:4:dac9:26fd:fd29:f054/128",
        ]
        .map(|net| net.parse::<IpNet>().unwrap());
        let list = List {
            name: "chosen".to_owned(),
            action: ListAction::Drop,
            entries: 4,
            ipv6_entries: 4,
            covered: None,
            file: None,
        };
        let compiled = Compiled::build(vec![(list, nets.into_iter().collect())], private);
        for net in nets {
            let found = compiled.filtered(net.addr()).map(|found| found.prefix);
            assert_eq!(found, Some(net));
        }
    }

    proptest! {
        // Each case is a directory of up to 64 MiB.
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn settled_lists_answer_as_the_rules_of_precedence_do(
            lists in prop::collection::vec(
                (action(), prop::collection::vec(crowded_prefix(), 0..20)),
                0..6,
            ),
            addresses in prop::collection::vec(crowded_address(), 1..40),
        ) {
            let sources: Vec<_> =
                lists
                    .into_iter()
                    .map(|(action, nets)| (action.as_str().to_owned(), action, nets))
                    .collect();
            let compiled = Compiled::new(sources.clone());
            for address in addresses {
                let found = compiled.filtered(address).or_else(|| compiled.rejected(address));
                let found = found.map(|listing| (listing.list, listing.action, listing.prefix));
                prop_assert_eq!(found, naive(&sources, address));
            }
        }
    }
}
