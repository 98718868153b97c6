//! The SYN budget: what a source sends beyond it is counted, and never dropped, because the source
//! may be forged.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::process::Process;
use portcullis_tests::root;

use crate::scene::{GATE4, HONEST4, HONEST6, Scene};

/// More than any second of these tests has room for.
const TRIES: usize = 30;

fn refused(scene: &Scene, source: &str) -> usize {
    (0..TRIES).filter(|_| !scene.reaches(source, 25)).count()
}

#[test]
fn a_source_beyond_its_budget_connects_all_the_same_and_is_counted_unless_it_is_local() -> Result<()>
{
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.syn_budget = 1;
    let mut filter = scene.attach(&settings)?;
    let over_budget = || scene.status().interfaces[0].over_budget;
    assert_eq!((refused(&scene, HONEST4), refused(&scene, HONEST6)), (0, 0));
    let counted = over_budget();
    assert!(counted > 1, "{counted}");

    settings.local_networks = vec!["192.0.2.0/24".parse()?, "2001:db8::/32".parse()?];
    filter.update_settings(&settings)?;
    assert_eq!((refused(&scene, HONEST4), refused(&scene, HONEST6)), (0, 0));
    settings.local_networks.clear();
    settings.syn_budget = 0;
    filter.update_settings(&settings)?;
    assert_eq!((refused(&scene, HONEST4), refused(&scene, HONEST6)), (0, 0));
    let status = scene.status();
    assert_eq!(over_budget(), counted, "neither local sources nor 0");
    assert_eq!(status.interfaces[0].dropped.total(), 0);
    Ok(())
}

/// Sends SYNs of this source to port 25 of the gate until stopped, from a place that is not its.
fn flood(scene: &Scene, source: &str) -> Result<std::process::Child> {
    let link = scene
        .gate
        .command("ip")
        .args(["-j", "link", "show", "wan"])
        .output()?;
    let link: serde_json::Value = serde_json::from_slice(&link.stdout)?;
    let to = link[0]["address"].as_str().context("an Ethernet address")?;
    let packet = format!(
        "{{ eth(da={to}), ipv4(sa={source}, da={GATE4}, id=drnd()), \
         tcp(sp=drnd(1024, 30000), dp=25, seq=drnd(), syn, win=1024) }}"
    );
    let mut command = scene.outside.command("trafgen");
    command.args([
        "--out", "lan", "--cpus", "1", "--gap", "1ms", "--num", "20000",
    ]);
    command.arg(&packet).stdout(std::process::Stdio::null());
    Ok(command.stderr(std::process::Stdio::null()).spawn()?)
}

#[test]
fn syns_in_the_name_of_an_honest_source_do_not_lock_it_out() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for syncookies in ["1", "2"] {
        let scene = Scene::new()?;
        scene
            .gate
            .run(|| fs::write("/proc/sys/net/ipv4/tcp_syncookies", syncookies))??;
        let _filter = scene.attach(&scene.settings())?;
        // The neighbours are known, so that nothing else is waited for.
        ensure!(scene.reaches(HONEST4, 25), "calm");
        let mut flood = flood(&scene, HONEST4)?;
        let begun = portcullis_tests::wait::until("the budget to be used up", SOON, || {
            (scene.status().interfaces[0].over_budget > 0).then_some(())
        });
        let refused = begun.map(|()| refused(&scene, HONEST4));
        let status = scene.status();
        flood.kill()?;
        flood.wait()?;
        let wan = &status.interfaces[0];
        ensure!(refused? == 0, "tcp_syncookies={syncookies}: {wan:?}");
        ensure!(wan.dropped.total() == 0, "{wan:?}");
    }
    Ok(())
}

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

#[test]
fn one_machine_runs_smtp_source_through_the_filter_with_its_defaults() -> Result<()> {
    const MESSAGES: usize = 3_000;
    if !root() {
        return Ok(());
    }
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("source")?);
    inside.veth("wan", &outside, "lan")?;
    inside.address("wan", "192.0.2.1/24")?;
    outside.address("lan", "192.0.2.10/24")?;
    let pins = Pins(format!("/sys/fs/bpf/portcullis-test-{}", inside.name()).into());
    let gate = Process::start_in(
        &inside,
        &format!(
            "hostname = \"gate.example\"\nstate_dir = \"@DIR@\"\n[[listener]]\naddress = \"192.0.2.1:25\"\n\
             [filter]\ninterfaces = [{{ name = \"wan\" }}]\npin_path = \"{}\"\n\
             [relay]\ndomains = [\"isp.example\"]\n[[route]]\ndomains = [\"isp.example\"]\nnext_hop = [\"discard\"]\n",
            pins.0.display()
        ),
    )?;
    let mut smtp_source = outside.command("smtp-source");
    smtp_source.args(["-s", "20", "-l", "500", "-f", "me@client.example"]);
    smtp_source.args(["-t", "friend@isp.example", "-m", &MESSAGES.to_string()]);
    let output = smtp_source
        .arg("inet:192.0.2.1:25")
        .output()
        .context("smtp-source is missing: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{said}");
    let status = inside.run(|| portcullis::filter::status(&pins.0))??;
    let wan = &status.interfaces[0];
    ensure!(wan.dropped.total() == 0, "{wan:?}");
    // A SYN that is dropped is sent again after a second: that would be the end of full speed.
    let again = outside.run(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    ensure!(counter(&again, "TCPSynRetrans")? == 0, "{wan:?}");
    gate.terminate()?;
    Ok(())
}

/// Where the filter of a gate is pinned; taken away at the end.
struct Pins(std::path::PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = portcullis::filter::detach(&self.0, &[]);
    }
}

/// A counter of /proc/net/netstat: a line of names, and one of their values.
fn counter(netstat: &str, name: &str) -> Result<u64> {
    let lines: Vec<Vec<&str>> = netstat
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let value = lines.chunks_exact(2).find_map(|pair| {
        let at = pair[0].iter().position(|found| *found == name)?;
        pair[1].get(at)?.parse().ok()
    });
    value.with_context(|| format!("no {name} in {netstat}"))
}
