//! The test entries of RFC 5782 section 5 show whether a zone works, or lists every address.
//!
//! An abandoned zone may answer every query with a listing, so that its last users notice. Then
//! every client is refused, and the filter's recent verdicts fill with the sources of honest mail.
//! No list may have 127.0.0.1, so a zone that has it is switched off: the gate sends it no queries,
//! forgets its answers, and tests it until it passes. IPv4 and IPv6 are tested separately, as the
//! files of a list are separate.
//!
//! When it is tested:
//!
//! - at the start, with a reload that brings it, and then every `dnsbl_policy.test_every`;
//! - before a listing is believed, unless it has passed within the last minute. A zone that has
//!   never passed is not believed, so that no source gets a verdict for one that was bad from the
//!   start, and one that goes bad is found by its first listings.
//!
//! A test without an answer proves nothing: the zone stays as it was. A zone that gives listings,
//! but does not answer its tests for a while, is trusted in the end: its servers are odd, but it
//! does not list everything.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::Serialize;
use tokio::time::Instant;

use super::counts::Counts;
use super::query::{DnsAnswer, DnsQuery};
use super::servers::{NameServers, NoAnswer};
use crate::policy::dnsbl::{DnsblAnswer, Meaning, TestEntry, Zone, query_name};

/// A listing is believed for so long after a test that the zone has passed.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// A zone that is switched off is tried again after this time, if not after `test_every`.
const OFF_RETRY: Duration = Duration::from_secs(60);
/// A zone that has not answered its first test is tried again after this time when it gives a
/// listing.
const UNTESTED_RETRY: Duration = Duration::from_secs(5);
/// A zone is trusted after this number of tests without an answer, each begun because the zone gave
/// a listing.
const UNANSWERED_MAX: u32 = 3;

/// Which of a zone's two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::control) enum Family {
    Ipv4,
    Ipv6,
}

/// Whether what a zone says counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum Trust {
    /// It has not answered a test yet.
    #[default]
    NotTested,
    /// It has passed its last test.
    InUse,
    /// It lists what no list may.
    SwitchedOff,
}

/// Called when a zone is switched off.
type OnSwitchedOff = Box<dyn Fn(&Arc<str>, Family) + Send + Sync>;

/// By zone.
type Halves = FxHashMap<(Arc<str>, Family), Arc<Half>>;

/// The tests of all zones.
pub(super) struct Tests {
    servers: Arc<NameServers>,
    halves: Mutex<Halves>,
    /// How often.
    every: Duration,
    counts: Arc<Counts>,
    on_switched_off: OnSwitchedOff,
}

/// One half of a zone.
#[derive(Debug, Default)]
struct Half {
    trust: Mutex<Trust>,
    /// Held while it is being tested: a query that needs the result meanwhile waits for the same
    /// test.
    tested: tokio::sync::Mutex<Tested>,
}

#[derive(Debug, Default)]
struct Tested {
    last: Option<Instant>,
    /// Listings that it gave and no test.
    unanswered: u32,
    /// Whether it has its entry for 127.0.0.2, as the log has it.
    entry: Option<Entry>,
}

/// What a zone says about 127.0.0.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Listed,
    Missing,
    Refused,
}

/// The result of a test.
#[derive(Debug)]
pub(super) struct TestResult {
    /// Whether 127.0.0.1 is listed. An error: it is not known.
    pub(super) unlisted: Result<DnsblAnswer, NoAnswer>,
    /// What is said about 127.0.0.2.
    pub(super) listed: Result<DnsblAnswer, NoAnswer>,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The half that has a client's address.
    pub(super) fn of(client: IpAddr) -> Self {
        if client.to_canonical().is_ipv4() {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }

    /// As it is written in the log and in metrics.
    pub(in crate::control) const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// What no list may have, for people.
    const fn unlisted(self) -> &'static str {
        match self {
            Self::Ipv4 => "127.0.0.1",
            Self::Ipv6 => "::ffff:127.0.0.1 or ::1",
        }
    }

