//! `portcullis demo` keeps its promise: its figures are what they must be, in less than half a
//! minute, and nothing of it stays behind, also when it is interrupted or may not do everything.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_tests::process::{binary, portcullis};
use portcullis_tests::{root, wait};
use serde_json::Value;

/// A show that takes longer loses its audience.
const TIME_MAX: Duration = Duration::from_secs(30);

/// What demo number `pid` would leave behind: namespaces, pins, files.
fn left_behind(pid: u32) -> Vec<String> {
    let names = |directory: &str, mark: &str| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(mark)).collect()
    };
    let demo = format!("portcullis-demo-{pid}");
    let temporary = std::env::temp_dir();
    let (pins, files) = (
        names("/sys/fs/bpf", &demo),
        names(&temporary.to_string_lossy(), &demo),
    );
    [names("/run/netns", &format!("pc-{pid}-")), pins, files].concat()
}

fn report(output: &Output) -> Result<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| errors.clone().into_owned())?;
    ensure!(
        output.status.success() && report["good"] == true,
        "{}\n{report:#}\n{errors}",
        output.status
    );
    Ok(report)
}

#[test]
fn the_figures_are_what_they_must_be_and_nothing_stays() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let begun = Instant::now();
    let child = Command::new(binary()?)
        .args(["demo", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let report = report(&child.wait_with_output()?)?;
    ensure!(begun.elapsed() < TIME_MAX, "took {:?}", begun.elapsed());
    ensure!(left_behind(pid).is_empty(), "{:?}", left_behind(pid));

    for list in ["hijacked-v4", "botnet-v4", "hijacked-v6", "botnet-v6"] {
        let dropped = report["packets_dropped"][list].as_u64().unwrap_or(0);
        ensure!(dropped > 1000, "{dropped} dropped by {list}");
    }
    ensure!(
        report["messages_arrived"].as_u64() >= Some(2000),
        "{report:#}"
    );
    let rules = report["refused_by_rule"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    ensure!(
        rules >= 5,
        "abuse was refused by {rules} rules only: {report:#}"
    );
    Ok(())
}

/// Asked to end in any case, and waited for: a demo that is killed has to leave things behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), i32::try_from(self.0.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn an_interrupted_demo_cleans_up() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let child = Command::new(binary()?)
            .args(["demo", "--messages", "1000000", "--packets", "100000000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = child.id();
        let mut child = Ended(child);
        // Namespaces, lists and files are there once the gate has pinned its program.
        let made = || (left_behind(pid).len() >= 4).then_some(());
        wait::until("the demo to be at work", Duration::from_secs(20), made)?;
        std::thread::sleep(Duration::from_millis(700));
        kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        let ended = || child.0.try_wait().ok().flatten();
        let status = wait::until("the demo to end", Duration::from_secs(10), ended)?;
        ensure!(status.code() == Some(1), "{signal}: {status}");
        ensure!(
            left_behind(pid).is_empty(),
            "{signal}: {:?}",
            left_behind(pid)
        );
    }
    Ok(())
}

#[test]
fn without_root_it_says_what_it_leaves_out_and_shows_the_rest() -> Result<()> {
    let output = if portcullis::netns::permitted() {
        // Nobody may not look into the place where the binary was built.
        let directory = tempfile::tempdir()?;
        let copy = directory.path().join("portcullis");
        fs::copy(binary()?, &copy)?;
        Command::new("chmod")
            .args(["-R", "a+rx"])
            .arg(directory.path())
            .status()?;
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        Command::new("setpriv")
            .args(nobody)
            .arg(&copy)
            .args(["demo", "--json"])
            .current_dir(Path::new("/"))
            .output()?
    } else {
        portcullis(["demo", "--json"])?
    };
    let report = report(&output)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains("not root") && said.contains("no XDP program"),
        "{said}"
    );
    ensure!(report["packets_sent"].is_null(), "{report:#}");
    ensure!(
        report["messages_arrived"].as_u64() >= Some(2000),
        "{report:#}"
    );
    Ok(())
}
