//! The guard: a list that lost much at once has probably lost it on the way, and a gate that takes
//! it opens itself. One that refuses much more than before, or those whom the gate lives by, has
//! probably been fed a mistake, and a gate that takes it shuts every client out.
//!
//! Downloads end early, disks fill up, a provider puts an error page where the list was, a feed
//! gains 0.0.0.0/0. What was in force before is then better than what is there now, however old it
//! is; whether it was meant, only a person can say. For losses the measure is the number of
//! entries, which costs nothing to keep. For growth it is the addresses that were not refused
//! before, because one line can be half of the Internet. Rejected: to compare the entries
//! themselves (a list that is replaced by as many others is the business of its provider).

use core::fmt;
use core::net::IpAddr;

use ipnet::IpNet;

use super::coverage::{self, Covered, Families};
use super::{Compiled, List, ListAction};

/// Percent of its entries that a list may lose, unless the configuration says otherwise.
pub const SHRINK_MAX: u8 = 50;

/// Percent of IPv4, or of the IPv6 that is assigned, that a list may newly refuse, unless the
/// configuration says otherwise: 43 million addresses. Two /8s that become bogons and ten million
/// addresses that come at once are less, by far; half of the Internet, which one mistaken line is,
/// or the list of a continent in place of that of a country, is more.
pub const GROW_MAX: u8 = 1;

/// With this the guard is off.
pub const OFF: u8 = 100;

/// A list that lost too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its name.
    pub list: String,
    /// How many entries it had.
    pub before: u64,
    /// How many it would have.
    pub after: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss {
            list,
            before,
            after,
        } = self;
        write!(f, "list {list} ({before} -> {after} entries)")
    }
}

/// The lists that are empty and were not, or lost more than `shrink_max` percent of their entries.
/// A list that is new or gone is the business of the operator who wrote the configuration.
pub fn losses(before: &[List], after: &[List], shrink_max: u8) -> Vec<Loss> {
    if shrink_max >= OFF {
        return Vec::new();
    }
    let mut losses = Vec::new();
    for old in before {
        let Some(new) = after.iter().find(|new| new.name == old.name) else {
            continue;
        };
        let (before, after) = (old.entries, new.entries);
        let lost = u128::from(before.saturating_sub(after));
        if (after == 0 && before > 0) || lost * 100 > u128::from(before) * u128::from(shrink_max) {
            losses.push(Loss {
                list: old.name.clone(),
                before,
                after,
            });
        }
    }
    losses
}

/// Whom no list may newly refuse: the gate lives by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Its addresses.
    pub net: IpNet,
    /// What it is.
    pub role: ProtectedRole,
}

/// What is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectedRole {
    /// One of `relay.networks`.
    LocalNetwork,
    /// An address of the gate.
    Gate,
    /// An address that mail is passed on to.
    NextHop,
    /// A server that DNS lists are asked through.
    NameServer,
    /// A front whose packets are those of its clients.
    Front,
}

impl Protected {
    /// `None` for the loopback: lists of bogons rightly hold it, and the filter never sees its
    /// packets.
    pub fn new(net: IpNet, role: ProtectedRole) -> Option<Protected> {
        (!net.addr().is_loopback()).then_some(Protected { net, role })
    }

    /// A single address.
    pub fn address(address: IpAddr, role: ProtectedRole) -> Option<Protected> {
        let address = address.to_canonical();
        (!address.is_unspecified())
            .then(|| Protected::new(address.into(), role))
            .flatten()
    }

    /// Whether it is a single one.
    pub fn is_one_address(&self) -> bool {
        self.net.prefix_len() == self.net.max_prefix_len()
    }

    /// The list by which at least half of it is refused, as far as `counts` says, and whether that
    /// is all of it.
    fn held(
        &self,
        compiled: &Compiled,
        counts: impl Fn(IpAddr, u16) -> bool,
    ) -> Option<(u16, bool)> {
        let (mut held, mut all, mut by) = (0, 0, None);
        for address in probes(self.net) {
            all += 1;
            let list = refused(compiled, address).filter(|&list| counts(address, list));
            if let Some(list) = list {
                held += 1;
                by.get_or_insert(list);
            }
        }
        by.filter(|_| 2 * held >= all)
            .map(|list| (list, held == all))
    }

