//! Zones that list the world: what they say does not count, and they are in use again when they are
//! well.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::filter::Verdicts;
use portcullis_tests::name_server::Mood;
use portcullis_tests::process::{self, Process};
use portcullis_tests::{root, wait};
use serde_json::Value;

use crate::BL;
use crate::filter::{Pinned, configuration, told};
use crate::scene::{HONEST4, HONEST6, LISTED4, LISTED6, Scene, policy};

const WORLD: &str = "[[dnsbl]]\nzone = \"world.test\"\n";
const SOON: Duration = Duration::from_secs(10);

/// A gate with a filter, for which what it learns is the worse.
fn start<'s>(scene: &'s Scene, zones: &str, more: &str) -> Result<(Pinned, PathBuf, Process<'s>)> {
    let (pin_path, filter) = scene.filter();
    let pinned = Pinned(pin_path.clone());
    let tables = format!("{filter}{zones}{}", policy(more));
    let gate = Process::start_in(&scene.inside, &scene.configuration(&tables))?;
    Ok((pinned, pin_path, gate))
}

fn sources(pin_path: &std::path::Path) -> Result<Vec<String>> {
    let verdicts = Verdicts::open(pin_path)?.list()?;
    Ok(verdicts.into_iter().map(|verdict| verdict.source).collect())
}

fn is_off(gate: &Process<'_>, zone: &str, family: &str) -> Result<bool> {
    let label = format!("zone=\"{zone}\",family=\"{family}\"");
    Ok(gate.metric("portcullis_dnsbl_zone_switched_off", &label)? == 1.0)
}

#[test]
fn a_zone_that_lists_the_world_refuses_nobody_and_gives_no_verdicts() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    // The first client comes before the zone was ever tested, or with it.
    let zones = format!("{WORLD}{BL}[[dnsbl]]\nzone = \"world6.test\"\n");
    let (_pinned, pin_path, gate) = start(&scene, &zones, "")?;
    for honest in [HONEST4, HONEST6] {
        scene.is_served(honest)?;
    }
    for listed in [LISTED4, LISTED6] {
        let reply = scene.first_recipient(listed)?;
        ensure!(reply.ends_with("is listed by bl.test"), "{listed}: {reply}");
    }
    wait::until("the verdicts", SOON, || {
        (sources(&pin_path).ok()?.len() == 2).then_some(())
    })?;
    for honest in [HONEST4, HONEST6] {
        let address: IpAddr = honest.parse()?;
        ensure!(
            !Verdicts::open(&pin_path)?.remove(address)?,
            "{honest} has a verdict"
        );
    }
    gate.wait_for_log("which no list may", SOON)?;
    let expected = [
        ("world.test", "ipv4", true),
        ("world.test", "ipv6", true),
        // Only what it says about IPv6 is of no use.
        ("world6.test", "ipv4", false),
        ("world6.test", "ipv6", true),
        ("bl.test", "ipv4", false),
        ("bl.test", "ipv6", false),
    ];
    for (zone, family, off) in expected {
        ensure!(is_off(&gate, zone, family)? == off, "{zone} {family}");
    }
    let status: Value = serde_json::from_str(&gate.get("/api/status")?.1)?;
    let zones = status["dnsbl"]["zones"].as_array().context("zones")?;
    let world = zones.iter().find(|zone| zone["zone"] == "world.test");
    ensure!(
        world.is_some_and(|world| world["ipv4"] == "switched-off"),
        "{status:#}"
    );
    // 127.0.0.2 missing is a warning, and one only.
    let missing = gate.log().matches("does not list 127.0.0.2").count();
    ensure!(missing >= 1, "nothing is said of bl.test");
    Ok(())
}

#[test]
fn a_zone_that_is_not_tested_yet_is_not_believed() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.tap.turn("world.test.", Mood::ListsAll);
    for test_entry in ["1.0.0.127.", "2.0.0.127.", ".0.0.0.f.7.f.f.f.f."] {
        scene.tap.turn(test_entry, Mood::Silent);
    }
    let more = "timeout = \"1s\"\ntest_every = \"1s\"";
    let (_pinned, pin_path, gate) = start(&scene, WORLD, more)?;
    scene.is_served(HONEST4)?;
    gate.wait_for_log("no answer to its test entries yet", SOON)?;
    ensure!(sources(&pin_path)?.is_empty());
    let in_use = gate.metric("portcullis_dnsbl_zone_in_use", "ipv4")?;
    ensure!(in_use == 0.0);
    // And then it shows what it is.
    for test_entry in ["1.0.0.127.", "2.0.0.127."] {
        scene.tap.turn(test_entry, Mood::ListsAll);
    }
    wait::until("the zone to be off", SOON, || {
        is_off(&gate, "world.test", "ipv4").ok()?.then_some(())
    })?;
    scene.is_served(HONEST4)?;
    ensure!(sources(&pin_path)?.is_empty());
    Ok(())
}

