//! Next hops that are given by name.
//!
//! Names are looked up at the start, with every reload and once a minute, by the system's resolver
//! (so `/etc/hosts` counts too). What they stand for is filled into the routes; a worker sees
//! addresses only, and never waits for DNS. A name that cannot be resolved keeps the addresses that
//! it had: a name server that is down must not stop the mail. A name that never had any is passed
//! over, which with no other next hop means `451 4.4.1`.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

use super::Control;
use crate::config::{Config, NextHop, Route};

/// How often names are looked up again. The resolver does not say how long its answers are valid.
const EVERY: Duration = Duration::from_secs(60);
/// How long a look-up may take; the start and a reload wait for it.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// A next hop's name and port.
pub(super) type Name = (String, u16);

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// In the order of the resolver (RFC 6724). Empty: it could never be resolved.
    pub(super) addresses: Vec<SocketAddr>,
    /// Whether the last look-up failed.
    pub(super) failing: bool,
}

/// What is known of the names of the configuration in force.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<FxHashMap<Name, Known>>);

impl Names {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<Name, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, sorted.
    pub(super) fn known(&self) -> Vec<(Name, Known)> {
        let mut known: Vec<_> = self
            .lock()
            .iter()
            .map(|(name, known)| (name.clone(), known.clone()))
            .collect();
        known.sort_by(|a, b| a.0.cmp(&b.0));
        known
    }

    /// Looks up the names of these routes, all at once.
    pub(super) async fn look_up(&self, routes: &[Route]) {
        let mut lookups = JoinSet::new();
        for name in names_of(routes) {
            lookups.spawn(async move {
                let looked_up = time::timeout(LOOKUP_MAX, resolve(&name)).await;
                let timed_out = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
                (name, looked_up.unwrap_or_else(timed_out))
            });
        }
        while let Some(done) = lookups.join_next().await {
            if let Ok((name, looked_up)) = done {
                self.learn(name, looked_up);
            }
        }
    }

    /// Takes in the answer to a look-up, and logs what is news.
    fn learn(&self, name: Name, looked_up: io::Result<Vec<SocketAddr>>) {
        let (host, port) = (name.0.clone(), name.1);
        let mut all = self.lock();
        let known = all.entry(name).or_default();
        match looked_up {
            Ok(addresses) if !addresses.is_empty() => {
                if known.failing || !same(&known.addresses, &addresses) {
                    tracing::info!(next_hop = host, port, ?addresses, "resolved");
                    known.addresses = addresses;
                }
                known.failing = false;
            }
            failure => {
                if !known.failing {
                    let error = match failure {
                        Err(error) => error.to_string(),
                        Ok(_) => "it has no address".to_owned(),
                    };
                    let kept = known.addresses.len();
                    tracing::warn!(
                        next_hop = host,
                        port,
                        error,
                        addresses_kept = kept,
                        "cannot resolve the name of a next hop; it is tried again every minute"
                    );
                }
                known.failing = true;
            }
        }
    }

    /// Fills what is known into routes. Returns whether that changed anything.
    pub(super) fn fill(&self, routes: &mut [Route]) -> bool {
        let known = self.lock();
        let mut changed = false;
        for hop in routes.iter_mut().flat_map(|route| &mut route.next_hops) {
            let name = name_of(hop);
            if let (Some(name), NextHop::Host { addresses, .. }) = (name, hop)
                && let Some(known) = known.get(&name)
                && *addresses != known.addresses
            {
                addresses.clone_from(&known.addresses);
                changed = true;
            }
        }
        changed
    }

    /// Forgets the names that are not in these routes.
    pub(super) fn retain(&self, routes: &[Route]) {
        let wanted = names_of(routes);
        self.lock().retain(|name, _| wanted.contains(name));
    }
}

/// Looks the names up again and again, and has the workers use what was found.
pub(super) async fn keep_fresh(control: Arc<Control>) {
    let mut turns = time::interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one comes at once, and the names were looked up just now.
    turns.tick().await;
    loop {
        turns.tick().await;
        let config = control.shared.config.load_full();
        control.names.look_up(&config.routes).await;
        publish(&control);
    }
}

