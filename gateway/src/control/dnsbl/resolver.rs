//! The resolver of DNS lists: it queries all zones about an address at once, each with its time,
//! and remembers each answer for as long as its zone allows.
//!
//! Answers are remembered with a bound. Silence is not remembered: the next client may find the
//! zone well again. An answer that there is no such name is remembered only if it says for how long
//! (RFC 2308 section 5).
//!
//! Which name server is asked is in `servers.rs`, what counts as an answer in `query.rs`, and
//! whether a zone is to be believed in `test_entries.rs`.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time;

use super::counts::Counts;
use super::query::{DnsQuery, QueryError};
use super::servers::{NameServers, NoAnswer};
use super::test_entries::{self, Family, Tests, Trust};
use crate::config::DnsblPolicy;
use crate::policy::dnsbl::{DnsblAnswer, Meaning, Zone, ZoneAnswer, query_name};

/// No answer is remembered for longer than this, whatever it says.
const REMEMBERED_MAX: Duration = Duration::from_secs(86_400);
/// How often the log says the same about a zone.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// An answer and how long it holds.
#[derive(Clone)]
struct Remembered {
    answer: DnsblAnswer,
    lasts: Duration,
}

/// An entry lives as long as its answer says.
struct AsAnswered;

impl Expiry<(Arc<str>, IpAddr), Remembered> for AsAnswered {
    fn expire_after_create(
        &self,
        _: &(Arc<str>, IpAddr),
        entry: &Remembered,
        _: Instant,
    ) -> Option<Duration> {
        Some(entry.lasts)
    }

    fn expire_after_update(
        &self,
        _: &(Arc<str>, IpAddr),
        entry: &Remembered,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.lasts)
    }
}

/// A zone that was switched off, and for which addresses.
pub(super) type SwitchedOff = (Arc<str>, Family);

/// Queries zones, and remembers their answers.
pub(super) struct Resolver {
    policy: DnsblPolicy,
    servers: Arc<NameServers>,
    tests: Tests,
    cache: Cache<(Arc<str>, IpAddr), Remembered>,
    counts: Arc<Counts>,
    complained: Mutex<FxHashMap<(Arc<str>, &'static str), Instant>>,
}

impl Resolver {
    /// A resolver for this configuration. `switched_off` hears of zones that turn out to list the
    /// world.
    pub(super) fn new(
        policy: &DnsblPolicy,
        counts: &Arc<Counts>,
        switched_off: UnboundedSender<SwitchedOff>,
    ) -> Self {
        let servers = Arc::new(NameServers::new(&policy.servers, policy.timeout, counts));
        let cache: Cache<(Arc<str>, IpAddr), Remembered> = Cache::builder()
            .max_capacity(policy.cache.into())
            .expire_after(AsAnswered)
            .build();
        let forget = {
            let cache = cache.clone();
            move |zone: &Arc<str>, family| {
                // Of all zones: it happens once in years.
                cache.invalidate_all();
                // With no receiver there are no verdicts to remove.
                let _ = switched_off.send((Arc::clone(zone), family));
            }
        };
        Self {
            tests: Tests::new(&servers, policy.test_every, counts, Box::new(forget)),
            servers,
            cache,
            policy: policy.clone(),
            counts: Arc::clone(counts),
            complained: Mutex::default(),
        }
    }

    /// Whether it works as this configuration wants it.
    pub(super) fn follows(&self, policy: &DnsblPolicy) -> bool {
        let same = DnsblPolicy {
            drop_for: self.policy.drop_for,
            ..policy.clone()
        };
        self.policy == same
    }

    /// Whether a listing of this client by a zone counts, by what is known.
    pub(super) fn trust(&self, zone: &Zone, client: IpAddr) -> Trust {
        self.tests.trust(zone, Family::of(client))
    }

    /// Queries all zones about an address.
    pub(super) async fn query_all(
        self: Arc<Self>,
        zones: Vec<Zone>,
        client: IpAddr,
    ) -> Vec<ZoneAnswer> {
        let mut queries = JoinSet::new();
        let mut answers: Vec<ZoneAnswer> = Vec::with_capacity(zones.len());
        for (number, zone) in zones.into_iter().enumerate() {
            answers.push(ZoneAnswer {
                zone: Arc::clone(&zone.name),
                answer: DnsblAnswer::Silent,
            });
            let resolver = Arc::clone(&self);
            queries.spawn(async move { (number, resolver.query(&zone, client).await) });
        }
        while let Some(done) = queries.join_next().await {
            if let Ok((number, answer)) = done
                && let Some(of_zone) = answers.get_mut(number)
            {
                of_zone.answer = answer;
            }
        }
        answers
    }

