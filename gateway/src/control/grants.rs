//! Grants (POP-before-SMTP): which addresses may relay for a while, and what tells the workers, the
//! filter and the next start of it.
//!
//! The table is here, behind one lock; with each change go the set that the workers read and the
//! map of the filter, so that no two of the three differ for longer than that. The control plane
//! removes a grant when its time is over. In the map a grant also ends by itself: should the gate
//! end, its filter lets no one in for longer than was said.
//!
//! | file | subject |
//! |---|---|
//! | `table.rs` | the grants themselves: added, renewed, revoked, expired; pure |
//! | `kept.rs` | the file that keeps them over a restart |
//! | `follow.rs`, `lines.rs` | logs that tell of logins; their bytes as lines |

mod follow;
mod kept;
pub mod lines;
mod table;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use self::table::{AddResult, Table};
use crate::config::{self, Config};
use crate::filter;
use crate::policy::Granted;
use crate::printable::printable;

pub(super) use self::table::Grant;

/// How often grants that are over are removed.
const TICK: Duration = Duration::from_millis(250);
/// How often changes are kept. Each time the whole file is written.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Seconds between two lines of the log that there is no room.
const FULL_EVERY: u64 = 60;
/// Bytes of the text that says who wanted a grant.
const BY_MAX: usize = 512;

/// The grants of a gate.
pub(super) struct Grants {
    /// How long a grant holds if nothing else is said.
    time: Duration,
    path: PathBuf,
    state: Mutex<State>,
    /// Held for as long as the file is written: the next to keep sees what became of it.
    keeping: Mutex<()>,
    /// What the workers read.
    granted: Arc<Granted>,
    filter: Option<filter::Grants>,
    counts: Counts,
}

struct State {
    table: Table,
    /// The file does not hold the table as it is.
    is_dirty: bool,
    /// The last attempt to keep them failed, which the log has said.
    is_failing: bool,
    /// In seconds since 1970.
    full_logged_at: Option<u64>,
}

/// What was counted since the start.
#[derive(Debug, Default)]
struct Counts {
    added: AtomicU64,
    renewed: AtomicU64,
    revoked: AtomicU64,
    expired: AtomicU64,
    no_room: AtomicU64,
    lines: AtomicU64,
    long_lines: AtomicU64,
    logins: AtomicU64,
}

/// What is reported of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) number: u64,
    pub(super) max: u64,
    pub(super) added: u64,
    pub(super) renewed: u64,
    pub(super) revoked: u64,
    pub(super) expired: u64,
    /// Not added, because there were as many as there may be.
    pub(super) no_room: u64,
    /// Lines of the followed logs.
    pub(super) lines: u64,
    /// Of them, those that were too long to be read.
    pub(super) long_lines: u64,
    /// Of them, those that told of a login.
    pub(super) logins: u64,
}

