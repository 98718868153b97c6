//! DNS lists (RFC 5782): what an answer of a zone means, and what all zones together mean for a
//! client.
//!
//! Nothing is asked here: the control plane asks, and what it heard comes as [`ZoneAnswer`]s. They
//! are facts (this zone said these addresses) and not scores, so that a reload between the question
//! and the first recipient is judged by what is in force then.
//!
//! What never counts as a listing, because it cost others their mail: an answer outside of
//! 127.0.0.0/8 (a zone that was given up and answers every question with a web server), an answer
//! within 127.255.255.0/24 (the operator of the list says that the question was wrong or the
//! resolver is not welcome), and no answer.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::RangeInclusive;
use std::sync::Arc;

use portcullis_smtp::reply::{EnhancedCode, Reply};

/// Where lists answer what is no listing but an error of the resolver or its query.
pub const OPERATOR_ERRORS: RangeInclusive<Ipv4Addr> =
    Ipv4Addr::new(127, 255, 255, 0)..=Ipv4Addr::new(127, 255, 255, 255);

/// Bytes of zone names that fit into a refusal with all else that stands on its line; the
/// highest-scoring zone always does.
const NAMED_LENGTH_MAX: usize = 300;

/// A zone of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name, in normal form and without the dot at the end.
    pub name: Arc<str>,
    /// Answers that are a listing.
    pub replies: Vec<RangeInclusive<Ipv4Addr>>,
    /// What a listing adds to the client's score. Less than nothing for a welcome list, never
    /// nothing.
    pub score: i32,
    /// Whether it is held to its test entries: see [`TestEntry`].
    pub test_entries: bool,
}

/// What a zone answered about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsblAnswer {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name.
    NotListed,
    /// No answer in time, or one that says only that something is broken.
    Silent,
    /// It was not asked: it lists what no list may, and most likely everything.
    SwitchedOff,
}

/// A zone, and what it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneAnswer {
    /// Its [name](Zone::name).
    pub zone: Arc<str>,
    /// What it said about the client.
    pub answer: DnsblAnswer,
}

/// What an answer counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The zone's score.
    Listed,
    /// Nothing.
    NotListed,
    /// Nothing, and the operator should look at it: this address is never a listing.
    Ignored(Ipv4Addr),
    /// Nothing.
    Silent,
    /// Nothing.
    SwitchedOff,
}

impl Zone {
    /// What an answer of this zone counts for.
    pub fn meaning(&self, answer: &DnsblAnswer) -> Meaning {
        let addresses = match answer {
            DnsblAnswer::Silent => return Meaning::Silent,
            DnsblAnswer::SwitchedOff => return Meaning::SwitchedOff,
            DnsblAnswer::NotListed => return Meaning::NotListed,
            DnsblAnswer::Addresses(addresses) => addresses,
        };
        let counts = |address: &Ipv4Addr| {
            let expected = self.replies.iter().any(|range| range.contains(address));
            expected && !is_never_a_listing(*address)
        };
        if addresses.iter().any(counts) {
            return Meaning::Listed;
        }
        addresses
            .iter()
            .copied()
            .find(|address| is_never_a_listing(*address))
            .map_or(Meaning::NotListed, Meaning::Ignored)
    }
}

/// Whether no list means a listing by it, whatever the configuration says.
fn is_never_a_listing(address: Ipv4Addr) -> bool {
    !address.is_loopback() || OPERATOR_ERRORS.contains(&address)
}

/// The zones of a configuration and the score at which a client is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dnsbl {
    /// In the order of the configuration; a name comes once.
    pub zones: Vec<Zone>,
    /// At least 1.
    pub reject_at: i32,
}

/// What zones say of a client, in points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneScore {
    /// The sum of the scores of the zones that list it.
    pub points: i64,
    /// The place of the zone with the highest score among them in [`Dnsbl::zones`], the first of
    /// equals.
    pub zone: usize,
}

impl Dnsbl {
    /// The score of a client; `None` if no zone lists it.
    ///
    /// Each zone counts once, with the score that it has in this configuration; one that is not in
    /// it any more counts for nothing.
    pub fn score(&self, answers: &[ZoneAnswer]) -> Option<ZoneScore> {
        let mut score: Option<ZoneScore> = None;
        for (place, zone) in self.listings(answers) {
            let so_far = score.get_or_insert(ZoneScore {
                points: 0,
                zone: place,
            });
            so_far.points += i64::from(zone.score);
            if self.zones[so_far.zone].score < zone.score {
                so_far.zone = place;
            }
        }
        score
    }

