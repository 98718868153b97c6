//! `[relay]`: local networks, local domains, and how long the relay waits for a next hop.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::error::{Error, Position};
use super::keys::{Absent, DAY, Form, Key, KeyTable, SECOND, count, duration, text};
use super::list::read_file;
use super::section::Section;
use super::value;
use crate::lists::format::foreign::foreign;
use crate::policy::domain::Pattern;

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[relay]",
    about: "Local networks and local domains, which make the relay a closed one, and how long the \
            gate waits for a next hop.",
    keys: &[
        Key::new(
            "networks",
            Form::Texts {
                what: "networks or addresses",
                default: Absent::Is(&["127.0.0.0/8", "::1/128"]),
            },
            "Clients in these networks may send to every recipient. Networks that are too wide \
             (IPv4 wider than /8, IPv6 wider than /16) are refused: that would be an open relay. \
             The default holds only without `networks_file`, too.",
        )
        .see(&[
            "relay.networks_file",
            "limits.sessions_per_source",
            "lists.grow_max",
        ]),
        Key::new(
            "networks_file",
            text("a path", Absent::Nothing),
            "A file with more of them, one per line; `#` begins a comment.",
        )
        .see(&["relay.networks"]),
        Key::new(
            "domains",
            Form::Texts {
                what: "domains, or `.parent` for all that is beneath it",
                default: Absent::Nothing,
            },
            "Local domains: every client may send to them. Each needs a route.",
        )
        .see(&["relay.domains_file", "route.domains"]),
        Key::new(
            "domains_file",
            text("a path", Absent::Nothing),
            "A file with more of them, one per line; `#` begins a comment.",
        )
        .see(&["relay.domains"]),
        Key::new(
            "addresses",
            Form::Texts {
                what: "IP addresses",
                default: Absent::Nothing,
            },
            "Addresses of this gate besides those of its listeners: recipients in an address \
             literal of one of them are local.",
        )
        .see(&["listener.address"]),
        Key::new(
            "connect_timeout",
            duration(HALF_A_MINUTE, SECOND..=FIVE_MINUTES),
            "How long a connection to a next hop may take to be ready. Another next hop of the \
             route is tried after one second.",
        )
        .see(&["route.next_hop"]),
        Key::new(
            "reply_timeout",
            duration(TWO_MINUTES, SECOND..=DAY),
            "How long a next hop may take for each reply but the last of a message. Less than the \
             five minutes that a client waits (RFC 5321 section 4.5.3.2), so that the client hears \
             the 451.",
        )
        .see(&["relay.send_timeout"]),
        Key::new(
            "send_timeout",
            Form::Duration {
                default: Absent::Varies("`\"3m\"`, or `reply_timeout` where that is set"),
                range: SECOND..=DAY,
            },
            "How long a send to a next hop may make no progress at all. RFC 5321 section 4.5.3.2.5 \
             asks for three minutes.",
        )
        .see(&["relay.reply_timeout"]),
        Key::new(
            "message_timeout",
            duration(NINE_MINUTES, SECOND..=DAY),
            "How long a next hop may take for its reply to the end of the data. Less than the ten \
             minutes that a client waits.",
        ),
        Key::new(
            "idle_timeout",
            duration(HALF_A_MINUTE, SECOND..=DAY),
            "How long an idle connection to a next hop is kept for the next message.",
        ),
        Key::new(
            "connections",
            count("connections", 100, 1..=1_000_000),
            "The most connections to one next hop at a time, for each worker.",
        )
        .see(&["workers"]),
        Key::new(
            "retry_after",
            duration(HALF_A_MINUTE, SECOND..=DAY),
            "The longest time that the gate does not try a next hop again that did not answer, \
             while there is another.",
        ),
    ],
    later: &[],
};

const HALF_A_MINUTE: Duration = Duration::from_secs(30);
const TWO_MINUTES: Duration = Duration::from_secs(120);
const THREE_MINUTES: Duration = Duration::from_secs(180);
const FIVE_MINUTES: Duration = Duration::from_secs(300);
const NINE_MINUTES: Duration = Duration::from_secs(540);

/// How the relay treats its next hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// For a connection to a next hop, up to its greeting being due.
    pub connect_timeout: Duration,
    /// For each reply but the last. Less than the five minutes that our own client waits (RFC 5321
    /// section 4.5.3.2), so that it hears the 451 and not silence.
    pub reply_timeout: Duration,
    /// How long a next hop may take nothing of what it is sent, however much that is: RFC 5321
    /// section 4.5.3.2.5 gives three minutes. Where `reply_timeout` is set and this is not, it is
    /// the same.
    pub send_timeout: Duration,
    /// For the reply to the end of the data; less than the ten minutes of our own client.
    pub message_timeout: Duration,
    /// How long a connection is kept for the next message.
    pub idle_timeout: Duration,
    /// Connections at once, per next hop and worker.
    pub connections: u32,
    /// How long a next hop that did not answer is left alone while there is another.
    pub retry_after: Duration,
}

/// What `[relay]` says about who and what is local.
pub(super) struct Local {
    pub(super) networks: Vec<IpNet>,
    pub(super) domains: Vec<Pattern>,
    pub(super) addresses: Vec<IpAddr>,
}

