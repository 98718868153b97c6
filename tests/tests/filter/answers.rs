//! What the program sends back arrives, or it sends nothing: a veth loses it unless its other end
//! runs a program, too.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::config::{Interface, Role, XdpMode};
use portcullis::filter::{Filter, answer_fault};
use portcullis::netns::Namespace;
use portcullis_tests::process::{Process, binary};
use portcullis_tests::{root, wait};

use crate::interfaces::ip;
use crate::scene::{GATE4, HONEST4, HONEST6, Receiving, Scene, knock};

const SOON: Duration = Duration::from_secs(10);

/// Has the kernel want a cookie for every SYN, so that no flood is needed.
fn always_cookies(scene: &Scene) -> Result<()> {
    let file = "/proc/sys/net/ipv4/tcp_syncookies";
    Ok(scene.gate.run(|| fs::write(file, "2"))??)
}

/// Cookies that the program and that the kernel have sent.
fn cookies(scene: &Scene) -> Result<(u64, u64)> {
    let netstat = scene
        .gate
        .run(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = netstat.lines().map(str::split_whitespace);
    let (mut names, mut values) = (
        lines.next().context("names")?,
        lines.next().context("values")?,
    );
    let at = names.position(|name| name == "SyncookiesSent");
    let sent = values.nth(at.context("no SyncookiesSent")?);
    let by_kernel = sent.context("no value")?.parse()?;
    Ok((scene.status().interfaces[0].syn_cookies, by_kernel))
}

/// Whether a filter with these settings would lose its answers on `wan`.
fn is_lost(scene: &Scene, role: Role, xdp_mode: XdpMode) -> Result<bool> {
    let mut settings = scene.settings();
    settings.xdp_mode = xdp_mode;
    settings.interfaces[0].role = role;
    let fault = scene
        .gate
        .run(|| answer_fault(&settings, &settings.interfaces[0]))?;
    Ok(fault.is_some_and(|fault| fault.is_lost()))
}

fn ethtool(namespace: &Namespace, arguments: &[&str]) -> Result<()> {
    let output = namespace.command("ethtool").args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ethtool {arguments:?}: {said}");
    Ok(())
}

#[test]
fn a_program_at_the_other_end_of_a_veth_is_seen_from_this_one_and_nothing_else_passes_for_it()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let lost = || is_lost(&scene, Role::Edge, XdpMode::Driver);
    ensure!(lost()?, "no program");
    ensure!(is_lost(&scene, Role::Customer, XdpMode::Driver)?);
    ensure!(
        !is_lost(&scene, Role::Edge, XdpMode::Generic)?,
        "what a generic program sends goes the way of all frames"
    );
    ethtool(&scene.outside, &["-K", "lan", "gro", "on"])?;
    ensure!(lost()?, "GRO is not enough");
    ethtool(&scene.outside, &["-K", "lan", "gro", "off"])?;
    let generic = Receiving::in_mode(&scene, XdpMode::Generic)?;
    ensure!(lost()?, "a generic program is not enough");
    drop(generic);
    // What is switched off by hand here does not look like a program there.
    ethtool(&scene.gate, &["-K", "wan", "tso", "off"])?;
    ensure!(lost()?, "segmentation offload is off");
    ethtool(&scene.gate, &["-K", "wan", "tso", "on", "rxvlan", "off"])?;
    let receiving = Receiving::at_outside(&scene)?;
    ensure!(!lost()?, "a program in the driver");
    ensure!(!is_lost(&scene, Role::Customer, XdpMode::Driver)?);
    drop(receiving);
    ensure!(lost()?, "it is gone again");
    Ok(())
}

#[test]
fn a_veth_pair_within_one_namespace_is_judged_alike() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let both = Namespace::create("both")?;
    both.veth("here", &both, "there")?;
    let pin_path = format!("/sys/fs/bpf/portcullis-test-{}", both.name());
    let interface = |name: &str| Interface {
        name: name.to_owned(),
        role: Role::Edge,
    };
    let mut settings = crate::scene::settings(pin_path.as_ref());
    let lost = |settings: &portcullis::config::Filter, name: &str| {
        both.run(|| answer_fault(settings, &interface(name)).is_some())
    };
    ensure!(lost(&settings, "here")? && lost(&settings, "there")?);
    settings.interfaces = vec![interface("here"), interface("there")];
    let filter = both.run(|| Filter::attach(&settings, &crate::scene::lists()))??;
    let faults = filter.answer_faults().count();
    let both_ends = [lost(&settings, "here")?, lost(&settings, "there")?];
    let status = filter.status();
    drop(filter);
    portcullis::filter::detach(&settings.pin_path, &[])?;
    ensure!(both_ends == [false; 2], "each is the other's program");
    ensure!(faults == 0, "{faults} faults");
    ensure!(
        status?
            .interfaces
            .iter()
            .all(|interface| !interface.answers_lost)
    );
    Ok(())
}

