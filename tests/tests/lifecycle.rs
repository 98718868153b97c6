//! Starting, reloading and stopping: nothing is lost by a reload, a bad configuration changes
//! nothing, a stop finishes what is in flight, and the filter outlives the gate without missing a
//! packet.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::netns::Namespace;
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::process::{Process, binary, relay_to};
use portcullis_tests::receiver::Receiver;
use portcullis_tests::root;
use portcullis_tests::syn::SynSender;

const CONTENT: &[u8] = b"Subject: life\r\n\r\ntext\r\n";
const SOON: Duration = Duration::from_secs(5);

fn deliver(gate: &Process<'_>) -> Result<()> {
    let reply = gate
        .dialogue()?
        .message("a@b.example", &["c@d.example"], CONTENT)?;
    ensure!(reply.code == 250, "{}", reply.text());
    Ok(())
}

/// A session that has sent the header of a message.
fn message_in_flight(gate: &Process<'_>) -> Result<Dialogue> {
    let mut flying = gate.dialogue()?;
    flying.expect("EHLO flying.example", "250")?;
    flying.envelope("a@b.example", &["c@d.example"])?;
    flying.expect("DATA", "354")?;
    flying.raw(b"Subject: in flight\r\n\r\n")?;
    Ok(flying)
}

#[test]
fn a_reload_puts_a_good_configuration_in_force_without_ending_sessions() -> Result<()> {
    let (old, new) = (Receiver::start(true)?, Receiver::start(true)?);
    let configuration = relay_to(&old.address().to_string(), "")?;
    let gate = Process::start(&configuration)?;
    let mut early = gate.dialogue()?;
    early.expect("EHLO early.example", "250")?;
    deliver(&gate)?;

    gate.rewrite(&configuration.replace(&old.address().to_string(), &new.address().to_string()))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reload", SOON)?;
    thread::sleep(Duration::from_millis(200));
    deliver(&gate)?;
    ensure!(
        (old.arrived().len(), new.arrived().len()) == (1, 1),
        "the new next hop is not in use"
    );
    early.envelope("a@b.example", &["c@d.example"])?;
    early.expect("QUIT", "221")?;
    Ok(())
}

#[test]
fn a_reload_with_a_bad_configuration_changes_nothing_and_says_why() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let configuration = relay_to(&receiver.address().to_string(), "")?;
    let mut gate = Process::start(&configuration)?;
    let bad = configuration.replace("next_hop", "next_hopp");
    let line = 1 + bad
        .lines()
        .position(|line| line.contains("next_hopp"))
        .context("no such line")?;
    gate.rewrite(&bad)?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("next_hopp", SOON)?;
    gate.wait_for_log(&format!("portcullis.toml:{line}"), SOON)?;
    ensure!(gate.runs());
    deliver(&gate)?;
    ensure!(receiver.arrived().len() == 1);

    gate.rewrite(&configuration)?;
    gate.signal(Signal::SIGHUP)?;
    thread::sleep(Duration::from_millis(300));
    deliver(&gate)
}

#[test]
fn a_stop_finishes_the_message_in_flight_and_tells_the_others() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let mut gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    let mut idle = gate.dialogue()?;
    idle.expect("EHLO idle.example", "250")?;
    let mut flying = message_in_flight(&gate)?;

    gate.signal(Signal::SIGTERM)?;
    idle.expect_reply("421 4.3.2")?;
    ensure!(idle.closed()?.is_empty());
    ensure!(gate.dialogue().is_err(), "new sessions are still taken");
    thread::sleep(Duration::from_millis(300));
    flying.raw(b"and landed\r\n")?;
    flying.expect(".", "250")?;
    flying.closed()?;
    // The gate waits a while for a client that does not close after the 421.
    drop((idle, flying));
    let status = gate.wait(SOON)?;
    ensure!(status.success(), "{status}");
    ensure!(receiver.arrived().len() == 1);
    Ok(())
}

#[test]
fn a_stop_waits_no_longer_than_it_was_told() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let limit = "[limits]\nshutdown_timeout = \"1s\"\n";
    let mut gate = Process::start(&relay_to(&receiver.address().to_string(), limit)?)?;
    let mut flying = message_in_flight(&gate)?;
    let begun = Instant::now();
    gate.signal(Signal::SIGTERM)?;
    let told = flying.closed()?;
    ensure!(told.starts_with("421 4.3.2"), "told {told:?}");
    drop(flying);
    let status = gate.wait(SOON)?;
    ensure!(status.success(), "{status}");
    ensure!(
        begun.elapsed() < Duration::from_secs(4),
        "took {:?}",
        begun.elapsed()
    );
    ensure!(receiver.arrived().is_empty(), "half a message arrived");
    Ok(())
}

