//! Grants (POP-before-SMTP) of the real gate: a user of a real POP server opens it for its own
//! address, and for no longer than was said; operators add, list and revoke; a restart keeps them.
//!
//! ```text
//!   strangers (far) --- edge [ Dovecot, gate with its filter ]
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::{Family, Namespace};
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::process::{Process, binary};
use portcullis_tests::{root, wait};

const GATE: &str = "198.51.100.25";
/// On no list.
const GUEST: &str = "203.0.113.10";
/// On a drop list.
const LISTED: &str = "203.0.113.66";
/// On a hard drop list.
const HARD: &str = "203.0.113.99";

const SOON: Duration = Duration::from_secs(10);

struct Scene {
    inside: Namespace,
    outside: Namespace,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("guests")?);
        inside.veth("edge", &outside, "far")?;
        inside.addresses("edge", [format!("{GATE}/32")])?;
        outside.addresses(
            "far",
            [GUEST, LISTED, HARD].map(|guest| format!("{guest}/32")),
        )?;
        inside.neighbours("default", "edge", Family::V4)?;
        outside.neighbours(&format!("{GATE}/32"), "far", Family::V4)?;
        inside.up("lo")?;
        let directory = tempfile::Builder::new()
            .prefix("portcullis-grants-")
            .tempdir()?;
        fs::write(directory.path().join("drop"), format!("{LISTED}\n"))?;
        fs::write(directory.path().join("hard"), format!("{HARD}\n"))?;
        Ok(Self {
            inside,
            outside,
            directory,
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn pin_path(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/{}", self.inside.name()))
    }

    fn gate(&self, grants: &str) -> Result<Process<'_>> {
        let configuration = format!(
            r#"state_dir = "{state}"
admin_socket = "{state}/admin.sock"
workers = 1
[filter]
interfaces = [{{ name = "edge" }}]
pin_path = "{pins}"
{grants}
[[list]]
name = "spammers"
file = "{drop}"
action = "drop"
[[list]]
name = "hijacked"
file = "{hard}"
action = "drop"
hard = true
[[listener]]
address = "0.0.0.0:25"
[relay]
domains = ["isp.example"]
[[route]]
domains = ["*"]
next_hop = ["discard"]
"#,
            state = self.path(""),
            pins = self.pin_path().display(),
            drop = self.path("drop"),
            hard = self.path("hard"),
        );
        Process::start_in(&self.inside, &configuration)
    }

    fn dialogue(&self, from: &str) -> Result<Dialogue> {
        let to = SocketAddr::new(GATE.parse()?, 25);
        let stream = connect_from(&self.outside, from.parse()?, to)?;
        let mut dialogue = Dialogue::greeted(stream)?;
        dialogue.expect("EHLO laptop.hotel.example", "250")?;
        Ok(dialogue)
    }

    /// The code for a recipient elsewhere.
    fn relays(dialogue: &mut Dialogue) -> Result<u16> {
        dialogue.expect("MAIL FROM:<user@isp.example>", "250")?;
        let reply = dialogue.say("RCPT TO:<someone@elsewhere.example>")?;
        dialogue.expect("RSET", "250")?;
        Ok(reply.code)
    }

    /// What `curl pop3://user:password@GATE/` says from this address.
    fn log_in(&self, from: &str, password: &str) -> Result<Output> {
        let mut curl = self.outside.command("curl");
        curl.args(["-sS", "--max-time", "10", "--interface", from, "--user"]);
        curl.arg(format!("joe:{password}"));
        Ok(curl.arg(format!("pop3://{GATE}/")).output()?)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Nothing is attached if that is what failed.
        let _ = portcullis::filter::detach(&self.pin_path(), &[]);
    }
}

/// `portcullis grant` beside a gate.
fn grant(gate: &Process<'_>, arguments: &[&str]) -> Result<Output> {
    let configuration = gate.directory().join("portcullis.toml");
    let mut command = Command::new(binary()?);
    command.arg("grant").args(arguments).arg("-c");
    Ok(command.arg(configuration).output()?)
}

