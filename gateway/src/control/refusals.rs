//! Which sources were refused of late, why, how often, and until when they are kept out: for people
//! who are asked "why can I not send?".
//!
//! What DNS lists refuse comes from their service, with what the filter has learned of it; all
//! other refusals come from the stream of records. The memory goes with the gate: verdicts outlive
//! it, and say themselves why and until when. It has a bound, and what is gone first is what was
//! refused the longest time ago.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::Control;
use super::records::Reader;
use crate::filter::{self, AddResult, Exemption};
use crate::policy::{Rule, RuleKind};
use crate::worker::port::Refusal;
use crate::worker::records::Record;

/// Records that wait to be looked at, in bytes.
pub(super) const BYTES_MAX: usize = 16 << 20;
/// Sources that are remembered.
const SOURCES_MAX: usize = 16_384;
/// What goes at once when there are more.
const BATCH: usize = SOURCES_MAX / 16;
/// Rules that are counted apart for a source.
const RULES_MAX: usize = 8;
/// The rule of all that are one too many.
const OTHER_RULES: &str = "others";

/// What is remembered.
#[derive(Default)]
pub(super) struct Refusals(Mutex<FxHashMap<IpNet, History>>);

struct History {
    client: IpAddr,
    first: SystemTime,
    last: SystemTime,
    rules: Vec<(String, u64)>,
    kept_out: KeptOut,
    /// When that was decided.
    decided: SystemTime,
}

/// What became of a source that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeptOut {
    /// The filter drops it.
    For(Duration),
    /// It does already, because a person has added a verdict, which stands.
    ByPerson,
    /// It does not, for this reason.
    Not(Cow<'static, str>),
}

/// Why a source is not kept out that no DNS list refused.
const NO_DNSBL: KeptOut = KeptOut::Not(Cow::Borrowed(
    "the filter keeps out what DNS lists refuse, not what other rules do",
));

impl KeptOut {
    /// What it means that a verdict for so long was added, or was not.
    pub(super) fn by(given: &AddResult, duration: Duration) -> Self {
        match given {
            AddResult::Added | AddResult::Renewed => Self::For(duration),
            AddResult::Kept => Self::ByPerson,
            AddResult::Refused(Exemption::Local { network }) => {
                Self::Not(format!("{network} is local").into())
            }
            AddResult::Refused(Exemption::Permitted { list, .. }) => {
                Self::Not(format!("the list {list} permits it").into())
            }
            AddResult::NoRoom => Self::Not("there is no room for a verdict".into()),
        }
    }
}

/// A source that was refused, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSource {
    /// An IPv4 address, or an IPv6 /64.
    pub source: String,
    /// The client that was refused last.
    pub client: IpAddr,
    /// How often it was: sessions that a rule refused or ended, and transactions in which one
    /// refused MAIL or recipients (of what DNS lists refuse, sessions).
    pub times: u64,
    /// When it was first, in UTC.
    pub first: String,
    /// When it was last.
    pub last: String,
    /// The rules that did it.
    pub rules: Vec<RefusedBy>,
    /// Until when the filter drops what comes from it, in UTC, as the last refusal has it.
    pub kept_out_until: Option<String>,
    /// Why it does not. Neither this nor a time: a person has added a verdict before, which says
    /// for how long.
    pub not_kept_out: Option<String>,
}

/// A rule by which a source was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedBy {
    /// Its name, as in the log.
    pub rule: String,
    /// How often.
    pub times: u64,
}

/// The client that a record says was refused, and the rule that did it.
///
/// What DNS lists refuse comes from their service. A timeout and a gate that stops refuse no
/// source.
fn refusal(record: &Record) -> Option<(IpAddr, Rule)> {
    let (client, rule) = match record {
        Record::Session(session) if session.is_refused => (session.client, session.rule),
        Record::Session(_) => return None,
        Record::Transaction(transaction) => {
            let rule = transaction.refused_by?;
            (transaction.client, rule)
        }
    };
    let is_other =
        rule == Rule::TIMEOUT || rule == Rule::STOPPING || rule.kind() == RuleKind::Dnsbl;
    (!is_other).then_some((client, rule))
}

/// Remembers the refusals of the stream of records, until it ends.
pub(super) async fn read(control: Arc<Control>, mut reader: Reader) {
    while let Some(batch) = reader.next().await {
        let now = SystemTime::now();
        for record in &batch.records {
            control.refusals.add_record(record, now);
        }
    }
}

impl Refusals {
    fn sources(&self) -> MutexGuard<'_, FxHashMap<IpNet, History>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal by a DNS list, and what became of the source.
    pub(super) fn add(&self, refusal: &Refusal, kept_out: KeptOut, now: SystemTime) {
        self.remember(refusal.client, refusal.rule.name(), now, |history| {
            history.kept_out = kept_out;
            history.decided = now;
        });
    }

    /// Remembers what a record says of a refusal, if it does.
    fn add_record(&self, record: &Record, now: SystemTime) {
        if let Some((client, rule)) = refusal(record) {
            self.remember(client, rule.name(), now, |_| ());
        }
    }