#[test]
fn clients_behind_a_veth_that_loses_answers_get_the_cookies_of_the_kernel() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    always_cookies(&scene)?;
    let settings = scene.settings();
    let mut filter = scene.attach(&settings)?;
    for source in [HONEST4, HONEST6] {
        ensure!(scene.reaches(source, 25), "{source}");
    }
    let wan = scene.status().interfaces.remove(0);
    ensure!(wan.answers_lost && wan.syn_cookies == 0, "{wan:?}");
    let (_, by_kernel) = cookies(&scene)?;
    ensure!(by_kernel >= 2, "{by_kernel}");

    // The other end gets a program, which the next reload notices.
    let receiving = Receiving::at_outside(&scene)?;
    scene.gate.run(|| filter.update_settings(&settings))??;
    for source in [HONEST4, HONEST6] {
        ensure!(scene.reaches(source, 25), "{source}");
    }
    ensure!(!scene.status().interfaces[0].answers_lost);
    ensure!(cookies(&scene)? == (2, by_kernel), "{:?}", cookies(&scene)?);

    // And loses it.
    drop(receiving);
    scene.gate.run(|| filter.update_settings(&settings))??;
    ensure!(scene.reaches(HONEST4, 25), "without the program");
    ensure!(cookies(&scene)? == (2, by_kernel + 1));
    // From another namespace it cannot be looked at; what was found holds.
    filter.update_settings(&settings)?;
    ensure!(scene.status().interfaces[0].answers_lost);
    Ok(())
}

#[test]
fn customers_behind_a_veth_that_loses_answers_are_dropped_and_counted_so() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.interfaces[0].role = Role::Customer;
    let mut filter = scene.attach(&settings)?;
    for source in [HONEST4, HONEST6] {
        ensure!(!scene.reaches(source, 25), "{source}");
    }
    let wan = scene.status().interfaces.remove(0);
    ensure!((wan.resets, wan.dropped.customer) == (0, 2), "{wan:?}");

    let _receiving = Receiving::at_outside(&scene)?;
    scene.gate.run(|| filter.sync_answers())??;
    let refused = scene.outside.run(|| knock(HONEST4, 25))?;
    let kind = refused.map(|_| ()).map_err(|error| error.kind());
    ensure!(kind == Err(ErrorKind::ConnectionRefused), "{kind:?}");
    ensure!(scene.status().interfaces[0].resets == 1);
    Ok(())
}

#[test]
fn a_filter_that_is_taken_over_knows_at_once_where_its_answers_are_lost() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    always_cookies(&scene)?;
    let receiving = Receiving::at_outside(&scene)?;
    drop(scene.attach(&scene.settings())?);
    ensure!(scene.reaches(HONEST4, 25) && cookies(&scene)? == (1, 0));
    drop(receiving);
    let filter = scene.attach(&scene.settings())?;
    let faults: Vec<_> = filter.answer_faults().map(ToString::to_string).collect();
    ensure!(faults.len() == 1 && faults[0].contains("wan"), "{faults:?}");
    ensure!(scene.reaches(HONEST4, 25) && cookies(&scene)? == (1, 1));
    Ok(())
}

#[test]
fn an_interface_made_again_between_two_looks_is_looked_at_anew() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let receiving = Receiving::at_outside(&scene)?;
    let mut filter = scene.attach(&scene.settings())?;
    ensure!(!scene.status().interfaces[0].answers_lost);
    let before = scene.gate.run(|| nix::net::if_::if_nametoindex("wan"))??;
    ip(&scene.gate, &["link", "del", "wan"])?;
    drop(receiving);
    scene.connect_interfaces()?;
    let again = scene.gate.run(|| filter.mend(&[before], false))?;
    ensure!(again == ["wan"], "{again:?}");
    let wan = scene.status().interfaces.remove(0);
    ensure!(wan.attached && wan.answers_lost, "{wan:?}");
    Ok(())
}

#[test]
fn the_start_doctor_attach_and_the_metrics_tell_where_answers_are_lost() -> Result<()> {
    const TOLD: &str = "the other end of this veth runs no XDP program";
    if !root() {
        return Ok(());
    }
    let scene = Scene::without_listeners()?;
    let configuration = format!(
        "hostname = \"gate.example\"\nstate_dir = \"@DIR@\"\nadmin = \"127.0.0.1:9925\"\n\
         [[listener]]\naddress = \"{GATE4}:25\"\n[[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n\
         [filter]\ninterfaces = [{{ name = \"wan\" }}]\npin_path = \"{}\"\n",
        scene.pin_path.display()
    );
    let mut gate = Process::start_in(&scene.gate, &configuration)?;
    ensure!(gate.log().contains(TOLD), "{}", gate.log());
    let lost = gate.metric("portcullis_filter_answers_lost", "wan")?;
    ensure!(lost == 1.0, "{lost}");
    let file = gate.directory().join("portcullis.toml");
    let doctor = |code| -> Result<String> {
        let mut command = scene.gate.command(binary()?);
        let output = command.arg("doctor").arg("-c").arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(code), "{said}");
        Ok(said)
    };
    let said = doctor(0)?;
    ensure!(
        said.contains(TOLD) && said.contains("answers on wan"),
        "{said}"
    );
    ensure!(
        said.contains("net.ipv4.tcp_syncookies is 1") && said.contains("with 2"),
        "{said}"
    );
    let receiving = Receiving::at_outside(&scene)?;
    ensure!(!doctor(0)?.contains("answers on wan"));
    // Without being told to look.
    gate.wait_for_log("arrives from now on", 3 * SOON)?;
    wait::until("the metric", SOON, || {
        let lost = gate.metric("portcullis_filter_answers_lost", "wan").ok()?;
        (lost == 0.0).then_some(())
    })?;
    drop(receiving);
    gate.signal(nix::sys::signal::Signal::SIGTERM)?;
    gate.wait(SOON)?;
    // The filter stays where it is, and the command takes it over.
    let mut attach = scene.gate.command(binary()?);
    let output = attach
        .args(["filter", "attach", "-c"])
        .arg(&file)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains(TOLD), "{said}");
    Ok(())
}
