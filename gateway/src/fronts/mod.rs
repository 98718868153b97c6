//! Trusted fronts: a balancer or proxy that speaks to the gate in the name of a client, and next
//! hops to which the gate speaks in the name of its own.
//!
//! Two ways are in use. The PROXY protocol ([`proxy`]) is a header before the first octet of a
//! connection, so it holds for the whole connection. XCLIENT ([`xclient`]) is a command of SMTP,
//! so a connection that is kept can name the next client with it.
//!
//! Both say who a client is, and so who may relay. They count only from addresses that the
//! operator names ([`TrustedFronts`]). Rejected: to recognize the header from any address, because
//! a stranger would then choose the address that the policy sees.
//!
//! What a worker makes of them is in `worker/front.rs`.

pub mod proxy;
pub mod xclient;

use std::net::IpAddr;

use ipnet::IpNet;

/// The addresses that may name another client than themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedFronts(Vec<IpNet>);

impl TrustedFronts {
    /// No front is trusted.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// The fronts in these networks. IPv4 must be written as IPv4, which is how
    /// [`contains`](Self::contains) compares; [`unmapped`](crate::lists::entries::unmapped) does
    /// that for prefixes of a configuration.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether the other end of a connection is a trusted front. A dual-stack socket gives an IPv4
    /// peer as `::ffff:192.0.2.1`, which is the same as 192.0.2.1.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// Where they are.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().copied()
    }

    /// No front is trusted: then no octet has to be looked at.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How a next hop hears which client a message comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SendClient {
    /// Not at all: it sees the gate.
    #[default]
    No,
    /// The text header of the PROXY protocol.
    ProxyV1,
    /// The binary header of the PROXY protocol.
    ProxyV2,
    /// XCLIENT, where the next hop offers it.
    Xclient,
}

impl SendClient {
    /// Whether a connection can serve one client after the other. The PROXY header stands once, at
    /// the beginning, so a second client would act in the name of the first.
    pub fn can_change_client(self) -> bool {
        match self {
            Self::No | Self::Xclient => true,
            Self::ProxyV1 | Self::ProxyV2 => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_addresses_are_trusted_however_the_socket_writes_them() {
        let networks = ["10.0.0.7/32", "192.0.2.0/24", "2001:db8::7/128"];
        let networks = networks.map(|text| text.parse().expect("a prefix"));
        let fronts = TrustedFronts::new(networks.to_vec());
        let is_trusted = |text: &str| fronts.contains(text.parse().expect("an address"));
        for text in ["10.0.0.7", "::ffff:10.0.0.7", "192.0.2.255", "2001:db8::7"] {
            assert!(is_trusted(text), "{text}");
        }
        for text in ["10.0.0.8", "::10.0.0.7", "192.0.3.0", "2001:db8::8", "::1"] {
            assert!(!is_trusted(text), "{text}");
        }
        assert!(!TrustedFronts::default().contains(IpAddr::from([127, 0, 0, 1])));
        assert!(TrustedFronts::default().is_empty());
    }

    #[test]
    fn a_connection_that_began_with_a_proxy_header_is_for_one_client() {
        use SendClient::{No, ProxyV1, ProxyV2, Xclient};
        let can_change = [No, Xclient, ProxyV1, ProxyV2].map(SendClient::can_change_client);
        assert_eq!(can_change, [true, true, false, false]);
    }
}