/// Has the workers use what is known. Nothing else runs on the control plane's thread meanwhile, so
/// that a reload is not undone.
pub(super) fn publish(control: &Control) {
    let config = control.shared.config.load_full();
    let mut routes = config.routes.clone();
    if control.names.fill(&mut routes) {
        let mut config = Config::clone(&config);
        config.routes = routes;
        control.shared.config.store(Arc::new(config));
    }
}

async fn resolve(name: &Name) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((name.0.as_str(), name.1)).await?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Name servers rotate their answers: another order alone is no news.
fn same(a: &[SocketAddr], b: &[SocketAddr]) -> bool {
    a.len() == b.len() && a.iter().all(|address| b.contains(address))
}

fn names_of(routes: &[Route]) -> BTreeSet<Name> {
    let hops = routes.iter().flat_map(|route| &route.next_hops);
    hops.filter_map(name_of).collect()
}

/// The name of a next hop, unless it is given by address.
fn name_of(hop: &NextHop) -> Option<Name> {
    match hop {
        NextHop::Host { name, port, .. } if name.parse::<std::net::IpAddr>().is_err() => {
            Some((name.clone(), *port))
        }
        NextHop::Host { .. } | NextHop::Discard => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn routes() -> Vec<Route> {
        let text = "[[listener]]\naddress = \"127.0.0.1:2525\"\n[[route]]\ndomains = [\"*\"]\n\
                    next_hop = [\"192.0.2.1:25\", \"mail.isp.example:26\"]\n";
        let config = config::parse(Path::new("test"), text);
        config.unwrap_or_else(|errors| panic!("{errors}")).routes
    }

    fn mail() -> Name {
        ("mail.isp.example".to_owned(), 26)
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        let address = |last: &u8| SocketAddr::from(([192, 0, 2, *last], 26));
        last.iter().map(address).collect()
    }

    fn failure() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("the name server is down"))
    }

    #[test]
    fn only_names_are_looked_up_and_their_addresses_reach_the_routes() {
        let (names, mut routes) = (Names::default(), routes());
        assert_eq!(names_of(&routes), BTreeSet::from([mail()]));
        assert!(!names.fill(&mut routes));
        names.learn(mail(), Ok(addresses(&[7, 8])));
        assert!(names.fill(&mut routes));
        let literal: Vec<SocketAddr> = vec!["192.0.2.1:25".parse().unwrap()];
        assert_eq!(routes[0].next_hops[0].addresses(), literal);
        assert_eq!(routes[0].next_hops[1].addresses(), addresses(&[7, 8]));
        assert!(!names.fill(&mut routes), "nothing is new any more");
    }

    #[test]
    fn a_name_server_that_is_down_takes_no_next_hop_away() {
        let (names, mut routes) = (Names::default(), routes());
        names.learn(mail(), Ok(addresses(&[7])));
        names.fill(&mut routes);
        for lost in [failure(), Ok(Vec::new())] {
            names.learn(mail(), lost);
            assert!(!names.fill(&mut routes));
            assert!(names.known()[0].1.failing);
        }
        names.learn(mail(), Ok(addresses(&[9])));
        assert!(names.fill(&mut routes) && !names.known()[0].1.failing);
    }

    #[test]
    fn answers_in_another_order_do_not_change_the_configuration() {
        let (names, mut routes) = (Names::default(), routes());
        names.learn(mail(), Ok(addresses(&[7, 8])));
        names.fill(&mut routes);
        names.learn(mail(), Ok(addresses(&[8, 7])));
        assert!(!names.fill(&mut routes));
    }

    #[test]
    fn a_name_that_left_the_configuration_is_forgotten() {
        let names = Names::default();
        names.learn(mail(), Ok(addresses(&[7])));
        names.retain(&routes());
        assert_eq!(names.known().len(), 1);
        names.retain(&[]);
        assert!(names.known().is_empty());
    }

    #[test]
    fn the_systems_own_names_are_resolved() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let found = runtime
            .block_on(resolve(&("localhost".to_owned(), 25)))
            .unwrap();
        assert!(
            found
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 25)
        );
        assert!(!found.is_empty());
    }
}
