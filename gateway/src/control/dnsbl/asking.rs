//! Asking the zones about an address: all at once, each with its time, and each answer remembered for as long as its zone allows.
//!
//! The resolver is a stub for name servers that the configuration names; its own cache is off, because it could not tell a
//! hit from a miss, and answers are remembered here, with a bound. Silence is not remembered: the next client may find the
//! zone well again. An answer that there is no such name is remembered only if it says for how long (RFC 2308 section 5).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{RData, RecordType};
use moka::Expiry;
use moka::sync::Cache;
use rustc_hash::FxHashMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use super::counts::Counts;
use crate::config::DnsblPolicy;
use crate::policy::dnsbl::{Answer, Finding, Meaning, Zone, query_name};

/// Questions to name servers at a time; each has a socket. One more is not asked, and its zone counts as silent.
const QUERIES_MAX: usize = 4_096;
/// No answer is remembered for longer than this, whatever it says.
const REMEMBERED_MAX: Duration = Duration::from_secs(86_400);
/// Of an answer with more addresses than any list gives, so many are looked at.
const ADDRESSES_MAX: usize = 32;
/// How often the log says the same about a zone.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// An answer and how long it holds.
#[derive(Clone)]
struct Remembered {
    answer: Answer,
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

/// Who asks, and what it has learnt.
pub(super) struct Asking {
    policy: DnsblPolicy,
    resolver: TokioResolver,
    cache: Cache<(Arc<str>, IpAddr), Remembered>,
    queries: Semaphore,
    counts: Arc<Counts>,
    complained: Mutex<FxHashMap<(Arc<str>, &'static str), Instant>>,
}

impl Asking {
    /// Somebody who asks as this configuration wants it.
    ///
    /// # Errors
    /// When the resolver does not take it.
    pub(super) fn new(policy: &DnsblPolicy, counts: &Arc<Counts>) -> io::Result<Self> {
        Ok(Self {
            resolver: resolver(policy).map_err(io::Error::other)?,
            cache: Cache::builder()
                .max_capacity(policy.cache.into())
                .expire_after(AsAnswered)
                .build(),
            policy: policy.clone(),
            queries: Semaphore::new(QUERIES_MAX),
            counts: Arc::clone(counts),
            complained: Mutex::default(),
        })
    }

    /// Whether it asks as this configuration wants it.
    pub(super) fn follows(&self, policy: &DnsblPolicy) -> bool {
        let same = DnsblPolicy {
            drop_for: self.policy.drop_for,
            ..policy.clone()
        };
        self.policy == same
    }

    /// Asks all zones about an address.
    pub(super) async fn ask_all(self: Arc<Self>, zones: Vec<Zone>, client: IpAddr) -> Vec<Finding> {
        let mut answers = JoinSet::new();
        let mut findings: Vec<Finding> = Vec::with_capacity(zones.len());
        for (number, zone) in zones.into_iter().enumerate() {
            findings.push(Finding {
                zone: Arc::clone(&zone.name),
                answer: Answer::Silent,
            });
            let asking = Arc::clone(&self);
            answers.spawn(async move { (number, asking.ask(&zone, client).await) });
        }
        while let Some(done) = answers.join_next().await {
            if let Ok((number, answer)) = done
                && let Some(finding) = findings.get_mut(number)
            {
                finding.answer = answer;
            }
        }
        findings
    }

    async fn ask(&self, zone: &Zone, client: IpAddr) -> Answer {
        let key = (Arc::clone(&zone.name), client);
        if let Some(remembered) = self.cache.get(&key) {
            self.counts.hit();
            return remembered.answer;
        }
        let Ok(_query) = self.queries.try_acquire() else {
            self.counts.unasked();
            self.complain(zone, "bound", || {
                tracing::warn!(
                    zone = &*zone.name,
                    queries = QUERIES_MAX,
                    "too many questions to DNS lists at a time: some were not asked, and count as not listed"
                );
            });
            return Answer::Silent;
        };
        let name = query_name(client, &zone.name);
        let asked = self.resolver.lookup(name, RecordType::A);
        let heard = match time::timeout(self.policy.timeout, asked).await {
            Ok(heard) => heard,
            Err(_) => Err(NetError::Timeout),
        };
        let (answer, lasts) = self.read(zone, heard);
        let meaning = zone.meaning(&answer);
        self.counts.answered(&zone.name, meaning);
        if let Meaning::Ignored(address) = meaning {
            self.complain(zone, "ignored", || {
                tracing::warn!(
                    zone = &*zone.name,
                    %client,
                    %address,
                    "a DNS list gave an answer that never counts as a listing: it refuses this resolver, or has been given up"
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

    /// What an answer says, and for how long.
    fn read(&self, zone: &Zone, heard: Result<Lookup, NetError>) -> (Answer, Duration) {
        match heard {
            Ok(lookup) => {
                let lasts = lookup
                    .valid_until()
                    .saturating_duration_since(Instant::now());
                (addresses(&lookup), lasts)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let lasts = none.negative_ttl.unwrap_or(0);
                (Answer::NotListed, Duration::from_secs(lasts.into()))
            }
            Err(error) => {
                self.complain(zone, "silent", || {
                    tracing::warn!(
                        zone = &*zone.name,
                        %error,
                        "a DNS list gives no answer: it counts as silent, and nobody is refused for it"
                    );
                });
                (Answer::Silent, Duration::ZERO)
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

/// A resolver that asks these servers and nobody else, for the name as it is.
fn resolver(policy: &DnsblPolicy) -> Result<TokioResolver, NetError> {
    let mut config = ResolverConfig::default();
    for server in &policy.servers {
        let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut connections {
            connection.port = server.port();
        }
        let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
        name_server.connections = connections.into();
        config.name_servers.push(name_server);
    }
    let mut options = ResolverOpts::default();
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // What is lost on the way is sent again within this time.
    options.timeout = policy.timeout;
    options.attempts = 1;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

fn addresses(lookup: &Lookup) -> Answer {
    let addresses: Vec<Ipv4Addr> = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
        .take(ADDRESSES_MAX)
        .collect();
    if addresses.is_empty() {
        Answer::NotListed
    } else {
        Answer::Addresses(addresses)
    }
}
