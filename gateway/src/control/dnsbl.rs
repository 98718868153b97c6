//! DNS lists: the questions of the workers, and what becomes of those who were refused.
//!
//! A worker's question comes through a bounded channel and never waits; its answer goes into the
//! worker's inbox, and a worker that gets none goes on without. A source is asked about once at a
//! time, however many sessions it opens meanwhile. A source that was refused a recipient goes into
//! the filter's recent verdicts, so that its next packet costs nanoseconds; whether it may get
//! there is held against the configuration that is in force by then.
//!
//! Asking itself, the cache and the bound on it are in `dnsbl/asking.rs`.

mod asking;
mod counts;
mod query;
pub(crate) mod report;
mod servers;
mod test_entries;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use tokio::sync::mpsc::{self, Receiver, Sender, UnboundedSender};
use tokio::task::{Id, JoinError, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use self::asking::{Asking, SwitchedOff};
#[cfg(test)]
pub(super) use self::counts::Zone;
pub(super) use self::counts::{Counts, Dnsbl, Server};
pub(super) use self::test_entries::{Family, Trust};
use super::Control;
use super::refusals::KeptOut;
use crate::config::{Config, FilterMode};
use crate::filter::{Cause, NewVerdict, Verdicts};
use crate::policy::dnsbl::{Answer, Finding};
use crate::worker::dnsbl::{Lookups, Question, Refusal};

/// What workers may have asked for that was not looked at yet. More than this is a control plane
/// that is stuck, and counts as silence.
const REQUESTS_MAX: usize = 16_384;

/// How often it is looked whether a zone is to be tested.
const TEST_TICK: Duration = Duration::from_secs(1);

/// What a worker wants.
pub(super) enum Request {
    Ask(Question),
    Refused(Refusal),
}

/// The workers' end.
struct Requests(Sender<Request>, Arc<Counts>);

impl Lookups for Requests {
    fn ask(&self, question: Question) -> bool {
        let taken = self.0.try_send(Request::Ask(question)).is_ok();
        if !taken {
            self.1.unasked();
        }
        taken
    }

    fn refused(&self, refusal: Refusal) {
        // One that is lost is refused again when it comes again.
        let _ = self.0.try_send(Request::Refused(refusal));
    }
}

/// A channel for what workers want.
pub(super) fn requests(counts: &Arc<Counts>) -> (Arc<dyn Lookups>, Receiver<Request>) {
    let (to, from) = mpsc::channel(REQUESTS_MAX);
    (Arc::new(Requests(to, Arc::clone(counts))), from)
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
    let mut desk = Desk {
        control,
        asking: None,
        switched_off: to,
        waiting: FxHashMap::default(),
        tasks: FxHashMap::default(),
        running: JoinSet::new(),
    };
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(Request::Ask(question)) => desk.ask(question),
                Some(Request::Refused(refusal)) => desk.learn(verdicts.as_ref(), refusal),
                None => return,
            },
            Some(done) = desk.running.join_next_with_id() => desk.done(done),
            _ = ticks.tick() => desk.test(),
            Some((zone, family)) = switched_off.recv() => if let Some(verdicts) = &verdicts {
                take_back(verdicts, zone, family);
            },
        }
    }
}

/// What is being asked, and for whom.
struct Desk {
    control: Arc<Control>,
    /// Made with the first question, and again when the configuration says that others are to be
    /// asked.
    asking: Option<Arc<Asking>>,
    /// Hears of zones that list the world.
    switched_off: UnboundedSender<SwitchedOff>,
    /// Who waits, by the address that is asked about.
    waiting: FxHashMap<IpAddr, Vec<Question>>,
    tasks: FxHashMap<Id, IpAddr>,
    running: JoinSet<Vec<Finding>>,
}

impl Desk {
    fn ask(&mut self, question: Question) {
        let client = question.client;
        if let Some(waiting) = self.waiting.get_mut(&client) {
            waiting.push(question);
            return;
        }
        let config = self.control.shared.config.load_full();
        let asking = self.asking(&config);
        self.waiting.insert(client, vec![question]);
        let zones = config.policy.dnsbl().zones.clone();
        let task = self.running.spawn(asking.ask_all(zones, client));
        self.tasks.insert(task.id(), client);
        self.control.dnsbl.outstanding(self.waiting.len());
    }

    /// Who asks under this configuration.
    fn asking(&mut self, config: &Config) -> Arc<Asking> {
        if let Some(asking) = &self.asking
            && asking.follows(&config.dnsbl)
        {
            return Arc::clone(asking);
        }
        let to = self.switched_off.clone();
        let asking = Arc::new(Asking::new(&config.dnsbl, &self.control.dnsbl, to));
        self.asking = Some(Arc::clone(&asking));
        asking
    }

