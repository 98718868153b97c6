//! Interfaces that are created, deleted and renamed while they have the filter, and filters that
//! are attached elsewhere than expected.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::config::{Filter as Settings, Interface, Role};
use portcullis::filter::{self, Error, InterfaceStatus};
use portcullis::netns::Namespace;
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};

use crate::scene::{HONEST4, LISTED4, Scene, dropped, has_program, lists};

const SOON: Duration = Duration::from_secs(20);

/// The configuration of a gate that serves as an ordinary user, with the filter of a scene.
fn configuration(scene: &Scene, filter: &str) -> String {
    format!(
        "hostname = \"gate.example\"\nstate_dir = \"@DIR@\"\nworkers = 1\nuser = \"nobody\"\n\
         admin = \"127.0.0.1:9925\"\n[[listener]]\naddress = \"127.0.0.1:2525\"\n\
         [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n\
         [[list]]\nname = \"spammers\"\nfile = \"@DIR@/spammers\"\naction = \"drop\"\n\
         [filter]\npin_path = \"{}\"\n{filter}\n",
        scene.pin_path.display()
    )
}

pub(crate) const WAN: &str = "interfaces = [{ name = \"wan\" }]";

/// Starts a gate in the scene. Its files exist before, and its user may read them.
fn start<'s>(scene: &'s Scene, configuration: &str) -> Result<(Process<'s>, tempfile::TempDir)> {
    let files = tempfile::tempdir()?;
    fs::set_permissions(files.path(), Permissions::from_mode(0o755))?;
    fs::write(files.path().join("spammers"), "192.0.2.64/27\n")?;
    let list = files.path().join("spammers").display().to_string();
    let text = configuration.replace("@DIR@/spammers", &list);
    let gate = Process::start_in(&scene.gate, &text)?;
    fs::set_permissions(gate.directory(), Permissions::from_mode(0o755))?;
    gate.wait_for_log("serving", SOON)?;
    Ok((gate, files))
}

