//! `cargo xtask bench filter`: the filter beside its peers, in one run, on one machine.
//!
//! Four questions: what a verdict costs, packet by packet ([`verdicts`]); how long ten million
//! entries take to be in force, and what they weigh ([`loading`]); how many packets of a flood a
//! core drops ([`flood`]); and whether honest clients connect beside a flood of SYNs
//! ([`syn_flood`]). Every figure that has a bar is a ratio to something measured in the same round,
//! or a bound that was agreed.
//!
//! A program of its own and not a part of the chores, because it has to be optimised like the
//! gateway: it compiles lists.

mod attached;
mod commands;
mod cores;
mod flood;
mod loading;
mod peers;
mod report;
mod syn_flood;
mod traffic;
mod verdicts;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use portcullis::netns;
use portcullis_benches::interrupt;
use portcullis_benches::machine::Machine;

use crate::report::{Measured, Report};

/// The filter beside a bare XDP program, hash maps, LPM tries, nftables and xdp-filter
///
/// Everything happens in network namespaces that the run makes and removes. Needs root, about 8 GB
/// of memory and some minutes; the machine should be quiet. Exit code 0 unless something broke, so
/// that the figures are seen where they are bad; --enforce makes a missed bar exit 1.
#[derive(Clone, Debug, Parser)]
#[command(bin_name = "cargo xtask bench filter")]
pub(crate) struct Options {
    /// Turns of each contestant [default: 5; 2 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only some of the measurements
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Without some of the peers
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    without: Vec<Peer>,
    /// Entries of the largest list [default: 10,000,000; 100,000 with --quick]
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1_000..=50_000_000))]
    entries: Option<u32>,
    /// Fills the LPM trie with all entries as well, which takes a minute; without it has at most
    /// 1,000,000
    #[arg(long)]
    full: bool,
    /// Few entries, few packets, 2 rounds: does it work? Such figures are not to be quoted
    #[arg(long, conflicts_with = "record")]
    quick: bool,
    /// Writes everything, each turn of it, to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The gateway's binary; `cargo xtask bench filter` builds one
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/release/portcullis",
        overrides_with = "portcullis"
    )]
    portcullis: PathBuf,
    /// The binary of another build of the gateway, whose filter takes turns with this one's
    /// (verdicts alone). With few rounds chance alone can put one build ahead in all of them: 10 or
    /// more are worth believing
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Puts the tables of what was measured into benches/RESULTS.md
    #[arg(long)]
    record: bool,
    /// Exits with 1 if a bar is missed
    #[arg(long)]
    enforce: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// The cost of a verdict, packet by packet
    Verdicts,
    /// How long the largest list takes to be in force, and what it weighs
    Loading,
    /// Packets of a flood dropped in a second
    Flood,
    /// Honest clients beside a flood of SYNs with forged sources, random ones and the clients' own
    SynFlood,
}

/// The contestants that can be left out of the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// A hash map in an XDP program
    Hash,
    /// A set at nftables' ingress
    Nftables,
    /// The xdp-tools' filter
    XdpFilter,
}

impl Options {
    fn measures(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }

    pub(crate) fn has(&self, peer: Peer) -> bool {
        !self.without.contains(&peer)
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    pub(crate) fn entries(&self) -> u32 {
        let default = if self.quick { 100_000 } else { 10_000_000 };
        self.entries.unwrap_or(default)
    }

    /// Packets that a verdict's cost is the mean of.
    pub(crate) fn verdict_packets(&self) -> u32 {
        if self.quick { 200_000 } else { 2_000_000 }
    }

    /// How long a flood from listed sources lasts.
    pub(crate) fn flood_time(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 2_000 })
    }

    /// How long clients connect beside a SYN flood.
    pub(crate) fn syn_flood_time(&self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 3_000 })
    }

    /// Packets, and sources, of a pass of the flood from random sources.
    pub(crate) fn pass(&self) -> u32 {
        if self.quick { 500_000 } else { 1 << 23 }
    }
}

fn main() -> ExitCode {
    run(&Options::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        netns::permitted(),
        "this loads BPF programs and makes network namespaces, for which it has to be root"
    );
    interrupt::watch()?;
    netns::sweep()?;
    let machine = Machine::describe();
    let directory = tempfile::Builder::new()
        .prefix("portcullis-bench-")
        .tempdir()?;
    let mut measured = Measured::default();
    if options.measures(Measurement::Verdicts) {
        measured.verdicts = verdicts::run(options, directory.path()).context("verdicts")?;
    }
    if options.measures(Measurement::Loading) {
        measured.loading = Some(loading::run(options, directory.path()).context("loading")?);
    }
    if options.measures(Measurement::Flood) {
        measured.floods = flood::run(options, directory.path()).context("flood")?;
    }
    if options.measures(Measurement::SynFlood) {
        measured.syn_floods = syn_flood::run(options).context("SYN flood")?;
    }
    let report = Report::new(options, machine, measured);
    print!("\n{report}");
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(BufWriter::new(file), &report)?;
        println!("\nwritten to {}", path.display());
    }
    if options.record {
        report.record()?;
    }
    let missed = options.enforce && report.misses_a_bar();
    Ok(ExitCode::from(u8::from(missed)))
}
