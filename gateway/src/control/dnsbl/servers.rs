//! The name servers: asked in turn, each after a fraction of the time, and the ones that answer
//! first.
//!
//! A question goes to the first server. When that fails it goes to the next one at once, and when
//! it is only slow, after `timeout / (servers + 1)`: two dead ones before a good one leave it half
//! of the time, and the late answer of an earlier one still counts. Rejected: to ask all of them at
//! once, which doubles what every list has to answer; and the fastest answer of any kind, with
//! which one bad server of two decides about every second client.
//!
//! What is known of a server is known for one zone: a server may refuse one zone and have another,
//! and a resolver that says SERVFAIL for a zone whose own servers are down is none the worse for
//! it. One that has failed is asked last, and a copy of a question shows from time to time whether
//! it is well again: no client waits for that.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::counts::Counts;
use super::query::{DnsAnswer, DnsQuery, QueryError};

/// Questions to name servers at a time; each has a socket. One more is not asked. Fewer where the
/// limit of open files is low.
const QUERIES_MAX: usize = 4_096;
/// A server has failed when it has left this number of queries in a row unanswered, each for its
/// share of the time.
const MISSES_MAX: u32 = 3;
/// How often a server that has failed is probed.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// How often the log says that a server has failed, at most.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// A zone and one of the servers that are asked about it.
type Pair = (Arc<str>, SocketAddr);

/// The name servers of a configuration.
#[derive(Debug)]
pub(super) struct NameServers {
    /// In the order of the configuration.
    servers: Vec<SocketAddr>,
    timeout: Duration,
    queries_max: usize,
    queries: Arc<Semaphore>,
    known: Mutex<FxHashMap<Pair, Known>>,
    counts: Arc<Counts>,
}

/// What is known of a server for one zone.
#[derive(Debug, Default)]
struct Known {
    has_failed: bool,
    /// Questions in a row that it has not answered.
    misses: u32,
    /// When it was asked last. Kept for those that have failed.
    asked: Option<Instant>,
    /// When the log said that it has failed.
    complained: Option<Instant>,
    /// Whether the log said so of the failure that lasts.
    is_logged: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// There are too many questions already.
    Unasked,
    /// All servers have failed, the last of them so; or time was over.
    Failed(QueryError),
}

/// The result of a query to one server.
type Attempt = (SocketAddr, Result<DnsAnswer, QueryError>);

