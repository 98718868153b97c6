//! One filter and several owners: one is killed, one has few privileges, one is of an older
//! version.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::config::FilterMode;
use portcullis::filter::{self, Error, Filter};
use portcullis_ebpf_common::layout::LAYOUT_VERSION;
use portcullis_tests::root;
use socket2::{Domain, Socket, Type};

use crate::scene::{GATE4, LISTED4, Scene, dropped, lists, settings};

#[test]
fn a_killed_owner_leaves_the_drops_in_place_and_the_next_takes_them_over_without_a_gap()
-> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut owner = scene
        .gate
        .command(std::env::current_exe()?)
        .args(["--ignored", "--exact", "owners::owner_to_be_killed"])
        .env("PORTCULLIS_TEST_PIN_PATH", &scene.pin_path)
        .stdout(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    // Its slot is recorded before the program is attached.
    let is_attached = || {
        let status = scene.gate.run(|| filter::status(&scene.pin_path))?;
        anyhow::Ok(status.is_ok_and(|status| status.interfaces.iter().any(|wan| wan.attached)))
    };
    while !is_attached()? {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the owner never attached"
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert!(
        matches!(scene.attach(&scene.settings()), Err(Error::InUse { .. })),
        "there cannot be two owners"
    );
    owner.kill()?;
    owner.wait()?;
    assert!(!scene.reaches(LISTED4, 25), "the filter outlives its owner");
    assert_eq!(dropped(&scene.status(), "spammers"), 1);

    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> anyhow::Result<u64> {
        let flood = scope.spawn(|| scene.outside.run(|| syn_stream(&stop)));
        for _ in 0..5 {
            let mut filter = scene.attach(&scene.settings())?;
            filter.update_lists(&lists())?;
        }
        stop.store(true, Ordering::Relaxed);
        Ok(flood.join().expect("the stream ends")??)
    })?;
    assert!(sent > 10, "the stream ran during the takeovers");
    assert_eq!(
        dropped(&scene.status(), "spammers"),
        1 + sent,
        "every SYN was dropped and counted"
    );
    assert_eq!(scene.status().interfaces[0].dropped.listed, 1 + sent);
    Ok(())
}

/// Sends single SYNs from the listed address until stopped. Returns how many.
fn syn_stream(stop: &AtomicBool) -> io::Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let source: IpAddr = LISTED4.parse().map_err(io::Error::other)?;
        let gate: IpAddr = GATE4.parse().map_err(io::Error::other)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let connected = socket.connect(&SocketAddr::new(gate, 25).into());
        assert!(connected.is_err(), "a connection cannot be there at once");
        sent += 1;
        thread::sleep(Duration::from_millis(1));
        assert!(socket.peer_addr().is_err(), "SYN number {sent} got through");
    }
    Ok(sent)
}

#[test]
fn an_owner_without_most_privileges_still_changes_lists_and_settings() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    // Mounts the BPF file system where there is none: that would need the privilege that is given
    // up.
    drop(scene.attach(&scene.settings())?);
    filter::detach(&scene.pin_path, &[])?;
    let test = std::env::current_exe()?;
    let output = scene
        .gate
        .command("setpriv")
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(&test)
        .args(["--ignored", "--exact", "owners::owner_without_sys_admin"])
        .env("PORTCULLIS_TEST_PIN_PATH", &scene.pin_path)
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(scene.status().mode, "monitor");
    Ok(())
}

/// Not a test: what [`an_owner_without_most_privileges_still_changes_lists_and_settings`] starts.
#[test]
#[ignore = "a process for another test to start"]
fn owner_without_sys_admin() -> anyhow::Result<()> {
    let Some(pin_path) = std::env::var_os("PORTCULLIS_TEST_PIN_PATH") else {
        return Ok(());
    };
    let mut settings = settings(Path::new(&pin_path));
    let mut filter = Filter::attach(&settings, &lists())?;
    filter.update_lists(&lists())?;
    settings.mode = FilterMode::Monitor;
    filter.update_settings(&settings)?;
    let status = filter.status()?;
    assert!(
        status.interfaces[0].attached && status.mode == "monitor",
        "{status:?}"
    );
    Ok(())
}

#[test]
fn another_layout_of_the_maps_is_taken_over_without_a_gap() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    // As an older version leaves it: its link, and its maps in a directory of their own.
    let ours = scene.pin_path.join(format!("v{LAYOUT_VERSION}"));
    let older = scene.pin_path.join("v0");
    fs::rename(&ours, &older)?;
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> anyhow::Result<u64> {
        let flood = scope.spawn(|| scene.outside.run(|| syn_stream(&stop)));
        drop(scene.attach(&scene.settings())?);
        stop.store(true, Ordering::Relaxed);
        Ok(flood.join().expect("the stream ends")??)
    })?;
    assert!(
        sent > 0 && ours.exists() && !older.exists(),
        "the unused maps are gone"
    );
    assert!(scene.status().interfaces[0].attached);
    assert!(!scene.reaches(LISTED4, 25));
    Ok(())
}

/// Not a test: the process that
/// [`a_killed_owner_leaves_the_drops_in_place_and_the_next_takes_them_over_without_a_gap`] starts
/// inside of the namespace, and kills.
#[test]
#[ignore = "a process for another test to kill"]
fn owner_to_be_killed() -> anyhow::Result<()> {
    let Some(pin_path) = std::env::var_os("PORTCULLIS_TEST_PIN_PATH") else {
        return Ok(());
    };
    let _filter = Filter::attach(&settings(Path::new(&pin_path)), &lists())?;
    thread::sleep(Duration::from_secs(60));
    Ok(())
}