#[test]
fn a_second_sigterm_ends_at_once() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let mut gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    let _flying = message_in_flight(&gate)?;
    gate.signal(Signal::SIGTERM)?;
    thread::sleep(Duration::from_millis(500));
    ensure!(gate.runs(), "the message in flight was not waited for");
    gate.signal(Signal::SIGTERM)?;
    let begun = Instant::now();
    gate.wait(SOON)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(2),
        "took {:?}",
        begun.elapsed()
    );
    ensure!(receiver.arrived().is_empty(), "half a message arrived");
    Ok(())
}

#[test]
fn metrics_count_what_happened() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    for _ in 0..3 {
        deliver(&gate)?;
    }
    let (code, metrics) = gate.get("/metrics")?;
    ensure!(code == 200, "{code}: {metrics}");
    well_formed(&metrics)?;
    let accepted = gate.metric("portcullis_transactions_total", "outcome=\"accepted\"")?;
    ensure!(
        (accepted - 3.0).abs() < 0.5,
        "{accepted} accepted in:\n{metrics}"
    );
    let sessions = gate.metric("portcullis_sessions_total", "")?;
    ensure!(sessions >= 3.0, "{sessions} sessions");
    let (code, _) = gate.get("/nothing-here")?;
    ensure!(code == 404, "{code}");
    Ok(())
}

/// The exposition format of Prometheus: every sample has a HELP and a TYPE before it, and a number.
fn well_formed(metrics: &str) -> Result<()> {
    let (mut helped, mut typed) = (Vec::new(), Vec::new());
    for line in metrics.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.extend(rest.split(' ').next());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            typed.extend(rest.split(' ').next());
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            ensure!(
                helped.contains(&name) && typed.contains(&name),
                "no HELP or TYPE before {line}"
            );
            ensure!(
                name.starts_with("portcullis_") || name.starts_with("process_"),
                "{line}"
            );
            let value = line.rsplit(' ').next().unwrap_or_default();
            ensure!(value.parse::<f64>().is_ok(), "no number in {line}");
        }
    }
    ensure!(!typed.is_empty(), "no metrics");
    Ok(())
}

/// The gate with a filter in one namespace, a listed and an unlisted source in the other.
struct Filtered {
    inside: Namespace,
    outside: Namespace,
    pins: String,
}

const LISTED: &str = "203.0.113.9";
const GATE: &str = "198.51.100.1:25";

impl Filtered {
    fn set() -> Result<Self> {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("world")?);
        inside.veth("edge", &outside, "up")?;
        inside.addresses("edge", ["198.51.100.1/24", "203.0.113.1/24"])?;
        outside.addresses("up", ["198.51.100.66/24", &format!("{LISTED}/24")])?;
        let pins = format!(
            "/sys/fs/bpf/portcullis-test-{}-{}",
            std::process::id(),
            inside.name()
        );
        Ok(Self {
            inside,
            outside,
            pins,
        })
    }

    /// The lists are outside of the gate's own directory, and outlive it. So does a copy of the
    /// configuration, for commands.
    fn configuration(&self, lists: &Path) -> Result<(String, PathBuf)> {
        let file = lists.join("drop.netset");
        fs::write(&file, format!("{LISTED}/32\n"))?;
        let configuration = format!(
            r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 1
[[listener]]
address = "{GATE}"
service = "relay"
[relay]
networks = ["192.0.2.0/24"]
domains = ["isp.example"]
[[route]]
domains = ["*"]
next_hop = ["discard"]
[filter]
interfaces = [{{ name = "edge", role = "edge" }}]
ports = [25]
mode = "enforce"
xdp_mode = "driver"
pin_path = "{pins}"
[[list]]
name = "testers"
file = "{file}"
format = "cidr"
action = "drop"
"#,
            pins = self.pins,
            file = file.display(),
        );
        let copy = lists.join("portcullis.toml");
        fs::write(
            &copy,
            configuration.replace("@DIR@", &lists.display().to_string()),
        )?;
        Ok((configuration, copy))
    }

    /// The packets dropped by the list, from `filter status --json`.
    fn dropped(&self, configuration: &Path) -> Result<u64> {
        let mut command = self.inside.command(binary()?);
        let output = command
            .args(["filter", "status", "--json", "-c"])
            .arg(configuration)
            .output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        status["lists"][0]["dropped_packets"]
            .as_u64()
            .with_context(|| format!("no count in {status}"))
    }

    /// Whether the listed source gets a connection.
    fn listed_connects(&self) -> Result<bool> {
        Ok(connect_from(&self.outside, LISTED.parse()?, GATE.parse()?).is_ok())
    }

    fn detach(&self, configuration: &Path) -> Result<()> {
        let mut command = self.inside.command(binary()?);
        let output = command
            .args(["filter", "detach", "-c"])
            .arg(configuration)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            !Path::new(&self.pins).join("links").exists(),
            "links are left"
        );
        Ok(())
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pins);
    }
}

