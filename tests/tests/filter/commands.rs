//! `portcullis filter` with an attached filter: the command line, the output, and the exit code.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portcullis_tests::process::binary;
use portcullis_tests::{root, wait};
use tempfile::TempDir;

use crate::scene::{HONEST4, LISTED4, PERMITTED4, Running, Scene};

/// A scene with an attached filter, and its configuration.
struct Commands {
    scene: Scene,
    directory: TempDir,
}

impl Commands {
    fn new() -> Result<Self> {
        let commands = Self {
            scene: Scene::new()?,
            directory: tempfile::tempdir()?,
        };
        fs::write(commands.directory.path().join("friends"), "192.0.2.67\n")?;
        fs::write(
            commands.directory.path().join("spammers"),
            "192.0.2.64/27\n",
        )?;
        let text = format!(
            "[filter]\ninterfaces = [{{ name = \"wan\" }}]\npin_path = \"{}\"\n\
             [[list]]\nname = \"friends\"\nfile = \"friends\"\naction = \"permit\"\n\
             [[list]]\nname = \"spammers\"\nfile = \"spammers\"\naction = \"drop\"\n\
             [relay]\nnetworks = [\"198.51.100.0/24\"]\n",
            commands.scene.pin_path.display()
        );
        fs::write(commands.file(), text)?;
        commands.says(&["attach"], 0, &["in place on wan"])?;
        Ok(commands)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("portcullis.toml")
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.scene.gate.command(binary()?);
        command.arg("filter").args(arguments).arg("-c");
        command.arg(self.file());
        Ok(command)
    }

    /// Runs a command, and compares its exit code and words of its output with the expected ones.
    fn says(&self, arguments: &[&str], code: i32, words: &[&str]) -> Result<String> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(arguments)?.output()?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
        ensure!(
            status.code() == Some(code),
            "{arguments:?}: {status}\n{said}"
        );
        for word in words {
            ensure!(said.contains(word), "{arguments:?}: no {word} in\n{said}");
        }
        Ok(said)
    }

    /// Waits until a reader of the filter's events has announced itself.
    fn wait_for_reader(&self) -> Result<()> {
        wait::until("a reader of the events", Duration::from_secs(10), || {
            self.scene.status().top_sources.watched.then_some(())
        })
    }
}

#[test]
fn verdicts_are_added_listed_and_removed_by_hand() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let scene = &commands.scene;
    commands.says(&["verdicts", "list"], 0, &["no recent verdicts"])?;
    let add = [
        "verdicts",
        "add",
        HONEST4,
        "--for",
        "30m",
        "--note",
        "ticket 4711",
    ];
    commands.says(&add, 0, &["192.0.2.10 is kept out for 30m"])?;
    commands.says(&add, 0, &["was kept out already"])?;
    ensure!(!scene.reaches(HONEST4, 25), "the verdict has no effect");
    commands.says(
        &["verdicts", "list"],
        0,
        &["expires in", "192.0.2.10", "operator", "ticket 4711"],
    )?;
    let list = commands.says(&["verdicts", "list", "--json"], 0, &[])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    ensure!(
        list[0]["packets"] == 1 && list[0]["cause"] == "operator",
        "{list:#}"
    );

    let permitted = ["verdicts", "add", PERMITTED4];
    commands.says(&permitted, 1, &["192.0.2.67", "the list \"friends\""])?;
    let local = ["verdicts", "add", "198.51.100.7"];
    commands.says(&local, 1, &["198.51.100.7", "local network"])?;
    commands.says(
        &["verdicts", "add", "192.0.2.0/24"],
        2,
        &["one IPv4 address"],
    )?;
    commands.says(&["verdicts", "add", HONEST4, "--for", "3"], 2, &["unit"])?;
    let ipv6 = ["verdicts", "add", "2001:db8:9::1"];
    commands.says(&ipv6, 0, &["2001:db8:9::/64 (the /64 of 2001:db8:9::1)"])?;

    let remove = ["verdicts", "remove", HONEST4, "203.0.113.1"];
    commands.says(
        &remove,
        1,
        &["192.0.2.10 is let in again", "203.0.113.1 has no verdict"],
    )?;
    ensure!(scene.reaches(HONEST4, 25), "it was not let in");
    commands.says(&["verdicts", "flush"], 0, &["1 recent verdict removed"])?;
    commands.says(&["detach"], 0, &[])?;
    commands.says(
        &["verdicts", "list"],
        1,
        &["no filter is pinned", "filter attach"],
    )?;
    Ok(())
}

#[test]
fn the_status_tells_every_reason() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    ensure!(!commands.scene.reaches(LISTED4, 25), "it is listed");
    commands.says(&["verdicts", "add", HONEST4], 0, &[])?;
    ensure!(!commands.scene.reaches(HONEST4, 25), "it has a verdict");
    let words = [
        "over budget",
        "recent verdicts: 1 of at most 262144, 1 by hand",
        "of them permitted",
        "--watch",
    ];
    commands.says(&["status"], 0, &words)?;
    let status = commands.says(&["status", "--json"], 0, &[])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let dropped = &status["interfaces"][0]["dropped"];
    ensure!(
        dropped["listed"] == 1 && dropped["verdict"] == 1,
        "{status:#}"
    );
    ensure!(
        dropped["customer"] == 0 && dropped.get("syn_budget").is_none(),
        "{status:#}"
    );
    ensure!(status["interfaces"][0]["over_budget"] == 0, "{status:#}");
    ensure!(status["lists"][1]["dropped_packets"] == 1, "{status:#}");
    ensure!(status["verdicts"]["added"] == 1, "{status:#}");
    Ok(())
}

