//! The control plane: starts the workers, watches over them, answers what they cannot know, and
//! talks to the people and programs around the gate.
//!
//! One thread with a tokio runtime, a task for each subject. It shares with the workers what
//! [`Shared`] holds, and nothing waits for it: mail goes on while it reloads, resolves or answers.
//!
//! | file | subject |
//! |---|---|
//! | `serve.rs`, `start.rs`, `user.rs` | the life of a gate; what it opens first; its user |
//! | `rehearsal.rs` | a start that serves nothing |
//! | `reload.rs`, `changes.rs` | SIGHUP; what a new configuration changes and what it cannot |
//! | `lists.rs`, `watch.rs` | lists over time: great losses refused, a copy kept; files watched |
//! | `files.rs` | files and directories that are needed later, as another user |
//! | `names.rs` | next hops that are given by name |
//! | `port.rs` | the workers' ports: which service answers which question |
//! | `dnsbl.rs`, `dnsbl/` | the service for DNS lists; what the filter learns of them |
//! | `auth/` | passwords, off the workers |
//! | `admin.rs`, `admin/` | the endpoints for HTTP and commands; callers, and what they may do |
//! | `state.rs`, `metrics/` | what the endpoints report; the form for Prometheus |
//! | `log.rs`, `notify.rs`, `interrupt.rs` | the log; the service manager; being asked to stop |
//! | `dropped.rs` | expired verdicts, lost answers, top sources, drops as they happen |
//! | `records.rs`, `records/` | the stream of records, and their lines in the log |
//! | `refusals.rs` | which sources were refused of late, why and until when |
//! | `ask.rs` | how a command asks the gate beside it |
//! | `grants.rs`, `grants/` | POP-before-SMTP: grants, and logs with logins |
//! | `interfaces.rs` | interfaces that come, go or lose their filter; filters left over |

pub mod admin;
pub mod ask;
pub mod auth;
mod changes;
pub mod dnsbl;
mod dropped;
mod error;
pub(crate) mod files;
pub mod grants;
pub mod interfaces;
pub mod interrupt;
pub mod lists;
pub mod log;
mod metrics;
mod names;
mod notify;
mod port;
mod records;
pub mod refusals;
pub(crate) mod rehearsal;
mod reload;
pub mod serve;
pub(crate) mod start;
mod state;
pub(crate) mod user;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use self::dropped::Drops;
use self::files::Files;
use self::names::Names;
use self::port::Ports;
use self::records::Records;
use self::refusals::Refusals;
use self::reload::Reloads;
use self::start::RunningWorker;
use crate::filter::{self, Filter, Status, Verdicts};
use crate::worker::Shared;

pub use self::error::Error;

/// What the tasks of the control plane share.
struct Control {
    shared: Arc<Shared>,
    workers: Vec<RunningWorker>,
    filter: Option<HeldFilter>,
    names: Names,
    dovecot: auth::DovecotLink,
    files: Files,
    ports: Arc<Ports>,
    dnsbl: Arc<dnsbl::Counts>,
    /// `None` without the table of the configuration.
    grants: Option<Arc<grants::Grants>>,
    /// Callers at the admin endpoints.
    refused: admin::Refused,
    records: Arc<Records>,
    refusals: Refusals,
    drops: Drops,
    reloads: Reloads,
    log_level: log::Level,
    since: Instant,
}

#[cfg(test)]
impl Control {
    /// A control plane with nothing to control, for tests.
    fn idle(config: crate::config::Config) -> Self {
        Self {
            shared: Arc::new(Shared::new(Arc::new(config))),
            workers: Vec::new(),
            filter: None,
            names: Names::default(),
            dovecot: auth::DovecotLink::default(),
            files: Files::default(),
            ports: Arc::default(),
            dnsbl: Arc::default(),
            grants: None,
            refused: admin::Refused::default(),
            records: Arc::default(),
            refusals: Refusals::default(),
            drops: Drops::default(),
            reloads: Reloads::default(),
            log_level: log::Level::of_no_log(),
            since: Instant::now(),
        }
    }
}

/// The filter, and what was last seen of it: putting lists in place may take seconds, and a reader
/// of the counters does not wait for it.
struct HeldFilter {
    filter: Mutex<Filter>,
    /// Recent verdicts are changed while the filter is.
    verdicts: Arc<Verdicts>,
    last: Mutex<Option<Status>>,
}

impl HeldFilter {
    fn new(filter: Filter) -> Self {
        Self {
            // A client of the admin endpoint may ask before the first change is done.
            last: Mutex::new(filter.status().ok()),
            verdicts: filter.verdicts(),
            filter: Mutex::new(filter),
        }
    }

    /// The filter, for a change. Blocks: not for the control plane's own thread.
    fn lock(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What slots are called, unless the filter is being changed.
    fn names(&self) -> Option<filter::SlotNames> {
        self.filter.try_lock().ok()?.slot_names().ok()
    }

    /// What is in force and what was counted; of a moment ago while the filter is being changed.
    fn status(&self) -> Option<Status> {
        let filter = match self.filter.try_lock() {
            Ok(filter) => Some(filter),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match filter.map(|filter| filter.status()) {
            Some(Ok(status)) => *last = Some(status),
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot read the filter's counters");
                *last = None;
            }
            None => {}
        }
        last.clone()
    }
}