    /// The question for a test entry.
    pub(super) fn question(self, entry: TestEntry, zone: &Zone) -> Option<Arc<DnsQuery>> {
        let name = match self {
            Self::Ipv4 => entry.name_ipv4(&zone.name),
            Self::Ipv6 => entry.name_ipv6(&zone.name),
        };
        DnsQuery::new(&name).map(Arc::new)
    }
}

impl Tests {
    pub(super) fn new(
        servers: &Arc<NameServers>,
        every: Duration,
        counts: &Arc<Counts>,
        on_switched_off: OnSwitchedOff,
    ) -> Self {
        Self {
            servers: Arc::clone(servers),
            halves: Mutex::default(),
            every,
            counts: Arc::clone(counts),
            on_switched_off,
        }
    }

    /// Whether the listings of a zone count, by what is known. Does not wait.
    pub(super) fn trust(&self, zone: &Zone, family: Family) -> Trust {
        if zone.test_entries {
            self.half(zone, family).trust()
        } else {
            Trust::InUse
        }
    }

    /// Whether a listing of this zone counts. Tests it first, unless that was done a moment ago.
    pub(super) async fn before_a_listing(&self, zone: &Zone, family: Family) -> Trust {
        if !zone.test_entries {
            return Trust::InUse;
        }
        let half = self.half(zone, family);
        let mut tested = half.tested.lock().await;
        let before = half.trust();
        let pause = match before {
            Trust::NotTested => UNTESTED_RETRY,
            Trust::InUse => BELIEVED_FOR,
            Trust::SwitchedOff => return before,
        };
        if tested.last.is_some_and(|last| last.elapsed() < pause) {
            return before;
        }
        if before == Trust::NotTested {
            // Counted before it is asked: the listing may not wait for the end of the test.
            tested.unanswered += 1;
            if tested.unanswered > UNANSWERED_MAX {
                tracing::warn!(
                    zone = &*zone.name,
                    family = family.name(),
                    "a DNS list gives listings, but no answer to its test entries: it is believed \
                     without them"
                );
                self.turn(zone, family, &half, Trust::InUse);
            }
        }
        self.test(zone, family, &half, &mut tested).await;
        half.trust()
    }

    /// Whether the time for the next test of a zone has come.
    pub(super) fn is_due(&self, zone: &Zone, family: Family) -> bool {
        let half = self.half(zone, family);
        let pause = match half.trust() {
            Trust::InUse => self.every,
            Trust::NotTested | Trust::SwitchedOff => self.every.min(OFF_RETRY),
        };
        // One that is being tested is not due.
        half.tested
            .try_lock()
            .is_ok_and(|tested| tested.last.is_none_or(|last| last.elapsed() >= pause))
    }

    /// Tests a zone, and lets every name server show whether it answers for it.
    pub(super) async fn test_now(&self, zone: &Zone, family: Family) {
        let half = self.half(zone, family);
        let mut tested = half.tested.lock().await;
        if family == Family::Ipv4
            && let Some(question) = family.question(TestEntry::Unlisted, zone)
        {
            self.servers.probe_all(&zone.name, &question);
        }
        self.test(zone, family, &half, &mut tested).await;
    }

    /// No other zones are asked any more.
    pub(super) fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        self.lock().retain(|(zone, _), _| is_kept(zone));
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn half(&self, zone: &Zone, family: Family) -> Arc<Half> {
        let mut halves = self.lock();
        Arc::clone(halves.entry((Arc::clone(&zone.name), family)).or_default())
    }

    async fn test(&self, zone: &Zone, family: Family, half: &Half, tested: &mut Tested) {
        // Before the query: a caller that stops waiting ends the test, and the next one should not
        // begin it again at once.
        tested.last = Some(Instant::now());
        let result = ask(&self.servers, zone, family).await;
        match result.unlisted.as_ref().map(|answer| zone.meaning(answer)) {
            Ok(Meaning::Listed) => self.turn(zone, family, half, Trust::SwitchedOff),
            Ok(_) => self.turn(zone, family, half, Trust::InUse),
            Err(_) => {}
        }
        let Some(entry) = result.entry(zone) else {
            return;
        };
        // Many lists of IPv4 addresses have nothing for IPv6, not even that.
        if family == Family::Ipv4 {
            self.counts.test_entry(&zone.name, entry == Entry::Listed);
            if tested.entry.replace(entry) != Some(entry) {
                log_entry(zone, entry);
            }
        }
    }

