//! `[relay]`: who is local, what is local, and how patient the relay is with a next hop.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::error::{Error, Position};
use super::limits::count;
use super::list::read_file;
use super::section::Section;
use super::value;
use crate::policy::domain::Pattern;

/// How the relay treats its next hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// For a connection to a next hop, up to its greeting being due.
    pub connect_timeout: Duration,
    /// For each reply but the last. Less than the five minutes that our own client waits (RFC 5321 section 4.5.3.2), so that it
    /// hears the 451 and not silence.
    pub reply_timeout: Duration,
    /// How long a next hop may take nothing of what it is sent, however much that is: RFC 5321 section 4.5.3.2.5 gives three
    /// minutes. Where `reply_timeout` is set and this is not, it is the same.
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
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);
    let local = Local {
        networks: read_networks(s),
        domains: texts_and_file(s, "domains", "domains_file", local_domain).unwrap_or_default(),
        addresses: s
            .texts("addresses", value::address)
            .map(|list| list.into_iter().map(toml::Spanned::into_inner).collect())
            .unwrap_or_default(),
    };
    let reply_timeout_given = s.has("reply_timeout");
    let reply_timeout = s.duration("reply_timeout", 2 * MINUTE, SECOND..=DAY);
    let send_timeout = if reply_timeout_given {
        reply_timeout
    } else {
        3 * MINUTE
    };
    let relay = Relay {
        connect_timeout: s.duration("connect_timeout", 30 * SECOND, SECOND..=5 * MINUTE),
        reply_timeout,
        send_timeout: s.duration("send_timeout", send_timeout, SECOND..=DAY),
        message_timeout: s.duration("message_timeout", 9 * MINUTE, SECOND..=DAY),
        idle_timeout: s.duration("idle_timeout", 30 * SECOND, SECOND..=DAY),
        connections: count(s, "connections", 100, 1..=1_000_000),
        retry_after: s.duration("retry_after", 30 * SECOND, SECOND..=DAY),
    };
    (local, relay)
}

/// With nothing said, those on this host are local and nobody else.
fn read_networks(s: &mut Section<'_, '_>) -> Vec<IpNet> {
    const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
    match texts_and_file(s, "networks", "networks_file", local_network) {
        Some(networks) => networks,
        None => {
            s.by_default("networks", format_args!("{LOOPBACK:?}"));
            LOOPBACK.iter().filter_map(|net| net.parse().ok()).collect()
        }
    }
}

fn local_network(text: &str) -> Result<IpNet, String> {
    let net = value::network(text)?;
    if net.prefix_len() == 0 {
        return Err("this would be an open relay: everybody's network".to_owned());
    }
    Ok(net)
}

fn local_domain(text: &str) -> Result<Pattern, String> {
    match Pattern::parse(text)? {
        Pattern::Any => Err("this would be an open relay: everybody's domain".to_owned()),
        pattern => Ok(pattern),
    }
}

/// The entries of a list in the configuration and of the file that another key names; `None` when both keys are
/// absent.
pub(super) fn texts_and_file<T>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    file_key: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let here = s.texts(key, parse);
    let there = s.text(file_key, |path| Ok(path.to_owned())).map(|path| {
        let resolved = s.document.resolve(path.get_ref());
        let octets = read_file(s, &resolved, &path.span()).unwrap_or_default();
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(String::from_utf8_lossy(&octets).lines()) {
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
