//! What the gate reports about itself: collected from the workers, the filter and the control
//! plane, and then either written as JSON (`/api/status`) or for Prometheus (`/metrics`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

use super::dnsbl::Dnsbl;
use super::files::{StateDir, Unusable};
use super::reload::LastReload;
use super::{Control, HeldFilter, grants};
use crate::filter::Status;
use crate::relay::hop::{HopEvent, HopEvents};
use crate::relay::pool::HopState;
use crate::worker::counters::Counters;

/// The gate at a moment, counted since it was started.
#[derive(Debug, Default, Serialize)]
pub(super) struct State {
    pub(super) version: &'static str,
    pub(super) uptime_seconds: f64,
    pub(super) configuration: Option<PathBuf>,
    pub(super) workers: usize,
    pub(super) reloads: Reloads,
    pub(super) state_dir: StateDir,
    /// Files and directories that will be missed.
    pub(super) unusable_files: Vec<Unusable>,
    pub(super) sessions: Sessions,
    pub(super) fronts: Fronts,
    pub(super) transactions: Vec<Transactions>,
    /// By rule.
    pub(super) recipients_refused: BTreeMap<String, u64>,
    /// Commands that the SMTP session refused and that are neither a transaction nor a recipient,
    /// by rule.
    pub(super) commands_refused: BTreeMap<String, u64>,
    /// Attempts to authenticate, by mechanism and result.
    pub(super) auth: Auth,
    pub(super) received_octets: u64,
    pub(super) starved_receives: u64,
    /// Records of sessions and transactions that did not reach a reader, by reader; `all`: they
    /// reached none.
    pub(super) records_lost: BTreeMap<&'static str, u64>,
    pub(super) next_hops: Vec<NextHop>,
    pub(super) names: Vec<Name>,
    pub(super) dnsbl: Dnsbl,
    /// Callers that the admin endpoints have refused.
    pub(super) admin_refused: u64,
    /// `None` without `[grants]`.
    pub(super) grants: Option<grants::Report>,
    pub(super) filter: Option<Status>,
}

/// Configurations that were read again.
#[derive(Debug, Default, Serialize)]
pub(super) struct Reloads {
    pub(super) good: u64,
    pub(super) bad: u64,
    /// Lists read again by themselves.
    pub(super) lists: ListReloads,
    /// Whether the lists in force are of an earlier compile than what was read at the start.
    pub(super) lists_are_old: bool,
    /// What became of the last one.
    pub(super) last: Option<LastReload>,
}

/// Lists that were read again because their files had changed.
#[derive(Debug, Default, Serialize)]
pub(super) struct ListReloads {
    pub(super) good: u64,
    pub(super) bad: u64,
    /// They had lost or gained too much.
    pub(super) refused: u64,
}

/// Sessions with clients.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sessions {
    pub(super) total: u64,
    pub(super) open: u64,
    /// Ended by the gate, by rule.
    pub(super) ended: BTreeMap<String, u64>,
    pub(super) tls_handshakes_open: u64,
    /// By how they ended.
    pub(super) tls_handshakes: BTreeMap<&'static str, u64>,
}

/// What came of trusted fronts.
#[derive(Debug, Default, Serialize)]
pub(super) struct Fronts {
    /// Connections that have to begin with a PROXY header, by what they began with.
    pub(super) proxy_headers: BTreeMap<&'static str, u64>,
    /// XCLIENT commands that named a client.
    pub(super) xclient: u64,
    /// Those that left it open which client it is.
    pub(super) xclient_unknown: u64,
}

/// Attempts of clients to authenticate.
#[derive(Debug, Default, Serialize)]
pub(super) struct Auth {
    pub(super) attempts: Vec<AuthAttempts>,
    /// Questions about who a client is that were not asked: too many were outstanding.
    pub(super) unasked: u64,
    /// Whether Dovecot is there; `None` where it is not asked.
    pub(super) dovecot_up: Option<bool>,
}

/// Attempts by one mechanism with one result.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct AuthAttempts {
    pub(super) mechanism: &'static str,
    pub(super) result: &'static str,
    pub(super) count: u64,
}

/// Transactions that ended in the same way for the same reason.
#[derive(Debug, Serialize)]
pub(super) struct Transactions {
    pub(super) outcome: &'static str,
    pub(super) rule: String,
    pub(super) count: u64,
}

/// A next hop, over all workers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct NextHop {
    pub(super) address: SocketAddr,
    /// No worker leaves it alone after a failure.
    pub(super) up: bool,
    pub(super) open: u64,
    pub(super) idle: u64,
    pub(super) waiting: u64,
    pub(super) failures_total: u64,
    #[serde(serialize_with = "by_name")]
    pub(super) events: HopEvents,
}

/// A next hop that is given by name.
#[derive(Debug, Serialize)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) port: u16,
    /// Whether the last look-up went well.
    pub(super) resolved: bool,
    pub(super) addresses: Vec<SocketAddr>,
}

