//! The prefixes of one list, as its file gave them: collected in any order, then put in order, with
//! exclusions taken out.
//!
//! Eight bytes an IPv4 prefix and no structure but the order: ten million are 80 MB while they are
//! read, and are sorted in well under a second. Prefixes that another one covers stay, because a
//! lookup names the longest prefix that covers an address. An exclusion that lies within a prefix
//! splits it into the largest prefixes that are left.
//!
//! Rejected: `ipnet::IpNet` as the element (20 bytes, and a comparison through an enum), and a set
//! that merges while it is filled (several times the memory, and a tree to walk for each of ten
//! million lines).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An IPv4 prefix; ordered so that it comes after all that enclose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Prefix {
    /// Without host bits.
    pub address: u32,
    /// At most 32.
    pub length: u8,
}

/// An IPv6 prefix; ordered so that it comes after all that enclose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Prefix {
    /// Without host bits.
    pub address: u128,
    /// At most 128.
    pub length: u8,
}

impl Ipv4Prefix {
    /// The prefix of this length around an address; its host bits are cleared.
    ///
    /// # Panics
    /// If the length is beyond 32.
    pub fn around(address: u32, length: u8) -> Ipv4Prefix {
        assert!(length <= 32);
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Ipv4Prefix {
            address: address & mask,
            length,
        }
    }
}

impl Ipv6Prefix {
    /// The prefix of this length around an address; its host bits are cleared.
    ///
    /// # Panics
    /// If the length is beyond 128.
    pub fn around(address: u128, length: u8) -> Ipv6Prefix {
        assert!(length <= 128);
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Ipv6Prefix {
            address: address & mask,
            length,
        }
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.address), self.length)
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.address), self.length)
    }
}

/// IPv4 written as IPv6 lies in `::ffff:0:0/96`.
const MAPPED_BITS: u8 = 96;
/// The widest IPv4 prefix that may be written so. Bogon lists of IPv6 hold `::ffff:0:0/96`, which
/// no packet has as its source, and do not mean all of IPv4 by it; no IPv4 list has a wider prefix
/// for a reason.
const MAPPED_LENGTH_MIN: u8 = 8;

/// An IPv4 prefix that is written as IPv6, and is too wide to be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedTooWide;

impl MappedTooWide {
    /// In words, with what to do.
    pub const REASON: &'static str = "IPv4 written as IPv6 (::ffff:0:0/96) that would cover more \
                                      than a /8 of IPv4: if that is meant, write it as IPv4";
}

impl fmt::Display for MappedTooWide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REASON)
    }
}

/// A prefix as packets and clients have it: IPv4 that is written as IPv6 (`::ffff:192.0.2.0/120`)
/// is IPv4. Host bits may be set in what is given, and stay. Prefixes that only translate IPv4
/// (64:ff9b::/96 of RFC 6052, 2002::/16 of 6to4) are IPv6 like any other: whose packets have such a
/// source is for the translator to say, and it need not be the IPv4 address in it.
///
/// # Errors
/// [`MappedTooWide`].
pub fn unmapped(net: IpNet) -> Result<IpNet, MappedTooWide> {
    let IpNet::V6(v6) = net else {
        return Ok(net);
    };
    let Some(address) = v6.addr().to_ipv4_mapped() else {
        return Ok(net);
    };
    match v6.prefix_len().checked_sub(MAPPED_BITS) {
        Some(length @ MAPPED_LENGTH_MIN..) => Ipv4Net::new(address, length)
            .map(IpNet::V4)
            .map_err(|_| MappedTooWide),
        _ => Err(MappedTooWide),
    }
}

/// Prefixes of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// In the order in which they came, or sorted after [`finish`](Entries::finish).
    pub ipv4: Vec<Ipv4Prefix>,
    /// As `ipv4`.
    pub ipv6: Vec<Ipv6Prefix>,
}

/// How exclusions and entries of one list weigh against each other, where both cover an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// The longer prefix decides, and the entry if both have the same length.
    Length,
    /// The same, with all lengths rounded up to whole octets, and the exclusion if they are then
    /// the same: as rbldnsd's ip4set answers, which keeps an array of addresses for each of /32,
    /// /24, /16 and /8.
    Octets,
}

