//! `[[dnsbl]]` and `[dnsbl_policy]`: which DNS lists are asked about strangers, what their answers
//! count for, and how they are asked.
//!
//! The name servers have no default. The system's are often a public resolver, which the operators
//! of lists refuse (with answers in 127.255.255.0/24), so that a default would look like a list
//! that never lists a client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::keys::{Absent, DAY, Form, HOUR, Key, KeyTable, SECOND, count, duration, flag, text};
use super::section::Section;
use crate::policy::dnsbl::{Dnsbl, OPERATOR_ERRORS, Zone};
use crate::policy::domain::{self, normal_form};

/// The largest score, either way.
const SCORE_MAX: i32 = 1_000;
/// More than this would cost each stranger more than its mail.
const ZONES_MAX: usize = 32;
/// More than this would leave each of them too little of the time.
const SERVERS_MAX: usize = 8;

pub(super) static ZONE_KEYS: KeyTable = KeyTable {
    header: "[[dnsbl]]",
    about: "A DNS list (RFC 5782). The gate queries it about strangers: clients outside of \
            `relay.networks` that no permit list names. At most 32.",
    keys: &[
        Key::new(
            "zone",
            text("a domain", Absent::Required),
            "The zone of the list. Names in it have at most 180 octets, which leaves room for an \
             IPv6 address.",
        ),
        Key::new(
            "replies",
            // 127.0.0.1 is what RFC 5782 section 5 forbids to list, and lists with meanings beyond
            // the last octet have to be looked up anyway.
            Form::Texts {
                what: "addresses or ranges of them, in 127.0.0.0/8",
                default: Absent::Is(&["127.0.0.2-127.0.0.255"]),
            },
            "The answers that count as a listing. 127.255.255.0/24 never counts: with it the \
             operator of the list says that the query was wrong or that this resolver may not \
             query.",
        ),
        Key::new(
            "score",
            Form::Score {
                default: 1,
                most: SCORE_MAX,
            },
            "What a listing adds to the score of a client. Less than 0: a welcome list.",
        )
        .see(&["dnsbl_policy.reject_at"]),
        Key::new(
            "test_entries",
            flag(true),
            "Whether the gate queries the test entries of the zone (127.0.0.1 must not be \
             listed), and switches the zone off while it lists everything. `false` for a list \
             that rightly holds 127.0.0.0/8.",
        )
        .see(&["dnsbl_policy.test_every"]),
    ],
    later: &[],
};

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[dnsbl_policy]",
    about: "How the gate queries the DNS lists of all `[[dnsbl]]` tables, and what follows from a \
            score.",
    keys: &[
        Key::new(
            "servers",
            Form::Texts {
                what: "IP addresses of name servers, with or without a port (53)",
                default: Absent::Nothing,
            },
            "The name servers to query, in turn, at most 8. Required with a `[[dnsbl]]`. Use a \
             resolver of your own: lists refuse public ones.",
        )
        .see(&["dnsbl_policy.timeout"]),
        Key::new(
            "reject_at",
            count("points", 1, 1..=1_000_000),
            "The gate refuses a client with this score or a higher one, with `554 5.7.1`.",
        )
        .see(&["dnsbl.score"]),
        Key::new(
            "drop_for",
            duration(HOUR, Duration::ZERO..=SEVEN_DAYS),
            "How long the filter drops a refused source. `\"0s\"`: no recent verdict is added.",
        )
        .see(&["filter.mode"]),
        Key::new(
            "timeout",
            duration(FIVE_SECONDS, TENTH_OF_A_SECOND..=HALF_A_MINUTE),
            "How long the answer of a zone may take, over all servers. After that the zone counts \
             as silent and adds nothing to the score.",
        )
        .see(&["dnsbl_policy.servers"]),
        Key::new(
            "test_every",
            duration(TEN_MINUTES, SECOND..=DAY),
            "How often the gate queries the test entries of each zone.",
        )
        .see(&["dnsbl.test_entries"]),
        Key::new(
            "cache",
            count("answers", 100_000, 0..=10_000_000),
            "Answers that the gate remembers, each for as long as its zone allows. 0: none.",
        ),
    ],
    later: &[],
};

const TENTH_OF_A_SECOND: Duration = Duration::from_millis(100);
const FIVE_SECONDS: Duration = Duration::from_secs(5);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
const TEN_MINUTES: Duration = Duration::from_secs(600);
const SEVEN_DAYS: Duration = Duration::from_secs(7 * 86_400);

/// `[dnsbl_policy]` without the score, which belongs to the [policy](crate::policy::Policy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsblPolicy {
    /// The name servers that are asked. Never empty where there are zones.
    pub servers: Vec<SocketAddr>,
    /// How long a refused source stays in the filter's recent verdicts; nought: it never gets
    /// there.
    pub drop_for: Duration,
    /// How long an answer may take. Then the zone counts as silent.
    pub timeout: Duration,
    /// How often each zone is asked for its test entries.
    pub test_every: Duration,
    /// Answers that are remembered, each for as long as its zone allows; nought: none.
    pub cache: u32,
}

