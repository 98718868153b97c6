//! The filter on real interfaces, in namespaces: which packets pass, what is counted, and what is
//! left behind.

mod answers;
mod beside;
mod budget;
mod commands;
mod customer;
mod fragments;
mod interfaces;
mod owners;
mod reported;
mod scene;
mod seen;
mod swaps;
mod tags;
mod tunnel;
mod verdicts;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use portcullis::config::{FilterMode, Interface, Role, Unlisted, XdpMode};
use portcullis::filter::{self, Error};
use portcullis::lists::{Compiled, ListAction};
use portcullis_tests::root;

use crate::scene::{
    HONEST4, HONEST6, LISTED4, LISTED6, PATIENCE, PERMITTED4, Scene, dropped, has_program, lists,
};

#[test]
fn listed_sources_cannot_connect_and_everybody_else_can() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let _filter = scene.attach(&scene.settings())?;
    for source in [LISTED4, LISTED6] {
        assert!(!scene.reaches(source, 25), "{source} is on a drop list");
        assert!(scene.reaches(source, 587), "port 587 is not filtered");
    }
    for source in [HONEST4, HONEST6] {
        assert!(
            scene.reaches(source, 25),
            "{source} is on no list of the kernel's"
        );
    }
    assert!(
        scene.reaches(PERMITTED4, 25),
        "a permit inside of a dropped prefix"
    );

    let status = scene.status();
    assert_eq!(dropped(&status, "spammers"), 2, "one SYN of each family");
    let names: Vec<_> = status
        .lists
        .iter()
        .map(|list| (list.name.as_str(), list.action))
        .collect();
    assert_eq!(
        names,
        [("friends", "permit"), ("spammers", "drop")],
        "reject lists are for SMTP"
    );
    let wan = &status.interfaces[0];
    assert_eq!(
        (wan.name.as_str(), wan.role, wan.xdp_mode, wan.attached),
        ("wan", "edge", "driver", true)
    );
    assert_eq!(wan.dropped.listed, 2);
    assert!(wan.permitted > 0 && wan.passed > wan.permitted, "{wan:?}");
    assert!(
        wan.other > 0,
        "ARP, neighbour discovery and port 587 are other traffic"
    );
    Ok(())
}

#[test]
fn detach_leaves_nothing_behind() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    assert!(!scene.reaches(LISTED4, 25));
    let elsewhere = filter::detach(&scene.pin_path, &["lan".to_owned()]);
    assert!(matches!(elsewhere, Err(Error::NotAttached { .. })));
    // Detaching in the interface's namespace waits until the kernel has done it.
    let detach = || filter::detach(&scene.pin_path, &["wan".to_owned()]);
    scene.gate.run(detach)??;
    assert!(scene.reaches(LISTED4, 25));
    assert!(!scene.pin_path.exists());
    assert!(!has_program(&scene.gate, "wan")?);
    assert!(matches!(
        filter::status(&scene.pin_path),
        Err(Error::NotAttached { .. })
    ));
    assert!(matches!(
        filter::detach(&scene.pin_path, &[]),
        Err(Error::NotAttached { .. })
    ));
    Ok(())
}

#[test]
fn an_owner_notices_that_its_filter_was_detached_and_changes_no_other() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut owner = scene.attach(&scene.settings())?;
    filter::detach(&scene.pin_path, &[])?;
    assert!(matches!(
        owner.update_lists(&lists()),
        Err(Error::Detached { .. })
    ));
    let another = scene.attach(&scene.settings())?;
    let settings = owner.update_settings(&scene.settings());
    assert!(matches!(settings, Err(Error::Detached { .. })));
    drop(another);
    Ok(())
}

#[test]
fn each_interface_counts_for_itself_and_all_share_the_lists() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.gate.veth("second.7", &scene.outside, "lan2")?;
    scene.gate.address("second.7", "198.51.100.1/24")?;
    scene.outside.address("lan2", "198.51.100.66/24")?;
    let mut settings = scene.settings();
    settings.interfaces.insert(
        0,
        Interface {
            name: "second.7".to_owned(),
            role: Role::Edge,
        },
    );
    let mut filter = scene.attach(&settings)?;
    assert!(!scene.reaches(LISTED4, 25));
    filter.update_lists(&Compiled::new([(
        "spammers".to_owned(),
        ListAction::Drop,
        vec!["198.51.100.66/32".parse()?, "192.0.2.66/32".parse()?],
    )]))?;
    let gate: SocketAddr = "198.51.100.1:25".parse()?;
    let second = scene
        .outside
        .run(|| TcpStream::connect_timeout(&gate, PATIENCE))?;
    assert!(second.is_err(), "the lists hold on the second interface");
    let status = scene.status();
    let drops: Vec<_> = status
        .interfaces
        .iter()
        .map(|one| (one.name.as_str(), one.dropped.listed))
        .collect();
    assert_eq!(drops, [("second.7", 1), ("wan", 1)]);
    assert_eq!(dropped(&status, "spammers"), 2);

    // Detaching in the interface's namespace waits until the kernel has done it.
    let detach = || filter::detach(&scene.pin_path, &["second.7".to_owned()]);
    scene.gate.run(detach)??;
    assert!(!has_program(&scene.gate, "second.7")? && has_program(&scene.gate, "wan")?);
    assert!(
        !scene.reaches(LISTED4, 25),
        "the other interface keeps its filter"
    );
    Ok(())
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let _first = scene.attach(&scene.settings())?;
    let mut settings = scene.settings();
    settings.pin_path.set_extension("second");
    // The BPF file system refuses a dot, so the pin's name has none.
    settings.pin_path = PathBuf::from(settings.pin_path.to_string_lossy().replace('.', "-"));
    let error = scene
        .attach(&settings)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        error.contains("interface wan") && error.contains("\"portcullis\" (id "),
        "{error}"
    );
    let removal = format!(
        "`portcullis filter detach --pin-path {}`",
        scene.pin_path.display()
    );
    assert!(error.contains(&removal), "{error}");
    assert!(
        !settings.pin_path.exists(),
        "a failed start leaves nothing behind"
    );
    assert!(
        !scene.reaches(LISTED4, 25),
        "the first filter is still there"
    );
    Ok(())
}