/// That there is no room for another grant.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Grants {
    /// The grants that an earlier run has kept. The map of the filter holds exactly them then.
    pub(super) fn open(
        settings: &config::Grants,
        state_dir: &Path,
        granted: Arc<Granted>,
        filter: Option<filter::Grants>,
        now: u64,
    ) -> Self {
        let path = state_dir.join(kept::FILE);
        kept::remove_stale(state_dir);
        let table = table_of(kept::read(&path, now), settings.max);
        let grants = Self {
            time: settings.time,
            path,
            state: Mutex::new(State {
                table,
                is_dirty: false,
                is_failing: false,
                full_logged_at: None,
            }),
            keeping: Mutex::new(()),
            granted,
            filter,
            counts: Counts::default(),
        };
        let state = grants.state();
        let left = state.table.iter().map(|(address, grant)| {
            grants.granted.add(address);
            (address, left(grant, now))
        });
        let left: Vec<_> = left.collect();
        if !left.is_empty() {
            tracing::info!(number = left.len(), "grants of the run before are in force");
        }
        grants.tell_filter(|filter| filter.replace(&left));
        drop(state);
        grants
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or renews a grant at `now`, in seconds since 1970; `by` says who wants it, for the log
    /// and the list. A login never shortens a grant, an operator may.
    pub(super) fn add(
        &self,
        address: IpAddr,
        time: Option<Duration>,
        by: &str,
        may_shorten: bool,
        now: u64,
    ) -> Result<Grant, NoRoom> {
        let address = address.to_canonical();
        let seconds = time.unwrap_or(self.time).as_secs().max(1);
        let until = now.saturating_add(seconds);
        let mut state = self.state();
        let before = state.table.get(address);
        let grant = match before {
            // Whose grant it is does not change, either.
            Some(longer) if !may_shorten && longer.until > until => longer.clone(),
            before => Grant {
                since: before.map_or(now, |before| before.since),
                until,
                seconds,
                by: by[..by.floor_char_boundary(BY_MAX)].to_owned(),
            },
        };
        let (count, what) = match state.table.add(address, grant.clone()) {
            AddResult::Added => (&self.counts.added, "grant added"),
            AddResult::Renewed => (&self.counts.renewed, "grant renewed"),
            AddResult::NoRoom => {
                self.counts.no_room.fetch_add(1, Ordering::Relaxed);
                self.log_full(&mut state, address, by, now);
                return Err(NoRoom);
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        state.is_dirty = true;
        self.granted.add(address);
        self.tell_filter(|filter| filter.add(address, left(&grant, now)));
        drop(state);
        let until = rfc3339(grant.until);
        tracing::info!(%address, by = %printable(by), until, "{what}");
        Ok(grant)
    }

    fn log_full(&self, state: &mut State, address: IpAddr, by: &str, now: u64) {
        let is_soon = |then: u64| (then..then + FULL_EVERY).contains(&now);
        if !state.full_logged_at.is_some_and(is_soon) {
            state.full_logged_at = Some(now);
            let max = state.table.max();
            tracing::warn!(
                %address, by = %printable(by), max,
                "no room for a grant: raise grants.max, or shorten grants.time"
            );
        }
    }

    /// Removes a grant. Returns whether there was one.
    pub(super) fn revoke(&self, address: IpAddr, by: &str) -> bool {
        let address = address.to_canonical();
        let mut state = self.state();
        if state.table.remove(address).is_none() {
            return false;
        }
        self.forget(&mut state, &[address]);
        drop(state);
        self.counts.revoked.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%address, by = %printable(by), "grant revoked");
        true
    }

    /// Removes the grants whose time is over at `now`.
    fn expire(&self, now: u64) {
        let mut state = self.state();
        let over = state.table.expire(now);
        if over.is_empty() {
            return;
        }
        self.forget(&mut state, &over);
        drop(state);
        let number = over.len() as u64;
        self.counts.expired.fetch_add(number, Ordering::Relaxed);
        tracing::debug!(number, "grants have expired");
    }

    fn forget(&self, state: &mut State, gone: &[IpAddr]) {
        state.is_dirty = true;
        gone.iter()
            .for_each(|address| self.granted.remove(*address));
        self.tell_filter(|filter| filter.remove(gone));
    }

    /// A failure leaves the filter as strict as it was, or for a revoked grant as open as it was
    /// until the grant's time is over.
    fn tell_filter(&self, tell: impl FnOnce(&filter::Grants) -> Result<(), filter::Error>) {
        if let Some(Err(error)) = self.filter.as_ref().map(tell) {
            tracing::warn!(%error, "the filter does not know of a change of the grants");
        }
    }

    /// Writes the file, if it does not hold the grants as they are. Waits for another that does.
    pub(super) fn keep(&self) {
        let _alone = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut self.state().is_dirty) {
            return;
        }
        let kept = kept::write(&self.path, &kept::text(self.list()));
        let mut state = self.state();
        let was_failing = std::mem::replace(&mut state.is_failing, kept.is_err());
        state.is_dirty |= kept.is_err();
        match kept {
            Err(error) if !was_failing => tracing::warn!(
                path = %self.path.display(), %error,
                "grants are not kept for the next start; the gate goes on trying"
            ),
            Ok(()) if was_failing => tracing::info!("grants are kept again"),
            _ => {}
        }
    }

    /// The grants, by address.
    pub(super) fn list(&self) -> Vec<(IpAddr, Grant)> {
        let state = self.state();
        let all = state.table.iter();
        all.map(|(address, grant)| (address, grant.clone()))
            .collect()
    }

    /// What is reported of them.
    pub(super) fn report(&self) -> Report {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (number, max) = {
            let state = self.state();
            (state.table.len() as u64, state.table.max() as u64)
        };
        Report {
            number,
            max,
            added: count(&self.counts.added),
            renewed: count(&self.counts.renewed),
            revoked: count(&self.counts.revoked),
            expired: count(&self.counts.expired),
            no_room: count(&self.counts.no_room),
            lines: count(&self.counts.lines),
            long_lines: count(&self.counts.long_lines),
            logins: count(&self.counts.logins),
        }
    }
}

