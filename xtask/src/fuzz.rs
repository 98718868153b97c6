//! `cargo xtask fuzz`: libFuzzer on the targets in `tests/fuzz`, guided by coverage, on the stable
//! compiler.
//!
//! A target is a binary of the `tests` package that links libFuzzer. The flags below are what
//! `cargo fuzz` sets, without the address sanitizer, which is what would need a nightly compiler;
//! the fuzzed code is safe Rust.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::step::Steps;
use crate::workspace;

/// Coverage counters at every edge, and comparisons reported, so that the fuzzer finds what a
/// branch waits for.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// What libFuzzer says when the flags have had their effect.
const GUIDED: &str = "inline 8-bit counters";

/// The options of `cargo xtask fuzz`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Only this target (a file of tests/fuzz, without .rs)
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

/// Builds the targets and runs them one after the other. A crash is a failure, and its input is
/// named.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut targets = targets()?;
    if let Some(name) = &options.target {
        ensure!(
            targets.contains(name),
            "there is no target {name:?}; there are: {}",
            targets.join(", ")
        );
        targets = vec![name.clone()];
    }
    let host = host()?;
    let directory = workspace::root().join("target/fuzz");
    let mut steps = Steps::default();
    if steps.run("build", &mut build(&targets, &host, &directory)) {
        for target in &targets {
            let binary = directory.join(&host).join("release").join(target);
            let shown = format!("{target} for {} s", options.seconds);
            steps.check(target, &shown, || {
                fuzz(target, &binary, &directory, options.seconds)
                    .map_err(|error| format!("{error:#}"))
            });
        }
    }
    Ok(steps.finish())
}

/// The targets are the files.
fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(workspace::root().join("tests/fuzz")).context("tests/fuzz")? {
        let path = entry?.path();
        if let (Some(name), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|e| e.to_str()))
        {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

/// The triple of this machine: with `--target`, flags do not reach build scripts and macros.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

fn build(targets: &[String], host: &str, directory: &Path) -> Command {
    let mut build = workspace::cargo();
    build.args([
        "build",
        "--package",
        "portcullis-tests",
        "--features",
        "fuzz",
        "--release",
    ]);
    build
        .args(["--target", host, "--target-dir"])
        .arg(directory);
    for target in targets {
        build.args(["--bin", target]);
    }
    build
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    build
}

/// Runs one target: what it finds goes to the corpus, what makes it crash beside it.
fn fuzz(target: &str, binary: &Path, directory: &Path, seconds: u32) -> Result<()> {
    let [corpus, seeds, crashes] =
        ["corpus", "seeds", "crashes"].map(|kind| directory.join(kind).join(target));
    for directory in [&corpus, &seeds, &crashes] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let before = files(&crashes)?;
    let mut fuzzer = Command::new(binary)
        .args([&corpus, &seeds])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"])
        .env("PORTCULLIS_FUZZ_SEEDS", &seeds)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| binary.display().to_string())?;
    let mut guided = false;
    if let Some(stderr) = fuzzer.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            guided |= line.contains(GUIDED);
            // Each finding and each word that it learnt has a line: too many to read.
            if !line.starts_with(['#', '"']) || line.contains("DONE") {
                eprintln!("{line}");
            }
        }
    }
    let status = fuzzer.wait()?;
    if !status.success() {
        let inputs = files(&crashes)?;
        let new: Vec<String> = inputs
            .iter()
            .filter(|input| !before.contains(input))
            .map(|input| input.display().to_string())
            .collect();
        bail!("{status}; input: {}", new.join(" "));
    }
    ensure!(guided, "not guided by coverage: libFuzzer has no {GUIDED}");
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    entries.collect()
}
