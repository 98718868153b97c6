//! DNS lists of a simulated world: they answer at once, late, too late or never, and sometimes
//! there is no room for a query.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portcullis::policy::dnsbl::{Answer, Finding};
use portcullis::worker::dnsbl::{Inbox, Lookups, Question, Refusal};

use super::driver::Network;
use super::{Record, Shelf};

/// The `timeout` of the configuration, and the second that a worker adds.
const WAITED_FOR: Duration = Duration::from_secs(4);

/// What lists know of a client, and when they were asked and have answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    findings: Vec<Finding>,
    /// By enough to be refused.
    is_listed: bool,
    /// How long the answer takes; `None`: it gets lost.
    delay: Option<Duration>,
    asked: Option<Duration>,
    answered: Option<Duration>,
}

impl Listing {
    /// What is wrong with this answer to a recipient that was named and answered at these moments,
    /// if anything.
    pub(super) fn contradicts(
        &self,
        code: u16,
        named: Duration,
        replied: Duration,
    ) -> Option<&'static str> {
        if code == 554 && !(self.is_listed && self.answered.is_some()) {
            return Some("refused, and on no list that has answered");
        }
        let asked = self.asked?;
        let given_up = asked + WAITED_FOR;
        let known = self.answered.map_or(given_up, |at| at.min(given_up));
        if replied < known {
            return Some("answered before lists had spoken");
        }
        let was_known = self.answered.is_some_and(|at| at < named);
        (code != 554 && self.is_listed && was_known).then_some("let in, and on a list")
    }
}

/// The lists of one world, and what the worker asked and reported.
pub(super) struct Lists {
    rng: Mutex<fastrand::Rng>,
    inbox: Arc<Inbox>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    questions: Mutex<Vec<Question>>,
    refusals: Mutex<Vec<Refusal>>,
    rng: Mutex<fastrand::Rng>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lookups for Log {
    fn ask(&self, question: Question) -> bool {
        let taken = lock(&self.rng).u8(..16) > 0;
        if taken {
            lock(&self.questions).push(question);
        }
        taken
    }

    fn refused(&self, refusal: Refusal) {
        lock(&self.refusals).push(refusal);
    }
}

/// Clients are distinguished by the last octet of their address; strangers come from 10.8.
fn number(client: IpAddr) -> Option<usize> {
    match client {
        IpAddr::V4(address) if address.octets()[1] == 8 => {
            Some(usize::from(address.octets()[3]) - 1)
        }
        _ => None,
    }
}

impl Lists {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x6c69_7374);
        let log = Log {
            rng: Mutex::new(rng.fork()),
            ..Log::default()
        };
        Self {
            rng: Mutex::new(rng),
            // The world wakes the worker.
            inbox: Arc::new(Inbox::new(|| {})),
            log: Arc::new(log),
        }
    }

    pub(super) fn lookups(&self) -> Arc<dyn Lookups> {
        Arc::clone(&self.log) as Arc<dyn Lookups>
    }

    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// What is known of a stranger.
    pub(super) fn listing(&self) -> Listing {
        let mut rng = lock(&self.rng);
        let says = |zone: &str, address: [u8; 4]| Finding {
            zone: zone.into(),
            answer: Answer::Addresses(vec![address.into()]),
        };
        let (bad, welcome) = (
            says("bl.example", [127, 0, 0, 2]),
            says("welcome.example", [127, 0, 0, 3]),
        );
        let findings = match rng.u8(..6) {
            0 | 1 => vec![bad],
            2 => vec![bad, welcome],
            3 => vec![says("bl.example", [127, 255, 255, 254])],
            _ => Vec::new(),
        };
        let delay = match rng.u8(..8) {
            0 => None,
            1 => Some(8_000),
            2 => Some(4_100),
            3 | 4 => Some(3_000),
            _ => Some(50),
        };
        Listing {
            is_listed: findings.len() == 1 && findings[0] == says("bl.example", [127, 0, 0, 2]),
            findings,
            delay: delay.map(|most| Duration::from_millis(rng.u64(..most))),
            asked: None,
            answered: None,
        }
    }

    /// Lets what was asked be answered in its time.
    pub(super) fn answer(&self, network: &Network, shelf: &Shelf) {
        for question in lock(&self.log.questions).drain(..) {
            let mut record = shelf.borrow_mut();
            let number = number(question.client);
            let Some(listing) = number.and_then(|number| record.listings.get_mut(&number)) else {
                let client = question.client;
                record.violations.push(format!(
                    "lists are asked about {client}, who is no stranger"
                ));
                continue;
            };
            listing.asked = Some(network.now());
            let Some(delay) = listing.delay else {
                continue;
            };
            let findings = listing.findings.clone();
            let findings = (!findings.is_empty()).then(|| findings.into());
            let shelf = shelf.clone();
            network.act(delay, move |now| {
                let mut record = shelf.borrow_mut();
                let listing = number.and_then(|number| record.listings.get_mut(&number));
                if let Some(listing) = listing {
                    listing.answered = Some(now);
                }
                question.inbox.put((question.conn, findings));
            });
        }
    }

    /// Holds what was reported against what was known.
    pub(super) fn compare(&self, record: &mut Record) {
        let mut reported = BTreeSet::new();
        for Refusal { client, rule } in lock(&self.log.refusals).iter() {
            let listing = number(*client).and_then(|number| record.listings.get(&number));
            let right =
                listing.is_some_and(|listing| listing.is_listed) && rule == "dnsbl:bl.example";
            if !right || !reported.insert(*client) {
                record
                    .violations
                    .push(format!("{client} is reported as refused by {rule}"));
            }
        }
    }
}
