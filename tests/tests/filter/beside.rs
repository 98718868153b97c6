//! Commands beside a gate that serves: what it holds they ask it for.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portcullis_tests::gate::{Gate, binary};
use portcullis_tests::root;

use crate::scene::{LISTED4, Running, Scene};

/// A gate that has become an ordinary user, with the scene's filter.
fn start<'s>(scene: &'s Scene, spammers: &std::path::Path) -> Result<Gate<'s>> {
    let configuration = format!(
        r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 1
user = "nobody"
admin = "127.0.0.1:9925"
[[listener]]
address = "127.0.0.1:2525"
[[route]]
domains = ["*"]
next_hop = ["discard"]
[filter]
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
    let gate = Gate::start_in(&scene.gate, &configuration)?;
    gate.wait_for_log("serving", Duration::from_secs(10))?;
    Ok(gate)
}

#[test]
fn events_come_through_the_gate_that_reads_them_to_as_many_as_want_them() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let lists = tempfile::tempdir()?;
    fs::set_permissions(
        lists.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let spammers = lists.path().join("spammers");
    fs::write(&spammers, "192.0.2.64/27\n")?;
    let gate = start(&scene, &spammers)?;
    // It is to be there when the gate is gone.
    let file = lists.path().join("portcullis.toml");
    fs::copy(gate.directory().join("portcullis.toml"), &file)?;
    let events = |arguments: &[&str]| -> Result<Command> {
        let mut command = scene.gate.command(binary()?);
        command.args(["filter", "events"]).args(arguments);
        command.arg("-c").arg(&file);
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
    drop(gate);
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
        .arg(&file);
    let output = why.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(said.contains("cannot be asked"), "{said}");
    Ok(())
}