/// Reads the tables. The first part of the result goes into the policy, the second to the resolver.
pub(super) fn read(zones: Vec<Section<'_, '_>>, mut s: Section<'_, '_>) -> (Dnsbl, DnsblPolicy) {
    let spans: Vec<_> = zones.iter().map(|zone| zone.span.clone()).collect();
    let zones = read_zones(zones);
    let servers = s.texts("servers", server);
    let reject_at = s.count_u32("reject_at") as i32;
    let policy = DnsblPolicy {
        servers: distinct(servers.iter().flatten(), &s),
        drop_for: s.duration("drop_for"),
        timeout: s.duration("timeout"),
        test_every: s.duration("test_every"),
        cache: s.count_u32("cache"),
    };
    let document = s.document;
    match spans.first() {
        Some(first) if servers.is_none() || s.is_empty_list("servers") => document.error_with(
            if s.is_given() { &s.span } else { first },
            "`servers` is missing in [dnsbl_policy]: who is asked about this zone?",
            "write servers = [\"127.0.0.1:53\"] for a resolver of your own; \
             lists refuse to answer public ones",
        ),
        None if s.is_given() => {
            document.warn(
                &s.span,
                "[dnsbl_policy] without a [[dnsbl]]: no list is asked",
            );
        }
        _ => {}
    }
    let most: i64 = zones.iter().map(|zone| i64::from(zone.score.max(0))).sum();
    if !zones.is_empty() && zones.len() == spans.len() && most < i64::from(reject_at) {
        let message = format!(
            "all zones together give a score of {most}, and `reject_at` is {reject_at}: \
             no client is ever refused"
        );
        document.warn(&s.span_of("reject_at"), message);
    }
    if s.is_given() || !spans.is_empty() {
        s.finish();
    }
    (Dnsbl { zones, reject_at }, policy)
}

/// The name servers, each once.
fn distinct<'a>(
    given: impl Iterator<Item = &'a Spanned<SocketAddr>>,
    s: &Section<'_, '_>,
) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for server in given {
        if servers.contains(server.get_ref()) {
            let message = format!("{} is asked already", server.get_ref());
            s.document.warn(&server.span(), message);
        } else if servers.len() == SERVERS_MAX {
            let message = format!("more than {SERVERS_MAX} name servers");
            s.document.error(&server.span(), message);
            break;
        } else {
            servers.push(*server.get_ref());
        }
    }
    servers
}

fn read_zones(tables: Vec<Section<'_, '_>>) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for mut s in tables {
        if zones.len() == ZONES_MAX {
            let message = format!("more than {ZONES_MAX} zones");
            s.document.error(&s.span, message);
            break;
        }
        let name = s.text("zone", |text| {
            let name = normal_form(text).into_owned();
            domain::check(&name)?;
            if !name.is_ascii() {
                return Err("DNS has names in ASCII: write the xn-- form".to_owned());
            }
            // 64 octets are for the address.
            if name.len() > 180 {
                return Err("longer than 180 octets".to_owned());
            }
            if zones.iter().any(|zone| *zone.name == *name) {
                return Err(format!("{name} is asked already"));
            }
            Ok(name)
        });
        let replies = match s.texts("replies", reply_range) {
            Some(given) => given.into_iter().map(Spanned::into_inner).collect(),
            None => s.default_texts("replies", reply_range),
        };
        if s.is_empty_list("replies") {
            let span = s.span_of("replies");
            s.document
                .error(&span, "`replies` is empty: no answer would ever count");
        }
        let score = s.score("score");
        let test_entries = s.flag("test_entries");
        if let Some(name) = name {
            zones.push(Zone {
                name: name.into_inner().into(),
                replies,
                score,
                test_entries,
            });
        }
        s.finish();
    }
    zones
}

/// An address, or two with a `-` between them, within 127.0.0.0/8.
fn reply_range(text: &str) -> Result<RangeInclusive<Ipv4Addr>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |text: &str| {
        text.trim().parse::<Ipv4Addr>().map_err(|_| {
            "expected an address or a range of addresses, such as \"127.0.0.2\" or \
             \"127.0.0.2-127.0.0.11\""
                .to_owned()
        })
    };
    let (first, last) = (parse(first)?, parse(last)?);
    if first > last {
        return Err(format!("{first} comes after {last}"));
    }
    if !first.is_loopback() || !last.is_loopback() {
        return Err(
            "lists answer within 127.0.0.0/8: another answer comes from a zone that has been \
             abandoned, and is never a listing"
                .to_owned(),
        );
    }
    if *OPERATOR_ERRORS.start() <= last && first <= *OPERATOR_ERRORS.end() {
        return Err(
            "127.255.255.0/24 is never a listing: with it the operator of the list says that \
             the query was wrong, or that this resolver may not query"
                .to_owned(),
        );
    }
    Ok(first..=last)
}

/// A name server: an address, with or without a port.
fn server(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, 53)),
        Err(_) => text.parse::<SocketAddr>(),
    };
    match address {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(address),
        Ok(_) => Err("no name server can have this address".to_owned()),
        Err(_) => Err(
            "expected the address of a name server, such as \"127.0.0.1:53\" or \"[::1]:53\""
                .to_owned(),
        ),
    }
}
