//! DNS lists of a simulated world: they answer at once, late, too late, twice, never, or after the
//! client has gone, and in some worlds so few questions may be outstanding that most are too many.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use portcullis::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use portcullis::worker::port::{
    Ask, ControlEnd, LookupAnswer, Message, Notice, Port, Question, Refusal, port,
};

use super::driver::Network;
use super::{Record, Shelf};

/// The `timeout` of the configuration, and the second that a worker adds.
const WAITED_FOR: Duration = Duration::from_secs(4);

/// What lists know of a client, and when they were asked and have answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    answers: Vec<ZoneAnswer>,
    /// By enough to be refused.
    is_listed: bool,
    /// How long the answer takes; `None`: it gets lost.
    delay: Option<Duration>,
    /// How long after it another answer comes, which says the contrary.
    again_after: Option<Duration>,
    asked: Option<Duration>,
    answered: Option<Duration>,
    /// Its client's plan is at its end.
    pub(super) is_gone: bool,
}

/// How often what can become of a question did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Answered in time.
    pub in_time: u64,
    /// Answered after the worker had given it up.
    pub late: u64,
    /// Answered once more.
    pub twice: u64,
    /// Answered after the client had gone.
    pub gone: u64,
    /// Not answered.
    pub never: u64,
    /// One too many.
    pub full: u64,
}

impl Lookups {
    /// The numbers, in the order of the fields.
    pub fn each(&self) -> [u64; 6] {
        [
            self.in_time,
            self.late,
            self.twice,
            self.gone,
            self.never,
            self.full,
        ]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: Self) {
        self.in_time += other.in_time;
        self.late += other.late;
        self.twice += other.twice;
        self.gone += other.gone;
        self.never += other.never;
        self.full += other.full;
    }
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
        let given_up = self.asked.map(|asked| asked + WAITED_FOR);
        // What comes later is the answer to no question.
        let answered = self.answered.filter(|at| Some(*at) <= given_up);
        if code == 554 && !(self.is_listed && answered.is_some()) {
            return Some("refused, and on no list that has answered");
        }
        if replied < answered.or(given_up)? {
            return Some("answered before lists had spoken");
        }
        let was_known = answered.is_some_and(|at| at < named);
        (code != 554 && self.is_listed && was_known).then_some("let in, and on a list")
    }
}

/// The lists of one world: the other end of the worker's port, and what came through it.
pub(super) struct Lists {
    rng: Mutex<fastrand::Rng>,
    end: ControlEnd,
    refusals: Mutex<Vec<Refusal>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The lists of a seed, and the port of the worker that asks them.
    pub(super) fn new(seed: u64) -> (Self, Port) {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x6c69_7374);
        let questions_max = if rng.u8(..4) == 0 { 2 } else { 64 };
        // The world wakes the worker, and looks at the port at each turn.
        let (port, end) = port(questions_max, || {}, || {});
        let lists = Self {
            rng: Mutex::new(rng),
            end,
            refusals: Mutex::default(),
        };
        (lists, port)
    }

    /// What is known of a stranger.
    pub(super) fn listing(&self) -> Listing {
        let mut rng = lock(&self.rng);
        let (bad, welcome) = (
            says("bl.example", [127, 0, 0, 2]),
            says("welcome.example", [127, 0, 0, 3]),
        );
        let answers = match rng.u8(..6) {
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
            is_listed: answers.len() == 1 && answers[0] == says("bl.example", [127, 0, 0, 2]),
            answers,
            delay: delay.map(|most| Duration::from_millis(rng.u64(..most))),
            again_after: (rng.u8(..4) == 0).then(|| Duration::from_millis(rng.u64(..2_000))),
            ..Listing::default()
        }
    }

    /// Takes what the worker asks and tells, and lets questions be answered in their time.
    pub(super) fn serve(&self, network: &Network, shelf: &Shelf) {
        for message in self.end.take() {
            match message {
                Message::Ask(ask) => answer(ask, network, shelf),
                Message::Notice(Notice::Refused(refusal)) => lock(&self.refusals).push(refusal),
            }
        }
    }

    /// Checks what was reported against what was known. `are_behind_fronts`: all clients are.
    pub(super) fn compare(&self, record: &mut Record, are_behind_fronts: bool) {
        record.lookups.full = self.end.dnsbl_unasked();
        let mut reported = BTreeSet::new();
        for refusal in lock(&self.refusals).iter() {
            let Refusal { client, rule, .. } = refusal;
            let listing = number(*client).and_then(|number| record.listings.get(&number));
            let right = listing.is_some_and(|listing| listing.is_listed)
                && refusal.is_behind_front == are_behind_fronts
                && rule.name() == "dnsbl:bl.example";
            if !right || !reported.insert(*client) {
                record
                    .violations
                    .push(format!("{client} is reported as refused by {rule}"));
            }
        }
    }
}

/// Answers a question as the plan for its client has it.
fn answer(ask: Ask, network: &Network, shelf: &Shelf) {
    let mut record = shelf.borrow_mut();
    let Question::Dnsbl(client) = ask.question else {
        let asked = format!("{:?} is asked for", ask.question);
        return record.violations.push(asked);
    };
    let number = number(client);
    let Some(listing) = number.and_then(|number| record.listings.get_mut(&number)) else {
        record.violations.push(format!(
            "lists are asked about {client}, who is no stranger"
        ));
        return;
    };
    listing.asked = Some(network.now());
    let (again_after, answers) = (listing.again_after, listing.answers.clone());
    let Some(delay) = listing.delay else {
        record.lookups.never += 1;
        return;
    };
    let contrary = if answers.is_empty() {
        vec![says("bl.example", [127, 0, 0, 2])]
    } else {
        Vec::new()
    };
    let answer = |answers: Vec<ZoneAnswer>| {
        LookupAnswer::Dnsbl((!answers.is_empty()).then(|| answers.into()))
    };
    let (first, second) = (answer(answers), answer(contrary));
    let shelf = Shelf::clone(shelf);
    let ask = std::rc::Rc::new(ask);
    if let Some(again_after) = again_after {
        let (shelf, ask) = (shelf.clone(), std::rc::Rc::clone(&ask));
        network.act(delay + again_after, move |_| {
            shelf.borrow_mut().lookups.twice += 1;
            ask.answer(second);
        });
    }
    network.act(delay, move |now| {
        let mut record = shelf.borrow_mut();
        let listing = number.and_then(|number| record.listings.get_mut(&number));
        let is_gone = listing.is_some_and(|listing| {
            listing.answered = Some(now);
            listing.is_gone
        });
        let lookups = &mut record.lookups;
        lookups.gone += u64::from(is_gone);
        *(if delay <= WAITED_FOR {
            &mut lookups.in_time
        } else {
            &mut lookups.late
        }) += 1;
        ask.answer(first);
    });
}

/// A zone that lists a client so.
fn says(zone: &str, address: [u8; 4]) -> ZoneAnswer {
    ZoneAnswer {
        zone: zone.into(),
        answer: DnsblAnswer::Addresses(vec![address.into()]),
    }
}
