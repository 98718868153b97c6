//! What the commands say of a filter: one that no configuration has any more, one that is not as it
//! should be, one that would be put in place.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis::config::{Filter as Settings, Interface, Role};
use portcullis::filter;
use portcullis::netns::Namespace;
use portcullis_ebpf_common::layout::LAYOUT_VERSION;
use portcullis_tests::process::{Process, binary};
use portcullis_tests::root;

use crate::interfaces::{WAN, ip};
use crate::scene::{LISTED4, Scene, has_program};

const SOON: Duration = Duration::from_secs(20);

/// What a command says, standard output and error together.
fn said(namespace: &Namespace, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let Output {
        status,
        stdout,
        stderr,
    } = namespace.command(binary()?).args(arguments).output()?;
    let text = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok((status.code(), text.concat()))
}

#[test]
fn a_filter_that_no_configuration_has_any_more_is_told_with_the_way_to_end_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    let directory = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<PathBuf> {
        let path = directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let removal = format!(
        "portcullis filter detach --pin-path {}",
        scene.pin_path.display()
    );
    let none = "state_dir = \"@DIR@\"\n[[listener]]\naddress = \"127.0.0.1:2525\"\n\
                [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n";
    let off = format!("{none}[filter]\nmode = \"off\"\n{WAN}\npin_path = \"/sys/fs/bpf/none\"\n");
    for (name, text) in [("none", none), ("off", &*off)] {
        let path = file(name, &text.replace("@DIR@", "/tmp"))?;
        let path = path.display().to_string();
        for command in [
            &["check", "-c", &path][..],
            &["doctor", "-c", &path],
            &["filter", "attach", "-c", &path],
        ] {
            let (_, text) = said(&scene.gate, command)?;
            ensure!(
                text.contains("still drops on wan") && text.contains(&removal),
                "{command:?}:\n{text}"
            );
        }
        let gate = Process::start_in(&scene.gate, text)?;
        let line = gate.wait_for_log("still drops on wan", SOON)?;
        ensure!(line.contains(&removal), "{line}");
        gate.terminate()?;
    }
    // A configuration that has its filter somewhere else by now.
    let moved = "[filter]\ninterfaces = [{ name = \"lo\" }]\npin_path = \"/sys/fs/bpf/none\"\n";
    let path = file("moved", moved)?.display().to_string();
    for command in ["check", "doctor"] {
        let (_, text) = said(&scene.gate, &[command, "-c", &path])?;
        ensure!(
            text.contains("still drops on wan") && text.contains(&removal),
            "{text}"
        );
    }
    // Here it drops nothing.
    let path = file("elsewhere", &none.replace("@DIR@", "/tmp"))?;
    let (_, text) = said(
        &scene.outside,
        &["check", "-c", &path.display().to_string()],
    )?;
    ensure!(!text.contains("still drops"), "{text}");
    let pin_path = scene.pin_path.display().to_string();
    let (code, text) = said(&scene.gate, &["filter", "detach", "--pin-path", &pin_path])?;
    ensure!(code == Some(0) && scene.reaches(LISTED4, 25), "{text}");
    Ok(())
}