/// Reads the whole table.
pub(super) fn read(s: &mut Section<'_, '_>) -> (Local, Relay) {
    let local = Local {
        networks: read_networks(s),
        domains: texts_and_file(s, "domains", "domains_file", local_domain).unwrap_or_default(),
        addresses: s
            .texts("addresses", value::address)
            .map(|list| list.into_iter().map(toml::Spanned::into_inner).collect())
            .unwrap_or_default(),
    };
    let reply_timeout_given = s.has("reply_timeout");
    let reply_timeout = s.duration("reply_timeout");
    let send_timeout = if reply_timeout_given {
        reply_timeout
    } else {
        THREE_MINUTES
    };
    let relay = Relay {
        connect_timeout: s.duration("connect_timeout"),
        reply_timeout,
        send_timeout: s.duration_or("send_timeout", send_timeout),
        message_timeout: s.duration("message_timeout"),
        idle_timeout: s.duration("idle_timeout"),
        connections: s.count_u32("connections"),
        retry_after: s.duration("retry_after"),
    };
    (local, relay)
}

/// Without the keys, clients on this host are local and no other.
fn read_networks(s: &mut Section<'_, '_>) -> Vec<IpNet> {
    match texts_and_file(s, "networks", "networks_file", local_network) {
        Some(networks) => networks,
        None => s.default_texts("networks", local_network),
    }
}

fn local_network(text: &str) -> Result<IpNet, String> {
    let net = value::network(text)?;
    let is_too_wide = match net {
        IpNet::V4(net) => net.prefix_len() < 8,
        IpNet::V6(net) => is_too_wide_ipv6(net),
    };
    if is_too_wide {
        return Err(
            "this would be an open relay: wider than any provider's own network".to_owned(),
        );
    }
    Ok(net)
}

/// No provider's own network is wider than a /16 of what is assigned, 2000::/3. In addresses that
/// translate or tunnel IPv4 (RFC 6052 and its prefix for local use, 6to4) a network is as wide as
/// the IPv4 in it, and more than a /8 of that is too wide as well.
fn is_too_wide_ipv6(net: Ipv6Net) -> bool {
    const ASSIGNED: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);
    const OF_IPV4: [(Ipv6Addr, u8); 3] = [
        (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
        (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    ];
    let too_wide = |(first, base): (Ipv6Addr, u8), own: u8| {
        let is_within = Ipv6Net::new(first, base).is_ok_and(|block| block.contains(&net.addr()));
        net.contains(&first) || (is_within && net.prefix_len() < base + own)
    };
    too_wide((ASSIGNED, 3), 13) || OF_IPV4.into_iter().any(|block| too_wide(block, 8))
}

fn local_domain(text: &str) -> Result<Pattern, String> {
    match Pattern::parse(text)? {
        Pattern::Any => Err("this would be an open relay: `*` is every domain".to_owned()),
        pattern => Ok(pattern),
    }
}

/// The entries of a list in the configuration and of the file that another key names; `None` when
/// both keys are absent.
pub(super) fn texts_and_file<T>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    file_key: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let here = s.texts(key, parse);
    let there = s.text(file_key, |path| Ok(path.to_owned())).map(|path| {
        let resolved = s.document.resolve(path.get_ref());
        let mut bytes = read_file(s, &resolved, &path.span()).unwrap_or_default();
        if let Some(foreign) = foreign(&bytes) {
            let message = format!("{} is {foreign}", resolved.display());
            s.document.error(&path.span(), message);
            bytes.clear();
        }
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(String::from_utf8_lossy(&bytes).lines()) {
            let entry = line.split('#').next().unwrap_or(line).trim();
            if entry.is_empty() {
                continue;
            }
            match parse(entry) {
                Ok(value) => entries.push(value),
                Err(message) => {
                    let column = line.chars().take_while(|c| c.is_whitespace()).count() + 1;
                    let width = entry.chars().count();
                    let position = Some(Position {
                        line: number,
                        column,
                        width,
                        text: line.to_owned(),
                    });
                    let file = resolved.clone();
                    s.document.error_elsewhere(Error {
                        file,
                        position,
                        message,
                        advice: None,
                    });
                }
            }
        }
        entries
    });
    if here.is_none() && there.is_none() {
        return None;
    }
    let here = here
        .unwrap_or_default()
        .into_iter()
        .map(toml::Spanned::into_inner);
    Some(here.chain(there.unwrap_or_default()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_strangers_is_no_local_network_in_any_form() {
        for text in [
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "10.0.0.0/7",
            "::/0",
            "::/1",
            "2000::/3",
            "2000::/4",
            "2a00::/12",
            "::ffff:0:0/96",
            "::ffff:0:0/97",
            // Every IPv4 client, where it comes through a translator or a tunnel.
            "64:ff9b::/96",
            "64:ff9b::/32",
            "64:ff9b::c000:0/102",
            "64:ff9b:1::/48",
            "2002::/16",
            "2002:c000::/20",
        ] {
            assert!(local_network(text).is_err(), "{text}");
        }
        for text in [
            "10.0.0.0/8",
            "192.0.2.1",
            "::ffff:192.0.2.0/120",
            "2001:db8::/32",
            "2001:db8::/29",
            "fc00::/7",
            "fe80::/10",
            "::1",
            "64:ff9b::c000:200/120",
            "64:ff9b:1:fffe::/96",
            "2002:c000:201::/48",
        ] {
            assert!(local_network(text).is_ok(), "{text}");
        }
    }
}
