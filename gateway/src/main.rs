//! The `portcullis` command.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

// Sessions begin and end on several threads; mimalloc returns their memory, and is faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
