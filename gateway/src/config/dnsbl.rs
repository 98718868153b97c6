//! `[[dnsbl]]` and `[dnsbl_policy]`: which DNS lists are asked about strangers, what their answers
//! count for, and how they are asked.
//!
//! The name servers have no default. The system's are often a public resolver, which the operators
//! of lists refuse (with answers in 127.255.255.0/24), so that a default would look like a list
//! that never lists anybody.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::limits::count;
use super::section::Section;
use crate::policy::dnsbl::{Dnsbl, OPERATOR_ERRORS, Zone};
use crate::policy::domain::{self, normal_form};

/// What counts as a listing where `replies` is not given: 127.0.0.1 is what RFC 5782 section 5
/// forbids to list, and lists with meanings beyond the last octet have to be read up on anyway.
const REPLIES: RangeInclusive<Ipv4Addr> =
    Ipv4Addr::new(127, 0, 0, 2)..=Ipv4Addr::new(127, 0, 0, 255);
const REPLIES_TEXT: &str = "[\"127.0.0.2-127.0.0.255\"]";

/// The largest score, either way.
const SCORE_MAX: i32 = 1_000;
/// More than this would cost each stranger more than its mail.
const ZONES_MAX: usize = 32;
/// More than this would leave each of them too little of the time.
const SERVERS_MAX: usize = 8;

/// `[dnsbl_policy]`, but for the score, which is a matter of the [policy](crate::policy::Policy).
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

/// Reads the tables. The first part of the result goes into the policy, the second to whoever asks.
pub(super) fn read(zones: Vec<Section<'_, '_>>, mut s: Section<'_, '_>) -> (Dnsbl, DnsblPolicy) {
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    let spans: Vec<_> = zones.iter().map(|zone| zone.span.clone()).collect();
    let zones = read_zones(zones);
    let servers = s.texts("servers", server);
    let reject_at = count(&mut s, "reject_at", 1, 1..=1_000_000) as i32;
    let policy = DnsblPolicy {
        servers: distinct(servers.iter().flatten(), &s),
        drop_for: s.duration("drop_for", HOUR, Duration::ZERO..=7 * 24 * HOUR),
        timeout: s.duration("timeout", 5 * SECOND, SECOND / 10..=30 * SECOND),
        test_every: s.duration("test_every", 10 * 60 * SECOND, SECOND..=24 * HOUR),
        cache: count(&mut s, "cache", 100_000, 0..=10_000_000),
    };
    let document = s.document;
    match spans.first() {
        Some(first) if servers.is_none() || s.is_empty_list("servers") => document.error_with(
            if s.is_given() { &s.span } else { first },
            "`servers` is missing in [dnsbl_policy]: who is asked about this zone?",
            "write servers = [\"127.0.0.1:53\"] for a resolver of your own; lists refuse to answer public ones",
        ),
        None if s.is_given() => {
            document.warn(&s.span, "[dnsbl_policy] without a [[dnsbl]]: nobody is asked");
        }
        _ => {}
    }
    let most: i64 = zones.iter().map(|zone| i64::from(zone.score.max(0))).sum();
    if !zones.is_empty() && zones.len() == spans.len() && most < i64::from(reject_at) {
        let message = format!(
            "all zones together give a score of {most}, and `reject_at` is {reject_at}: nobody is ever refused"
        );
        document.warn(&s.span_of("reject_at"), message);
    }
    if s.is_given() || !spans.is_empty() {
        s.finish(&[]);
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
        let name = s.required_text("zone", |text| {
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
        let replies = s.texts("replies", reply_range);
        if replies.is_none() {
            s.by_default("replies", REPLIES_TEXT);
        }
        if s.is_empty_list("replies") {
            let span = s.span_of("replies");
            s.document
                .error(&span, "`replies` is empty: no answer would ever count");
        }
        let score = read_score(&mut s);
        let test_entries = s.flag("test_entries", true);
        if let Some(name) = name {
            let given = replies.map(|replies| replies.into_iter().map(Spanned::into_inner));
            zones.push(Zone {
                name: name.into_inner().into(),
                replies: given.map_or(vec![REPLIES], Iterator::collect),
                score,
                test_entries,
            });
        }
        s.finish(&[]);
    }
    zones
}

/// A whole number that is not 0; less than 0 for a welcome list.
fn read_score(s: &mut Section<'_, '_>) -> i32 {
    const DEFAULT: i32 = 1;
    let Some(value) = s.value("score") else {
        s.by_default("score", DEFAULT);
        return DEFAULT;
    };
    let number = value
        .get_ref()
        .as_integer()
        .and_then(|integer| i32::from_str_radix(integer.as_str(), integer.radix()).ok());
    let span = value.span();
    match number {
        Some(0) => s.document.error_with(
            &span,
            "a `score` of 0 would make the zone count for nothing",
            "give it a score, or remove the zone",
        ),
        Some(score) if (-SCORE_MAX..=SCORE_MAX).contains(&score) => return score,
        _ => s.document.error(
            &span,
            format!(
                "`score` is a whole number from -{SCORE_MAX} to {SCORE_MAX}, less than 0 for a welcome list"
            ),
        ),
    }
    DEFAULT
}

/// An address, or two with a `-` between them, within 127.0.0.0/8.
fn reply_range(text: &str) -> Result<RangeInclusive<Ipv4Addr>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |text: &str| {
        text.trim().parse::<Ipv4Addr>().map_err(|_| {
            "an address or a range of them is wanted, like \"127.0.0.2\" or \"127.0.0.2-127.0.0.11\"".to_owned()
        })
    };
    let (first, last) = (parse(first)?, parse(last)?);
    if first > last {
        return Err(format!("{first} comes after {last}"));
    }
    if !first.is_loopback() || !last.is_loopback() {
        return Err("lists answer within 127.0.0.0/8: an answer from elsewhere is a zone that was given up, never a listing".to_owned());
    }
    if *OPERATOR_ERRORS.start() <= last && first <= *OPERATOR_ERRORS.end() {
        return Err("127.255.255.0/24 is never a listing: by it the operator of the list says that the question was wrong, or that this resolver may not ask".to_owned());
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
        Ok(_) => Err("nobody can be asked at this address".to_owned()),
        Err(_) => Err(
            "the address of a name server is wanted, like \"127.0.0.1:53\" or \"[::1]:53\""
                .to_owned(),
        ),
    }
}
