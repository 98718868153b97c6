//! DNS lists: the service that answers the workers' questions about clients, and what becomes of
//! those that were refused.
//!
//! A question comes through a bounded channel and waits for nothing; a worker that gets no answer
//! goes on without. A source is looked up once at a time, however many sessions it opens meanwhile.
//! A source that was refused a recipient goes into the filter's recent verdicts, so that its next
//! packet costs nanoseconds; whether it may get there is checked against the configuration that is
//! in force by then.
//!
//! The queries themselves, the cache and the bound on it are in `dnsbl/resolver.rs`.

mod counts;
mod query;
pub(crate) mod report;
mod resolver;
mod servers;
mod test_entries;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use tokio::sync::mpsc::{self, Receiver, Sender, UnboundedSender};
use tokio::task::{Id, JoinError, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};

#[cfg(test)]
pub(super) use self::counts::Zone;
pub(super) use self::counts::{Counts, Dnsbl, Server};
use self::resolver::{Resolver, SwitchedOff};
pub(super) use self::test_entries::{Family, Trust};
use super::Control;
use super::refusals::KeptOut;
use crate::config::{Config, FilterMode};
use crate::filter::{Cause, NewVerdict, Verdicts, verdict_network};
use crate::policy::Service;
use crate::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use crate::worker::port::{Ask, LookupAnswer, Refusal};

/// Requests that the service has not looked at yet. More than this is a service that is stuck, and
/// counts as silence.
const REQUESTS_MAX: usize = 16_384;

/// How often the gate checks whether a zone needs a test.
const TEST_TICK: Duration = Duration::from_secs(1);

/// What the service is asked for.
pub(super) enum Request {
    /// To know what the zones say about a client.
    Query { client: IpAddr, ask: Ask },
    /// That the filter hears of a client that was refused.
    Learn(Refusal),
}

/// Where requests to the service go. No call waits.
pub(super) struct Requests {
    to: Sender<Request>,
    counts: Arc<Counts>,
}

impl Requests {
    /// Has the zones queried about a client; the answer goes to the worker.
    pub(super) fn query(&self, client: IpAddr, ask: Ask) {
        if let Err(error) = self.to.try_send(Request::Query { client, ask })
            && let Request::Query { ask, .. } = error.into_inner()
        {
            self.counts.unasked();
            ask.answer(LookupAnswer::Full);
        }
    }

    /// Tells the filter of a client that was refused.
    pub(super) fn learn(&self, refusal: Refusal) {
        // One that is lost is refused again when it comes again.
        let _ = self.to.try_send(Request::Learn(refusal));
    }
}

/// Both ends of the way to the service.
pub(super) fn requests(counts: &Arc<Counts>) -> (Requests, Receiver<Request>) {
    let (to, requests) = mpsc::channel(REQUESTS_MAX);
    let counts = Arc::clone(counts);
    (Requests { to, counts }, requests)
}

/// Answers the workers for as long as the gate lives. `verdicts` are those of the filter, if there
/// is one.
pub(super) async fn serve(
    control: Arc<Control>,
    mut requests: Receiver<Request>,
    verdicts: Option<Arc<Verdicts>>,
) {
    let (to, mut switched_off) = mpsc::unbounded_channel();
    let mut ticks = interval(TEST_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut service = DnsblService {
        control,
        resolver: None,
        switched_off: to,
        waiting: FxHashMap::default(),
        tasks: FxHashMap::default(),
        running: JoinSet::new(),
    };
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(Request::Query { client, ask }) => service.query(client, ask),
                Some(Request::Learn(refusal)) => service.learn(verdicts.as_ref(), refusal),
                None => return,
            },
            Some(done) = service.running.join_next_with_id() => service.done(done),
            _ = ticks.tick() => service.test(),
            Some((zone, family)) = switched_off.recv() => if let Some(verdicts) = &verdicts {
                remove_verdicts(verdicts, zone, family);
            },
        }
    }
}

