//! Lists that would newly refuse much, or those whom the gate lives by, are not taken until a
//! person says that it is meant.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::process::{Process, portcullis};
use portcullis_tests::wait;

use super::gate::{NOTICED, SHIPPED, Scene, greeting, wait_for_reloads};

#[test]
fn a_feed_that_gains_half_of_the_internet_changes_nothing_until_an_operator_says_that_it_is_meant()
-> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    let gate = scene.start()?;
    let gains = [
        ("::/1", "100.0% of IPv6"),
        ("96.0.0.0/3", "12.5% of IPv4"),
        ("64.0.0.0/2", "25.0% of IPv4"),
    ];
    for (number, (gained, told)) in (1..).zip(gains) {
        scene.replace(&format!("{SHIPPED}{gained}\n"))?;
        wait_for_reloads(&gate, "refused", f64::from(number))?;
        let line = gate.wait_for_log(told, NOTICED)?;
        ensure!(
            line.contains("list drop would newly cover") && line.contains("ERROR"),
            "{line}"
        );
        ensure!(greeting(&gate)? == 220, "every client is shut out");
    }
    // By hand it is refused, too.
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("not reloaded", NOTICED)?;
    ensure!(greeting(&gate)? == 220, "every client is shut out");
    // And over a restart.
    drop(gate);
    let gate = scene.start()?;
    gate.wait_for_log("the lists of the last compile are in force", NOTICED)?;
    ensure!(greeting(&gate)? == 220, "the start took it");

    let refused = scene.compile(&[])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        told.contains("25.0% of IPv4") && told.contains("--force"),
        "{told}"
    );
    // However soon after the start.
    ensure!(scene.compile(&["--force"])?.status.success());
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 554);
    Ok(())
}

#[test]
fn the_first_compile_takes_what_is_wide_and_warns() -> Result<()> {
    let bogons = "0.0.0.0/8\n10.0.0.0/8\n127.0.0.0/8\n224.0.0.0/3\n";
    let scene = Scene::new(bogons)?;
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 554);
    let line = gate.wait_for_log("covers 13.7% of IPv4", NOTICED)?;
    ensure!(line.contains("WARN"), "{line}");
    // What it has is not new.
    scene.replace(&format!("{bogons}192.0.2.0/24\n"))?;
    wait_for_reloads(&gate, "good", 1.0)?;
    Ok(())
}

#[test]
fn those_whom_the_gate_lives_by_are_not_newly_refused() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    let configuration = scene
        .configuration
        .replace("discard", "198.51.100.200:25")
        .replace("[relay]\n", "[relay]\naddresses = [\"203.0.113.25\"]\n")
        .replace("\"127.0.0.0/8\"", "\"10.77.0.0/16\", \"2001:db8:77::/48\"")
        + "[[dnsbl]]\nzone = \"bl.example\"\n[dnsbl_policy]\nservers = [\"203.0.113.53\"]\n";
    fs::write(scene.path("portcullis.toml"), &configuration)?;
    ensure!(scene.compile(&[])?.status.success());
    let cases = [
        ("10.0.0.0/8", "the local network 10.77.0.0/16"),
        ("10.77.0.0/17", "the local network 10.77.0.0/16"),
        ("::ffff:10.77.0.0/112", "the local network 10.77.0.0/16"),
        ("2001:db8::/32", "the local network 2001:db8:77::/48"),
        ("203.0.113.24/31", "203.0.113.25, an address of the gate"),
        ("198.51.100.0/24", "the next hop 198.51.100.200"),
        ("203.0.113.53", "the name server 203.0.113.53"),
    ];
    for (gained, expected) in cases {
        scene.replace(&format!("{SHIPPED}{gained}\n"))?;
        let refused = scene.compile(&[])?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{gained}: {told}");
        ensure!(
            told.contains(&format!("list drop would newly cover {expected}")),
            "{gained}: {told}"
        );
    }
    // A customer may be listed.
    scene.replace(&format!("{SHIPPED}10.77.1.0/24\n10.78.0.0/16\n"))?;
    ensure!(scene.compile(&[])?.status.success());
    // What is listed already is no news.
    scene.replace(&format!("{SHIPPED}10.0.0.0/8\n"))?;
    ensure!(scene.compile(&["--force"])?.status.success());
    let again = scene.compile(&[])?;
    ensure!(again.status.success(), "{again:?}");
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(
        told.contains("holds all of the local network 10.77.0.0/16"),
        "{told}"
    );
    Ok(())
}