/// Another command beside a gate that has to succeed: what it prints.
fn print(gate: &Process<'_>, arguments: &[&str]) -> Result<String> {
    let configuration = gate.directory().join("portcullis.toml");
    let mut command = Command::new(binary()?);
    let output = command
        .args(arguments)
        .arg("-c")
        .arg(configuration)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn list(gate: &Process<'_>) -> Result<Vec<serde_json::Value>> {
    let output = grant(gate, &["list", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Dovecot as a POP server with one user.
struct Dovecot(Child);

impl Dovecot {
    fn start_in(scene: &Scene) -> Result<Self> {
        let directory = scene.directory.path();
        for name in ["run", "state", "mail"] {
            fs::create_dir(directory.join(name))?;
        }
        open_to_all(directory)?;
        open_to_all(&directory.join("mail"))?;
        fs::write(directory.join("users"), "joe:{PLAIN}secret\n")?;
        fs::write(directory.join("mail.log"), "")?;
        let text = format!(
            "protocols = pop3\nlisten = {GATE}\nbase_dir = {run}\nstate_dir = {state}\n\
             log_path = {log}\nssl = no\ndisable_plaintext_auth = no\nauth_mechanisms = plain\n\
             auth_failure_delay = 0\nservice stats {{\n  chroot =\n}}\n\
             first_valid_uid = 1\nfirst_valid_gid = 1\n\
             service anvil {{\n  chroot =\n}}\n\
             service pop3-login {{\n  chroot =\n  inet_listener pop3 {{\n    port = 110\n  }}\n  \
             inet_listener pop3s {{\n    port = 0\n  }}\n}}\n\
             passdb {{\n  driver = passwd-file\n  args = {users}\n}}\n\
             userdb {{\n  driver = static\n  args = uid=mail gid=mail home={mail}\n}}\n\
             mail_location = maildir:{mail}/joe\n",
            run = scene.path("run"),
            state = scene.path("state"),
            log = scene.path("mail.log"),
            users = scene.path("users"),
            mail = scene.path("mail"),
        );
        let file = scene.path("dovecot.conf");
        fs::write(&file, text)?;
        let mut command = scene.inside.command("dovecot");
        let child = command
            .args(["-F", "-c", &file])
            .stdin(Stdio::null())
            .spawn()
            .context("dovecot (cargo xtask setup installs it)")?;
        let dovecot = Self(child);
        let address = SocketAddr::new(GATE.parse()?, 110);
        wait::until("Dovecot to listen", SOON, || {
            let from = GUEST.parse().ok()?;
            connect_from(&scene.outside, from, address).ok()
        })
        .with_context(|| fs::read_to_string(scene.path("mail.log")).unwrap_or_default())?;
        Ok(dovecot)
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // It ends its own processes; a kill would leave them.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn open_to_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o777),
    )?)
}

#[test]
fn a_login_by_pop_opens_the_gate_for_its_address_until_the_time_is_over() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let _dovecot = Dovecot::start_in(&scene)?;
    let log = scene.path("mail.log");
    let gate = scene.gate(&format!(
        "[grants]\ntime = \"6s\"\n[[grants.follow]]\nfile = \"{log}\"\n"
    ))?;
    let told = || fs::read_to_string(&log).unwrap_or_default();
    let mut open = scene.dialogue(GUEST)?;
    assert_eq!(Scene::relays(&mut open)?, 550, "a stranger");
    assert!(scene.dialogue(LISTED).is_err(), "a listed source");

    let failed = scene.log_in(GUEST, "wrong")?;
    ensure!(!failed.status.success(), "{failed:?}");
    let begun = Instant::now();
    for guest in [GUEST, LISTED, HARD] {
        let output = scene.log_in(guest, "secret")?;
        ensure!(output.status.success(), "{output:?}\n{}", told());
    }
    wait::until("three grants", SOON, || {
        list(&gate).ok().filter(|grants| grants.len() == 3)
    })
    .with_context(|| format!("{}\n{}", told(), gate.log()))?;
    let line = gate.wait_for_log("grant added", SOON)?;
    ensure!(
        line.contains("user joe in ") && line.contains("until="),
        "{line}"
    );
    // The session that was open, a new one, and one that the filter kept out before.
    assert_eq!(Scene::relays(&mut open)?, 250, "an open session");
    assert_eq!(Scene::relays(&mut scene.dialogue(GUEST)?)?, 250);
    assert_eq!(Scene::relays(&mut scene.dialogue(LISTED)?)?, 250);
    assert!(scene.dialogue(HARD).is_err(), "a hard drop list");
    assert!(begun.elapsed() < Duration::from_secs(30), "too slow to say");

    wait::until("the end of the grants", SOON, || {
        list(&gate).ok().filter(Vec::is_empty)
    })?;
    assert!(begun.elapsed() >= Duration::from_secs(5), "too early");
    assert_eq!(Scene::relays(&mut open)?, 550, "after the time");
    assert!(scene.dialogue(LISTED).is_err(), "after the time");
    Ok(())
}

#[test]
fn operators_add_list_and_revoke_grants_and_a_restart_keeps_them() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate("[grants]")?;
    let mut open = scene.dialogue(GUEST)?;
    assert_eq!(Scene::relays(&mut open)?, 550);
    for (guest, time) in [(GUEST, "1h"), (LISTED, "2h"), ("2001:db8::7", "30m")] {
        let output = grant(&gate, &[guest, "--for", time])?;
        ensure!(output.status.success(), "{output:?}");
    }
    assert_eq!(Scene::relays(&mut open)?, 250, "an open session");
    assert_eq!(Scene::relays(&mut scene.dialogue(LISTED)?)?, 250);
    let grants = list(&gate)?;
    assert_eq!(grants.len(), 3);
    assert_eq!(grants[0]["address"], GUEST);
    assert_eq!(grants[0]["by"], "operator root (uid 0)");
    let left = grants[0]["expires_in_seconds"]
        .as_u64()
        .context("seconds")?;
    assert!((3_500..=3_600).contains(&left), "{left}");

    drop(open);
    gate.terminate()?;
    let gate = scene.gate("[grants]")?;
    assert_eq!(list(&gate)?.len(), 3, "{}", gate.log());
    assert_eq!(Scene::relays(&mut scene.dialogue(LISTED)?)?, 250, "kept");

    let mut open = scene.dialogue(GUEST)?;
    assert_eq!(Scene::relays(&mut open)?, 250);
    for guest in [GUEST, LISTED] {
        let output = grant(&gate, &["revoke", guest])?;
        ensure!(output.status.success(), "{output:?}");
    }
    let again = grant(&gate, &["revoke", GUEST])?;
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert_eq!(Scene::relays(&mut open)?, 550, "revoked");
    assert!(scene.dialogue(LISTED).is_err(), "revoked");

    // Without the table nothing of it is left in the filter.
    gate.terminate()?;
    let gate = scene.gate("[grants]")?;
    let output = grant(&gate, &[LISTED])?;
    ensure!(output.status.success(), "{output:?}");
    gate.terminate()?;
    let gate = scene.gate("")?;
    assert!(scene.dialogue(LISTED).is_err(), "no [grants] any more");
    assert_eq!(grant(&gate, &["list"])?.status.code(), Some(2));
    Ok(())
}

#[test]
fn a_verdict_on_an_address_with_a_grant_is_said_to_have_no_effect_yet() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate("[grants]")?;
    for address in [
        "127.0.0.1",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::1",
    ] {
        let output = grant(&gate, &[address])?;
        assert_eq!(output.status.code(), Some(1), "{address}: {output:?}");
    }
    let add = ["filter", "verdicts", "add", GUEST];
    let output = grant(&gate, &[GUEST])?;
    ensure!(output.status.success(), "{output:?}");
    let text = print(&gate, &add)?;
    ensure!(text.contains("has a grant and still passes"), "{text}");
    assert_eq!(Scene::relays(&mut scene.dialogue(GUEST)?)?, 250);
    let explain = ["explain", "--offline", "--client", GUEST];
    let text = print(&gate, &explain)?;
    ensure!(text.contains("granted"), "{text}");

    let output = grant(&gate, &["revoke", GUEST])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        scene.dialogue(GUEST).is_err(),
        "the verdict is in force now"
    );
    let text = print(&gate, &explain)?;
    ensure!(text.contains("recent-verdict"), "{text}");
    let text = print(&gate, &add)?;
    ensure!(!text.contains("grant"), "{text}");

    // There is no `admin` address: these come by the socket.
    let text = print(&gate, &["filter", "verdicts", "list", "--why"])?;
    ensure!(text.contains(GUEST) && text.contains("refused"), "{text}");
    let mut events = UnixStream::connect(scene.directory.path().join("admin.sock"))?;
    events.set_read_timeout(Some(SOON))?;
    events.write_all(b"GET /api/events HTTP/1.1\r\nHost: gate\r\n\r\n")?;
    let mut status = [0; 12];
    events.read_exact(&mut status)?;
    assert_eq!(&status, b"HTTP/1.1 200");
    Ok(())
}