    /// Whether at least half of it may be refused: `covers` says of an address whether a drop or
    /// reject list covers it.
    pub(super) fn may_be_held(&self, covers: impl Fn(IpAddr) -> bool) -> bool {
        let (all, held) = probes(self.net).fold((0, 0), |(all, held), address| {
            (all + 1, held + u32::from(covers(address)))
        });
        held > 0 && 2 * held >= all
    }

    /// The drop or reject list that holds at least half of it, if there is one, and whether it
    /// holds all of it.
    pub fn held_by<'c>(&self, compiled: &'c Compiled) -> Option<(&'c List, bool)> {
        let (list, all) = self.held(compiled, |_, _| true)?;
        Some((compiled.lists.get(usize::from(list))?, all))
    }
}

impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = if self.is_one_address() {
            self.net.addr().to_string()
        } else {
            self.net.to_string()
        };
        match self.role {
            ProtectedRole::LocalNetwork => write!(f, "the local network {net}"),
            ProtectedRole::Gate => write!(f, "{net}, an address of the gate"),
            ProtectedRole::NextHop => write!(f, "the next hop {net}"),
            ProtectedRole::NameServer => write!(f, "the name server {net}"),
            ProtectedRole::Front => write!(f, "the trusted front {net}"),
        }
    }
}

/// Addresses that stand for a network: the middles of up to 64 parts of it. Of a network a few
/// customers may well be on a list; and a prefix that holds all of it may be hidden at any one
/// address by a longer one.
fn probes(net: IpNet) -> impl Iterator<Item = IpAddr> {
    const PARTS_BITS: u8 = 6;
    let host_bits = net.max_prefix_len() - net.prefix_len();
    let parts_bits = host_bits.min(PARTS_BITS);
    let part_bits = host_bits - parts_bits;
    let middle = (1_u128 << part_bits) >> 1;
    (0..1_u128 << parts_bits).map(move |part| {
        let offset = part << part_bits | middle;
        match net.network() {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits() | offset as u32).into()),
            IpAddr::V6(first) => IpAddr::V6((first.to_bits() | offset).into()),
        }
    })
}

/// The drop or reject list that an address is refused by.
fn refused(compiled: &Compiled, address: IpAddr) -> Option<u16> {
    let found = compiled
        .filtered(address)
        .or_else(|| compiled.rejected(address));
    found
        .filter(|listing| listing.action != ListAction::Permit)
        .map(|listing| listing.list)
}

/// A list that would refuse too much that was not refused before.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// Its name.
    pub list: String,
    /// What it would refuse.
    pub grown: Grown,
}

/// What a list would newly refuse.
#[derive(Clone, Debug, PartialEq)]
pub enum Grown {
    /// So many addresses.
    Share(Covered),
    /// One of those.
    Holds(Protected),
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = &self.list;
        match &self.grown {
            Grown::Share(newly) => write!(
                f,
                "list {list} would newly cover {}, more than lists.grow_max allows",
                Share(*newly)
            ),
            Grown::Holds(protected) => write!(f, "list {list} would newly cover {protected}"),
        }
    }
}

/// `12.5% of IPv4`, `0.4% of IPv4 and 3.1% of IPv6 (2000::/3)`.
pub struct Share(pub Covered);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share(covered) = self;
        let (ipv4, ipv6) = (covered.ipv4_percent(), covered.ipv6_percent());
        match (covered.ipv4, covered.ipv6) {
            (_, 0) => write!(f, "{ipv4:.1}% of IPv4"),
            (0, _) => write!(f, "{ipv6:.1}% of IPv6 (2000::/3)"),
            _ => write!(f, "{ipv4:.1}% of IPv4 and {ipv6:.1}% of IPv6 (2000::/3)"),
        }
    }
}

