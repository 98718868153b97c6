//! From DNS list to filter: packets of a source that was refused for a DNS list are dropped in the
//! kernel afterwards, and no other source is affected.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::filter;
use portcullis_tests::process::{self, Process};
use portcullis_tests::syn::Spoofer;
use portcullis_tests::{root, wait};
use serde_json::Value;

use crate::BL;
use crate::scene::{
    GATE4, HONEST4, HONEST6, LISTED4, LISTED6, LOCAL4, LOCAL6, PERMITTED4, PERMITTED6, Scene,
    policy,
};

/// Long enough for a few checks, short enough to wait for.
const DROP_FOR: Duration = Duration::from_secs(6);

/// Detaches the filter, which stays when a gate ends.
pub(crate) struct Pinned(pub(crate) PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = filter::detach(&self.0, &[]);
    }
}

/// What a `portcullis filter` command prints as JSON.
pub(crate) fn told(scene: &Scene, file: &Path, command: &[&str]) -> Result<Value> {
    let output = scene
        .inside
        .command(process::binary()?)
        .arg("filter")
        .args(command)
        .arg("--json")
        .arg("-c")
        .arg(file)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).context(said)
}

/// The sources with a verdict, each with its cause and note.
pub(crate) fn verdicts(scene: &Scene, file: &Path) -> Result<Vec<(String, String)>> {
    let list = told(scene, file, &["verdicts", "list"])?;
    let text = |verdict: &Value, key: &str| verdict[key].as_str().unwrap_or_default().to_owned();
    let verdicts = list.as_array().context("verdicts")?;
    let mut verdicts: Vec<_> = verdicts
        .iter()
        .map(|verdict| {
            let why = format!("{} {}", text(verdict, "cause"), text(verdict, "note"));
            (text(verdict, "source"), why)
        })
        .collect();
    verdicts.sort();
    Ok(verdicts)
}

/// Packets dropped for a recent verdict.
fn dropped(scene: &Scene, file: &Path) -> Result<u64> {
    let status = told(scene, file, &["status"])?;
    let dropped = &status["interfaces"][0]["dropped"]["verdict"];
    dropped.as_u64().with_context(|| format!("{status}"))
}

/// The gate's configuration, which has the pin path.
pub(crate) fn configuration(gate: &Process<'_>) -> PathBuf {
    gate.directory().join("portcullis.toml")
}

fn start<'s>(scene: &'s Scene, more: &str) -> Result<(Pinned, Process<'s>)> {
    let (pin_path, filter) = scene.filter();
    let pinned = Pinned(pin_path);
    let tables = format!("{filter}{more}{BL}{}", policy("drop_for = \"6s\""));
    // The gate adds verdicts as the user that it became.
    let configuration = format!("user = \"nobody\"\n{}", scene.configuration(&tables));
    let gate = Process::start_in(&scene.inside, &configuration)?;
    Ok((pinned, gate))
}

#[test]
fn the_next_syn_of_a_refused_source_is_dropped_until_its_time_is_over() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, gate) = start(&scene, "")?;
    let file = &configuration(&gate);
    for (listed, source) in [(LISTED4, LISTED4), (LISTED6, "2001:db8:bad:1::/64")] {
        let refused = |when: &str| -> Result<Instant> {
            let reply = scene.first_recipient(listed).context(when.to_owned())?;
            ensure!(reply.starts_with("554 5.7.1"), "{when}: {reply}");
            let begun = Instant::now();
            wait::until("the verdict", Duration::from_secs(3), || {
                let verdicts = verdicts(&scene, file).ok()?;
                let named = verdicts
                    .iter()
                    .find(|(found, _)| found.trim_end_matches("/32") == source)?;
                (named.1 == "dnsbl bl.test").then_some(())
            })
            .with_context(|| format!("{:?}", verdicts(&scene, file)))?;
            Ok(begun)
        };
        let begun = refused("at first")?;
        let before = dropped(&scene, file)?;
        ensure!(scene.connect(listed).is_err(), "{listed} connects again");
        let after = dropped(&scene, file)?;
        ensure!(
            after > before,
            "{before} -> {after} packets dropped for a verdict"
        );
        // No other source is affected.
        for other in [HONEST4, HONEST6, PERMITTED4, PERMITTED6, LOCAL4, LOCAL6] {
            scene.is_served(other)?;
        }
        std::thread::sleep((begun + DROP_FOR).saturating_duration_since(Instant::now()));
        refused("when its time was over")?;
        ensure!(scene.connect(listed).is_err(), "{listed} connects again");
        let mut remove = scene.inside.command(process::binary()?);
        remove
            .args(["filter", "verdicts", "remove", listed, "-c"])
            .arg(file);
        ensure!(remove.status()?.success());
        refused("when its verdict was removed")?;
    }
    drop(gate);
    Ok(())
}