pub(crate) fn ip(namespace: &Namespace, arguments: &[&str]) -> Result<()> {
    let done = namespace.command("ip").args(arguments).output()?;
    ensure!(
        done.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// Waits until the gate's status has this for an interface.
fn wait_for_status(
    gate: &Process<'_>,
    interface: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let waited = wait::until("the status", SOON, || {
        let (_, body) = gate.get("/api/status").ok()?;
        let status: serde_json::Value = serde_json::from_str(&body).ok()?;
        let interfaces = status["filter"]["interfaces"].as_array()?.clone();
        last = interfaces
            .into_iter()
            .find(|found| found["name"] == interface)?;
        wanted(&last).then_some(())
    });
    waited.with_context(|| format!("{last:#}\n{}", gate.log()))
}

#[test]
fn a_gate_without_privileges_attaches_its_filter_again_to_a_new_interface() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (gate, _files) = start(&scene, &configuration(&scene, WAN))?;
    ensure!(!scene.reaches(LISTED4, 25) && scene.reaches(HONEST4, 25));
    let since = "portcullis_filter_unfiltered_since_seconds";
    ensure!(gate.metric(since, "wan")? == 0.0);

    for round in 1..=2 {
        ip(&scene.gate, &["link", "del", "wan"])?;
        wait_for_status(&gate, "wan", |wan| {
            wan["attached"] == false && wan["unfiltered_reason"] == "there is no such interface"
        })?;
        ensure!(gate.metric(since, "wan")? > 1e9, "round {round}");
        scene.connect_interfaces()?;
        wait_for_status(&gate, "wan", |wan| wan["attached"] == true)?;
        ensure!(!scene.reaches(LISTED4, 25), "round {round}: unfiltered");
        ensure!(scene.reaches(HONEST4, 25), "round {round}");
        ensure!(gate.metric(since, "wan")? == 0.0);
    }
    gate.wait_for_log("the interface is gone", SOON)?;
    gate.wait_for_log("the filter is attached again", SOON)?;
    // A reload logs again what has not changed.
    ip(&scene.gate, &["link", "del", "wan"])?;
    let told = || gate.log().matches("the interface is gone").count();
    let told_again =
        |wanted| wait::until("it to be told", SOON, || (told() == wanted).then_some(()));
    told_again(3)?;
    gate.signal(Signal::SIGHUP)?;
    told_again(4).with_context(|| gate.log())?;
    scene.connect_interfaces()?;
    wait_for_status(&gate, "wan", |wan| wan["attached"] == true)?;
    // Slot and counters have stayed: a listed SYN was dropped each time.
    ensure!(dropped(&scene.status(), "spammers") == 3);
    ensure!(scene.status().interfaces[0].dropped.listed == 3);

    // Deleted and created again between two checks.
    let again = "link del wan\nlink add name wan type veth peer name lan\nlink set wan up\n";
    let batch = gate.directory().join("batch");
    fs::write(&batch, again)?;
    ip(&scene.gate, &["-batch", &batch.display().to_string()])?;
    wait::until("the filter to be back", SOON, || {
        has_program(&scene.gate, "wan").ok()?.then_some(())
    })
    .with_context(|| gate.log())?;
    gate.terminate()?;
    // The next start takes over what the unprivileged gate has pinned.
    drop(scene.attach(&scene.settings())?);
    ensure!(scene.status().interfaces[0].attached);
    scene.gate.run(|| filter::detach(&scene.pin_path, &[]))??;
    ensure!(!has_program(&scene.gate, "wan")? && !scene.pin_path.exists());
    Ok(())
}

#[test]
fn what_another_process_took_off_is_told_and_put_back_at_a_reload() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.gate.veth("second", &scene.outside, "lan2")?;
    let both = "interfaces = [{ name = \"wan\" }, { name = \"second\" }]";
    let (gate, _files) = start(&scene, &configuration(&scene, both))?;
    let wan = || ["wan".to_owned()];
    scene
        .gate
        .run(|| filter::detach(&scene.pin_path, &wan()))??;
    gate.wait_for_log("another process took the filter off", SOON)?;
    wait_for_status(&gate, "wan", |wan| {
        wan["attached"] == false && wan["unfiltered_since"].is_u64()
    })?;
    ensure!(
        scene.reaches(LISTED4, 25),
        "what an operator took off stays off"
    );
    gate.signal(Signal::SIGHUP)?;
    let reloaded = gate.wait_for_log("reloaded", SOON)?;
    ensure!(
        reloaded.contains("interface wan (the filter is attached again)"),
        "{reloaded}"
    );
    ensure!(!scene.reaches(LISTED4, 25));
    wait_for_status(&gate, "wan", |wan| {
        wan["attached"] == true && wan["dropped"]["listed"] == 1
    })?;

    scene.gate.run(|| filter::detach(&scene.pin_path, &[]))??;
    gate.wait_for_log("was detached while the gate ran", SOON)?;
    wait_for_status(&gate, "second", |second| {
        second["attached"] == false && second["unfiltered_since"].is_u64()
    })?;
    Ok(())
}

#[test]
fn an_interface_that_is_not_there_at_the_start_is_waited_for_if_the_configuration_says_so()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let more = "interfaces = [{ name = \"wan\" }, { name = \"late\", role = \"edge\" }]\n\
                wait_for_interfaces = true";
    let (gate, _files) = start(&scene, &configuration(&scene, more))?;
    gate.wait_for_log("gets the filter when it comes", SOON)?;
    wait_for_status(&gate, "late", |late| {
        late["attached"] == false && late["unfiltered_since"].is_u64()
    })?;
    scene.gate.veth("late", &scene.outside, "lan2")?;
    wait_for_status(&gate, "late", |late| late["attached"] == true)?;
    ensure!(has_program(&scene.gate, "late")?);
    Ok(())
}

