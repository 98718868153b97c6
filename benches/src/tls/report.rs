//! The tables for people and the JSON for machines.

use std::fmt;

use serde::Serialize;

use super::idle::{BYTES_MAX, Idle};
use super::load::{MESSAGE_LEN, Session, Waits};
use super::{Key, Options};
use crate::figures::Spread;
use crate::machine::{Machine, version_of};
use crate::results::circumstances;
use crate::servers::LOGGING;
use crate::table::Table;

/// Everything that a run has to say.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    versions: Vec<String>,
    at_a_time: u32,
    turn: u32,
    rounds: u32,
    workers: u32,
    key: Key,
    flood_key: Key,
    contests: Vec<Line>,
    floods: Vec<Flooded>,
    idle: Idle,
}

/// One kind of session, beside the peer, which is the first.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    session: Session,
    contestants: Vec<Turns>,
}

#[derive(Debug, Serialize)]
struct Turns {
    name: &'static str,
    cpu_us_per_session: Vec<f64>,
    sessions_per_second: Vec<f64>,
}

/// What a flood of handshakes does to another session.
#[derive(Debug, Serialize)]
pub(super) struct Flooded {
    pub(super) name: &'static str,
    pub(super) calm: Waits,
    pub(super) flooded: Waits,
    pub(super) handshakes_per_second: f64,
}

impl Line {
    pub(super) fn new(session: Session, names: Vec<&'static str>) -> Self {
        let turns = |name| Turns {
            name,
            cpu_us_per_session: Vec::new(),
            sessions_per_second: Vec::new(),
        };
        Self {
            session,
            contestants: names.into_iter().map(turns).collect(),
        }
    }

    pub(super) fn add(&mut self, contestant: usize, (cpu, rate): (f64, f64)) {
        let turns = &mut self.contestants[contestant];
        turns.cpu_us_per_session.push(cpu);
        turns.sessions_per_second.push(rate);
    }

    /// The CPU of a contestant over the peer's, round by round.
    fn ratio(&self, contestant: usize) -> Option<Spread> {
        let peer = &self.contestants.first()?.cpu_us_per_session;
        let own = &self.contestants.get(contestant)?.cpu_us_per_session;
        Spread::of(own.iter().zip(peer).map(|(own, peer)| own / peer))
    }

    fn is_missed(&self) -> bool {
        let ratio = self.ratio(1);
        let bar = self.session.bar();
        ratio
            .zip(bar)
            .is_some_and(|(ratio, bar)| ratio.median > bar)
    }

    fn add_to(&self, table: &mut Table) {
        for (index, turns) in self.contestants.iter().enumerate() {
            let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
            let cell = |spread: Option<Spread>, decimals| {
                spread.map_or_else(String::new, |spread| spread.cell(decimals))
            };
            let cpu = spread(&turns.cpu_us_per_session);
            let by_cpu = turns.cpu_us_per_session.iter().map(|us| 1e6 / us);
            let mut row = vec![
                if index == 0 { self.session.title() } else { "" }.to_owned(),
                turns.name.to_owned(),
                cell(cpu, 1),
                cell(Spread::of(by_cpu), 0),
                cell(spread(&turns.sessions_per_second), 0),
            ];
            if index > 0 {
                row.push(cell(self.ratio(index), 2));
                row.push(self.session.bar().map_or_else(
                    || "none".to_owned(),
                    |bar| format!("<= {bar:.2} {}", verdict(!self.is_missed())),
                ));
            }
            table.row(row);
        }
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "pass" } else { "MISSED" }
}

impl Report {
    pub(super) fn new(
        options: &Options,
        machine: Machine,
        contests: Vec<Line>,
        floods: Vec<Flooded>,
        idle: Idle,
    ) -> Self {
        let mut versions = vec![
            version_of("nginx", &["-v"]),
            version_of("openssl", &["version"]),
        ];
        if let Some(binary) = &options.portcullis {
            versions.push(version_of(&binary.to_string_lossy(), &["--version"]));
        }
        Self {
            machine,
            versions,
            at_a_time: options.sessions,
            turn: options.turn,
            rounds: options.rounds,
            workers: options.workers,
            key: options.key,
            flood_key: options.flood_key,
            contests,
            floods,
            idle,
        }
    }

    pub(super) fn misses_a_bar(&self) -> bool {
        self.contests.iter().any(Line::is_missed) || self.idle.of_tls() > BYTES_MAX
    }

    fn notes(&self) -> [(&'static str, String); 4] {
        let load = format!(
            "{} sessions at a time, {} a turn, {} rounds in turns after a warm-up, full \
             handshakes; {MESSAGE_LEN} octets a message",
            self.at_a_time, self.turn, self.rounds
        );
        let keys = format!(
            "{}; under the flood of handshakes {}",
            self.key.name(),
            self.flood_key.name()
        );
        let servers = format!("{} worker(s) each; {LOGGING}", self.workers);
        let figures = "median (min-max); CPU is user + system time of all the contestant's \
                       processes, in microseconds per session; NOOP in microseconds";
        [
            ("load", load),
            ("keys", keys),
            ("servers", servers),
            ("figures", figures.to_owned()),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let circumstances = circumstances(&self.machine, &self.versions, &self.notes());
        writeln!(f, "{circumstances}")?;
        let titles = [
            "a session",
            "",
            "CPU",
            "sessions per second of CPU",
            "sessions/s",
            "ratio",
            "bar",
        ];
        let mut table = Table::new(2, titles);
        for line in &self.contests {
            line.add_to(&mut table);
        }
        writeln!(f, "{table}")?;
        let titles = [
            "NOOP of another session",
            "calm",
            "calm p99",
            "flood",
            "flood p99",
            "handshakes/s",
        ];
        let mut table = Table::new(1, titles);
        for flood in &self.floods {
            let figures = [
                flood.calm.median,
                flood.calm.p99,
                flood.flooded.median,
                flood.flooded.p99,
                flood.handshakes_per_second,
            ];
            let figures = figures.map(|figure| format!("{figure:.0}"));
            table.row([flood.name.to_owned()].into_iter().chain(figures));
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new(1, ["an idle session after EHLO", "bytes", "bar"]);
        let bar = format!(
            "<= {BYTES_MAX} {}",
            verdict(self.idle.of_tls() <= BYTES_MAX)
        );
        for (title, bytes, bar) in [
            ("in the clear", self.idle.in_the_clear, ""),
            ("under TLS", self.idle.under_tls, ""),
            ("of it TLS", self.idle.of_tls(), &bar),
        ] {
            table.row([title, &format!("{bytes:.0}"), bar]);
        }
        write!(f, "{table}")
    }
}