impl State {
    /// Collects it. Blocks for as long as the kernel takes to read the filter's counters.
    pub(super) fn collect(control: &Control) -> Self {
        let mut state = Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: control.since.elapsed().as_secs_f64(),
            configuration: control.shared.config.load().path.clone(),
            workers: control.workers.len(),
            reloads: Reloads {
                good: count(&control.reloads.good),
                bad: count(&control.reloads.bad),
                lists: ListReloads {
                    good: count(&control.reloads.lists_good),
                    bad: count(&control.reloads.lists_bad),
                    refused: count(&control.reloads.lists_refused),
                },
                lists_are_old: control.shared.config.load().lists.are_old,
                last: control.reloads.last(),
            },
            state_dir: control.files.state_dir(),
            unusable_files: control.files.unusable(),
            admin_refused: control.refused.total(),
            grants: control.grants.as_ref().map(|grants| grants.report()),
            records_lost: control.records.lost(),
            names: names(control),
            dnsbl: control.dnsbl.snapshot(control.ports.dnsbl_unasked()),
            auth: Auth {
                attempts: Vec::new(),
                unasked: control.ports.passwords_unasked(),
                dovecot_up: control.dovecot.is_up(),
            },
            filter: control.filter.as_ref().and_then(HeldFilter::status),
            ..Self::default()
        };
        let mut transactions = BTreeMap::new();
        let mut next_hops = BTreeMap::new();
        let mut attempts = BTreeMap::new();
        for worker in &control.workers {
            state.add(&worker.counters);
            for ((outcome, rule), count) in worker.counters.transactions_by_rule() {
                *transactions.entry((outcome, rule)).or_insert(0) += count;
            }
            for (mechanism, result, count) in worker.counters.auth() {
                *attempts
                    .entry((mechanism.name(), result.name()))
                    .or_insert(0) += count;
            }
            for hop in worker.counters.hops() {
                add_hop(&mut next_hops, &hop);
            }
        }
        state.transactions = transactions
            .into_iter()
            .map(|((outcome, rule), count)| Transactions {
                outcome: outcome.name(),
                rule: rule.name().to_owned(),
                count,
            })
            .collect();
        state.auth.attempts = attempts
            .into_iter()
            .map(|((mechanism, result), count)| AuthAttempts {
                mechanism,
                result,
                count,
            })
            .collect();
        state.next_hops = next_hops.into_values().collect();
        state
    }

    fn add(&mut self, counters: &Counters) {
        self.sessions.total += count(&counters.sessions_total);
        self.sessions.open += count(&counters.sessions_open);
        self.received_octets += count(&counters.octets_total);
        self.starved_receives += count(&counters.starved_total);
        self.fronts.xclient += count(&counters.xclient_total);
        self.fronts.xclient_unknown += count(&counters.xclient_unknown_total);
        for (result, count) in counters.proxy_headers() {
            *self.fronts.proxy_headers.entry(result.name()).or_default() += count;
        }
        self.sessions.tls_handshakes_open += count(&counters.handshakes_open);
        for (result, count) in counters.handshakes() {
            *self
                .sessions
                .tls_handshakes
                .entry(result.name())
                .or_default() += count;
        }
        for (rule, count) in counters.sessions_by_rule() {
            *self.sessions.ended.entry(rule.to_string()).or_default() += count;
        }
        for (rule, count) in counters.recipients_by_rule() {
            *self.recipients_refused.entry(rule.to_string()).or_default() += count;
        }
        for (rule, count) in counters.commands_by_rule() {
            *self.commands_refused.entry(rule.to_string()).or_default() += count;
        }
    }
}

/// What has happened with a next hop, by the names of the events.
fn by_name<S: Serializer>(events: &HopEvents, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(HopEvent::ALL.map(|event| (event.name(), events[event as usize])))
}

fn add_hop(hops: &mut BTreeMap<SocketAddr, NextHop>, state: &HopState) {
    let hop = hops.entry(state.address).or_insert(NextHop {
        address: state.address,
        up: true,
        open: 0,
        idle: 0,
        waiting: 0,
        failures_total: 0,
        events: HopEvents::default(),
    });
    hop.up &= state.up;
    hop.open += u64::from(state.open);
    hop.idle += u64::from(state.idle);
    hop.waiting += u64::from(state.waiting);
    hop.failures_total += state.failures_total;
    let events = hop.events.iter_mut().zip(state.events);
    events.for_each(|(sum, more)| *sum += more);
}

fn names(control: &Control) -> Vec<Name> {
    let known = control.names.known();
    known
        .into_iter()
        .map(|((name, port), known)| Name {
            name,
            port,
            resolved: !known.failing,
            addresses: known.addresses,
        })
        .collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_that_one_worker_cannot_reach_is_not_reported_as_up() {
        let state = |up, open| HopState {
            address: SocketAddr::from(([192, 0, 2, 1], 25)),
            up,
            open,
            idle: 1,
            waiting: 2,
            failures_total: 3,
            events: [1; HopEvent::ALL.len()],
        };
        let mut hops = BTreeMap::new();
        add_hop(&mut hops, &state(true, 4));
        add_hop(&mut hops, &state(false, 5));
        let expected = NextHop {
            address: state(true, 0).address,
            up: false,
            open: 9,
            idle: 2,
            waiting: 4,
            failures_total: 6,
            events: [2; HopEvent::ALL.len()],
        };
        assert_eq!(hops.into_values().collect::<Vec<_>>(), [expected]);
    }
}
