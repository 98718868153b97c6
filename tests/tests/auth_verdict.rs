//! Guesses at passwords end in a recent verdict of the filter: for the source that guessed, and
//! never for a local network.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::filter;
use portcullis::netns::{Family, Namespace};
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::process::{Process, binary, discard_as_user};
use portcullis_tests::root;
use portcullis_tests::users::{UserFile, plain};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const GATE: &str = "198.51.100.25";
const GUESSER: &str = "203.0.113.66";
const HONEST: &str = "203.0.113.10";
const LOCAL: &str = "192.0.2.66";

/// Detaches the filter, which stays when a gate ends.
struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = filter::detach(&self.0, &[]);
    }
}

struct Scene {
    inside: Namespace,
    outside: Namespace,
}

impl Scene {
    fn new() -> Result<Self> {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("clients")?);
        inside.veth("edge", &outside, "far")?;
        inside.addresses("edge", [format!("{GATE}/32")])?;
        outside.addresses("far", [GUESSER, HONEST, LOCAL].map(|it| format!("{it}/32")))?;
        inside.neighbours("default", "edge", Family::V4)?;
        outside.neighbours(&format!("{GATE}/32"), "far", Family::V4)?;
        Ok(Self { inside, outside })
    }

    /// A session from one of the addresses, after EHLO.
    fn hello(&self, source: &str) -> Result<Dialogue> {
        let (source, to): (IpAddr, SocketAddr) = (source.parse()?, format!("{GATE}:587").parse()?);
        let mut client = Dialogue::greeted(connect_from(&self.outside, source, to)?)?;
        client.patience(Duration::from_secs(40))?;
        client.expect("EHLO client.example", "250")?;
        Ok(client)
    }

    /// Twenty guesses at once, at a name each. They count when they are found wrong, and their
    /// replies come later.
    fn guess(&self, source: &str) -> Result<Vec<Dialogue>> {
        let mut clients = Vec::new();
        for number in 0..20 {
            let mut client = self.hello(source)?;
            client.raw(format!("{}\r\n", plain(&format!("user{number}"), "x")).as_bytes())?;
            // So few checks of one source wait at a time.
            std::thread::sleep(Duration::from_millis(150));
            clients.push(client);
        }
        Ok(clients)
    }

    fn verdicts(&self, file: &Path) -> Result<Value> {
        let mut command = self.inside.command(binary()?);
        command
            .args(["filter", "verdicts", "list", "--json", "-c"])
            .arg(file);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).context(said)
    }
}

#[test]
fn a_source_that_guesses_is_dropped_and_its_neighbours_and_local_networks_are_not() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let pins = format!("/sys/fs/bpf/portcullis-test-{}", scene.inside.name());
    let pinned = Pinned(PathBuf::from(&pins));
    let users = UserFile::new(&[("alice", "wonderland")])?;
    let more = format!(
        "[filter]\ninterfaces = [{{ name = \"edge\" }}]\npin_path = \"{pins}\"\nports = [587]\n\
         [relay]\nnetworks = [\"192.0.2.0/24\"]\n[auth]\nusers = \"{}\"\n\
         [limits]\ngreeting_delay = \"0s\"\n",
        users.path().display()
    );
    let listener = format!("address = \"{GATE}:587\"");
    let offers = format!("{listener}\nauth = \"on\"\nauth_without_tls = true");
    let configuration = discard_as_user(&format!("{GATE}:587"), &more).replace(&listener, &offers);
    let gate = Process::start_in(&scene.inside, &configuration)?;
    let file = gate.directory().join("portcullis.toml");

    let _local = scene.guess(LOCAL)?;
    let _guesses = scene.guess(GUESSER)?;
    let known = || {
        let list = scene.verdicts(&file).ok()?;
        (!list.as_array()?.is_empty()).then_some(list)
    };
    let list = portcullis_tests::wait::until("a verdict", SOON, known);
    let list = list.with_context(|| gate.log())?;
    let verdict = &list[0];
    ensure!(
        list.as_array().is_some_and(|list| list.len() == 1),
        "{list:#}"
    );
    ensure!(
        verdict["source"]
            .as_str()
            .is_some_and(|it| it.starts_with(GUESSER))
            && verdict["note"] == "wrong passwords",
        "{verdict:#}"
    );
    ensure!(scene.hello(GUESSER).is_err(), "its next SYN is dropped");
    for other in [HONEST, LOCAL] {
        let mut client = scene.hello(other)?;
        client.expect(&plain("alice", "wonderland"), "235")?;
    }
    let log = gate.log();
    ensure!(log.matches("many wrong passwords").count() == 2, "{log}");
    drop((gate, pinned));
    Ok(())
}
