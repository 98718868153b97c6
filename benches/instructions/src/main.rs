//! `cargo xtask bench instructions`: how many instructions a worker spends on a session, a message,
//! a recipient or a command.
//!
//! CPU time on a shared machine differs by several percent from run to run, instructions do not: a
//! worker runs on the simulated driver with a fixed plan under valgrind's callgrind, and only the
//! worker's own share counts ([`counted`]). Each scenario runs in two sizes; the difference is
//! divided by the difference of the sizes, so what the start costs is not in it. It says nothing of
//! the kernel, which has most of a session's CPU time: that is what `bench relay` is for.

mod callgrind;
mod counted;
mod report;
mod scenario;
mod world;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use portcullis_benches::{interrupt, results};

use crate::callgrind::Counts;
use crate::report::{Cost, Costs, Report};
use crate::scenario::Scenario;

// What a session allocates is part of its cost, so it is allocated as in the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Instructions of a worker per session, message, recipient and command, counted by callgrind
///
/// The counts of one build are the same in every run, whatever else the machine does. Two builds
/// are compared by their counts: --json in one, --against in the other.
#[derive(Clone, Debug, Parser)]
#[command(bin_name = "cargo xtask bench instructions")]
struct Options {
    /// Only some of the scenarios
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with = "record"
    )]
    only: Vec<Scenario>,
    /// Sessions, messages, recipients or commands of the smaller run; the larger has three times
    /// as many
    #[arg(long, value_name = "N", default_value_t = 800,
        value_parser = clap::value_parser!(u32).range(1..=20_000))]
    units: u32,
    /// Writes the counts to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The counts of another build, to be compared with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Leaves callgrind's profiles in this directory, for callgrind_annotate
    #[arg(long, value_name = "DIR")]
    profiles: Option<PathBuf>,
    /// Puts the table into benches/RESULTS.md
    #[arg(long)]
    record: bool,
    /// Exits with 1 if a scenario costs over 5 % more than in the other build
    #[arg(long, requires = "against")]
    enforce: bool,
    /// Runs one scenario once and counts nothing: what callgrind looks at
    #[arg(long, value_name = "NAME", hide = true)]
    run: Option<Scenario>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.run {
        Some(scenario) => run_once(scenario, options.units),
        None => measure(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The run under callgrind. It reports each step to the process that counts.
fn run_once(scenario: Scenario, units: u32) -> Result<ExitCode> {
    let work = world::run(scenario, units)?;
    println!("{}", serde_json::to_string(&work)?);
    Ok(ExitCode::SUCCESS)
}

fn measure(options: &Options) -> Result<ExitCode> {
    ensure!(
        !(options.record && cfg!(debug_assertions)),
        "a debug build counts for nothing: --record wants `cargo xtask bench instructions`"
    );
    interrupt::watch()?;
    let other = options.against.as_deref().map(read).transpose()?;
    let directory = tempfile::Builder::new()
        .prefix("portcullis-bench-")
        .tempdir()?;
    if let Some(profiles) = &options.profiles {
        fs::create_dir_all(profiles).with_context(|| profiles.display().to_string())?;
    }
    let profiles = options.profiles.as_deref().unwrap_or(directory.path());
    let scenarios = Scenario::value_variants().iter().copied();
    let scenarios =
        scenarios.filter(|scenario| options.only.is_empty() || options.only.contains(scenario));
    let mut costs = Vec::new();
    for scenario in scenarios {
        let cost = cost(scenario, options.units, profiles)?;
        println!(
            "{}: {:.0} a {}",
            scenario.name(),
            cost.instructions,
            scenario.unit()
        );
        costs.push(cost);
    }
    let report = Report::new(costs, other);
    print!("\n{report}");
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(BufWriter::new(file), &report.costs)?;
        println!("\nwritten to {}", path.display());
    }
    if options.record {
        results::record(
            "Instructions (`cargo xtask bench instructions`)",
            &report.to_string(),
        )?;
    }
    let missed = options.enforce && report.misses_a_bar();
    Ok(ExitCode::from(u8::from(missed)))
}

/// The difference of two runs over the difference of their sizes.
fn cost(scenario: Scenario, units: u32, profiles: &Path) -> Result<Cost> {
    let small = scenario.round(units);
    let large = 3 * small;
    let less = callgrind::count(scenario, small, profiles)?;
    let more = callgrind::count(scenario, large, profiles)?;
    let per_unit = |count: fn(&Counts) -> u64| {
        count(&more).abs_diff(count(&less)) as f64 / f64::from(large - small)
    };
    Ok(Cost {
        scenario,
        instructions: per_unit(|counts| counts.instructions),
        allocations: per_unit(|counts| counts.allocations),
        operations: per_unit(|counts| counts.work.operations),
        batches: per_unit(|counts| counts.work.batches),
    })
}

fn read(path: &Path) -> Result<Costs> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
