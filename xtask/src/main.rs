//! The project's chores, one file each: `cargo xtask --help`.
//!
//! They are Rust and not shell so that they run wherever the project builds, and teach by `--help` what they do.

mod bench;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The project's chores"
)]
struct CommandLine {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Puts the gateway beside its peers, in one run, and prints ratios
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> Result<ExitCode> {
    match CommandLine::parse().chore {
        Chore::Bench(bench) => bench::run(bench),
    }
}