#[test]
fn a_filter_of_another_version_is_not_said_to_be_none() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    let ours = scene.pin_path.join(format!("v{LAYOUT_VERSION}"));
    fs::rename(ours, scene.pin_path.join("v0"))?;
    let pin_path = scene.pin_path.display().to_string();
    let status = ["filter", "status", "--pin-path", &pin_path];
    let (code, text) = said(&scene.gate, &status)?;
    ensure!(
        code == Some(1) && text.contains("another version of it has a filter on wan"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.gate.veth("second", &scene.outside, "lan2")?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    let path = file.display().to_string();
    let dry = ["filter", "attach", "--dry-run", "-c", &path];
    let write = |interfaces: &str| {
        let pins = scene.pin_path.display();
        fs::write(
            &file,
            format!("[filter]\npin_path = \"{pins}\"\ninterfaces = [{interfaces}]\n"),
        )
    };
    write("{ name = \"wan\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(0) && text.contains("wan: the filter would be put there"),
        "{text}"
    );
    ensure!(!scene.pin_path.exists() && !has_program(&scene.gate, "wan")?);

    let owner = scene.attach(&scene.settings())?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(1) && text.contains(&format!("process {} (", std::process::id())),
        "{text}"
    );
    drop(owner);
    write("{ name = \"wan\", role = \"customer\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(0) && text.contains("taken over; it has the role edge"),
        "{text}"
    );
    write("{ name = \"second\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(0) && text.contains("wan: the filter would be taken off"),
        "{text}"
    );
    ip(&scene.gate, &["tuntap", "add", "dev", "tun", "mode", "tun"])?;
    write("{ name = \"tun\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(1) && text.contains("its driver does not have: that would fail"),
        "{text}"
    );
    write("{ name = \"nowhere\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(
        code == Some(1) && text.contains("interface nowhere"),
        "{text}"
    );
    // No driver, and no BPF file system.
    write("{ name = \"lo\" }")?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(code == Some(1) && text.contains("would fail"), "{text}");
    let nowhere = directory.path().join("pins").display().to_string();
    fs::write(
        &file,
        format!("[filter]\npin_path = \"{nowhere}\"\n{WAN}\n"),
    )?;
    let (code, text) = said(&scene.gate, &dry)?;
    ensure!(code == Some(1) && text.contains("mount -t bpf"), "{text}");
    ensure!(scene.status().interfaces[0].attached && !has_program(&scene.gate, "second")?);

    // What a dry run said that it would take off is told when it is.
    write("{ name = \"second\" }")?;
    let (_, text) = said(&scene.gate, &["doctor", "-c", &path])?;
    ensure!(
        text.contains("the configuration does not name it"),
        "{text}"
    );
    let (code, text) = said(&scene.gate, &["filter", "attach", "-c", &path])?;
    ensure!(
        code == Some(0) && text.contains("wan: the filter is taken off"),
        "{text}"
    );
    ensure!(!has_program(&scene.gate, "wan")? && has_program(&scene.gate, "second")?);
    Ok(())
}

#[test]
fn a_doctor_does_not_call_well_what_is_not_as_the_configuration_has_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    let state = |change: fn(&mut Settings)| {
        let mut settings = scene.settings();
        change(&mut settings);
        scene
            .gate
            .run(|| filter::interface_state(&settings, &settings.interfaces[0]))
    };
    let state_of = |change| -> Result<String> { Ok(state(change)??.differences.join("; ")) };
    ensure!(state_of(|_| {})?.is_empty());
    let role = state_of(|settings| settings.interfaces[0].role = Role::Customer)?;
    ensure!(role.contains("role edge"), "{role}");
    let mode = state_of(|settings| settings.xdp_mode = portcullis::config::XdpMode::Generic)?;
    ensure!(mode.contains("driver mode"), "{mode}");
    ip(&scene.gate, &["link", "del", "wan"])?;
    scene.connect_interfaces()?;
    let lost = state_of(|_| {})?;
    ensure!(lost.contains("without it now"), "{lost}");

    // Taken off beside the process that holds it.
    let mut settings = scene.settings();
    scene.gate.veth("second", &scene.outside, "lan2")?;
    settings.interfaces.push(Interface {
        name: "second".to_owned(),
        role: Role::Edge,
    });
    let owner = scene.attach(&settings)?;
    let second = ["second".to_owned()];
    scene
        .gate
        .run(|| filter::detach(&scene.pin_path, &second))??;
    let state = || {
        scene
            .gate
            .run(|| filter::interface_state(&settings, &settings.interfaces[1]))
    };
    let differences = state()??.differences.join("; ");
    ensure!(
        differences.contains("does not have it here"),
        "{differences}"
    );
    drop(owner);
    // Nothing holds it: the next start puts it there.
    ensure!(state()??.differences.is_empty());
    Ok(())
}

#[test]
fn a_bpf_file_system_that_goes_with_the_process_is_told() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    let pins = scene.pin_path.display();
    fs::write(&file, format!("[filter]\npin_path = \"{pins}\"\n{WAN}\n"))?;
    let in_a_sys_of_its_own = |command: &[&str]| -> Result<String> {
        let done = std::process::Command::new("ip")
            .args(["netns", "exec", scene.gate.name()])
            .arg(binary()?)
            .args(command)
            .arg("-c")
            .arg(&file)
            .output()?;
        let text =
            [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(text.concat())
    };
    for command in [
        &["filter", "attach"][..],
        &["filter", "attach", "--dry-run"],
        &["doctor"],
    ] {
        let text = in_a_sys_of_its_own(command)?;
        ensure!(text.contains("nsenter --net"), "{command:?}: {text}");
    }
    ensure!(
        !has_program(&scene.gate, "wan")?,
        "it went with the process"
    );
    let file = file.display().to_string();
    let (_, text) = said(&scene.gate, &["doctor", "-c", &file])?;
    ensure!(!text.contains("nsenter"), "{text}");
    Ok(())
}