    fn remember(
        &self,
        client: IpAddr,
        rule: &str,
        now: SystemTime,
        decide: impl FnOnce(&mut History),
    ) {
        let source = filter::verdict_network(client);
        let mut sources = self.sources();
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&source) {
            forget(&mut sources);
        }
        let history = sources.entry(source).or_insert_with(|| History {
            client,
            first: now,
            last: now,
            rules: Vec::new(),
            kept_out: NO_DNSBL,
            decided: now,
        });
        history.client = client;
        history.last = now;
        history.count(rule);
        decide(history);
    }

    /// All, the last refused first.
    pub(super) fn list(&self) -> Vec<RefusedSource> {
        let sources = self.sources();
        let mut sources: Vec<_> = sources.iter().collect();
        sources.sort_by_key(|(source, history)| (std::cmp::Reverse(history.last), **source));
        let listed = sources
            .into_iter()
            .map(|(source, history)| history.report(source));
        listed.collect()
    }
}

impl History {
    fn count(&mut self, rule: &str) {
        let known = self.rules.iter().position(|(known, _)| known == rule);
        let place = match known {
            Some(place) => place,
            None if self.rules.len() < RULES_MAX => {
                self.rules.push((rule.to_owned(), 0));
                self.rules.len() - 1
            }
            None => {
                // The last place is that of all others.
                if let Some((last, _)) = self.rules.last_mut() {
                    *last = OTHER_RULES.to_owned();
                }
                RULES_MAX - 1
            }
        };
        if let Some((_, times)) = self.rules.get_mut(place) {
            *times += 1;
        }
    }

    fn report(&self, source: &IpNet) -> RefusedSource {
        let (until, why_not) = match &self.kept_out {
            KeptOut::For(duration) => (self.decided.checked_add(*duration).map(utc), None),
            KeptOut::ByPerson => (None, None),
            KeptOut::Not(why) => (None, Some(why.clone().into_owned())),
        };
        let rules = self.rules.iter().map(|(rule, times)| RefusedBy {
            rule: rule.clone(),
            times: *times,
        });
        RefusedSource {
            source: filter::format_network(source),
            client: self.client.to_canonical(),
            times: self.rules.iter().map(|(_, times)| times).sum(),
            first: utc(self.first),
            last: utc(self.last),
            rules: rules.collect(),
            kept_out_until: until,
            not_kept_out: why_not,
        }
    }
}

/// Makes room: those go whose last refusal was the longest time ago.
fn forget(sources: &mut FxHashMap<IpNet, History>) {
    let mut oldest: Vec<_> = sources
        .iter()
        .map(|(source, history)| (history.last, *source))
        .collect();
    if oldest.len() > BATCH {
        oldest.select_nth_unstable(BATCH);
    }
    for (_, source) in oldest.into_iter().take(BATCH) {
        sources.remove(&source);
    }
}

/// To the second.
fn utc(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rule;

    fn refusal(client: IpAddr, rule: &str) -> Refusal {
        Refusal {
            client,
            rule: Rule::of_zone(rule.trim_start_matches("dnsbl:")),
            is_behind_front: false,
        }
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_source_is_listed_with_all_that_it_was_refused_for() {
        let refusals = Refusals::default();
        let hour = KeptOut::For(Duration::from_secs(3_600));
        for (second, client, rule) in [
            (0, "2001:db8::1", "dnsbl:a"),
            (60, "2001:db8::2", "dnsbl:b"),
            (61, "2001:db8::2", "dnsbl:b"),
        ] {
            let refusal = refusal(client.parse().unwrap(), rule);
            refusals.add(&refusal, hour.clone(), at(second));
        }
        let other = refusal("::ffff:192.0.2.1".parse().unwrap(), "dnsbl:a");
        refusals.add(&other, KeptOut::Not("monitor".into()), at(30));
        let listed = refusals.list();
        let by = |rule: &str, times| RefusedBy {
            rule: rule.to_owned(),
            times,
        };
        let expected = RefusedSource {
            source: "2001:db8::/64".to_owned(),
            client: "2001:db8::2".parse().unwrap(),
            times: 3,
            first: "1970-01-01T00:00:00Z".to_owned(),
            last: "1970-01-01T00:01:01Z".to_owned(),
            rules: vec![by("dnsbl:a", 1), by("dnsbl:b", 2)],
            kept_out_until: Some("1970-01-01T01:01:01Z".to_owned()),
            not_kept_out: None,
        };
        assert_eq!(listed[0], expected);
        assert_eq!((listed.len(), &*listed[1].source), (2, "192.0.2.1"));
        assert_eq!(listed[1].not_kept_out.as_deref(), Some("monitor"));
    }

    #[test]
    fn there_is_a_bound_and_what_is_remembered_is_what_happened_last() {
        let refusals = Refusals::default();
        let last = SOURCES_MAX as u32 + 100;
        for number in 0..=last {
            let refusal = refusal(IpAddr::from(number.to_be_bytes()), "dnsbl:a");
            let kept_out = KeptOut::Not("".into());
            refusals.add(&refusal, kept_out, at(number.into()));
        }
        let listed = refusals.list();
        assert!((SOURCES_MAX - BATCH..=SOURCES_MAX).contains(&listed.len()));
        assert_eq!(listed[0].client, IpAddr::from(last.to_be_bytes()));
    }

    #[test]
    fn a_source_of_many_rules_has_a_bound_too() {
        let refusals = Refusals::default();
        for number in 0..100 {
            let refusal = refusal([192, 0, 2, 1].into(), &format!("dnsbl:{number}"));
            refusals.add(&refusal, KeptOut::Not("".into()), at(number));
        }
        let listed = refusals.list();
        assert_eq!((listed[0].times, listed[0].rules.len()), (100, RULES_MAX));
        assert_eq!(listed[0].rules[RULES_MAX - 1].rule, OTHER_RULES);
    }
}