#[test]
fn what_check_warns_of_is_told_by_each_reload() -> Result<()> {
    let listed = format!("{SHIPPED}10.77.0.0/16\n");
    let scene = Scene::with(
        &listed,
        "[relay]\nnetworks = [\"10.77.0.0/16\"]\ndomains = [\"gate.example\"]\n",
    )?;
    let gate = scene.start()?;
    let warning = "holds all of the local network 10.77.0.0/16";
    let told = || gate.log().matches(warning).count();
    ensure!(told() == 1, "{}", gate.log());
    scene.replace(&format!("{listed}192.0.2.7\n"))?;
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(told() == 2, "the watch does not say it: {}", gate.log());
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reloaded; nothing has changed", NOTICED)?;
    ensure!(told() == 3, "SIGHUP does not say it: {}", gate.log());
    Ok(())
}

#[test]
fn a_snapshot_that_was_compiled_elsewhere_is_checked_against_what_was_in_force() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    let output = scene.path("elsewhere").display().to_string();
    let list = format!("drop=drop:cidr:{}", scene.path("drop").display());
    // On a machine that has no earlier compile.
    let compile = |more: &[&str]| -> Result<()> {
        let fresh = scene.path("fresh").display().to_string();
        let arguments = ["lists", "compile", "--list", &list, "-o", &fresh];
        let compiled = portcullis(arguments.iter().chain(more))?;
        ensure!(compiled.status.success(), "{compiled:?}");
        Ok(fs::rename(&fresh, Path::new(&output))?)
    };
    compile(&[])?;
    let (before, after) = (scene.configuration.split_once("[[list]]")).expect("there is a list");
    let rest = after.split_once("[relay]").expect("there is a relay").1;
    let configuration = format!("{before}[lists]\nsnapshot = \"{output}\"\n[relay]{rest}");
    let gate = Process::start(&configuration)?;
    scene.replace(&format!("{SHIPPED}0.0.0.0/1\n"))?;
    compile(&[])?;
    wait_for_reloads(&gate, "refused", 1.0)?;
    ensure!(greeting(&gate)? == 220, "every client is shut out");
    drop(gate);
    let gate = Process::start(&configuration)?;
    ensure!(greeting(&gate)? == 220, "the start took it");
    gate.wait_for_log("the lists of the last compile are in force", NOTICED)?;
    compile(&["--force"])?;
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 554);
    drop(gate);
    let gate = Process::start(&configuration)?;
    ensure!(
        greeting(&gate)? == 554,
        "the second start forgot that it was meant"
    );
    // What is in force is kept for the next start.
    let kept = scene.path("lists.snapshot").display().to_string();
    wait::until("the lists in force", NOTICED, || {
        let stat = portcullis(["lists", "stat", &kept]).ok()?;
        String::from_utf8_lossy(&stat.stdout)
            .contains(" 4 ")
            .then_some(())
    })?;
    drop(gate);
    // The file may be missing at a start.
    fs::remove_file(&output)?;
    let gate = Process::start(&configuration)?;
    ensure!(greeting(&gate)? == 554, "the gate is open");
    gate.wait_for_log("lists.snapshot: ", NOTICED)?;
    ensure!(gate.metric("portcullis_lists_old", "")? == 1.0);
    Ok(())
}