    /// Tests those of these zones whose time has come; the tests go on by themselves.
    pub(super) fn test_what_is_due(self: &Arc<Self>, zones: &[Zone]) {
        let is_kept = |name: &str| zones.iter().any(|zone| *zone.name == *name);
        self.tests.keep(is_kept);
        self.counts.keep_zones(is_kept);
        for zone in zones.iter().filter(|zone| zone.test_entries) {
            for family in Family::BOTH {
                if self.tests.is_due(zone, family) {
                    let (resolver, zone) = (Arc::clone(self), zone.clone());
                    tokio::spawn(async move { resolver.tests.test_now(&zone, family).await });
                }
            }
        }
    }

    async fn query(&self, zone: &Zone, client: IpAddr) -> DnsblAnswer {
        let family = Family::of(client);
        if self.tests.trust(zone, family) == Trust::SwitchedOff {
            return DnsblAnswer::SwitchedOff;
        }
        let key = (Arc::clone(&zone.name), client);
        if let Some(remembered) = self.cache.get(&key) {
            self.counts.hit();
            return remembered.answer;
        }
        let deadline = time::Instant::now() + self.policy.timeout;
        let Some((mut answer, mut lasts)) = self.query_servers(zone, client).await else {
            return DnsblAnswer::Silent;
        };
        let mut meaning = zone.meaning(&answer);
        if meaning == Meaning::Listed {
            let tested = time::timeout_at(deadline, self.tests.before_a_listing(zone, family));
            // With no answer to a test it is what it was.
            let trust = tested
                .await
                .unwrap_or_else(|_| self.tests.trust(zone, family));
            match trust {
                Trust::InUse => {}
                Trust::SwitchedOff => return DnsblAnswer::SwitchedOff,
                Trust::NotTested => {
                    self.complain(zone, "untested", || {
                        tracing::warn!(
                            zone = &*zone.name,
                            "a DNS list gives listings, but no answer to its test entries yet: \
                             it counts as silent"
                        );
                    });
                    (answer, lasts, meaning) =
                        (DnsblAnswer::Silent, Duration::ZERO, Meaning::Silent);
                }
            }
        }
        self.counts.answered(&zone.name, meaning);
        if let Meaning::Ignored(address) = meaning {
            self.complain(zone, "ignored", || {
                tracing::warn!(
                    zone = &*zone.name,
                    %client,
                    %address,
                    "a DNS list gave an answer that never counts as a listing: it refuses this \
                     resolver, or has been given up"
                );
            });
        }
        if !lasts.is_zero() {
            let remembered = Remembered {
                answer: answer.clone(),
                lasts: lasts.min(REMEMBERED_MAX),
            };
            self.cache.insert(key, remembered);
        }
        answer
    }

    /// Queries the name servers. Returns what the zone says, and for how long; `None` if there were
    /// too many queries already.
    async fn query_servers(&self, zone: &Zone, client: IpAddr) -> Option<(DnsblAnswer, Duration)> {
        let name = query_name(client, &zone.name);
        let asked = match DnsQuery::new(&name).map(Arc::new) {
            Some(question) => self.servers.ask(&zone.name, &question).await,
            None => Err(NoAnswer::Failed(QueryError::Broken(
                "there is no such name in DNS",
            ))),
        };
        match asked {
            Ok(answered) => {
                let lasts = answered.lasts;
                Some((test_entries::answer(answered), lasts))
            }
            Err(NoAnswer::Unasked) => {
                self.counts.unasked();
                self.complain(zone, "bound", || {
                    tracing::warn!(
                        zone = &*zone.name,
                        queries = self.servers.queries_max(),
                        "too many questions to DNS lists at a time: some were not asked, and \
                         count as not listed"
                    );
                });
                None
            }
            Err(NoAnswer::Failed(error)) => {
                self.complain(zone, "silent", || {
                    tracing::warn!(
                        zone = &*zone.name,
                        %error,
                        "a DNS list gives no answer: it counts as silent, and refuses no client"
                    );
                });
                Some((DnsblAnswer::Silent, Duration::ZERO))
            }
        }
    }

    /// Writes to the log, unless the same was said of the zone a moment ago.
    fn complain(&self, zone: &Zone, what: &'static str, write: impl FnOnce()) {
        let mut complained = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let last = complained.get(&(Arc::clone(&zone.name), what));
        if last.is_none_or(|last| now.duration_since(*last) >= COMPLAINT_PAUSE) {
            complained.insert((Arc::clone(&zone.name), what), now);
            write();
        }
    }
}