impl NameServers {
    /// These servers; a question to all of them together may take so long.
    pub(super) fn new(servers: &[SocketAddr], timeout: Duration, counts: &Arc<Counts>) -> Self {
        counts.forget_servers();
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(now, _)| now);
        let queries_max = queries_max(open_files);
        Self {
            servers: servers.to_vec(),
            timeout,
            queries_max,
            queries: Arc::new(Semaphore::new(queries_max)),
            known: Mutex::default(),
            counts: Arc::clone(counts),
        }
    }

    /// Questions that may be under way at a time.
    pub(super) fn queries_max(&self) -> usize {
        self.queries_max
    }

    /// Asks about a name of a zone.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub(super) async fn ask(
        self: &Arc<Self>,
        zone: &Arc<str>,
        question: &Arc<DnsQuery>,
    ) -> Result<DnsAnswer, NoAnswer> {
        let (order, probes) = self.order(zone);
        self.probe(zone, question, probes);
        let share = self.share();
        let deadline = Instant::now() + self.timeout;
        let mut turn = Instant::now();
        let mut waiting = order.into_iter().peekable();
        let mut attempts: JoinSet<Attempt> = JoinSet::new();
        // The servers that were asked and have not answered, and when they were asked.
        let mut asked: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut last = None;
        loop {
            let now = Instant::now();
            if now >= turn
                && let Some(server) = waiting.peek().copied()
                && let Some(permit) = self.permit()
            {
                waiting.next();
                asked.push((server, now));
                attempts.spawn(attempt(Arc::clone(question), server, permit));
                turn = now + share;
            }
            if attempts.is_empty() {
                return Err(last.map_or(NoAnswer::Unasked, NoAnswer::Failed));
            }
            let until = if waiting.peek().is_some() {
                turn.max(now + share / 8).min(deadline)
            } else {
                deadline
            };
            let Ok(ended) = time::timeout_at(until, attempts.join_next()).await else {
                if Instant::now() >= deadline {
                    self.missed(zone, &asked, share);
                    return Err(NoAnswer::Failed(QueryError::Silent));
                }
                continue;
            };
            // One that ended in a panic has said nothing: its server counts as silent in the end.
            turn = Instant::now();
            let Some(Ok((server, result))) = ended else {
                continue;
            };
            asked.retain(|(asked, _)| *asked != server);
            match result {
                Ok(answered) => {
                    self.missed(zone, &asked, share);
                    self.answered(zone, server);
                    return Ok(answered);
                }
                Err(error) => {
                    self.failed(zone, server, &error);
                    last = Some(error);
                }
            }
        }
    }

    /// Asks every server in the background whether it answers for a zone, if there are several:
    /// else the one that is needed last would be known by its first failure.
    pub(super) fn probe_all(self: &Arc<Self>, zone: &Arc<str>, question: &Arc<DnsQuery>) {
        if self.servers.len() > 1 {
            self.probe(zone, question, self.servers.clone());
        }
    }

    /// Asks each of the servers by itself, one beside the other, for `doctor`.
    pub(super) async fn ask_each(&self, question: &Arc<DnsQuery>) -> Vec<Attempt> {
        let mut attempts = JoinSet::new();
        for server in self.servers.clone() {
            let (question, timeout) = (Arc::clone(question), self.timeout);
            attempts.spawn(async move { (server, within(timeout, &question, server).await) });
        }
        let mut results: Vec<Attempt> = attempts.join_all().await;
        results.sort_by_key(|(server, _)| self.servers.iter().position(|other| other == server));
        results
    }

    /// What each server has of the time before the next one is asked.
    fn share(&self) -> Duration {
        self.timeout / (self.servers.len() as u32 + 1)
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.queries).try_acquire_owned().ok()
    }

    /// The servers for a zone in the order in which they are asked, and those that are to be probed
    /// besides.
    fn order(&self, zone: &Arc<str>) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let mut known = self.lock();
        let has_failed = |server: &SocketAddr| {
            let pair = (Arc::clone(zone), *server);
            known.get(&pair).is_some_and(|known| known.has_failed)
        };
        let (failed, mut order): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| has_failed(server));
        let mut probes = Vec::new();
        if !order.is_empty() {
            let now = Instant::now();
            for server in &failed {
                let known = known.entry((Arc::clone(zone), *server)).or_default();
                if known
                    .asked
                    .is_none_or(|asked| now.duration_since(asked) >= PROBE_EVERY)
                {
                    known.asked = Some(now);
                    probes.push(*server);
                }
            }
        }
        order.extend(failed);
        (order, probes)
    }

    fn probe(
        self: &Arc<Self>,
        zone: &Arc<str>,
        question: &Arc<DnsQuery>,
        servers: Vec<SocketAddr>,
    ) {
        for server in servers {
            // With no room for it, it is left for the next time.
            let Some(permit) = self.permit() else { return };
            let (this, zone, question) = (Arc::clone(self), Arc::clone(zone), Arc::clone(question));
            tokio::spawn(async move {
                let result = within(this.timeout, &question, server).await;
                drop(permit);
                match result {
                    Ok(_) => this.answered(&zone, server),
                    Err(error) => this.failed(&zone, server, &error),
                }
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<Pair, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, zone: &Arc<str>, server: SocketAddr) {
        let mut all = self.lock();
        let known = all.entry((Arc::clone(zone), server)).or_default();
        known.misses = 0;
        known.has_failed = false;
        if std::mem::take(&mut known.is_logged) {
            tracing::info!(zone = &**zone, %server, "a name server answers again for a DNS list");
        }
        self.counts.server_answered(zone, server);
    }

    /// These servers have been asked and have said nothing so far; those that had their share of
    /// the time have missed it.
    fn missed(&self, zone: &Arc<str>, asked: &[(SocketAddr, Instant)], share: Duration) {
        for (server, since) in asked {
            // A timer fires a little after its time, never before.
            if since.elapsed() < share {
                continue;
            }
            let misses = {
                let mut all = self.lock();
                let known = all.entry((Arc::clone(zone), *server)).or_default();
                known.misses += 1;
                known.misses
            };
            if misses >= MISSES_MAX {
                self.failed(zone, *server, &QueryError::Silent);
            }
        }
    }

    fn failed(&self, zone: &Arc<str>, server: SocketAddr, error: &QueryError) {
        let now = Instant::now();
        let mut all = self.lock();
        let known = all.entry((Arc::clone(zone), server)).or_default();
        known.has_failed = true;
        known.asked = Some(now);
        let said = known.complained;
        if !known.is_logged && said.is_none_or(|said| now.duration_since(said) >= COMPLAINT_PAUSE) {
            known.is_logged = true;
            known.complained = Some(now);
            tracing::warn!(
                zone = &**zone,
                %server,
                %error,
                "a name server fails for a DNS list: it is asked last until it answers again"
            );
        }
        self.counts.server_failed(zone, server);
    }
}

/// Half of the open files are for the rest of the gate. Without this a crowd of strangers would use
/// up all of them; and a server that gets no question for want of a socket would count as one that
/// fails.
fn queries_max(open_files: u64) -> usize {
    let half = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
    half.clamp(1, QUERIES_MAX)
}

async fn attempt(
    question: Arc<DnsQuery>,
    server: SocketAddr,
    permit: OwnedSemaphorePermit,
) -> Attempt {
    let result = question.ask(server).await;
    drop(permit);
    (server, result)
}

async fn within(
    timeout: Duration,
    question: &DnsQuery,
    server: SocketAddr,
) -> Result<DnsAnswer, QueryError> {
    let asked = time::timeout(timeout, question.ask(server)).await;
    asked.unwrap_or(Err(QueryError::Silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_leave_half_of_the_open_files_to_the_rest_of_the_gate() {
        for (open_files, expected) in [
            (0, 1),
            (256, 128),
            (1_024, 512),
            (8_192, 4_096),
            (524_288, 4_096),
            (u64::MAX, 4_096),
        ] {
            assert_eq!(queries_max(open_files), expected, "{open_files}");
        }
    }
}