/// What is reported when no earlier compile is known: the drop and reject lists that cover more
/// than `grow_max` percent of the addresses, or a protected address. (The configuration reports
/// local networks by itself.)
pub fn unknown_before(after: &Compiled, guard: &Guard) -> Vec<String> {
    if guard.grow_max >= OFF {
        return Vec::new();
    }
    let refusing = after
        .lists
        .iter()
        .filter(|list| list.action != ListAction::Permit);
    let wide = refusing.filter_map(|list| {
        let covered = list
            .covered
            .filter(|covered| covered.is_more_than(guard.grow_max))?;
        Some((list, Share(covered).to_string()))
    });
    let protected = guard.protected.iter();
    let others = protected.filter(|protected| protected.role != ProtectedRole::LocalNetwork);
    let held = others.filter_map(|protected| {
        let (list, _) = protected.held_by(after)?;
        Some((list, protected.to_string()))
    });
    let told = |(list, what): (&List, String)| {
        let (action, name) = (list.action.as_str(), &list.name);
        format!(
            "the {action} list \"{name}\" covers {what}, and no earlier compile is known that \
             this could be compared with"
        )
    };
    wide.chain(held).map(told).collect()
}

/// What losses and growth are measured by.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Percent of its entries that a list may lose.
    pub shrink_max: u8,
    /// Percent of the address space that a list may newly refuse.
    pub grow_max: u8,
    /// The protected addresses, which no list may newly refuse.
    pub protected: Vec<Protected>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            shrink_max: SHRINK_MAX,
            grow_max: GROW_MAX,
            protected: Vec::new(),
        }
    }
}

impl Guard {
    /// Of which family a list covers enough to have grown by too much: what it covers at all is no
    /// less than what it covers newly.
    pub(super) fn may_exceed(&self, after: &[List]) -> Families {
        let refusing = after
            .iter()
            .filter(|list| list.action != ListAction::Permit);
        refusing
            .map(|list| match list.covered {
                Some(covered) => covered.families_of_more_than(self.grow_max),
                None => Families::BOTH,
            })
            .fold(Families::default(), Families::or)
    }
}