#[test]
fn a_renamed_interface_keeps_its_filter_its_counters_and_its_role() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    ensure!(!scene.reaches(LISTED4, 25));
    ip(&scene.gate, &["link", "set", "wan", "name", "uplink.7"])?;
    let wan = &scene.status().interfaces[0];
    ensure!(wan.attached && wan.current_name.as_deref() == Some("uplink.7"));
    let error = scene.attach(&scene.settings()).err().context("no error")?;
    let error = error.to_string();
    ensure!(error.contains("renamed to uplink.7"), "{error}");

    let mut settings = scene.settings();
    settings.interfaces[0].name = "uplink.7".to_owned();
    let state = || filter::interface_state(&settings, &settings.interfaces[0]);
    let state = scene.gate.run(state)??;
    ensure!(state.is_ours && !state.differences.is_empty(), "{state:?}");
    let filter = scene.attach(&settings)?;
    ensure!(!scene.reaches(LISTED4, 25));
    ensure!(filter.status()?.interfaces[0].dropped.listed == 2);
    let pins = fs::read_dir(scene.pin_path.join("links"))?.collect::<Result<Vec<_>, _>>()?;
    let names: Vec<_> = pins.iter().map(fs::DirEntry::file_name).collect();
    ensure!(names == ["uplink%2e7"], "{names:?}");
    drop(filter);
    let state = || filter::interface_state(&settings, &settings.interfaces[0]);
    let state = scene.gate.run(state)??;
    ensure!(state.is_ours && state.differences.is_empty(), "{state:?}");

    ip(&scene.gate, &["link", "set", "uplink.7", "name", "wan"])?;
    let detach = || filter::detach(&scene.pin_path, &["wan".to_owned()]);
    scene.gate.run(detach)??;
    ensure!(!has_program(&scene.gate, "wan")?);
    Ok(())
}

#[test]
fn a_gate_tells_that_an_interface_was_renamed_and_filters_the_next_of_the_name_too() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (gate, _files) = start(&scene, &configuration(&scene, WAN))?;
    ip(&scene.gate, &["link", "set", "wan", "name", "old"])?;
    let line = gate.wait_for_log("was renamed and keeps its filter", SOON)?;
    ensure!(line.contains("now=\"old\""), "{line}");
    wait_for_status(&gate, "wan", |wan| {
        wan["attached"] == true && wan["current_name"] == "old"
    })?;
    ensure!(!scene.reaches(LISTED4, 25));
    scene.gate.veth("wan", &scene.outside, "lan2")?;
    wait_for_status(&gate, "wan", |wan| {
        wan["attached"] == true && wan["current_name"].is_null()
    })?;
    ensure!(has_program(&scene.gate, "wan")? && has_program(&scene.gate, "old")?);
    ensure!(!scene.reaches(LISTED4, 25));
    Ok(())
}

/// Settings with an edge interface, which has 192.0.2.1, and a customer interface.
fn two(scene: &Scene) -> Result<Settings> {
    scene.gate.veth("cust", &scene.outside, "lan2")?;
    let mut settings = scene.settings();
    settings.interfaces.push(Interface {
        name: "cust".to_owned(),
        role: Role::Customer,
    });
    Ok(settings)
}

fn exchange_names(scene: &Scene) -> Result<()> {
    for (old, new) in [("wan", "between"), ("cust", "wan"), ("between", "cust")] {
        ip(&scene.gate, &["link", "set", old, "name", new])?;
    }
    Ok(())
}

fn roles(interfaces: &[InterfaceStatus]) -> Vec<(&str, &str, bool, Option<&str>)> {
    let role = |one: &'_ InterfaceStatus| one.role;
    interfaces
        .iter()
        .map(|one| {
            let now = one.current_name.as_deref();
            (&*one.name, role(one), one.attached, now)
        })
        .collect()
}

