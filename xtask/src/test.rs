//! `cargo xtask test`: all tests of the workspace, the whole-system tests included. It is the test
//! command of the README.
//!
//! Unit tests are debug builds, with overflow checks and debug assertions. Whole-system tests start
//! the release build of the binary, because they also check its time and memory. Rejected: nextest;
//! `cargo test` is on every machine with Rust.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::step::Steps;
use crate::workspace;

/// Options of `cargo xtask test`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Whole-system tests at full size, as before a release (the default size suits every change)
    #[arg(long)]
    full: bool,
    /// Arguments for `cargo test`, such as `--package portcullis-smtp`, or `-- --ignored`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    cargo: Vec<String>,
}

/// Sets the machine up, builds what the tests start, and runs them.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut steps = Steps::default();
    run_steps(options, &mut steps);
    Ok(steps.finish())
}

fn run_steps(options: &Options, steps: &mut Steps) {
    if !setup::is_root() {
        println!(
            "not root: tests that need network namespaces or BPF are skipped; each prints a line"
        );
    }
    steps.check("setup", "cargo xtask setup", || {
        match setup::run(&setup::Options::default()) {
            Ok(code) if code == ExitCode::SUCCESS => Ok(()),
            Ok(_) => Err("packages are missing".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    if !steps.run("release build", &mut workspace::build_gateway()) {
        return;
    }
    let mut test = workspace::cargo();
    test.arg("test");
    if !options
        .cargo
        .iter()
        .any(|argument| argument == "--package" || argument == "-p")
    {
        test.arg("--workspace");
    }
    test.arg("--no-fail-fast")
        .args(&options.cargo)
        .env("PORTCULLIS_BIN", workspace::gateway_binary())
        // Panics have a backtrace; errors do not need one, because their texts say where.
        .env("RUST_LIB_BACKTRACE", "0");
    if options.full {
        test.env("PORTCULLIS_FULL", "1");
    }
    steps.run("cargo test", &mut test);
}
