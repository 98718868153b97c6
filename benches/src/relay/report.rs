//! The table for people and the JSON for machines.

use std::fmt;

use serde::Serialize;

use super::contest::{ComparisonResult, Turn, Turns};
use super::load::MESSAGE_LEN;
use super::{Comparison, Options};
use crate::figures::Spread;
use crate::machine::{Machine, commit_of_binary, version_of};
use crate::results::circumstances;
use crate::servers::LOGGING;
use crate::table::Table;

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
    pass: Option<bool>,
    /// The gateway's CPU per message over that of the other build, round by round.
    over_other: Option<Spread>,
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

/// The gateway's CPU per message over another contestant's. The turns of one round are neighbours
/// in time: their ratio is steadier than that of two medians.
fn ratio(gateway: Option<&Turns>, other: Option<&Turns>) -> Option<Spread> {
    let rounds = gateway?.turns.iter().zip(&other?.turns);
    Spread::of(rounds.map(|(gateway, other)| gateway.cpu_us_per_message / other.cpu_us_per_message))
}

impl From<ComparisonResult> for Line {
    fn from(result: ComparisonResult) -> Self {
        let comparison: Comparison = result.comparison;
        let over_peer = ratio(result.gateway.as_ref(), Some(&result.peer));
        let over_other = ratio(result.gateway.as_ref(), result.other.as_ref());
        let contestants = [Some(result.peer), result.gateway, result.other];
        Self {
            comparison: comparison.title(),
            messages_per_turn: result.messages_per_turn,
            contestants: contestants
                .into_iter()
                .flatten()
                .map(Figures::from)
                .collect(),
            pass: over_peer.map(|ratio| ratio.median <= comparison.bar()),
            ratio: over_peer,
            bar: comparison.bar(),
            over_other,
        }
    }
}

impl Report {
    pub(crate) fn new(options: &Options, machine: Machine, results: Vec<ComparisonResult>) -> Self {
        let mut versions = vec![
            version_of("postconf", &["-d", "mail_version"]).replace("mail_version =", "Postfix"),
            version_of("nginx", &["-v"]),
        ];
        if let Some(binary) = &options.portcullis {
            versions.push(version_of(&binary.to_string_lossy(), &["--version"]));
        }
        if let Some(binary) = &options.against {
            versions.push(format!("other build: commit {}", commit_of_binary(binary)));
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

    pub(crate) fn misses_a_bar(&self) -> bool {
        self.results.iter().any(|line| line.pass == Some(false))
    }

    fn notes(&self) -> [(&'static str, String); 3] {
        [
            (
                "load",
                format!(
                    "smtp-source, {} sessions, {} octets a message, {} rounds in turns after a \
                     warm-up",
                    self.sessions, self.message_octets, self.rounds
                ),
            ),
            (
                "servers",
                format!(
                    "{} worker(s) each, smtp-sink one thread; {}",
                    self.workers, self.logging
                ),
            ),
            (
                "figures",
                "median (min-max); CPU is user + system time of all the contestant's processes, \
                 in microseconds per message"
                    .to_owned(),
            ),
        ]
    }

    fn fmt_builds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(
            1,
            ["CPU of this build over the other's", "ratio", "so it is"],
        );
        for line in &self.results {
            if let Some(ratio) = line.over_other {
                table.row([line.comparison, &ratio.cell(2), ratio.beside_one()]);
            }
        }
        write!(f, "\n{table}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let circumstances = circumstances(&self.machine, &self.versions, &self.notes());
        writeln!(f, "{circumstances}")?;
        let titles = [
            "",
            "",
            "CPU",
            "user",
            "system",
            "messages/s",
            "ratio",
            "bar",
        ];
        let mut table = Table::new(2, titles);
        for line in &self.results {
            line.add_to(&mut table);
        }
        write!(f, "{table}")?;
        if self.results.iter().any(|line| line.over_other.is_some()) {
            self.fmt_builds(f)?;
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

impl Line {
    /// A row for each contestant. The bar is that of the first gateway beside the peer.
    fn add_to(&self, table: &mut Table) {
        for (index, contestant) in self.contestants.iter().enumerate() {
            let title = if index == 0 { self.comparison } else { "" };
            let cell = |spread: Option<Spread>| spread.map_or_else(String::new, |s| s.cell(1));
            let median = |spread: Option<Spread>, decimals: usize| {
                spread.map_or_else(String::new, |Spread { median, .. }| {
                    format!("{median:.decimals$}")
                })
            };
            let mut row = vec![
                title.to_owned(),
                contestant.name.to_owned(),
                cell(contestant.cpu_us_per_message),
                median(contestant.user_us_per_message, 1),
                median(contestant.system_us_per_message, 1),
                median(contestant.messages_per_second, 0),
            ];
            if index == 1
                && let (Some(ratio), Some(pass)) = (self.ratio, self.pass)
            {
                let verdict = if pass { "pass" } else { "MISSED" };
                row.extend([ratio.cell(2), format!("<= {:.2} {verdict}", self.bar)]);
            }
            table.row(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(cpu_us_per_message: &[f64]) -> Turns {
        let turn = |&cpu_us_per_message: &f64| Turn {
            cpu_us_per_message,
            user_us_per_message: 0.0,
            system_us_per_message: 0.0,
            messages_per_second: 0.0,
        };
        Turns {
            name: "",
            turns: cpu_us_per_message.iter().map(turn).collect(),
        }
    }

    #[test]
    fn a_machine_that_slows_down_between_two_rounds_does_not_change_the_ratio() {
        let ratio = ratio(Some(&turns(&[50.0, 100.0])), Some(&turns(&[100.0, 200.0])));
        assert_eq!(ratio, Spread::of([0.5]));
    }
}
