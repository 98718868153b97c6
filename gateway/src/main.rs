//! The `portcullis` command.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

// Sessions come and go on several threads; mimalloc gives their memory back, and is faster at it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