#[test]
fn two_interfaces_that_exchange_their_names_exchange_their_roles() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let settings = two(&scene)?;
    let mut owner = scene.attach(&settings)?;
    ensure!(!scene.reaches(LISTED4, 25) && scene.reaches(HONEST4, 25));
    let expected = [
        ("cust", "customer", true, None),
        ("wan", "edge", true, None),
    ];

    // With a running owner: the interface with the address is the customers' now, and no customer
    // is permitted.
    exchange_names(&scene)?;
    scene.gate.run(|| owner.reattach(&[], false))?;
    let status = scene.gate.run(|| owner.status())??;
    ensure!(roles(&status.interfaces) == expected, "{status:#?}");
    ensure!(
        !scene.reaches(HONEST4, 25),
        "the interface has its old role"
    );
    drop(owner);
    // And between two owners.
    exchange_names(&scene)?;
    let owner = scene.attach(&settings)?;
    let status = scene.gate.run(|| owner.status())??;
    ensure!(roles(&status.interfaces) == expected, "{status:#?}");
    ensure!(!scene.reaches(LISTED4, 25) && scene.reaches(HONEST4, 25));
    Ok(())
}

#[test]
fn a_new_interface_of_the_name_gets_the_filter_and_the_renamed_one_keeps_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut owner = scene.attach(&scene.settings())?;
    ip(&scene.gate, &["link", "set", "wan", "name", "old"])?;
    let again = scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(again.is_empty(), "it never lost its filter: {again:?}");
    ensure!(!scene.reaches(LISTED4, 25));
    scene.gate.veth("wan", &scene.outside, "lan2")?;
    scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(has_program(&scene.gate, "wan")? && has_program(&scene.gate, "old")?);
    ensure!(!scene.reaches(LISTED4, 25));
    drop(owner);
    let status = scene.attach(&scene.settings())?.status()?;
    ensure!(status.interfaces.len() == 1 && !has_program(&scene.gate, "old")?);
    Ok(())
}

#[test]
fn an_interface_that_moved_to_another_namespace_keeps_its_filter_there() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut owner = scene.attach(&scene.settings())?;
    ip(
        &scene.gate,
        &["link", "set", "wan", "netns", scene.outside.name()],
    )?;
    scene.gate.run(|| owner.reattach(&[], false))?;
    let wan = scene.gate.run(|| owner.status())??.interfaces.remove(0);
    ensure!(!wan.attached && !wan.present && wan.unfiltered_since.is_some());
    scene.gate.veth("wan", &scene.outside, "lan2")?;
    let again = scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(again == ["wan"], "{again:?}");
    ensure!(has_program(&scene.gate, "wan")? && has_program(&scene.outside, "wan")?);
    Ok(())
}

#[test]
fn a_foreign_program_on_an_interface_is_reported_with_its_removal_and_waited_for() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut owner = scene.attach(&scene.settings())?;
    ip(&scene.gate, &["link", "del", "wan"])?;
    scene.connect_interfaces()?;
    let mut other = scene.settings();
    other.pin_path = format!("{}-other", scene.pin_path.display()).into();
    drop(scene.attach(&other)?);
    let again = scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(again.is_empty(), "{again:?}");
    let status = scene.gate.run(|| owner.status())??;
    let reason = status.interfaces[0].unfiltered_reason.clone();
    let removal = format!(
        "portcullis filter detach --pin-path {}",
        other.pin_path.display()
    );
    ensure!(
        reason
            .as_ref()
            .is_some_and(|reason| reason.contains(&removal)),
        "{reason:?}"
    );
    scene.gate.run(|| filter::detach(&other.pin_path, &[]))??;
    let again = scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(again == ["wan"] && !scene.reaches(LISTED4, 25), "{again:?}");
    Ok(())
}

#[test]
fn an_interface_that_comes_back_as_another_kind_does_not_get_a_program_that_cannot_read_it()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.xdp_mode = portcullis::config::XdpMode::Generic;
    settings.wait_for_interfaces = true;
    settings.interfaces.push(Interface {
        name: "late".to_owned(),
        role: Role::Edge,
    });
    let mut owner = scene.attach(&settings)?;
    ip(&scene.gate, &["link", "del", "wan"])?;
    for name in ["wan", "late"] {
        ip(&scene.gate, &["tuntap", "add", "dev", name, "mode", "tun"])?;
    }
    let again = scene.gate.run(|| owner.reattach(&[], false))?;
    ensure!(
        again == ["late"],
        "what was waited for has every program: {again:?}"
    );
    let status = scene.gate.run(|| owner.status())??;
    let wan = status.interfaces.iter().find(|one| one.name == "wan");
    let reason = wan.and_then(|wan| wan.unfiltered_reason.clone());
    ensure!(
        reason
            .as_ref()
            .is_some_and(|reason| reason.contains("another kind of header")),
        "{reason:?}"
    );
    drop(owner);
    drop(scene.attach(&settings)?);
    ensure!(has_program(&scene.gate, "wan")? && has_program(&scene.gate, "late")?);
    Ok(())
}