/// What is looked up, and for which questions.
struct DnsblService {
    control: Arc<Control>,
    /// Made with the first question, and again when the configuration has other name servers.
    resolver: Option<Arc<Resolver>>,
    /// Receives the zones that list every address.
    switched_off: UnboundedSender<SwitchedOff>,
    /// The questions that wait, by the address that they are about.
    waiting: FxHashMap<IpAddr, Vec<Ask>>,
    tasks: FxHashMap<Id, IpAddr>,
    running: JoinSet<Vec<ZoneAnswer>>,
}

impl DnsblService {
    fn query(&mut self, client: IpAddr, ask: Ask) {
        if let Some(waiting) = self.waiting.get_mut(&client) {
            waiting.push(ask);
            return;
        }
        let config = self.control.shared.config.load_full();
        let zones = config.policy.dnsbl().zones.clone();
        // The resolver has a shorter time of its own; nothing goes on for longer than a worker
        // waits.
        let answers = timeout(ask.within, self.resolver(&config).query_all(zones, client));
        self.waiting.insert(client, vec![ask]);
        let task = self
            .running
            .spawn(async { answers.await.unwrap_or_default() });
        self.tasks.insert(task.id(), client);
        self.control.dnsbl.outstanding(self.waiting.len());
    }

    /// The resolver under this configuration.
    fn resolver(&mut self, config: &Config) -> Arc<Resolver> {
        if let Some(resolver) = &self.resolver
            && resolver.follows(&config.dnsbl)
        {
            return Arc::clone(resolver);
        }
        let to = self.switched_off.clone();
        let resolver = Arc::new(Resolver::new(&config.dnsbl, &self.control.dnsbl, to));
        self.resolver = Some(Arc::clone(&resolver));
        resolver
    }

    /// Makes the filter drop a source that was refused. Not when the zone is switched off by now: a
    /// session keeps what the zone said earlier until it ends, and the verdicts of the zone are
    /// removed only once.
    fn learn(&self, verdicts: Option<&Arc<Verdicts>>, refusal: Refusal) {
        let config = self.control.shared.config.load_full();
        let mut zones = config.policy.dnsbl().zones.iter();
        let zone = zones.find(|zone| *zone.name == *zone_of(&refusal));
        let is_off = zone
            .zip(self.resolver.as_ref())
            .is_some_and(|(zone, resolver)| {
                resolver.trust(zone, refusal.client) == Trust::SwitchedOff
            });
        if is_off {
            remember(&self.control, &refusal, "the DNS list is switched off");
        } else {
            learn(&self.control, verdicts, refusal);
        }
    }

    /// Tests the zones whose time has come.
    fn test(&mut self) {
        let config = self.control.shared.config.load_full();
        let zones = &config.policy.dnsbl().zones;
        if !zones.is_empty() || self.resolver.is_some() {
            self.resolver(&config).test_what_is_due(zones);
        }
    }

    fn done(&mut self, done: Result<(Id, Vec<ZoneAnswer>), JoinError>) {
        let (task, answers) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a DNSBL query ended in a panic");
                (error.id(), Vec::new())
            }
        };
        let listings = only_listings(answers);
        let client = self.tasks.remove(&task);
        let waiting = client.and_then(|client| self.waiting.remove(&client));
        for ask in waiting.into_iter().flatten() {
            ask.answer(LookupAnswer::Dnsbl(listings.clone()));
        }
        self.control.dnsbl.outstanding(self.waiting.len());
    }
}

/// A worker keeps the answer for a whole session: most clients are on no list, and then that is
/// nothing.
fn only_listings(mut answers: Vec<ZoneAnswer>) -> Option<Arc<[ZoneAnswer]>> {
    answers.retain(|answer| matches!(answer.answer, DnsblAnswer::Addresses(_)));
    (!answers.is_empty()).then(|| answers.into())
}