#[test]
fn the_filter_outlives_a_killed_gate_and_is_taken_over_without_a_gap() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Filtered::set()?;
    let lists = tempfile::tempdir()?;
    let (configuration, file) = scene.configuration(lists.path())?;

    let gate = Process::start_in(&scene.inside, &configuration)?;
    // From here on a SYN every 200 us or so, each of which has to be counted as dropped.
    let source: IpAddr = LISTED.parse()?;
    let sender = SynSender::new(&scene.outside, source, GATE.parse()?)?;
    Dialogue::from_inside(&scene.outside, GATE.parse()?)?;
    let over = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u32> {
        let stream = scope.spawn(|| -> Result<u32> {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                sender.send(sent)?;
                sent += 1;
                thread::sleep(Duration::from_micros(100));
            }
            Ok(sent)
        });
        let events = || -> Result<()> {
            thread::sleep(Duration::from_millis(500));
            gate.signal(Signal::SIGKILL)?;
            drop(gate);
            let (early, ()) = (
                scene.dropped(&file)?,
                thread::sleep(Duration::from_millis(500)),
            );
            ensure!(
                scene.dropped(&file)? > early,
                "nothing is dropped any more with the gate gone"
            );
            let gate = Process::start_in(&scene.inside, &configuration)?;
            thread::sleep(Duration::from_millis(500));
            gate.terminate()?;
            thread::sleep(Duration::from_millis(300));
            Ok(())
        };
        let happened = events();
        over.store(true, Ordering::Relaxed);
        let sent = stream
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        happened.map(|()| sent)
    })?;
    let dropped = scene.dropped(&file)?;
    ensure!(dropped == u64::from(sent), "{sent} sent, {dropped} dropped");
    ensure!(sent > 3000, "only {sent} sent: too few to see a gap");
    scene.detach(&file)
}

#[test]
fn a_listed_source_cannot_connect_and_an_unlisted_one_can() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Filtered::set()?;
    let lists = tempfile::tempdir()?;
    let (configuration, file) = scene.configuration(lists.path())?;
    let gate = Process::start_in(&scene.inside, &configuration)?;
    Dialogue::from_inside(&scene.outside, GATE.parse()?)?.expect("QUIT", "221")?;
    ensure!(!scene.listed_connects()?, "a listed source has connected");
    ensure!(scene.dropped(&file)? >= 1);

    // When the source is removed from the list, it connects after a reload.
    fs::write(lists.path().join("drop.netset"), "192.0.2.200/32\n")?;
    gate.signal(Signal::SIGHUP)?;
    let let_in = || scene.listed_connects().ok().filter(|connects| *connects);
    portcullis_tests::wait::until("the source to be let in", SOON, let_in)?;
    gate.terminate()?;
    scene.detach(&file)
}

#[test]
fn a_warning_is_one_line_of_the_text_log() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let configuration = relay_to(&receiver.address().to_string(), "[dnsbl_policy]\n")?;
    let configuration = configuration.replace("format = \"json\"", "format = \"text\"");
    let gate = Process::start(&configuration)?;
    let warning = gate.wait_for_log("[dnsbl_policy] without a [[dnsbl]]", SOON)?;
    ensure!(warning.contains("portcullis.toml:"), "no place: {warning}");
    gate.rewrite(&configuration.replace("hostname = \"gate", "hostname = \"door"))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reloaded", SOON)?;
    let log = gate.log();
    ensure!(log.matches("without a [[dnsbl]]").count() == 2, "{log}");
    for line in log.lines() {
        ensure!(
            line.starts_with("20") && line.contains('Z'),
            "a line without its time: {line}"
        );
    }
    Ok(())
}