#[test]
fn a_zone_that_goes_bad_is_switched_off_with_its_verdicts_and_on_when_it_is_well() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, pin_path, gate) = start(&scene, BL, "test_every = \"3s\"")?;
    scene.is_served(HONEST4)?;
    ensure!(scene.first_recipient(LISTED6)?.starts_with("554"));
    scene.tap.turn("bl.test.", Mood::ListsAll);
    // Before the next test it is believed, and whom it names gets a verdict.
    let crowd = scene.crowd(20)?;
    for client in &crowd {
        scene.first_recipient(client)?;
    }
    wait::until("the zone to be off", SOON, || {
        is_off(&gate, "bl.test", "ipv4").ok()?.then_some(())
    })?;
    wait::until("its verdicts to be gone", SOON, || {
        sources(&pin_path).ok()?.is_empty().then_some(())
    })?;
    // What was remembered of it is forgotten.
    for client in [HONEST4, HONEST6, &crowd[0], LISTED4] {
        scene.is_served(client)?;
    }
    scene.tap.turn("bl.test.", Mood::Well);
    gate.wait_for_log("a DNS list is well again", SOON)?;
    ensure!(scene.first_recipient(LISTED4)?.starts_with("554"));
    scene.is_served(HONEST4)?;
    Ok(())
}

#[test]
fn a_session_that_outlasts_the_zone_by_which_it_is_refused_brings_no_verdict() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_pinned, pin_path, gate) = start(&scene, BL, "test_every = \"9s\"")?;
    gate.wait_for_log("does not list 127.0.0.2", SOON)?;
    scene.tap.turn("bl.test.", Mood::ListsAll);
    let honest = &scene.crowd(1)?[0];
    let mut session = scene.session(honest)?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@client.example>", "250")?;
    wait::until("the zone to be off", 3 * SOON, || {
        is_off(&gate, "bl.test", "ipv4").ok()?.then_some(())
    })?;
    // What the zone said when the session began.
    session.expect("RCPT TO:<user@isp.example>", "554")?;
    let refusals = wait::until("the refusal", SOON, || {
        let told = told(
            &scene,
            &configuration(&gate),
            &["verdicts", "list", "--why"],
        )
        .ok()?;
        let refusals = told["refusals"].as_array()?.clone();
        (!refusals.is_empty()).then_some(refusals)
    })?;
    ensure!(
        refusals[0]["not_kept_out"] == "the DNS list is switched off",
        "{refusals:#?}"
    );
    ensure!(sources(&pin_path)?.is_empty());
    Ok(())
}

#[test]
fn a_list_that_means_it_can_be_excepted() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate(&format!("{WORLD}test_entries = false\n{}", policy("")))?;
    ensure!(
        scene
            .first_recipient(HONEST4)?
            .ends_with("is listed by world.test")
    );
    let asked = scene.tap.asked();
    ensure!(
        !asked.iter().any(|name| name.starts_with("1.0.0.127.")),
        "{asked:?}"
    );
    // With the exception gone it is tested, whatever was remembered.
    gate.rewrite(&scene.configuration(&format!("{WORLD}{}", policy(""))))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("which no list may", SOON)?;
    scene.is_served(HONEST4)
}

#[test]
fn doctor_and_explain_say_which_zones_are_of_no_use() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones = format!(
        "{WORLD}{BL}[[dnsbl]]\nzone = \"not-served.test\"\n[[dnsbl]]\nzone = \"refuses.test\"\n\
         [[dnsbl]]\nzone = \"world6.test\"\n[[dnsbl]]\nzone = \"other.test\"\n"
    );
    let servers = "[dnsbl_policy]\nservers = [\"127.0.0.1:5353\", \"127.0.0.1:9\"]\n";
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("gate.toml");
    std::fs::write(
        &file,
        scene
            .configuration(&format!("{zones}{servers}"))
            .replace("@DIR@", "/tmp"),
    )?;
    let portcullis = |arguments: &[&str]| -> Result<Value> {
        let mut command = scene.inside.command(process::binary()?);
        command.args(arguments).arg("--json").arg("-c").arg(&file);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).context(said)
    };
    let findings = portcullis(&["doctor"])?;
    let findings = findings.as_array().context("findings")?;
    let about = |zone: &str| -> Vec<String> {
        let subject = format!("DNS list {zone}");
        let about = findings
            .iter()
            .filter(|finding| finding["subject"] == subject.as_str());
        about
            .map(|finding| format!("{} {}", finding["level"], finding["found"]))
            .collect()
    };
    let expected = [
        ("world.test", "\"warning\" \"it lists 127.0.0.1"),
        ("bl.test", "\"warning\" \"it does not list 127.0.0.2"),
        (
            "not-served.test",
            "\"warning\" \"no answer (127.0.0.1:5353: it answers REFUSED; 127.0.0.1:9: Connection refused",
        ),
        (
            "refuses.test",
            "\"warning\" \"it answers its test entry with an error",
        ),
        ("world6.test", "\"warning\" \"it lists ::ffff:127.0.0.1"),
        ("other.test", "\"ok\""),
    ];
    for (zone, beginning) in expected {
        let about = about(zone);
        ensure!(
            about
                .first()
                .is_some_and(|first| first.starts_with(beginning)),
            "{zone}: {about:?}"
        );
        // Once by itself, or within.
        ensure!(
            about.iter().any(|line| line.contains("127.0.0.1:9")),
            "{zone}: {about:?}"
        );
    }
    let stranger = "203.0.113.11";
    let explained = portcullis(&[
        "explain",
        "--client",
        stranger,
        "--rcpt",
        "user@isp.example",
    ])?;
    let stages = explained["stages"].as_array().context("stages")?;
    let world = stages
        .iter()
        .find(|stage| stage["rule"] == "dnsbl:world.test");
    ensure!(
        world.is_some_and(|world| world["answer"]
            .as_str()
            .is_some_and(|said| said.starts_with("switched off"))),
        "{stages:#?}"
    );
    ensure!(
        stages.iter().all(|stage| stage["outcome"] != "refuse"),
        "{stages:#?}"
    );
    Ok(())
}
