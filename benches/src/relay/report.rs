//! The table for people and the JSON for machines.

use std::fmt;

use serde::Serialize;

use super::contest::{Outcome, Turn, Turns};
use super::load::MESSAGE_LEN;
use super::servers::LOGGING;
use super::{Comparison, Options};
use crate::figures::Spread;
use crate::machine::{Machine, version_of};

/// Everything that a run has to say.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    versions: Vec<String>,
    sessions: u32,
    rounds: u32,
    workers: u32,
    message_octets: u32,
    logging: &'static str,
    /// Too short to be quoted.
    quick: bool,
    results: Vec<Line>,
}

/// One comparison.
#[derive(Debug, Serialize)]
struct Line {
    comparison: &'static str,
    messages_per_turn: u32,
    contestants: Vec<Figures>,
    /// The gateway's CPU per message over the peer's, round by round.
    ratio: Option<Spread>,
    bar: f64,
    bar_is_agreed: bool,
    pass: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Figures {
    name: &'static str,
    cpu_us_per_message: Option<Spread>,
    user_us_per_message: Option<Spread>,
    system_us_per_message: Option<Spread>,
    messages_per_second: Option<Spread>,
    turns: Vec<Turn>,
}

impl From<Turns> for Figures {
    fn from(Turns { name, turns }: Turns) -> Self {
        let spread = |figure: fn(&Turn) -> f64| Spread::of(turns.iter().map(figure));
        Self {
            name,
            cpu_us_per_message: spread(|turn| turn.cpu_us_per_message),
            user_us_per_message: spread(|turn| turn.user_us_per_message),
            system_us_per_message: spread(|turn| turn.system_us_per_message),
            messages_per_second: spread(|turn| turn.messages_per_second),
            turns,
        }
    }
}

impl From<Outcome> for Line {
    fn from(outcome: Outcome) -> Self {
        let comparison: Comparison = outcome.comparison;
        // The turns of one round are neighbours in time: their ratio is steadier than that of two
        // medians.
        let ratio = outcome.gateway.as_ref().and_then(|gateway| {
            let rounds = gateway.turns.iter().zip(&outcome.peer.turns);
            Spread::of(
                rounds.map(|(gateway, peer)| gateway.cpu_us_per_message / peer.cpu_us_per_message),
            )
        });
        let contestants = [Some(outcome.peer), outcome.gateway];
        Self {
            comparison: comparison.title(),
            messages_per_turn: outcome.messages_per_turn,
            contestants: contestants
                .into_iter()
                .flatten()
                .map(Figures::from)
                .collect(),
            pass: ratio.map(|ratio| ratio.median <= comparison.bar()),
            ratio,
            bar: comparison.bar(),
            bar_is_agreed: comparison.bar_is_agreed(),
        }
    }
}

impl Report {
    pub(crate) fn new(options: &Options, machine: Machine, results: Vec<Outcome>) -> Self {
        let mut versions = vec![
            version_of("postconf", &["-d", "mail_version"]).replace("mail_version =", "Postfix"),
            version_of("nginx", &["-v"]),
        ];
        if let Some(binary) = &options.portcullis {
            versions.push(version_of(&binary.to_string_lossy(), &["--version"]));
        }
        Self {
            machine,
            versions,
            sessions: options.sessions,
            rounds: options.rounds(),
            workers: options.workers,
            message_octets: MESSAGE_LEN,
            logging: LOGGING,
            quick: options.quick,
            results: results.into_iter().map(Line::from).collect(),
        }
    }

    pub(crate) fn misses_an_agreed_bar(&self) -> bool {
        self.results
            .iter()
            .any(|line| line.bar_is_agreed && line.pass == Some(false))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine   {}", self.machine)?;
        writeln!(f, "versions  {}", self.versions.join("; "))?;
        writeln!(
            f,
            "load      smtp-source, {} sessions, {} octets a message, {} rounds in turns after a warm-up",
            self.sessions, self.message_octets, self.rounds
        )?;
        writeln!(
            f,
            "servers   {} worker(s) each, smtp-sink one thread; {}",
            self.workers, self.logging
        )?;
        writeln!(
            f,
            "figures   median (min-max); CPU is user + system time of all the contestant's processes, per message\n"
        )?;
        writeln!(
            f,
            "{:<40} {:<11} {:>22} {:>6} {:>6} {:>9}   {:<18} {:>7}",
            "", "", "CPU us", "user", "system", "msgs/s", "ratio", "bar"
        )?;
        for line in &self.results {
            line.fmt(f)?;
        }
        if self.results.iter().any(|line| !line.bar_is_agreed) {
            writeln!(
                f,
                "\n* not one of the agreed figures: that of new connections, applied to kept ones, where nginx has stopped reading \
                 what it passes on"
            )?;
        }
        if self.quick {
            writeln!(
                f,
                "\nA quick run shows that it works; its figures are not to be quoted."
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, contestant) in self.contestants.iter().enumerate() {
            let title = if index == 0 { self.comparison } else { "" };
            let median = |spread: &Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
            write!(
                f,
                "{title:<40} {:<11} {:>22} {:>6.1} {:>6.1} {:>9.0}",
                contestant.name,
                cell(contestant.cpu_us_per_message, 1),
                median(&contestant.user_us_per_message),
                median(&contestant.system_us_per_message),
                median(&contestant.messages_per_second),
            )?;
            if index + 1 == self.contestants.len() {
                self.fmt_verdict(f)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Line {
    fn fmt_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pass) = self.pass else {
            return Ok(());
        };
        let verdict = if pass { "pass" } else { "MISSED" };
        let mark = if self.bar_is_agreed { "" } else { " *" };
        write!(
            f,
            "   {:<18} {:>7.2} {verdict}{mark}",
            cell(self.ratio, 2),
            self.bar
        )
    }
}

fn cell(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(String::new, |Spread { median, min, max }| {
        format!("{median:.decimals$} ({min:.decimals$}-{max:.decimals$})")
    })
}