#[test]
fn events_are_told_as_they_happen_and_a_second_reader_hears_who_has_them() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let mut reader = commands
        .command(&["events", "--json", "--count", "2"])?
        .stdout(Stdio::piped())
        .spawn()?;
    commands.wait_for_reader()?;
    let process = format!("process {} (portcullis)", reader.id());
    commands.says(&["events"], 1, &[&process, "filter status"])?;
    ensure!(!commands.scene.reaches(LISTED4, 25), "it is listed");
    ensure!(reader.try_wait()?.is_none(), "one is not two");
    ensure!(!commands.scene.reaches(LISTED4, 25), "it is listed");
    let output = reader.wait_with_output()?;
    ensure!(output.status.success(), "{}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    ensure!(lines.lines().count() == 2, "{lines}");
    for line in lines.lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        ensure!(
            event["source"] == LISTED4
                && event["reason"] == "listed"
                && event["list"] == "spammers"
                && event["interface"] == "wan"
                && event["port"] == 25
                && event["time"].is_string(),
            "{event:#}"
        );
    }
    Ok(())
}

#[test]
fn a_verdict_asks_the_lists_in_force_and_reads_none() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    // The new configuration is not in force, and its lists do not exist.
    for list in ["friends", "spammers"] {
        fs::remove_file(commands.directory.path().join(list))?;
    }
    let permitted = ["verdicts", "add", PERMITTED4];
    commands.says(&permitted, 1, &["the list \"friends\" (192.0.2.67/32)"])?;
    commands.says(&["verdicts", "add", HONEST4], 0, &["is kept out for 1h"])?;
    Ok(())
}

#[test]
fn a_file_of_a_hundred_thousand_sources_is_added_and_its_invalid_lines_are_told() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let mut text =
        format!("# attackers\n{HONEST4} 2h # ticket 7\u{1b}[2J\n{PERMITTED4}\n192.0.2.0/24\n");
    for number in 0..100_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        text += &format!("10.{b}.{c}.{d}\n");
    }
    text += "2001:db8:9::/64\n198.51.100.7\nnonsense\n";
    let file = commands.directory.path().join("attackers.txt");
    fs::write(&file, &text)?;
    let file = file.to_str().expect("a path in UTF-8");
    let add = [
        "verdicts", "add", "--file", file, "--for", "1d", "--note", "flood",
    ];
    let words = [
        "attackers.txt:4: a verdict is on one IPv4 address",
        "attackers.txt:100007: expected an IPv4 or IPv6 address: nonsense",
        "attackers.txt:3: 192.0.2.67/32 is not kept out: 192.0.2.67/32 is permitted by friends",
        "attackers.txt:100006: 198.51.100.7/32 is not kept out: 198.51.100.0/24 is local",
        "100002 added, 0 renewed",
    ];
    let started = Instant::now();
    commands.says(&add, 1, &words)?;
    // A few seconds, and many more on a busy machine.
    ensure!(started.elapsed() < Duration::from_secs(60), "it is slow");
    ensure!(!commands.scene.reaches(HONEST4, 25), "it is not kept out");
    let list = commands.says(&["verdicts", "list"], 0, &["ticket 7\\u{1b}[2J", "flood"])?;
    ensure!(
        !list.contains('\u{1b}'),
        "a note reaches the terminal as it is"
    );
    ensure!(list.lines().count() == 100_003, "{}", list.lines().count());

    let mut add = commands.command(&["verdicts", "add", "--file", "-", "--json"])?;
    let mut add = add.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    add.stdin
        .take()
        .expect("a pipe")
        .write_all(b"10.0.0.1\n\n10.200.0.1\nx\n")?;
    let output = add.wait_with_output()?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(told["added"] == 1 && told["renewed"] == 1, "{told:#}");
    ensure!(told["invalid_lines"][0]["line"] == 4, "{told:#}");
    commands.says(
        &["verdicts", "flush"],
        0,
        &["100003 recent verdicts removed"],
    )?;
    commands.says(&["verdicts", "add", "--file", "/no/such"], 1, &["/no/such"])?;
    commands.says(
        &["verdicts", "add", "--file", file, HONEST4],
        2,
        &["--file"],
    )?;
    commands.says(&["verdicts", "add"], 2, &["<IP>"])?;
    Ok(())
}

#[test]
fn who_watches_takes_the_events_over_when_their_reader_ends() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let mut reader = commands.command(&["events"])?;
    let reader = Running(reader.stdout(Stdio::null()).spawn()?);
    commands.wait_for_reader()?;
    let mut watch = commands.command(&["status", "--watch"])?;
    let _watch = Running(watch.stdout(Stdio::null()).spawn()?);
    // It has printed once, and waits.
    thread::sleep(Duration::from_millis(500));
    drop(reader);
    let started = Instant::now();
    let mut last = None;
    while last.is_none_or(|seen: Instant| seen.elapsed() < Duration::from_secs(3)) {
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "the events have no reader"
        );
        // The announcement of a reader holds for two seconds.
        match commands.scene.status().top_sources.watched {
            true => {
                last.get_or_insert_with(Instant::now);
            }
            false => last = None,
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