#[test]
fn lists_and_settings_change_while_packets_flow_and_counters_stay() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    assert!(!scene.reaches(LISTED4, 25));

    let everybody = "0.0.0.0/0".parse()?;
    let moved = Compiled::new([
        ("everybody".to_owned(), ListAction::Drop, vec![everybody]),
        (
            "spammers".to_owned(),
            ListAction::Drop,
            vec!["192.0.2.66/32".parse()?],
        ),
    ]);
    filter.update_lists(&moved)?;
    assert!(!scene.reaches(LISTED4, 25) && !scene.reaches(HONEST4, 25));
    assert!(
        scene.reaches(LISTED6, 25),
        "a list of all of IPv4 says nothing of IPv6"
    );
    let status = scene.status();
    assert_eq!(
        (dropped(&status, "spammers"), dropped(&status, "everybody")),
        (2, 1)
    );

    let mut settings = scene.settings();
    settings.mode = FilterMode::Monitor;
    filter.update_settings(&settings)?;
    assert!(scene.reaches(LISTED4, 25), "monitoring drops nothing");
    let status = scene.status();
    assert_eq!((status.mode, dropped(&status, "spammers")), ("monitor", 2));
    assert!(
        status.lists.iter().any(|list| list.monitored_packets > 0),
        "{status:?}"
    );

    filter.update_lists(&lists())?;
    settings.mode = FilterMode::Enforce;
    settings.unlisted = Unlisted::Drop;
    settings.ports = vec![587, 25];
    filter.update_settings(&settings)?;
    assert!(!scene.reaches(HONEST4, 25) && !scene.reaches(HONEST4, 587));
    assert!(
        scene.reaches(PERMITTED4, 25),
        "a permit list opens the port"
    );
    let status = scene.status();
    assert_eq!((status.unlisted, status.ports), ("drop", vec![587, 25]));
    assert_eq!(status.interfaces[0].dropped.unlisted, 2);

    settings.interfaces.clear();
    filter.update_settings(&settings)?;
    assert!(
        scene.reaches(HONEST4, 25),
        "an interface that is not in the settings any more is let go"
    );
    assert!(filter.status()?.interfaces.is_empty());

    // A slot with a new owner counts from 0, though the counters in the kernel are never cleared.
    settings.interfaces = scene.settings().interfaces;
    scene.gate.run(|| filter.update_settings(&settings))??;
    let renamed = |name: &str| {
        let nets = vec!["192.0.2.0/24".parse()?];
        anyhow::Ok(Compiled::new([(name.to_owned(), ListAction::Drop, nets)]))
    };
    for name in ["second", "third", "fourth"] {
        filter.update_lists(&renamed(name)?)?;
        assert!(!scene.reaches(LISTED4, 25));
        assert_eq!(dropped(&filter.status()?, name), 1, "{name}");
    }
    assert_eq!(filter.status()?.interfaces[0].dropped.listed, 3);
    Ok(())
}

#[test]
fn an_interface_that_was_made_again_gets_its_filter_again() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    assert!(
        scene
            .gate
            .command("ip")
            .args(["link", "del", "wan"])
            .status()?
            .success()
    );
    scene.connect_interfaces()?;
    assert!(scene.reaches(LISTED4, 25));
    assert!(
        !scene.status().interfaces[0].attached,
        "the status must not claim what is not"
    );
    let _filter = scene.attach(&scene.settings())?;
    assert!(!scene.reaches(LISTED4, 25));
    assert!(scene.status().interfaces[0].attached);
    Ok(())
}

#[test]
fn generic_mode_is_taken_only_when_it_is_asked_for() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    // The loopback driver runs no XDP programs.
    settings.interfaces[0].name = "lo".to_owned();
    let error = scene.attach(&settings).err();
    assert!(
        matches!(error, Some(Error::NoDriverMode { .. })),
        "{error:?}"
    );
    assert!(
        !Path::new(&scene.pin_path).exists(),
        "a failed start leaves nothing behind"
    );
    settings.xdp_mode = XdpMode::Generic;
    drop(scene.attach(&settings)?);
    assert_eq!(scene.status().interfaces[0].xdp_mode, "generic");

    settings.interfaces[0].name = "nowhere".to_owned();
    let error = scene
        .attach(&settings)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        error.starts_with("interface nowhere: there is none"),
        "{error}"
    );
    assert!(
        scene.status().interfaces[0].attached,
        "a refused start changes nothing"
    );
    Ok(())
}

#[test]
fn changing_the_mode_of_attachment_replaces_the_link() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.xdp_mode = XdpMode::Generic;
    drop(scene.attach(&settings)?);
    assert_eq!(scene.status().interfaces[0].xdp_mode, "generic");
    settings.xdp_mode = XdpMode::Driver;
    drop(scene.attach(&settings)?);
    assert_eq!(scene.status().interfaces[0].xdp_mode, "driver");
    assert!(!scene.reaches(LISTED6, 25));
    Ok(())
}
