//! `cargo xtask bench relay`: CPU per message of the gateway beside smtp-sink (accept and discard)
//! and nginx's mail proxy (cut-through), with one message per connection and with connections kept.
//!
//! The load is Postfix's `smtp-source`, which Debian has: every reader can repeat a run. It
//! saturates a core long before any of the contestants does, so messages per second measure mostly
//! the load; CPU per message, of the contestant's processes alone, measures the contestant.
//! Contestants take turns, in the opposite order in every second round (ABBA...), so that what
//! disturbs the machine disturbs all of them. A third contestant can be another build of the
//! gateway: figures of two runs cannot be compared, those of one run can. The spool beside Postfix
//! is not here: a queue has a figure of its own, with a disk in it.

mod contest;
mod load;
mod report;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::interrupt;
use crate::machine::Machine;
use crate::results;
use report::Report;

/// The options of `cargo xtask bench relay`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Messages in one contestant's turn [default: sized so that a turn takes 2 to 4 s, at least
    /// 10,000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub messages: Option<u32>,
    /// Sessions that smtp-source holds at a time
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub sessions: u32,
    /// Turns of each contestant [default: 5; 2 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Workers of the gateway, and worker processes of nginx (smtp-sink has one thread and cannot
    /// have more)
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Only some of the comparisons
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with = "record"
    )]
    pub only: Vec<Comparison>,
    /// Only the peers: is the machine set up, and what do they cost here?
    #[arg(long, conflicts_with_all = ["against", "record"])]
    pub peers_only: bool,
    /// 2,000 messages and 2 rounds: does it work? Such figures are not to be quoted
    #[arg(long, conflicts_with = "record")]
    pub quick: bool,
    /// Writes everything, each turn of it, to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The gateway's binary [default: a release build of this tree]
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
    /// The binary of another build of the gateway, which takes turns with this one. With few rounds
    /// chance alone can put one build ahead in all of them: 10 or more are worth believing
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Puts the table into benches/RESULTS.md
    #[arg(long)]
    pub record: bool,
    /// Exits with 1 if a bar is missed
    #[arg(long)]
    pub enforce: bool,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Comparison {
    /// Accept and discard beside smtp-sink, one message per connection
    Discard,
    /// The same with connections kept
    DiscardKept,
    /// Cut-through beside nginx's mail proxy, one message per connection
    Through,
    /// The same with connections kept
    ThroughKept,
}

impl Comparison {
    fn is_through(self) -> bool {
        matches!(self, Self::Through | Self::ThroughKept)
    }

    fn keeps_connections(self) -> bool {
        matches!(self, Self::DiscardKept | Self::ThroughKept)
    }

    /// CPU per message, as a part of the peer's, that is not to be exceeded. Once nginx has found
    /// the next hop of a kept connection it copies bytes both ways without looking at them.
    fn bar(self) -> f64 {
        match self {
            Self::Discard | Self::DiscardKept => 0.75,
            Self::Through => 0.35,
            Self::ThroughKept => 0.85,
        }
    }

    /// Messages for a turn of 2 to 4 s on a core that smtp-source saturates.
    fn messages(self) -> u32 {
        match self {
            Self::Discard => 15_000,
            Self::DiscardKept => 40_000,
            Self::Through => 10_000,
            Self::ThroughKept => 30_000,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Discard => "discard, one message per connection",
            Self::DiscardKept => "discard, connections kept",
            Self::Through => "cut-through, one message per connection",
            Self::ThroughKept => "cut-through, connections kept",
        }
    }
}

impl Options {
    fn comparisons(&self) -> Vec<Comparison> {
        let all = Comparison::value_variants();
        all.iter()
            .copied()
            .filter(|comparison| self.only.is_empty() || self.only.contains(comparison))
            .collect()
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    fn messages(&self, comparison: Comparison) -> u32 {
        let default = if self.quick {
            2_000
        } else {
            comparison.messages()
        };
        self.messages.unwrap_or(default)
    }
}

/// Runs the comparisons, prints the table, writes the JSON. To be called before any other thread is
/// started.
///
/// # Errors
/// If something is not installed, does not start, or a message was lost; a missed bar is not an
/// error, but gives exit code 1 if the options say so.
pub fn run(options: &Options) -> Result<ExitCode> {
    interrupt::watch()?;
    let machine = Machine::describe();
    let directory = tempfile::Builder::new()
        .prefix("portcullis-bench-")
        .tempdir()?;
    let mut results = Vec::new();
    for comparison in options.comparisons() {
        let result = contest::run(comparison, options, directory.path())
            .with_context(|| format!("comparison {:?}", comparison.title()))?;
        results.push(result);
    }
    let report = Report::new(options, machine, results);
    print!("\n{report}");
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(BufWriter::new(file), &report)?;
        println!("\nwritten to {}", path.display());
    }
    if options.record {
        let title = match options.against {
            Some(_) => "Relay, two builds in turns (`cargo xtask bench relay --against`)",
            None => "Relay (`cargo xtask bench relay`)",
        };
        results::record(title, &report.to_string())?;
    }
    let missed = options.enforce && report.misses_a_bar();
    Ok(ExitCode::from(u8::from(missed)))
}