/// Follows the logs, and removes and keeps grants, for as long as the gate runs.
pub(super) fn start(grants: &Arc<Grants>, config: &Config) {
    let Some(settings) = &config.grants else {
        return;
    };
    for followed in &settings.follow {
        follow::start(grants, followed);
    }
    let grants = Arc::clone(grants);
    tokio::spawn(async move {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept_at = Instant::now();
        loop {
            ticks.tick().await;
            let is_due = kept_at.elapsed() >= KEEP_EVERY;
            if is_due {
                kept_at = Instant::now();
            }
            let grants = Arc::clone(&grants);
            // Not on the thread of the control plane: it writes a file.
            let done = spawn_blocking(move || {
                grants.expire(now());
                if is_due {
                    grants.keep();
                }
            });
            if done.await.is_err() {
                tracing::error!("removing expired grants ended in a panic");
            }
        }
    });
}

/// Those that were kept, as many as there may be: those that hold longest.
fn table_of(mut kept: Vec<(IpAddr, Grant)>, max: usize) -> Table {
    kept.sort_by_key(|(_, grant)| std::cmp::Reverse(grant.until));
    if kept.len() > max {
        let number = kept.len() - max;
        tracing::warn!(
            number,
            max,
            "grants that were kept are dropped: there are more than grants.max"
        );
        kept.truncate(max);
    }
    let mut table = Table::new(max);
    for (address, grant) in kept {
        table.add(address, grant);
    }
    table
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

fn left(grant: &Grant, now: u64) -> Duration {
    Duration::from_secs(grant.until.saturating_sub(now))
}

fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn open(directory: &Path, max: usize, now: u64) -> Grants {
        let settings = config::Grants {
            time: Duration::from_secs(60),
            max,
            follow: Vec::new(),
        };
        Grants::open(&settings, directory, Arc::default(), None, now)
    }

    fn address(host: u8) -> IpAddr {
        [192, 0, 2, host].into()
    }

    #[test]
    fn a_save_at_the_stop_waits_for_one_that_is_under_way_and_may_fail() {
        let directory = tempfile::tempdir().unwrap();
        let grants = open(directory.path(), 8, NOW);
        grants.add(address(1), None, "x", false, NOW).unwrap();
        std::thread::scope(|scope| {
            let under_way = grants.keeping.lock().unwrap();
            grants.state().is_dirty = false;
            let stop = scope.spawn(|| grants.keep());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!stop.is_finished());
            grants.state().is_dirty = true;
            drop(under_way);
        });
        assert_eq!(open(directory.path(), 8, NOW).list().len(), 1);
    }

    #[test]
    fn a_start_with_a_lower_limit_takes_the_grants_that_hold_longest() {
        let directory = tempfile::tempdir().unwrap();
        let stale = directory.path().join(".grants-abc");
        std::fs::write(&stale, "half").unwrap();
        let grants = open(directory.path(), 8, NOW);
        assert!(!stale.exists(), "left by a gate that was killed");
        for (host, seconds) in [(1, 10), (2, 30), (3, 20)] {
            let time = Some(Duration::from_secs(seconds));
            grants.add(address(host), time, "x", true, NOW).unwrap();
        }
        grants.keep();
        let left = open(directory.path(), 2, NOW).list();
        let left: Vec<_> = left.into_iter().map(|(address, _)| address).collect();
        assert_eq!(left, [address(2), address(3)]);
    }

    #[test]
    fn a_login_changes_nothing_of_a_longer_grant_of_an_operator() {
        let directory = tempfile::tempdir().unwrap();
        let grants = open(directory.path(), 8, NOW);
        let hour = Some(Duration::from_secs(3_600));
        let by_operator = grants.add(address(1), hour, "operator", true, NOW).unwrap();
        let after = grants
            .add(address(1), None, "user joe", false, NOW + 9)
            .unwrap();
        assert_eq!(after, by_operator);
        let late = NOW + 3_590;
        let after = grants
            .add(address(1), None, "user joe", false, late)
            .unwrap();
        assert_eq!((&*after.by, after.until), ("user joe", late + 60));
        let long = "é".repeat(BY_MAX);
        let after = grants.add(address(2), None, &long, false, NOW).unwrap();
        assert_eq!(after.by.len(), BY_MAX);
    }
}
