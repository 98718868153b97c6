//! Addresses and networks: in text, and in the layout of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::Key;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::layout::VerdictKey;
use portcullis_ebpf_common::packet::FAMILY_BITS;

/// An address in the layout of the program. An IPv4-mapped IPv6 address becomes an IPv4 address.
pub(super) fn source(address: IpAddr) -> Source {
    match address.to_canonical() {
        IpAddr::V4(address) => Source::ipv4(address.octets()),
        IpAddr::V6(address) => Source::ipv6(address.octets()),
    }
}

/// The key of a recent verdict on this address: the address, or the /64 of an IPv6 one.
pub(super) fn verdict_key(address: IpAddr) -> VerdictKey {
    source(address).key()
}

/// The network of a recent verdict on this address: the address, or the /64 of an IPv6 one.
#[must_use]
pub fn verdict_network(address: IpAddr) -> IpNet {
    of_verdict(verdict_key(address))
}

/// The network of the verdict with this key.
pub(super) fn of_verdict(key: VerdictKey) -> IpNet {
    let [family, first, second] = key;
    let words = [family, first, second, 0, 0];
    match of_source(words) {
        IpAddr::V4(address) => IpNet::from(Ipv4Net::from(address)),
        IpAddr::V6(address) => IpNet::from(Ipv6Net::new_assert(address, 64)),
    }
}

/// Such a network as text: an IPv4 address without a prefix length, an IPv6 /64 with it.
#[must_use]
pub fn format_network(network: &IpNet) -> String {
    match network {
        IpNet::V4(network) => network.addr().to_string(),
        IpNet::V6(network) => network.to_string(),
    }
}

/// The address from its words in a map.
pub(super) fn of_source(words: [u32; 5]) -> IpAddr {
    let [_, first, second, third, fourth] = words;
    if Source(words).is_ipv4() {
        return Ipv4Addr::from(first.to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (part, word) in octets
        .chunks_exact_mut(4)
        .zip([first, second, third, fourth])
    {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).into()
}

/// A network as the key of a trie, with the family in front.
pub(super) fn trie_key(network: &IpNet) -> Key<[u32; 5]> {
    let length = FAMILY_BITS + u32::from(network.prefix_len());
    Key::new(length, source_of_network(network).0)
}

/// The network from the key of a trie; `None` if it is not valid.
pub(super) fn of_trie(length: u32, words: [u32; 5]) -> Option<IpNet> {
    let length = u8::try_from(length.checked_sub(FAMILY_BITS)?).ok()?;
    IpNet::new(of_source(words), length).ok()
}

/// The first address of a network, in the network's own family: `::/0` is not an IPv4 network.
fn source_of_network(network: &IpNet) -> Source {
    match network.network() {
        IpAddr::V4(address) => Source::ipv4(address.octets()),
        IpAddr::V6(address) => Source::ipv6(address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_covers_one_ipv4_address_or_an_ipv6_64() {
        let cases = [
            ("192.0.2.66", "192.0.2.66"),
            ("::ffff:192.0.2.66", "192.0.2.66"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ];
        for (address, network) in cases {
            let key = verdict_key(address.parse().unwrap());
            assert_eq!(format_network(&of_verdict(key)), network, "{address}");
        }
    }

    #[test]
    fn an_address_comes_back_from_the_words_of_the_map() {
        for text in ["192.0.2.66", "2001:db8:1:2:3:4:5:6", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(of_source(source(address).0), address);
        }
    }

    #[test]
    fn a_network_covers_addresses_of_its_own_family_only() {
        let every = trie_key(&"::/0".parse().unwrap());
        assert_eq!(every.prefix_len(), 32);
        assert_ne!(every.data()[0], source("192.0.2.1".parse().unwrap()).0[0]);
        let key = trie_key(&"192.0.2.77/24".parse().unwrap());
        assert_eq!(
            (key.prefix_len(), key.data()),
            (56, source("192.0.2.0".parse().unwrap()).0)
        );
    }
}