    /// What a client is told that is refused for its score: it names the zones that count against
    /// it, the highest score first.
    pub fn refusal(&self, client: IpAddr, answers: &[ZoneAnswer]) -> Reply<'static> {
        let listings = self.listings(answers).map(|(_, zone)| zone);
        let mut listings: Vec<&Zone> = listings.filter(|zone| zone.score > 0).collect();
        // Stable: of equal scores the first in the configuration is named.
        listings.sort_by_key(|zone| core::cmp::Reverse(zone.score));
        let text = format!("Your address {client} is listed by {}", named(&listings));
        Reply::new(554, Some(EnhancedCode(5, 7, 1)), text)
    }

    /// The zones that list a client, with their places.
    fn listings(&self, answers: &[ZoneAnswer]) -> impl Iterator<Item = (usize, &Zone)> {
        let zones = self.zones.iter().enumerate();
        zones.filter(|(_, zone)| {
            let answer = answers.iter().find(|answer| answer.zone == zone.name);
            answer.is_some_and(|answer| zone.meaning(&answer.answer) == Meaning::Listed)
        })
    }
}

/// The names of these zones, as many as fit on the line of a reply.
fn named(listings: &[&Zone]) -> String {
    let mut text = String::new();
    for (number, zone) in listings.iter().enumerate() {
        if number > 0 {
            if text.len() + zone.name.len() > NAMED_LENGTH_MAX {
                text.push_str(" and others");
                break;
            }
            text.push_str(", ");
        }
        text.push_str(&zone.name);
    }
    text
}

/// What every list has an entry for, or must not have one for (RFC 5782 section 5), by which it
/// shows whether it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestEntry {
    /// 127.0.0.2: each list has it.
    Listed,
    /// 127.0.0.1: no list has it, but for one that lists everything.
    Unlisted,
}

impl TestEntry {
    const fn address(self) -> Ipv4Addr {
        match self {
            Self::Listed => Ipv4Addr::new(127, 0, 0, 2),
            Self::Unlisted => Ipv4Addr::LOCALHOST,
        }
    }

    /// The name that a zone has for it among its IPv4 addresses, with its dot at the end.
    pub fn name_ipv4(self, zone: &str) -> String {
        query_name(self.address().into(), zone)
    }

    /// The same among its IPv6 addresses: there it is the mapped one, written as IPv6.
    pub fn name_ipv6(self, zone: &str) -> String {
        reversed(self.address().to_ipv6_mapped().into(), zone)
    }
}

/// The name that a zone has for an address, with its dot at the end (RFC 5782 sections 2.1 and
/// 2.4).
pub fn query_name(address: IpAddr, zone: &str) -> String {
    reversed(address.to_canonical(), zone)
}

fn reversed(address: IpAddr, zone: &str) -> String {
    use core::fmt::Write as _;
    let mut name = String::with_capacity(zone.len() + 66);
    // Writing to a string does not fail.
    match address {
        IpAddr::V4(address) => {
            for octet in address.octets().iter().rev() {
                let _ = write!(name, "{octet}.");
            }
        }
        IpAddr::V6(address) => nibbles(address, &mut name),
    }
    let _ = write!(name, "{zone}.");
    name
}

