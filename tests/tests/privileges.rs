//! A gate that became an ordinary user: it has dropped the privileges that it does not need, and
//! can still do its work.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::netns::Namespace;
use portcullis_tests::process::{Process, binary, discard_as_user};
use portcullis_tests::root;

const SOON: Duration = Duration::from_secs(5);

/// The bit of `CAP_BPF`, with which maps can be made.
const CAP_BPF: u64 = 1 << 39;

/// The value of a line of a thread's status.
fn status(thread: &Path, name: &str) -> Result<String> {
    let status = fs::read_to_string(thread.join("status"))?;
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.context("no such line")?.trim().to_owned())
}

fn filter_command(namespace: &Namespace, arguments: &[&str], file: &Path) -> Result<Vec<u8>> {
    let mut command = namespace.command(binary()?);
    let output = command
        .arg("filter")
        .args(arguments)
        .arg("-c")
        .arg(file)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(output.stdout)
}

/// Polls the status until it is as expected.
fn wait_for(
    namespace: &Namespace,
    file: &Path,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> Result<()> {
    // Expired verdicts are removed every ten seconds.
    let end = Instant::now() + 3 * SOON;
    loop {
        let status = filter_command(namespace, &["status", "--json"], file)?;
        let status: serde_json::Value = serde_json::from_slice(&status)?;
        if wanted(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{status:#}");
        thread::sleep(SOON / 50);
    }
}

/// The pin path of the gate in a namespace; removed at the end, however the test ends.
struct Pins<'n>(&'n Namespace);

impl Pins<'_> {
    fn path(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(format!("portcullis-test-{}", self.0.name()))
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        // After a test that went well there is none left.
        let _ = portcullis::filter::detach(&self.path(), &[]);
    }
}

#[test]
fn a_gate_that_became_a_user_keeps_nothing_but_what_an_update_of_the_filter_takes() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("world")?);
    inside.veth("edge", &outside, "out")?;
    let pins = Pins(&inside);
    let lists = tempfile::tempdir()?;
    // The gate reads its files again as that user.
    fs::set_permissions(lists.path(), Permissions::from_mode(0o755))?;
    let list = lists.path().join("drop.netset");
    fs::write(&list, "192.0.2.1\n")?;
    let filter = format!(
        r#"[filter]
interfaces = [{{ name = "edge" }}]
pin_path = "{}"
[relay]
networks = ["198.51.100.0/24"]
[[list]]
name = "testers"
file = "{}"
action = "drop"
"#,
        pins.path().display(),
        list.display()
    );
    let configuration = discard_as_user("127.0.0.1:25", &filter);
    let gate = Process::start_in(&inside, &configuration)?;
    // Connections are queued a moment before it serves, while it is still root.
    gate.wait_for_log("serving", SOON)?;
    let file = gate.directory().join("portcullis.toml");

    let mut workers = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", gate.pid()))? {
        let thread = thread?.path();
        let name = fs::read_to_string(thread.join("comm"))?;
        let uids = status(&thread, "Uid")?;
        ensure!(
            uids.split_whitespace().all(|uid| uid == "65534"),
            "{name}: {uids}"
        );
        ensure!(
            status(&thread, "NoNewPrivs")? == "1",
            "{name} may gain privileges"
        );
        // What clients send reaches these two.
        let wanted = if name.starts_with("worker") || name.trim_end() == "log" {
            0
        } else {
            CAP_BPF
        };
        workers += u32::from(name.starts_with("worker"));
        for set in ["CapEff", "CapPrm"] {
            let held = u64::from_str_radix(&status(&thread, set)?, 16)?;
            ensure!(held == wanted, "{name}: {set} is {held:x}");
        }
    }
    ensure!(workers == 1, "{workers} workers");

    // The gate reads the events, and removes the verdict when its time is over.
    filter_command(
        &inside,
        &["verdicts", "add", "203.0.113.9", "--for", "1s"],
        &file,
    )?;
    wait_for(&inside, &file, |status| {
        status["top_sources"]["watched"] == true && status["verdicts"]["expired"] == 1
    })?;

    // The peer of the veth gets a program: the gate notices it, and answers from then on.
    let peer = lists.path().join("peer.toml");
    let pins_of_peer = Pins(&outside);
    let interface = "interfaces = [{ name = \"out\" }]\nports = [65535]";
    let pin_path = pins_of_peer.path();
    let text = format!("state_dir = \".\"\n[filter]\n{interface}\npin_path = {pin_path:?}\n");
    fs::write(&peer, text)?;
    filter_command(&outside, &["attach"], &peer)?;
    wait_for(&inside, &file, |status| {
        status["interfaces"][0]["answers_lost"] == false
    })?;

    // Not readable: nothing changes. Readable: the new list is in the kernel.
    fs::write(&list, "192.0.2.1\n192.0.2.2\n")?;
    fs::set_permissions(gate.directory(), Permissions::from_mode(0o700))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("not reloaded", SOON)?;
    fs::set_permissions(gate.directory(), Permissions::from_mode(0o755))?;
    filter_command(&inside, &["verdicts", "add", "203.0.113.9"], &file)?;
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("198.51.100.0/24", "203.0.113.0/24"))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("list testers (1 -> 2 entries)", SOON)?;
    let status: serde_json::Value =
        serde_json::from_slice(&filter_command(&inside, &["status", "--json"], &file)?)?;
    ensure!(status["lists"][0]["entries"] == 2, "{status:#}");
    ensure!(status["interfaces"][0]["attached"] == true, "{status:#}");
    ensure!(
        status["verdicts"]["number"] == 0,
        "it is local now: {status:#}"
    );
    ensure!(
        filter_command(&inside, &["verdicts", "add", "203.0.113.9"], &file).is_err(),
        "the kernel does not know the new local network"
    );
    filter_command(&inside, &["detach"], &file)?;
    Ok(())
}