impl Entries {
    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a prefix as packets and clients have it (see [`unmapped`]); its host bits are cleared.
    ///
    /// # Errors
    /// [`MappedTooWide`]; then nothing is added.
    pub fn push(&mut self, net: IpNet) -> Result<(), MappedTooWide> {
        match unmapped(net)? {
            IpNet::V4(net) => {
                let prefix = Ipv4Prefix::around(net.addr().to_bits(), net.prefix_len());
                self.ipv4.push(prefix);
            }
            IpNet::V6(net) => {
                let prefix = Ipv6Prefix::around(net.addr().to_bits(), net.prefix_len());
                self.ipv6.push(prefix);
            }
        }
        Ok(())
    }

    /// Adds the fewest prefixes that cover the addresses from the first to the last; nothing if
    /// there are none between.
    pub fn push_ipv4_range(&mut self, first: u32, last: u32) {
        cover(first, last, |prefix| self.ipv4.push(prefix));
    }

    /// As [`push_ipv4_range`](Entries::push_ipv4_range).
    pub fn push_ipv6_range(&mut self, first: u128, last: u128) {
        cover(first, last, |prefix| self.ipv6.push(prefix));
    }

    /// Sorts, leaves out duplicates, and takes out what is excluded. Returns how many of the
    /// prefixes were not needed to say which addresses are listed: duplicates, and those that
    /// another one covers (which stay).
    pub fn finish(&mut self, excluded: Entries, precedence: Precedence) -> u64 {
        let whole_octets = precedence == Precedence::Octets;
        let ipv4 = finish(&mut self.ipv4, excluded.ipv4, whole_octets);
        ipv4 + finish(&mut self.ipv6, excluded.ipv6, whole_octets)
    }

    /// Whether one of the prefixes, which are sorted, covers an address.
    pub fn cover(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => covers(&self.ipv4, address.to_bits(), 32),
            IpAddr::V6(address) => covers(&self.ipv6, address.to_bits(), 128),
        }
    }

    /// All prefixes.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.nets_v4().chain(self.nets_v6())
    }

    fn nets_v4(&self) -> impl Iterator<Item = IpNet> {
        self.ipv4.iter().filter_map(|prefix| {
            let net = Ipv4Net::new(Ipv4Addr::from_bits(prefix.address), prefix.length);
            net.ok().map(IpNet::V4)
        })
    }

    fn nets_v6(&self) -> impl Iterator<Item = IpNet> {
        self.ipv6.iter().filter_map(|prefix| {
            let net = Ipv6Net::new(Ipv6Addr::from_bits(prefix.address), prefix.length);
            net.ok().map(IpNet::V6)
        })
    }
}

/// What is [too wide to be meant](MappedTooWide) is left out.
impl FromIterator<IpNet> for Entries {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Entries {
        let mut entries = Entries::default();
        for net in nets {
            let _ = entries.push(net);
        }
        entries
    }
}

/// By a search for the prefix of each length around the address.
fn covers<P: Prefix>(sorted: &[P], address: P::Address, length_max: u8) -> bool {
    let mut around = (0..=length_max).map(|length| P::around(address, length));
    !sorted.is_empty() && around.any(|prefix| sorted.binary_search(&prefix).is_ok())
}

/// What the two families have in common.
trait Prefix: Copy + Ord {
    type Address: Copy + Ord;
    const BITS: u8;
    fn around(address: Self::Address, length: u8) -> Self;
    fn first(self) -> Self::Address;
    fn last(self) -> Self::Address;
    fn length(self) -> u8;
    fn trailing_zeros(address: Self::Address) -> u8;
    fn next(address: Self::Address) -> Option<Self::Address>;

    fn encloses(self, other: Self) -> bool {
        self.length() <= other.length() && (self.first()..=self.last()).contains(&other.first())
    }

    /// Its halves; `None` for a single address.
    fn halves(self) -> Option<[Self; 2]> {
        let length = self.length() + 1;
        (length <= Self::BITS).then(|| {
            [
                Self::around(self.first(), length),
                Self::around(self.last(), length),
            ]
        })
    }
}

macro_rules! prefix {
    ($prefix:ty, $address:ty, $bits:literal) => {
        impl Prefix for $prefix {
            type Address = $address;
            const BITS: u8 = $bits;
            fn around(address: $address, length: u8) -> Self {
                <$prefix>::around(address, length)
            }
            fn first(self) -> $address {
                self.address
            }
            fn last(self) -> $address {
                let hosts = <$address>::MAX.checked_shr(u32::from(self.length));
                self.address | hosts.unwrap_or(0)
            }
            fn length(self) -> u8 {
                self.length
            }
            fn trailing_zeros(address: $address) -> u8 {
                address.trailing_zeros() as u8
            }
            fn next(address: $address) -> Option<$address> {
                address.checked_add(1)
            }
        }
    };
}

