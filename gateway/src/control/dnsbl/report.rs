//! What the zones of a configuration say about themselves, for `doctor`: their test entries, and
//! whether each name server answers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::servers::{NameServers, NoAnswer};
use super::test_entries::{self, Entry, Family};
use crate::config::Config;
use crate::policy::dnsbl::{Meaning, TestEntry, Zone};

/// A zone, as it is now.
#[derive(Debug)]
pub(crate) struct ZoneReport {
    pub(crate) zone: Arc<str>,
    /// Among IPv4 addresses.
    pub(crate) state: ZoneState,
    /// Whether it lists ::ffff:127.0.0.1 or ::1.
    pub(crate) lists_all_of_ipv6: bool,
    /// Name servers that do not answer, and why.
    pub(crate) failing: Vec<(SocketAddr, String)>,
}

/// How a zone is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ZoneState {
    /// As RFC 5782 section 5 wants it, or it is not held to that.
    Well,
    /// It has no entry for 127.0.0.2.
    EntryMissing,
    /// It answers with what never is a listing.
    Refuses,
    /// It lists 127.0.0.1.
    ListsAll,
    /// No name server answers for it.
    Silent,
}

/// Asks every zone, through each name server.
///
/// # Errors
/// When there can be no sockets or timers.
pub(crate) fn zones(config: &Config) -> io::Result<Vec<ZoneReport>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let policy = &config.dnsbl;
    let servers = NameServers::new(&policy.servers, policy.timeout, &Arc::default());
    let servers = Arc::new(servers);
    let zones = config.policy.dnsbl().zones.clone();
    Ok(runtime.block_on(async {
        let mut reports = JoinSet::new();
        for (number, zone) in zones.into_iter().enumerate() {
            let servers = Arc::clone(&servers);
            reports.spawn(async move { (number, report(&servers, zone).await) });
        }
        let mut reports = reports.join_all().await;
        reports.sort_by_key(|(number, _)| *number);
        reports.into_iter().map(|(_, report)| report).collect()
    }))
}

async fn report(servers: &Arc<NameServers>, zone: Zone) -> ZoneReport {
    let each = async {
        match Family::Ipv4.question(TestEntry::Unlisted, &zone) {
            Some(question) => servers.ask_each(&question).await,
            None => Vec::new(),
        }
    };
    let (ipv4, ipv6, each) = tokio::join!(
        test_entries::ask(servers, &zone, Family::Ipv4),
        test_entries::ask(servers, &zone, Family::Ipv6),
        each,
    );
    let lists_all = |result: &test_entries::TestResult| {
        let answer = result.unlisted.as_ref().ok();
        zone.test_entries && answer.is_some_and(|answer| zone.meaning(answer) == Meaning::Listed)
    };
    let state = match (&ipv4.unlisted, ipv4.entry(&zone)) {
        _ if lists_all(&ipv4) => ZoneState::ListsAll,
        (Err(NoAnswer::Failed(_) | NoAnswer::Unasked), None) => ZoneState::Silent,
        (_, Some(Entry::Refused)) => ZoneState::Refuses,
        (_, Some(Entry::Missing)) if zone.test_entries => ZoneState::EntryMissing,
        _ => ZoneState::Well,
    };
    let failing = each.into_iter().filter_map(|(server, result)| {
        let error = result.err()?;
        Some((server, error.to_string()))
    });
    ZoneReport {
        lists_all_of_ipv6: lists_all(&ipv6),
        zone: Arc::clone(&zone.name),
        state,
        failing: failing.collect(),
    }
}
