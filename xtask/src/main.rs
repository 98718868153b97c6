//! The project's chores, one file each: `cargo xtask --help`.
//!
//! They are in Rust, not in shell: they run wherever the project builds, and `--help` describes
//! them.

mod bench;
mod ci;
mod ebpf;
mod fuzz;
mod setup;
mod step;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores: what a developer and the CI run.
///
/// A change is ready when `cargo xtask ci` is. On a fresh Debian machine, as root, everything that
/// is missing is installed by the chore that needs it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs all tests: sets the machine up, builds the gateway for release, then `cargo test`
    Test(test::Options),
    /// Everything a change has to pass: tests, format, clippy, documentation, the BPF object, a
    /// little fuzzing
    Ci(ci::Options),
    /// Compares the gateway with its peers, in one run, and prints ratios
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Builds the XDP program, or checks that its source builds the committed object
    #[command(subcommand)]
    Ebpf(ebpf::Ebpf),
    /// Searches for inputs that break the parsers of network input, guided by coverage
    Fuzz(fuzz::Options),
    /// Installs (as root) or lists the Debian packages that tests and benches use
    Setup(setup::Options),
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().chore {
        Chore::Test(options) => test::run(&options),
        Chore::Ci(options) => ci::run(&options),
        Chore::Bench(bench) => bench::run(bench),
        Chore::Ebpf(chore) => ebpf::run(&chore),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Setup(options) => setup::run(&options),
    };
    // The chain of causes on one line; a backtrace of a chore is of no use.
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