/// Has the filter drop a source that was refused, unless it must not, and remembers either.
fn learn(control: &Arc<Control>, verdicts: Option<&Arc<Verdicts>>, refusal: Refusal) {
    let config = control.shared.config.load_full();
    let client = config.policy.client(refusal.client);
    let (mode, verdicts) = match (&config.filter, verdicts) {
        (Some(filter), Some(verdicts)) => (filter.mode, verdicts),
        _ => return remember(control, &refusal, "there is no filter"),
    };
    if mode != FilterMode::Enforce {
        return remember(control, &refusal, "filter.mode is not enforce");
    }
    if config.dnsbl.drop_for.is_zero() {
        return remember(control, &refusal, "dnsbl_policy.drop_for is 0");
    }
    if !config.policy.asks_about(Service::Relay, &client) {
        return remember(control, &refusal, "the new configuration trusts it");
    }
    if refusal.is_behind_front {
        return remember(control, &refusal, "it comes by a trusted front");
    }
    if config.has_front_in(verdict_network(client.address)) {
        return remember(control, &refusal, "a trusted front has its address");
    }
    let (control, verdicts) = (Arc::clone(control), Arc::clone(verdicts));
    // Writing a verdict is quick, unless the map is full.
    spawn_blocking(move || add_verdict(&control, &verdicts, &refusal, &config));
}

/// The zone that refused a source.
fn zone_of(refusal: &Refusal) -> &'static str {
    refusal.rule.subject()
}

/// Remembers a refusal of which the filter learns nothing.
fn remember(control: &Control, refusal: &Refusal, why_not: &'static str) {
    let kept_out = KeptOut::Not(why_not.into());
    control.refusals.add(refusal, kept_out, SystemTime::now());
}

/// Puts a source into the recent verdicts.
fn add_verdict(control: &Control, verdicts: &Verdicts, refusal: &Refusal, config: &Config) {
    let duration = config.dnsbl.drop_for;
    let verdict = NewVerdict {
        source: refusal.client.to_canonical().into(),
        duration,
        cause: Cause::Dnsbl,
        note: zone_of(refusal),
    };
    let client = refusal.client;
    match verdicts.add(&verdict, Some(config.policy.lists())) {
        Ok(added) => {
            tracing::debug!(%client, rule = %refusal.rule, ?added, "a verdict for the filter");
            let kept_out = KeptOut::by(&added, duration);
            control.refusals.add(refusal, kept_out, SystemTime::now());
        }
        Err(error) => {
            tracing::warn!(%client, %error, "the filter takes no verdict on a refused source");
            remember(control, refusal, "the filter took no verdict");
        }
    }
}

/// Removes the verdicts of a zone that lists every address. Most of them are on honest sources; the
/// others will be refused again.
fn remove_verdicts(verdicts: &Arc<Verdicts>, zone: Arc<str>, family: Family) {
    let verdicts = Arc::clone(verdicts);
    spawn_blocking(move || {
        let of_ipv6 = family == Family::Ipv6;
        match verdicts.remove_noted(Cause::Dnsbl, &zone, of_ipv6) {
            Ok(0) => {}
            Ok(number) => tracing::warn!(
                zone = &*zone,
                number,
                "recent verdicts for a DNS list that is switched off were removed"
            ),
            Err(error) => {
                tracing::warn!(zone = &*zone, %error, "cannot remove recent verdicts");
            }
        }
    });
}

/// Looks one address up in all zones of a configuration, for `explain`.
///
/// # Errors
/// When there can be no sockets or timers.
pub fn look_up(config: &Config, client: IpAddr) -> io::Result<Vec<ZoneAnswer>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (to, _) = mpsc::unbounded_channel();
        let resolver = Resolver::new(&config.dnsbl, &Arc::default(), to);
        let zones = config.policy.dnsbl().zones.clone();
        Ok(Arc::new(resolver).query_all(zones, client).await)
    })
}
