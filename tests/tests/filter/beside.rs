//! Commands beside a gate that serves: what it holds they ask it for.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portcullis::control::ask;
use portcullis_ebpf_common::layout::VERDICTS_MAX;
use portcullis_tests::process::{Process, binary, discard_as_user};
use portcullis_tests::root;
use tempfile::TempDir;

use crate::scene::{LISTED4, Running, Scene};

/// A gate that has become an ordinary user, with the scene's filter.
fn start<'s>(scene: &'s Scene, spammers: &Path) -> Result<Process<'s>> {
    let filter = format!(
        r#"[filter]
interfaces = [{{ name = "wan" }}]
pin_path = "{}"
[[list]]
name = "spammers"
file = "{}"
action = "drop"
"#,
        scene.pin_path.display(),
        spammers.display()
    );
    let configuration = discard_as_user("127.0.0.1:2525", &filter);
    let gate = Process::start_in(&scene.gate, &configuration)?;
    gate.wait_for_log("serving", Duration::from_secs(10))?;
    Ok(gate)
}

/// A gate that drops a list, beside its configuration, which is there when the gate is gone.
struct Desk<'s> {
    gate: Process<'s>,
    lists: TempDir,
    file: PathBuf,
}

impl<'s> Desk<'s> {
    fn new(scene: &'s Scene) -> Result<Self> {
        let lists = tempfile::tempdir()?;
        // The gate reads them again as the user that it becomes.
        fs::set_permissions(lists.path(), Permissions::from_mode(0o755))?;
        let spammers = lists.path().join("spammers");
        fs::write(&spammers, "192.0.2.64/27\n")?;
        let gate = start(scene, &spammers)?;
        let file = lists.path().join("portcullis.toml");
        fs::copy(gate.directory().join("portcullis.toml"), &file)?;
        Ok(Self { gate, lists, file })
    }
}

#[test]
fn a_full_table_is_told_by_the_command_the_log_and_the_metrics() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let desk = Desk::new(&scene)?;
    let mut text = String::new();
    for number in 0..=VERDICTS_MAX {
        let [_, b, c, d] = number.to_be_bytes();
        text += &format!("10.{b}.{c}.{d}\n");
    }
    let many = desk.lists.path().join("many");
    fs::write(&many, text)?;
    let mut add = scene.gate.command(binary()?);
    add.args(["filter", "verdicts", "add", "--file"]).arg(&many);
    let output = add.arg("-c").arg(&desk.file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.contains("1 not added: there is no room"), "{said}");
    let full = "the recent verdicts are full";
    desk.gate.wait_for_log(full, Duration::from_secs(30))?;
    let admin = "127.0.0.1:9925".parse()?;
    let mut metrics = String::new();
    scene
        .gate
        .run(|| ask::get(admin, "/metrics")?.read_to_string(&mut metrics))??;
    for line in [
        format!("portcullis_filter_verdicts {VERDICTS_MAX}"),
        format!("portcullis_filter_verdicts_by_operator {VERDICTS_MAX}"),
        "portcullis_filter_verdict_changes_total{change=\"no-room\"} 1".to_owned(),
    ] {
        ensure!(metrics.lines().any(|told| told == line), "no {line}");
    }
    Ok(())
}

#[test]
fn events_come_through_the_gate_that_reads_them_to_as_many_as_want_them() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let desk = Desk::new(&scene)?;
    let file = &desk.file;
    let events = |arguments: &[&str]| -> Result<Command> {
        let mut command = scene.gate.command(binary()?);
        command.args(["filter", "events"]).args(arguments);
        command.arg("-c").arg(file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    };
    let started = Instant::now();
    while !scene.status().top_sources.watched {
        ensure!(started.elapsed() < Duration::from_secs(10), "nobody reads");
        thread::sleep(Duration::from_millis(20));
    }
    // The first follows for as long as there is a gate.
    let mut endless = Running(events(&[])?.spawn()?);
    let mut followers = Vec::new();
    for arguments in [&["--count", "2", "--json"][..], &["--count", "1"]] {
        followers.push(Running(events(arguments)?.spawn()?));
    }
    let started = Instant::now();
    let mut ended = Vec::new();
    while !followers.is_empty() {
        ensure!(started.elapsed() < Duration::from_secs(30), "no events");
        ensure!(!scene.reaches(LISTED4, 25), "it is listed");
        for at in (0..followers.len()).rev() {
            if followers[at].0.try_wait()?.is_some() {
                ended.push(followers.remove(at).output()?);
            }
        }
    }
    for output in &ended {
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        let told = String::from_utf8_lossy(&output.stdout);
        for line in told.lines() {
            if !line.starts_with('{') {
                ensure!(line.contains("192.0.2.66  listed (spammers)  on wan  to port 25"));
                continue;
            }
            let event: serde_json::Value = serde_json::from_str(line)?;
            ensure!(
                event["source"] == LISTED4
                    && event["list"] == "spammers"
                    && event["interface"] == "wan"
                    && event["time"].is_string(),
                "{event:#}"
            );
        }
    }
    ensure!(endless.0.try_wait()?.is_none(), "it has nothing to end for");
    // The gate ends: the follower says so, and the next one reads by itself.
    drop(desk.gate);
    let output = endless.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(said.contains("127.0.0.1:9925 tells no more"), "{said}");
    // The kernel closes what the gate had open a moment after its end.
    let started = Instant::now();
    loop {
        let mut alone = Running(events(&["--count", "1"])?.spawn()?);
        while alone.0.try_wait()?.is_none() {
            ensure!(started.elapsed() < Duration::from_secs(30), "no events");
            ensure!(!scene.reaches(LISTED4, 25), "it is listed");
        }
        let output = alone.output()?;
        if output.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(started.elapsed() < Duration::from_secs(20), "{said}");
        ensure!(said.contains("was asked for them"), "{said}");
    }
    let mut why = scene.gate.command(binary()?);
    why.args(["filter", "verdicts", "list", "--why", "-c"])
        .arg(file);
    let output = why.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(said.contains("cannot be asked"), "{said}");
    Ok(())
}