    fn turn(&self, zone: &Zone, family: Family, half: &Half, trust: Trust) {
        let before = std::mem::replace(
            &mut *half.trust.lock().unwrap_or_else(PoisonError::into_inner),
            trust,
        );
        self.counts.trust(&zone.name, family, trust);
        if before != trust && trust == Trust::SwitchedOff {
            tracing::warn!(
                zone = &*zone.name,
                family = family.name(),
                address = family.unlisted(),
                "a DNS list lists the loopback address, which no list may, so most likely it \
                 lists everything: it is switched off until that ends (test_entries = false for a \
                 list that means it)"
            );
            (self.on_switched_off)(&zone.name, family);
        } else if before == Trust::SwitchedOff && trust == Trust::InUse {
            tracing::info!(
                zone = &*zone.name,
                family = family.name(),
                "a DNS list is well again: it is in use"
            );
        }
    }
}

impl Half {
    fn trust(&self) -> Trust {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TestResult {
    /// What is said about 127.0.0.2; `None` if nothing is.
    pub(super) fn entry(&self, zone: &Zone) -> Option<Entry> {
        let answer = self.listed.as_ref().ok()?;
        Some(match (zone.meaning(answer), answer) {
            (Meaning::Ignored(_), _) => Entry::Refused,
            // Which answers count may be narrowed down by the configuration.
            (_, DnsblAnswer::Addresses(_)) => Entry::Listed,
            _ => Entry::Missing,
        })
    }
}

/// Asks for the test entries. That ::1 is not listed is no more than what the RFC says of
/// 127.0.0.1, and it is asked because rbldnsd answers for mapped addresses from its IPv4 data: a
/// file that has `::/0` would not show.
pub(super) async fn ask(servers: &Arc<NameServers>, zone: &Zone, family: Family) -> TestResult {
    let ask = |question: Option<Arc<DnsQuery>>| async move {
        let Some(question) = question else {
            return Err(NoAnswer::Unasked);
        };
        servers.ask(&zone.name, &question).await.map(answer)
    };
    let unlisted = family.question(TestEntry::Unlisted, zone);
    let listed = family.question(TestEntry::Listed, zone);
    if family == Family::Ipv4 {
        let (unlisted, listed) = tokio::join!(ask(unlisted), ask(listed));
        return TestResult { unlisted, listed };
    }
    let loopback = DnsQuery::new(&query_name(Ipv6Addr::LOCALHOST.into(), &zone.name));
    let loopback = ask(loopback.map(Arc::new));
    let (mapped, loopback, listed) = tokio::join!(ask(unlisted), loopback, ask(listed));
    let is_listed = |answer: &DnsblAnswer| zone.meaning(answer) == Meaning::Listed;
    let unlisted = match loopback {
        Ok(answer) if is_listed(&answer) => Ok(answer),
        _ => mapped,
    };
    TestResult { unlisted, listed }
}

/// An answer as a fact about the address that was asked about.
pub(super) fn answer(answered: DnsAnswer) -> DnsblAnswer {
    if answered.addresses.is_empty() {
        DnsblAnswer::NotListed
    } else {
        DnsblAnswer::Addresses(answered.addresses)
    }
}

fn log_entry(zone: &Zone, entry: Entry) {
    let zone = &*zone.name;
    match entry {
        Entry::Listed => tracing::debug!(zone, "a DNS list has its test entry 127.0.0.2"),
        Entry::Missing => tracing::warn!(
            zone,
            "a DNS list does not list 127.0.0.2, as every list does: is the name right, and does \
             the name server have the zone? (Private lists often lack the entry: test_entries = \
             false ends this warning)"
        ),
        Entry::Refused => tracing::warn!(
            zone,
            "a DNS list answers its test entry with an error: it refuses this resolver, or has \
             been given up"
        ),
    }
}