fn nibbles(address: Ipv6Addr, name: &mut String) {
    for octet in address.octets().iter().rev() {
        for nibble in [octet & 0xf, octet >> 4] {
            name.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            name.push('.');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str, score: i32) -> Zone {
        Zone {
            name: name.into(),
            replies: vec![Ipv4Addr::new(127, 0, 0, 2)..=Ipv4Addr::new(127, 0, 0, 11)],
            score,
            test_entries: true,
        }
    }

    fn addresses(texts: &[&str]) -> DnsblAnswer {
        let parsed = texts.iter().map(|text| text.parse().expect("an address"));
        DnsblAnswer::Addresses(parsed.collect())
    }

    #[test]
    fn an_answer_that_is_no_listing_never_counts_as_one() {
        use Meaning::{Ignored, Listed, NotListed, Silent, SwitchedOff};
        let ignored = |text: &str| Ignored(text.parse().expect("an address"));
        let cases = [
            (addresses(&["127.0.0.2"]), Listed),
            (addresses(&["127.0.0.11"]), Listed),
            (addresses(&["127.0.0.1"]), NotListed),
            (addresses(&["127.0.0.12"]), NotListed),
            (addresses(&["127.0.0.12", "127.0.0.3"]), Listed),
            (addresses(&[]), NotListed),
            (addresses(&["127.255.255.254"]), ignored("127.255.255.254")),
            (addresses(&["127.255.255.0"]), ignored("127.255.255.0")),
            (addresses(&["192.0.2.80"]), ignored("192.0.2.80")),
            (addresses(&["192.0.2.80", "127.0.0.2"]), Listed),
            (DnsblAnswer::NotListed, NotListed),
            (DnsblAnswer::Silent, Silent),
            (DnsblAnswer::SwitchedOff, SwitchedOff),
        ];
        for (answer, meaning) in cases {
            assert_eq!(
                zone("bl.example", 1).meaning(&answer),
                meaning,
                "{answer:?}"
            );
        }
        // A configuration that got such a range past its checks would not change that.
        let all = Zone {
            replies: vec![Ipv4Addr::UNSPECIFIED..=Ipv4Addr::BROADCAST],
            ..zone("bl.example", 1)
        };
        for text in ["127.255.255.252", "198.51.100.1"] {
            assert_eq!(all.meaning(&addresses(&[text])), ignored(text));
        }
    }

    fn listed_by(zones: &[&str]) -> Vec<ZoneAnswer> {
        let answer = |zone: &&str| ZoneAnswer {
            zone: (*zone).into(),
            answer: addresses(&["127.0.0.2"]),
        };
        zones.iter().map(answer).collect()
    }

    #[test]
    fn listings_add_up_to_a_score_and_the_highest_names_the_rule() {
        let dnsbl = Dnsbl {
            zones: vec![
                zone("dnswl.example", -2),
                zone("one.example", 1),
                zone("two.example", 2),
                zone("also-two.example", 2),
            ],
            reject_at: 2,
        };
        // The zones that list it, the points, the place of the zone, and the zones that it is told.
        type Case = (&'static [&'static str], Option<(i64, usize, &'static str)>);
        let cases: [Case; 8] = [
            (&[], None),
            (&["one.example"], Some((1, 1, "one.example"))),
            (
                &["one.example", "two.example"],
                Some((3, 2, "two.example, one.example")),
            ),
            (
                &["also-two.example", "two.example"],
                Some((4, 2, "two.example, also-two.example")),
            ),
            (&["dnswl.example"], Some((-2, 0, ""))),
            (
                &["two.example", "dnswl.example"],
                Some((0, 2, "two.example")),
            ),
            // It counts once, however often it turns up, and not at all when it is not asked any
            // more.
            (
                &["one.example", "one.example", "gone.example"],
                Some((1, 1, "one.example")),
            ),
            (&["gone.example"], None),
        ];
        let client = IpAddr::from([203, 0, 113, 9]);
        for (zones, expected) in cases {
            let answers = listed_by(zones);
            let score = dnsbl.score(&answers);
            let of = expected.map(|(points, zone, _)| ZoneScore { points, zone });
            assert_eq!(score, of, "{zones:?}");
            let named = expected.map_or("", |(_, _, named)| named);
            let text = format!("Your address 203.0.113.9 is listed by {named}");
            let reply = Reply::new(554, Some(EnhancedCode(5, 7, 1)), text);
            assert_eq!(dnsbl.refusal(client, &answers), reply, "{zones:?}");
        }
    }

    #[test]
    fn a_client_on_many_lists_is_told_so_on_one_line() {
        let zones: Vec<Zone> = (0..50)
            .map(|n| zone(&format!("{n}.{}.example", "x".repeat(60)), 1))
            .collect();
        let names: Vec<&str> = zones.iter().map(|zone| &*zone.name).collect();
        let answers = listed_by(&names);
        let dnsbl = Dnsbl {
            zones: zones.clone(),
            reject_at: 1,
        };
        let client = "2001:db8::1".parse().expect("an address");
        let reply = dnsbl.refusal(client, &answers);
        assert!(
            reply.text.len() < 450 && reply.text.ends_with(" and others"),
            "{}",
            reply.text
        );
    }

    #[test]
    fn an_address_is_asked_about_in_the_form_that_lists_publish() {
        let cases = [
            ("192.0.2.99", "99.2.0.192.bad.example."),
            ("::ffff:192.0.2.99", "99.2.0.192.bad.example."),
            // The example of RFC 5782 section 2.4.
            (
                "2001:db8:1:2:3:4:567:89ab",
                "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bad.example.",
            ),
        ];
        for (address, name) in cases {
            let address = address.parse().expect("an address");
            assert_eq!(query_name(address, "bad.example"), name);
        }
    }

    #[test]
    fn the_test_entries_have_the_names_of_the_rfc() {
        let (listed, unlisted) = (TestEntry::Listed, TestEntry::Unlisted);
        assert_eq!(listed.name_ipv4("bad.example"), "2.0.0.127.bad.example.");
        assert_eq!(unlisted.name_ipv4("bad.example"), "1.0.0.127.bad.example.");
        // ::FFFF:7F00:2 and ::FFFF:7F00:1.
        let rest = format!("0.0.0.0.0.f.7.f.f.f.f.{}bad.example.", "0.".repeat(20));
        assert_eq!(listed.name_ipv6("bad.example"), format!("2.{rest}"));
        assert_eq!(unlisted.name_ipv6("bad.example"), format!("1.{rest}"));
    }
}
