//! `cargo xtask ci`: everything that has to be good before a change is taken, step by step, with
//! times.
//!
//! `.ci/run` calls the README's test command by itself first and the rest from here
//! (`--after-tests`), so that what the README tells a reader to type is what is checked.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::step::Steps;
use crate::workspace;

/// What `cargo xtask ci` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The tests have just been run by `cargo xtask test`: only the rest
    #[arg(long)]
    after_tests: bool,
    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    fuzz_seconds: u32,
}

/// Runs all steps, whatever becomes of the first ones.
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