/// The drop and reject lists that would newly refuse more than `grow_max` percent of the addresses,
/// or a protected one. A list that is new, or was a permit list, is the business of the operator
/// who wrote the configuration.
pub fn growths(before: &Compiled, after: &Compiled, guard: &Guard) -> Vec<Growth> {
    if guard.grow_max >= OFF {
        return Vec::new();
    }
    let refuses = |list: &List| list.action != ListAction::Permit;
    let known = |number: u16| {
        after.lists.get(usize::from(number)).filter(|list| {
            let mut before = before.lists.iter();
            before.any(|before| before.name == list.name && refuses(before))
        })
    };
    let mut growths = Vec::new();
    let families = guard.may_exceed(&after.lists);
    let newly = if families.any() {
        coverage::newly(before, after, families)
    } else {
        Vec::new()
    };
    for (number, newly) in (0..).zip(newly) {
        if newly.is_more_than(guard.grow_max)
            && let Some(list) = known(number)
        {
            growths.push(Growth {
                list: list.name.clone(),
                grown: Grown::Share(newly),
            });
        }
    }
    for protected in &guard.protected {
        let is_new = |address, list| known(list).is_some() && refused(before, address).is_none();
        let held = protected.held(after, is_new);
        if let Some(list) = held.and_then(|(list, _)| known(list)) {
            growths.push(Growth {
                list: list.name.clone(),
                grown: Grown::Holds(protected.clone()),
            });
        }
    }
    growths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists<const N: usize>(counts: [(&str, u64); N]) -> [List; N] {
        counts.map(|(name, entries)| List {
            name: name.to_owned(),
            action: ListAction::Drop,
            entries,
            ipv6_entries: 0,
            covered: None,
            file: None,
        })
    }

    #[test]
    fn a_list_that_lost_too_much_is_told_and_one_that_grew_is_not() {
        let cases = [
            (100, 50, 50, false),
            (100, 49, 50, true),
            (100, 101, 0, false),
            (100, 99, 0, true),
            (1, 0, 99, true),
            (0, 0, 0, false),
            (0, 1_000, 50, false),
            (u64::MAX, 0, 50, true),
            (u64::MAX, u64::MAX, 50, false),
            (100, 0, OFF, false),
        ];
        for (before, after, shrink_max, is_loss) in cases {
            let losses = losses(
                &lists([("drop", before)]),
                &lists([("drop", after)]),
                shrink_max,
            );
            assert_eq!(
                !losses.is_empty(),
                is_loss,
                "{before} -> {after}, {shrink_max}"
            );
        }
    }

    #[test]
    fn lists_are_compared_by_name_and_not_by_place() {
        let before = lists([("a", 10), ("b", 1_000), ("gone", 5)]);
        let after = lists([("new", 0), ("b", 1_000), ("a", 4)]);
        let losses = losses(&before, &after, 50);
        let told: Vec<String> = losses.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["list a (10 -> 4 entries)"]);
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn compiled(lists: &[(&str, ListAction, &[&str])]) -> Compiled {
        let lists = lists.iter();
        Compiled::new(lists.map(|(name, action, texts)| ((*name).to_owned(), *action, nets(texts))))
    }

    fn protected(text: &str, role: ProtectedRole) -> Vec<Protected> {
        Protected::new(text.parse().unwrap(), role)
            .into_iter()
            .collect()
    }

    fn told(
        before: &Compiled,
        after: &Compiled,
        grow_max: u8,
        protected: &[Protected],
    ) -> Vec<String> {
        let guard = Guard {
            grow_max,
            protected: protected.to_vec(),
            ..Guard::default()
        };
        let growths = growths(before, after, &guard);
        growths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_that_gains_half_of_the_internet_is_told_and_a_few_networks_more_are_not() {
        use ListAction::{Drop, Reject};
        let small: &[&str] = &["192.0.2.0/24", "2001:db8::/32"];
        // Wide ones are slow without optimisation, so there are few.
        let cases: [(ListAction, &str, u8, &str); 12] = [
            (Drop, "128.0.0.0/1", 1, "50.0% of IPv4"),
            (Reject, "96.0.0.0/5", 1, "3.1% of IPv4"),
            (Drop, "::/1", 1, "100.0% of IPv6 (2000::/3)"),
            (Reject, "2a00::/8", 1, "3.1% of IPv6 (2000::/3)"),
            (Drop, "44.0.0.0/6", 1, "1.6% of IPv4"),
            (Drop, "44.0.0.0/7", 1, ""),
            (Drop, "44.0.0.0/8", 0, "0.4% of IPv4"),
            (Drop, "44.0.0.0/6", 2, ""),
            (Drop, "2a00::/8", 4, ""),
            (Drop, "::/0", OFF, ""),
            (Drop, "fc00::/7", 0, ""),
            (Reject, "198.51.100.0/24", 1, ""),
        ];
        for (action, gained, grow_max, expected) in cases {
            let before = compiled(&[("feed", action, small)]);
            let all = [small, &[gained]].concat();
            let after = compiled(&[("feed", action, &all)]);
            let expected = match expected {
                "" => Vec::new(),
                share => vec![format!(
                    "list feed would newly cover {share}, more than lists.grow_max allows"
                )],
            };
            assert_eq!(told(&before, &after, grow_max, &[]), expected, "{gained}");
            // The next compile has nothing new.
            assert_eq!(told(&after, &after, grow_max, &[]), [""; 0], "{gained}");
        }
    }

    #[test]
    fn only_the_family_of_which_a_list_covers_enough_is_measured() {
        use ListAction::{Drop, Permit};
        let after = compiled(&[("feed", Drop, &[]), ("friends", Permit, &[])]).lists;
        let families = |feed: Covered, friends: Covered| {
            let mut after = after.clone();
            after[0].covered = Some(feed);
            after[1].covered = Some(friends);
            let Families { ipv4, ipv6 } = Guard::default().may_exceed(&after);
            (ipv4, ipv6)
        };
        let nothing = Covered::default();
        let ipv4 = Covered {
            ipv4: 1 << 31,
            ..nothing
        };
        let ipv6 = Covered {
            ipv6: 1 << 124,
            ..nothing
        };
        assert_eq!(families(nothing, nothing), (false, false));
        assert_eq!(families(ipv4, nothing), (true, false));
        assert_eq!(families(ipv6, nothing), (false, true));
        assert_eq!(families(nothing, ipv4), (false, false));
    }

    #[test]
    fn a_list_that_is_new_or_permits_may_cover_anything() {
        let before = compiled(&[
            ("friends", ListAction::Permit, &["192.0.2.1/32"]),
            ("turned", ListAction::Permit, &["192.0.2.2/32"]),
        ]);
        let after = compiled(&[
            ("friends", ListAction::Permit, &["32.0.0.0/6"]),
            ("turned", ListAction::Drop, &["48.0.0.0/6"]),
            ("bogons", ListAction::Drop, &["10.0.0.0/8", "64.0.0.0/6"]),
        ]);
        let local = protected("10.1.0.0/16", ProtectedRole::LocalNetwork);
        assert_eq!(told(&before, &after, 1, &local), [""; 0]);
    }

    #[test]
    fn those_whom_the_gate_lives_by_are_told_by_name_when_a_list_newly_holds_them() {
        use ProtectedRole::{Gate, LocalNetwork, NameServer, NextHop};
        let cases: [(&[&str], &str, ProtectedRole, &str); 10] = [
            (
                &["10.0.0.0/8"],
                "10.1.0.0/16",
                LocalNetwork,
                "the local network 10.1.0.0/16",
            ),
            (
                &["10.1.0.0/17"],
                "10.1.0.0/16",
                LocalNetwork,
                "the local network 10.1.0.0/16",
            ),
            // A customer, and even a lot of them.
            (
                &["10.1.7.0/24", "10.1.8.8/32", "10.1.128.0/18"],
                "10.1.0.0/16",
                LocalNetwork,
                "",
            ),
            // A longer prefix at its very beginning.
            (
                &["10.0.0.0/8", "10.1.0.0/32"],
                "10.1.0.0/16",
                LocalNetwork,
                "the local network 10.1.0.0/16",
            ),
            (
                &["2001:db8::/31"],
                "2001:db8::/32",
                LocalNetwork,
                "the local network 2001:db8::/32",
            ),
            (
                &["192.0.2.25/32"],
                "192.0.2.25/32",
                Gate,
                "192.0.2.25, an address of the gate",
            ),
            (
                &["198.51.100.0/22"],
                "198.51.100.25/32",
                NextHop,
                "the next hop 198.51.100.25",
            ),
            (
                &["2001:db8:53::/48"],
                "2001:db8:53::53/128",
                NameServer,
                "the name server 2001:db8:53::53",
            ),
            (&["192.0.2.24/32"], "192.0.2.25/32", Gate, ""),
            (&["127.0.0.0/8"], "127.0.0.0/8", LocalNetwork, ""),
        ];
        let before = compiled(&[("feed", ListAction::Drop, &["203.0.113.1/32"])]);
        for (gained, net, role, expected) in cases {
            let after = compiled(&[("feed", ListAction::Drop, gained)]);
            let protected = protected(net, role);
            let told_now = told(&before, &after, 99, &protected);
            match expected {
                "" => assert_eq!(told_now, [""; 0], "{gained:?}"),
                what => assert_eq!(told_now, [format!("list feed would newly cover {what}")]),
            }
            assert_eq!(told(&before, &after, OFF, &protected), [""; 0]);
            assert_eq!(
                told(&after, &after, 99, &protected),
                [""; 0],
                "it was so before"
            );
        }
    }
}
