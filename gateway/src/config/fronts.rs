//! The keys of a listener for trusted fronts: who may say which client it speaks for.

use ipnet::IpNet;

use super::Config;
use super::keys::{Absent, Form, Key};
use super::section::Section;
use super::value;
use crate::fronts::TrustedFronts;

pub(super) const PROXY: Key = Key::new(
    "proxy_protocol_from",
    Form::Texts {
        what: "addresses or networks",
        default: Absent::Nothing,
    },
    "The balancers that begin each connection with a header of the PROXY protocol, version 1 or 2, \
     within ten seconds; without a good one the gate closes. All else then follows the client that \
     the header names. From another address a header is an unknown command.",
)
.see(&["listener.xclient_from", "relay.networks"])
.at_start();

pub(super) const XCLIENT: Key = Key::new(
    "xclient_from",
    Form::Texts {
        what: "addresses or networks",
        default: Absent::Nothing,
    },
    "The mail proxies that may name their client with XCLIENT. Only they are offered it. Behind a \
     PROXY header it is the client named there that has to be in the list.",
)
.see(&["listener.proxy_protocol_from", "relay.networks"])
.at_start();

/// Reads one of the two.
pub(super) fn read(s: &mut Section<'_, '_>, key: &'static str) -> TrustedFronts {
    let networks = s.texts(key, front).unwrap_or_default();
    TrustedFronts::new(
        networks
            .into_iter()
            .map(toml::Spanned::into_inner)
            .collect(),
    )
}

/// A front chooses the client that the policy sees, so it can send to anywhere: that is no right
/// for more than a few machines.
fn front(text: &str) -> Result<IpNet, String> {
    let net = value::network(text)?;
    let length_min = match net {
        IpNet::V4(_) => 16,
        IpNet::V6(_) => 48,
    };
    if net.prefix_len() < length_min {
        return Err(format!(
            "wider than a /{length_min}: each address in it could act as any client. Name the \
             addresses of the fronts"
        ));
    }
    Ok(net)
}

impl Config {
    /// Whether a trusted front of some listener is within this network, or the network within
    /// that of fronts.
    pub fn has_front_in(&self, network: IpNet) -> bool {
        let overlaps = |front: IpNet| front.contains(&network) || network.contains(&front);
        self.fronts().any(overlaps)
    }

    /// The trusted fronts of all listeners.
    pub(super) fn fronts(&self) -> impl Iterator<Item = IpNet> {
        self.listeners.iter().flat_map(|listener| {
            let fronts = [&listener.proxy_protocol_from, &listener.xclient_from];
            fronts.into_iter().flat_map(TrustedFronts::networks)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_front_of_any_listener_is_found_also_in_the_network_of_a_verdict() {
        let text = "[[listener]]\naddress = \"127.0.0.1:25\"\n\
                    proxy_protocol_from = [\"10.0.0.7\", \"2001:db8::7\"]\n\
                    [[listener]]\naddress = \"127.0.0.1:26\"\nxclient_from = [\"192.0.2.0/24\"]\n\
                    [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n";
        let config = crate::config::parse(Path::new("fronts.toml"), text).unwrap();
        let has_front_in = |text: &str| config.has_front_in(text.parse().unwrap());
        for text in ["10.0.0.7/32", "192.0.2.9/32", "2001:db8::/64"] {
            assert!(has_front_in(text), "{text}");
        }
        for text in ["10.0.0.6/32", "192.0.3.0/32", "2001:db8:0:1::/64"] {
            assert!(!has_front_in(text), "{text}");
        }
    }

    #[test]
    fn a_network_of_strangers_cannot_be_a_front() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "::/0",
            "2001:db8::/32",
            "10.0.0.7/24",
        ] {
            assert!(front(text).is_err(), "{text}");
        }
        for (text, net) in [
            ("10.0.0.7", "10.0.0.7/32"),
            ("::ffff:10.0.0.7", "10.0.0.7/32"),
            ("10.0.0.0/24", "10.0.0.0/24"),
            ("2001:db8:1::/48", "2001:db8:1::/48"),
        ] {
            assert_eq!(front(text), Ok(net.parse().unwrap()), "{text}");
        }
    }
}