#[test]
fn a_gate_of_another_namespace_does_not_strip_the_first_one() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    let mut settings = scene.settings();
    settings.interfaces[0].name = "lan".to_owned();
    let attach = || filter::Filter::attach(&settings, &lists()).err();
    let error = scene.outside.run(attach)?.context("it was taken over")?;
    ensure!(
        matches!(
            &error,
            Error::OtherNamespace { interfaces, namespace: Some(_), .. }
                if interfaces == &["wan"]
        ),
        "{error}"
    );
    let error = error.to_string();
    ensure!(
        error.contains("wan in another network namespace") && error.contains("pin_path"),
        "{error}"
    );
    let dry = scene.outside.run(|| filter::plan(&settings))?;
    ensure!(matches!(dry, Err(Error::OtherNamespace { .. })), "{dry:?}");
    ensure!(!scene.reaches(LISTED4, 25) && scene.status().interfaces[0].attached);

    // With no program attached, nothing is lost.
    ip(&scene.gate, &["link", "del", "wan"])?;
    scene.connect_interfaces()?;
    let attach = || filter::Filter::attach(&settings, &lists()).map(drop);
    scene.outside.run(attach)??;
    ensure!(has_program(&scene.outside, "lan")?);
    scene
        .outside
        .run(|| filter::detach(&scene.pin_path, &[]))??;
    Ok(())
}

#[test]
fn an_interface_that_the_configuration_does_not_name_any_more_is_let_go_with_a_word() -> Result<()>
{
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.gate.veth("second", &scene.outside, "lan2")?;
    drop(scene.attach(&scene.settings())?);
    let other = "interfaces = [{ name = \"second\" }]";
    let (gate, _files) = start(&scene, &configuration(&scene, other))?;
    let line = gate.wait_for_log("does not name this interface any more", SOON)?;
    ensure!(line.contains("WARN") && line.contains("wan"), "{line}");
    ensure!(!has_program(&scene.gate, "wan")? && has_program(&scene.gate, "second")?);
    Ok(())
}

#[test]
fn what_the_user_of_a_gate_left_among_the_links_neither_stops_a_start_nor_leads_it_astray()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    drop(scene.attach(&scene.settings())?);
    let files = tempfile::tempdir()?;
    let victim = files.path().join("victim");
    fs::write(&victim, "")?;
    fs::set_permissions(&victim, Permissions::from_mode(0o600))?;
    chown(&victim, Some(1), Some(1))?;
    let links = scene.pin_path.join("links");
    let plant = || -> Result<()> {
        for name in ["second", "victim"] {
            symlink(&victim, links.join(name))?;
            lchown(links.join(name), Some(65534), Some(65534))?;
        }
        Ok(fs::create_dir_all(links.join("a/b"))?)
    };
    plant()?;
    scene.gate.veth("second", &scene.outside, "lan2")?;
    let both = "interfaces = [{ name = \"wan\" }, { name = \"second\" }]";
    let (gate, _files) = start(&scene, &configuration(&scene, both))?;
    ensure!(has_program(&scene.gate, "second")?, "{}", gate.log());
    ensure!(fs::metadata(&victim)?.uid() == 1);
    ensure!(!links.join("victim").is_symlink() && !links.join("a").exists());
    gate.terminate()?;
    fs::remove_file(links.join("second"))?;
    plant()?;
    scene.gate.run(|| filter::detach(&scene.pin_path, &[]))??;
    ensure!(!scene.pin_path.exists() && fs::metadata(&victim)?.uid() == 1);
    Ok(())
}