#[test]
fn who_was_refused_is_told_with_the_reason_the_number_and_the_time() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, gate) = start(&scene, "")?;
    let file = &configuration(&gate);
    let told = |wanted: usize| -> Result<Vec<Value>> {
        wait::until("the refusals", Duration::from_secs(3), || {
            let told = told(&scene, file, &["verdicts", "list", "--why"]).ok()?;
            let refusals = told["refusals"].as_array()?.clone();
            (refusals.len() == wanted).then_some(refusals)
        })
    };
    ensure!(told(0)?.is_empty(), "no source was refused");
    for client in [LISTED6, LISTED4] {
        ensure!(scene.first_recipient(client)?.starts_with("554 5.7.1"));
        told(if client == LISTED6 { 1 } else { 2 })?;
    }
    let mut remove = scene.inside.command(process::binary()?);
    remove
        .args(["filter", "verdicts", "remove", LISTED4, "-c"])
        .arg(file);
    ensure!(remove.status()?.success());
    ensure!(scene.first_recipient(LISTED4)?.starts_with("554 5.7.1"));
    let refusals = wait::until("the second refusal", Duration::from_secs(3), || {
        let refusals = told(2).ok()?;
        (refusals[0]["times"] == 2).then_some(refusals)
    })?;
    let first = &refusals[0];
    ensure!(
        first["source"] == LISTED4
            && first["rules"][0]["rule"] == "dnsbl:bl.test"
            && first["rules"][0]["times"] == 2
            && first["kept_out_until"].is_string()
            && first["not_kept_out"].is_null(),
        "{first:#}"
    );
    let second = &refusals[1];
    ensure!(
        second["source"] == "2001:db8:bad:1::/64" && second["client"] == LISTED6,
        "{second:#}"
    );
    ensure!(
        second["times"] == 1 && second["first"] == second["last"],
        "{second:#}"
    );
    // The refusal can be read too, and outlives the verdict.
    let mut why = scene.inside.command(process::binary()?);
    why.args(["filter", "verdicts", "flush", "-c"]).arg(file);
    ensure!(why.status()?.success());
    let mut why = scene.inside.command(process::binary()?);
    why.args(["filter", "verdicts", "list", "--why", "-c"])
        .arg(file);
    let said = String::from_utf8(why.output()?.stdout)?;
    for word in [
        "no recent verdicts",
        LISTED4,
        "dnsbl:bl.test (2)",
        "no: its verdict is over, or was removed",
    ] {
        ensure!(said.contains(word), "no {word} in\n{said}");
    }
    drop(gate);
    Ok(())
}

/// Segments whose checksum was wrong, in the gate's namespace.
fn bad_segments(scene: &Scene) -> Result<u64> {
    // `/proc/net` would be that of the process's first thread.
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp");
    let counters = scene.inside.run(read)??;
    let mut lines = counters.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TCP counters")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "InCsumErrors");
    Ok(found.context("no InCsumErrors")?.1.parse()?)
}

#[test]
fn a_forged_syn_gets_its_source_no_verdict() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, gate) = start(&scene, "")?;
    let spoofer = Spoofer::new(&scene.outside, format!("{GATE4}:25").parse()?)?;
    // All of them are on the list.
    for number in 0..1_000_u32 {
        let [.., third, fourth] = number.to_be_bytes();
        spoofer.send([198, 18, third, fourth].into())?;
    }
    scene.is_served(HONEST4)?;
    let bad = bad_segments(&scene)?;
    ensure!(bad == 0, "the kernel itself threw {bad} of them away");
    let passed =
        told(&scene, &configuration(&gate), &["status"])?["interfaces"][0]["passed"].as_u64();
    ensure!(
        passed.is_some_and(|passed| passed >= 1_000),
        "{passed:?} arrived"
    );
    ensure!(
        !scene
            .tap
            .asked()
            .iter()
            .any(|name| name.ends_with(".18.198.bl.test."))
    );
    let verdicts = verdicts(&scene, &configuration(&gate))?;
    ensure!(verdicts.is_empty(), "{verdicts:?}");
    drop(gate);
    Ok(())
}

#[test]
fn a_filter_that_monitors_learns_nothing() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, gate) = start(&scene, "mode = \"monitor\"\n")?;
    for _ in 0..2 {
        ensure!(scene.first_recipient(LISTED4)?.starts_with("554"));
    }
    let file = &configuration(&gate);
    let refused = wait::until("the refusals", Duration::from_secs(3), || {
        let told = told(&scene, file, &["verdicts", "list", "--why"]).ok()?;
        (told["refusals"][0]["times"] == 2).then(|| told["refusals"][0].clone())
    })?;
    let why_not = "filter.mode is not enforce";
    ensure!(refused["not_kept_out"] == why_not, "{refused:#}");
    let verdicts = verdicts(&scene, file)?;
    ensure!(verdicts.is_empty(), "{verdicts:?}");
    drop(gate);
    Ok(())
}