    /// Has the filter drop a source that was refused, but for a zone that is switched off by now: a
    /// session keeps for as long as it lasts what the zone said before, and the verdicts that came
    /// of that are taken back only once.
    fn learn(&self, verdicts: Option<&Arc<Verdicts>>, refusal: Refusal) {
        let config = self.control.shared.config.load_full();
        let mut zones = config.policy.dnsbl().zones.iter();
        let zone = zones.find(|zone| *zone.name == *zone_of(&refusal));
        let is_off = zone
            .zip(self.asking.as_ref())
            .is_some_and(|(zone, asking)| asking.trust(zone, refusal.client) == Trust::SwitchedOff);
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
        if !zones.is_empty() || self.asking.is_some() {
            self.asking(&config).test_what_is_due(zones);
        }
    }

    fn done(&mut self, done: Result<(Id, Vec<Finding>), JoinError>) {
        let (task, findings) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "asking DNS lists ended in a panic");
                (error.id(), Vec::new())
            }
        };
        let findings = worth_telling(findings);
        let client = self.tasks.remove(&task);
        let waiting = client.and_then(|client| self.waiting.remove(&client));
        for question in waiting.into_iter().flatten() {
            question.inbox.put((question.conn, findings.clone()));
        }
        self.control.dnsbl.outstanding(self.waiting.len());
    }
}

/// A worker keeps what it is told for a whole session: most clients are on no list, and then that
/// is nothing.
fn worth_telling(mut findings: Vec<Finding>) -> Option<Arc<[Finding]>> {
    findings.retain(|finding| matches!(finding.answer, Answer::Addresses(_)));
    (!findings.is_empty()).then(|| findings.into())
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
    if !config.policy.asks_about(&client) {
        return remember(control, &refusal, "the new configuration trusts it");
    }
    let (control, verdicts) = (Arc::clone(control), Arc::clone(verdicts));
    // Writing one is quick, but for when there is no room.
    spawn_blocking(move || give(&control, &verdicts, &refusal, &config));
}

/// The zone that refused a source.
fn zone_of(refusal: &Refusal) -> &str {
    refusal.rule.strip_prefix("dnsbl:").unwrap_or(&refusal.rule)
}

/// Remembers a refusal of which the filter learns nothing.
fn remember(control: &Control, refusal: &Refusal, why_not: &str) {
    let kept_out = KeptOut::Not(why_not.to_owned());
    control.refusals.add(refusal, kept_out, SystemTime::now());
}

/// Puts a source into the recent verdicts.
fn give(control: &Control, verdicts: &Verdicts, refusal: &Refusal, config: &Config) {
    let duration = config.dnsbl.drop_for;
    let verdict = NewVerdict {
        source: refusal.client.to_canonical().into(),
        duration,
        cause: Cause::Dnsbl,
        note: zone_of(refusal),
    };
    let client = refusal.client;
    match verdicts.add(&verdict, Some(config.policy.lists())) {
        Ok(given) => {
            tracing::debug!(%client, rule = %refusal.rule, ?given, "a verdict for the filter");
            let kept_out = KeptOut::by(&given, duration);
            control.refusals.add(refusal, kept_out, SystemTime::now());
        }
        Err(error) => {
            tracing::warn!(%client, %error, "the filter takes no verdict on a refused source");
            remember(control, refusal, "the filter took no verdict");
        }
    }
}

/// Takes back the verdicts that a zone has brought about which lists the world: most of them are on
/// honest sources, and the others come again.
fn take_back(verdicts: &Arc<Verdicts>, zone: Arc<str>, family: Family) {
    let verdicts = Arc::clone(verdicts);
    spawn_blocking(move || {
        let of_ipv6 = family == Family::Ipv6;
        match verdicts.remove_noted(Cause::Dnsbl, &zone, of_ipv6) {
            Ok(0) => {}
            Ok(number) => tracing::warn!(
                zone = &*zone,
                number,
                "recent verdicts for a DNS list that is switched off are taken back"
            ),
            Err(error) => {
                tracing::warn!(zone = &*zone, %error, "cannot take back recent verdicts");
            }
        }
    });
}

/// Asks all zones of a configuration about one address, for `explain`.
///
/// # Errors
/// When there can be no sockets or timers.
pub fn look_up(config: &Config, client: IpAddr) -> io::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (to, _) = mpsc::unbounded_channel();
        let asking = Asking::new(&config.dnsbl, &Arc::default(), to);
        let zones = config.policy.dnsbl().zones.clone();
        Ok(Arc::new(asking).ask_all(zones, client).await)
    })
}
