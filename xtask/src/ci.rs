//! `cargo xtask ci`: every check that a change has to pass, step by step, with times.
//!
//! `.ci/run` first runs the test command of the README, and then the other steps from here
//! (`--after-tests`). So the CI checks the very command that the README gives to a reader.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::step::Steps;
use crate::workspace;

/// Options of `cargo xtask ci`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Skip the tests, because `cargo xtask test` has just run them
    #[arg(long)]
    after_tests: bool,
    /// Seconds for each fuzz target
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    fuzz_seconds: u32,
}

/// Runs all steps, also after one has failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let xtask = env::current_exe().context("which program is this?")?;
    let chore = |arguments: &[&str]| {
        let mut command = Command::new(&xtask);
        command.current_dir(workspace::root()).args(arguments);
        command
    };
    let cargo = |arguments: &[&str]| {
        let mut command = workspace::cargo();
        command.args(arguments);
        command
    };

    let mut steps = Steps::default();
    if !options.after_tests {
        steps.run("test", &mut chore(&["test"]));
    }
    steps.run("format", &mut cargo(&["fmt", "--all", "--check"]));
    // The program is a workspace of its own.
    let program = [
        "fmt",
        "--manifest-path",
        "ebpf/program/Cargo.toml",
        "--check",
    ];
    steps.run("format of the program", &mut cargo(&program));
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    steps.run("clippy", &mut cargo(&clippy));
    let mut doc = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    steps.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"));
    steps.run("ebpf object", &mut chore(&["ebpf", "verify"]));
    let seconds = options.fuzz_seconds.to_string();
    steps.run("fuzz", &mut chore(&["fuzz", "--seconds", &seconds]));
    Ok(steps.finish())
}