prefix!(Ipv4Prefix, u32, 32);
prefix!(Ipv6Prefix, u128, 128);

/// The fewest prefixes from the first address to the last: at each step the largest that begins
/// there and does not reach beyond.
fn cover<P: Prefix>(first: P::Address, last: P::Address, mut each: impl FnMut(P)) {
    let mut next = Some(first);
    while let Some(at) = next.filter(|&at| at <= last) {
        let mut length = P::BITS - P::trailing_zeros(at);
        while P::around(at, length).last() > last {
            length += 1;
        }
        let prefix = P::around(at, length);
        each(prefix);
        next = P::next(prefix.last());
    }
}

fn finish<P: Prefix>(listed: &mut Vec<P>, mut excluded: Vec<P>, whole_octets: bool) -> u64 {
    let all = listed.len();
    listed.sort_unstable();
    listed.dedup();
    let duplicates = all - listed.len();
    let covered = covered(listed);
    if !excluded.is_empty() {
        excluded.sort_unstable();
        excluded.dedup();
        take_out(listed, &excluded, whole_octets);
    }
    (duplicates + covered) as u64
}

/// How many of sorted and distinct prefixes lie within another.
fn covered<P: Prefix>(sorted: &[P]) -> usize {
    let mut end: Option<P::Address> = None;
    let mut covered = 0;
    for prefix in sorted {
        if end.is_some_and(|end| prefix.first() <= end) {
            covered += 1;
        } else {
            end = Some(prefix.last());
        }
    }
    covered
}

/// Takes what is excluded out of what is listed; both are sorted and distinct.
fn take_out<P: Prefix>(listed: &mut Vec<P>, excluded: &[P], whole_octets: bool) {
    if whole_octets {
        let octets = |prefix: P| prefix.length().max(1).div_ceil(8);
        let mut open: Vec<P> = Vec::new();
        let mut rest = excluded.iter().copied().peekable();
        listed.retain(|&prefix| {
            while let Some(exclusion) = rest.next_if(|&exclusion| exclusion <= prefix) {
                open.retain(|outer| outer.encloses(exclusion));
                open.push(exclusion);
            }
            open.retain(|outer| outer.encloses(prefix));
            !open.iter().any(|&outer| octets(outer) == octets(prefix))
        });
    }
    // Only what has an exclusion within it changes, and that is little.
    let inside = |prefix: P| {
        let from = excluded.partition_point(|&exclusion| exclusion <= prefix);
        let length =
            excluded[from..].partition_point(|exclusion| exclusion.first() <= prefix.last());
        &excluded[from..from + length]
    };
    let mut split = Vec::new();
    listed.retain(|&prefix| {
        let stays = inside(prefix).is_empty();
        if !stays {
            split.push(prefix);
        }
        stays
    });
    let whole = listed.len();
    for &prefix in &split {
        remains(prefix, inside(prefix), &split, listed);
    }
    if listed.len() > whole {
        listed.sort_unstable();
        listed.dedup();
    }
}

/// What is left of a prefix without the exclusions within it, in the fewest prefixes. Where another
/// prefix that is split begins, it speaks for itself: so each exclusion makes at most as many
/// prefixes as an address has bits, however deep it lies in prefixes within prefixes.
fn remains<P: Prefix>(prefix: P, excluded: &[P], split: &[P], left: &mut Vec<P>) {
    let (Some(&first), Some([lower, upper])) = (excluded.first(), prefix.halves()) else {
        if excluded.is_empty() {
            left.push(prefix);
        }
        return;
    };
    debug_assert!(prefix < first);
    let middle = excluded.partition_point(|exclusion| exclusion.first() < upper.first());
    let (of_lower, of_upper) = excluded.split_at(middle);
    for (half, excluded) in [(lower, of_lower), (upper, of_upper)] {
        let is_excluded = excluded.first() == Some(&half);
        if !is_excluded && split.binary_search(&half).is_err() {
            remains(half, excluded, split, left);
        }
    }
}

#[cfg(test)]
mod tests;
