//! Who may give the running gate commands, what those do, and what is logged of them. The real
//! commands, as users that may and users that may not.

use std::fs::{self, Permissions};

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::process::{Process, binary, discard_as_user, relay_to};
use portcullis_tests::root;

const SOON: Duration = Duration::from_secs(5);

/// A user that the gate admits, one in a group that it admits, and one that it does not.
const OPERATOR: &str = "54321";
const OF_THE_GROUP: &str = "54322";
const GROUP: &str = "54400";
const STRANGER: &str = "54323";

/// The binary where every user can run it, in a directory that goes with the test.
struct Commands {
    directory: tempfile::TempDir,
}

impl Commands {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        fs::copy(binary()?, directory.path().join("portcullis"))?;
        Ok(Self { directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/admin.sock")
    }

    /// The keys of the endpoint, which come first in a configuration.
    fn keys(&self) -> String {
        format!(
            "admin_socket = \"{}\"\nadmin_users = [\"{OPERATOR}\"]\nadmin_groups = [\"{GROUP}\"]\n",
            self.socket().display()
        )
    }

    /// A command of this user, to its end.
    fn run(&self, user: &str, group: &str, arguments: &[&str], file: &Path) -> Result<Output> {
        let mut command = Command::new("setpriv");
        let output = command
            .args(["--reuid", user, "--regid", group, "--clear-groups"])
            .arg(self.directory.path().join("portcullis"))
            .args(arguments)
            .arg("-c")
            .arg(file)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    text
}

/// The configuration of a gate, which every user can read here.
fn file_of(gate: &Process<'_>) -> Result<PathBuf> {
    fs::set_permissions(gate.directory(), Permissions::from_mode(0o755))?;
    Ok(gate.directory().join("portcullis.toml"))
}

/// A request to an endpoint, as it is: the status and the body.
fn request(
    method: &str,
    mut stream: impl std::io::Read + std::io::Write,
    path: &str,
    header: &str,
) -> Result<(u16, String)> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{header}Content-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no header")?;
    let status = head.split(' ').nth(1).context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn post(
    to: impl std::io::Read + std::io::Write,
    path: &str,
    header: &str,
) -> Result<(u16, String)> {
    request("POST", to, path, &format!("Host: localhost\r\n{header}"))
}

/// A running gate with a filter in a namespace of its own.
struct Filtered<'n> {
    gate: Process<'n>,
    file: PathBuf,
}

/// Takes the filter away, however the test ends.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = portcullis::filter::detach(&self.0, &[]);
    }
}

impl<'n> Filtered<'n> {
    fn start(namespace: &'n Namespace, pins: &Pins, commands: &Commands) -> Result<Self> {
        let filter = format!(
            "[filter]\ninterfaces = [{{ name = \"edge\" }}]\npin_path = \"{}\"\n\
             [relay]\nnetworks = [\"198.51.100.0/24\"]\n",
            pins.0.display()
        );
        let configuration = discard_as_user("127.0.0.1:25", &filter);
        let gate = Process::start_in(namespace, &(commands.keys() + &configuration))?;
        gate.wait_for_log("serving", SOON)?;
        let file = file_of(&gate)?;
        Ok(Self { gate, file })
    }
}

#[test]
fn an_operator_without_privileges_changes_verdicts_and_a_stranger_does_not() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("world")?);
    inside.veth("edge", &outside, "out")?;
    let pins = Pins(Path::new("/sys/fs/bpf").join(format!("portcullis-test-{}", inside.name())));
    let Filtered { gate, file } = Filtered::start(&inside, &pins, &commands)?;
    let add = [
        "filter",
        "verdicts",
        "add",
        "203.0.113.9",
        "--note",
        "ticket 1",
    ];

    let refused = commands.run(STRANGER, STRANGER, &add, &file)?;
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    ensure!(said(&refused).contains("admin_users"), "{}", said(&refused));
    let line = gate.wait_for_log("refused at the admin socket", SOON)?;
    ensure!(line.contains(&format!("uid {STRANGER}")), "{line}");

    for (user, group, text) in [
        (OPERATOR, OPERATOR, "203.0.113.9 is kept out for 1h"),
        (OF_THE_GROUP, GROUP, "was kept out already"),
    ] {
        let done = commands.run(user, group, &add, &file)?;
        ensure!(done.status.success(), "{}", said(&done));
        ensure!(said(&done).contains(text), "{}", said(&done));
        let line = gate.wait_for_log(&format!("uid {user}"), SOON)?;
        ensure!(
            line.contains("verdicts add") && line.contains("203.0.113.9/32"),
            "{line}"
        );
    }
    let list = ["filter", "verdicts", "list", "--json"];
    let listed = commands.run(OPERATOR, OPERATOR, &list, &file)?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    ensure!(listed[0]["note"] == "ticket 1", "{listed:#}");

    let local = ["filter", "verdicts", "add", "198.51.100.7"];
    let refused = commands.run(OPERATOR, OPERATOR, &local, &file)?;
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    ensure!(
        said(&refused).contains("local network"),
        "{}",
        said(&refused)
    );

    let remove = [
        "filter",
        "verdicts",
        "remove",
        "203.0.113.9",
        "203.0.113.10",
    ];
    let removed = commands.run(OPERATOR, OPERATOR, &remove, &file)?;
    ensure!(
        removed.status.code() == Some(1),
        "one has none: {}",
        said(&removed)
    );
    ensure!(
        said(&removed).contains("203.0.113.9 is let in again"),
        "{}",
        said(&removed)
    );

    // Without the gate: root changes the filter itself, and another user is told what is missing.
    gate.terminate()?;
    let file = commands.directory.path().join("portcullis.toml");
    fs::write(
        &file,
        format!(
            "{}[filter]\ninterfaces = [{{ name = \"edge\" }}]\npin_path = \"{}\"\n",
            commands.keys(),
            pins.0.display()
        ),
    )?;
    let refused = commands.run(OPERATOR, OPERATOR, &add, &file)?;
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    ensure!(said(&refused).contains("no gate"), "{}", said(&refused));
    let done = commands.run("0", "0", &add, &file)?;
    ensure!(done.status.success(), "{}", said(&done));
    let flushed = commands.run("0", "0", &["filter", "verdicts", "flush"], &file)?;
    ensure!(
        said(&flushed).contains("1 recent verdict removed"),
        "{}",
        said(&flushed)
    );
    Ok(())
}

#[test]
fn a_hundred_thousand_verdicts_take_seconds_and_bad_lines_are_named() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("world")?);
    inside.veth("edge", &outside, "out")?;
    let pins = Pins(Path::new("/sys/fs/bpf").join(format!("portcullis-test-{}", inside.name())));
    let Filtered { gate, file } = Filtered::start(&inside, &pins, &commands)?;
    let batch = commands.directory.path().join("batch");
    let mut text = String::from("203.0.113.0/24\n198.51.100.7\n");
    for number in 0..100_000_u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        text += &format!("{address} 2h # flood\n");
    }
    text += "nonsense\n";
    fs::write(&batch, text)?;
    let batch = batch.display().to_string();
    let add = ["filter", "verdicts", "add", "--json", "--file", &batch];
    let begun = Instant::now();
    let done = commands.run(OPERATOR, OPERATOR, &add, &file)?;
    let took = begun.elapsed();
    ensure!(done.status.code() == Some(1), "{}", said(&done));
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    ensure!(summary["added"] == 100_000, "{summary:#}");
    let lines: Vec<_> = summary["invalid_lines"]
        .as_array()
        .context("no lines")?
        .iter()
        .map(|bad| bad["line"].as_u64())
        .collect();
    ensure!(lines == [Some(1), Some(100_003)], "{summary:#}");
    ensure!(summary["refused_sources"][0]["line"] == 2, "{summary:#}");
    // It takes two on two shared cores.
    ensure!(took < Duration::from_secs(30), "{took:?}");
    println!("100,000 verdicts through the gate: {took:?}");
    gate.wait_for_log("5000 added", SOON)?;
    let list = ["filter", "verdicts", "list", "--json"];
    let listed = commands.run(OPERATOR, OPERATOR, &list, &file)?;
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout)?;
    ensure!(listed.len() == 100_000, "{}", listed.len());

    let remove = ["filter", "verdicts", "remove", "--json", "--file", &batch];
    let begun = Instant::now();
    let done = commands.run(OPERATOR, OPERATOR, &remove, &file)?;
    let took = begun.elapsed();
    ensure!(done.status.code() == Some(1), "{}", said(&done));
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    ensure!(summary["removed"] == 100_000, "{summary:#}");
    ensure!(summary["without_verdict"] == 1, "{summary:#}");
    ensure!(summary["invalid"] == 2, "{summary:#}");
    ensure!(took < Duration::from_secs(30), "{took:?}");
    println!("and removed: {took:?}");
    let flushed = commands.run(OPERATOR, OPERATOR, &["filter", "verdicts", "flush"], &file)?;
    ensure!(
        said(&flushed).contains("0 recent verdicts removed"),
        "{}",
        said(&flushed)
    );
    Ok(())
}

#[test]
fn an_operator_reloads_and_hears_what_became_of_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let configuration = commands.keys() + &relay_to("192.0.2.1:25", "[limits]\nsessions = 50\n")?;
    let gate = Process::start(&configuration)?;
    let file = file_of(&gate)?;
    let mode = fs::metadata(commands.socket())?.permissions().mode();
    ensure!(
        mode & 0o777 == 0o666,
        "users and a group are admitted: {mode:o}"
    );

    let refused = commands.run(STRANGER, STRANGER, &["reload"], &file)?;
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    gate.rewrite(&configuration.replace("sessions = 50", "sessions = 60"))?;
    let done = commands.run(OPERATOR, OPERATOR, &["reload"], &file)?;
    ensure!(done.status.success(), "{}", said(&done));
    ensure!(
        said(&done).contains("reloaded: limits.sessions"),
        "{}",
        said(&done)
    );
    let line = gate.wait_for_log("admin command", SOON)?;
    ensure!(line.contains("reload") && line.contains(OPERATOR), "{line}");

    // An operator who may not read the configuration hears how to do without.
    let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode));
    mode(0o600)?;
    let closed = commands.run(OPERATOR, OPERATOR, &["reload"], &file)?;
    ensure!(closed.status.code() == Some(2), "{}", said(&closed));
    ensure!(said(&closed).contains("without -c"), "{}", said(&closed));
    mode(0o644)?;

    // What the gate cannot use, while the command can still read where the gate is.
    let list = "[[list]]\nname = \"drop\"\nfile = \"@DIR@/missing\"\naction = \"reject\"\n";
    gate.rewrite(&(configuration.clone() + list))?;
    let bad = commands.run(OPERATOR, OPERATOR, &["reload"], &file)?;
    ensure!(bad.status.code() == Some(1), "{}", said(&bad));
    ensure!(said(&bad).contains("missing"), "{}", said(&bad));
    ensure!(said(&bad).contains("not reloaded"), "{}", said(&bad));

    gate.rewrite(&configuration)?;
    let socket = commands.socket();
    let address = commands.directory.path().join("portcullis.toml");
    fs::copy(&file, &address)?;
    gate.terminate()?;
    ensure!(socket.exists(), "its successor may have made it");
    let gone = commands.run(OPERATOR, OPERATOR, &["reload"], &address)?;
    ensure!(gone.status.code() == Some(1), "{}", said(&gone));
    ensure!(
        said(&gone).contains("no gate listens there"),
        "{}",
        said(&gone)
    );
    // A start takes the place of a socket at which no process listens.
    let again = Process::start(&configuration)?;
    let done = commands.run(OPERATOR, OPERATOR, &["reload"], &file_of(&again)?)?;
    ensure!(done.status.success(), "{}", said(&done));
    Ok(())
}

#[test]
fn one_group_alone_owns_the_socket() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let commands = Commands::new()?;
    let keys = format!(
        "admin_socket = \"{}\"\nadmin_groups = [\"{GROUP}\"]\n",
        commands.socket().display()
    );
    let configuration = keys + &relay_to("192.0.2.1:25", "")?;
    let gate = Process::start(&configuration)?;
    let file = file_of(&gate)?;
    let mode = fs::metadata(commands.socket())?.permissions().mode();
    ensure!(mode & 0o777 == 0o660, "{mode:o}");
    let refused = commands.run(STRANGER, STRANGER, &["reload"], &file)?;
    ensure!(
        said(&refused).contains("may not open it"),
        "{}",
        said(&refused)
    );
    let done = commands.run(OF_THE_GROUP, GROUP, &["reload"], &file)?;
    ensure!(done.status.success(), "{}", said(&done));
    Ok(())
}

#[test]
fn over_the_loopback_a_change_takes_the_token_and_reading_does_not() -> Result<()> {
    const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015";

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    fs::write(&file, format!("{TOKEN}\n"))?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    let keys = format!("admin_token_file = \"{}\"\n", file.display());
    let configuration = relay_to("192.0.2.1:25", "")?;
    let table: toml::Table = configuration.parse()?;
    let admin: std::net::SocketAddr = table["admin"].as_str().context("no admin")?.parse()?;

    let without = Process::start(&configuration)?;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let (status, text) = post(without.tcp(admin)?, "/api/reload", &token)?;
    ensure!(
        status == 403 && text.contains("admin_token_file"),
        "{status} {text}"
    );
    without.terminate()?;

    let gate = Process::start(&(keys.clone() + &configuration))?;
    ensure!(gate.get("/api/status")?.0 == 200, "reading takes no token");
    ensure!(gate.get("/api/reload")?.0 == 405, "a GET changes nothing");
    for path in ["/api/verdicts", "/api/grants"] {
        let (status, text) = request("GET", gate.tcp(admin)?, path, "Host: localhost\r\n")?;
        ensure!(
            status == 403 && text.contains("token"),
            "{path}: {status} {text}"
        );
        let header = format!("Host: localhost\r\n{token}");
        let (status, text) = request("GET", gate.tcp(admin)?, path, &header)?;
        ensure!(status == 200 && text == "[]\n", "{path}: {status} {text}");
    }
    let rebound = "Host: rebind.example\r\n";
    let (status, text) = request("GET", gate.tcp(admin)?, "/api/status", rebound)?;
    ensure!(status == 421 && text.contains("Host"), "{status} {text}");
    for header in ["", "Authorization: Bearer 9f86d081884c7d65\r\n"] {
        let (status, text) = post(gate.tcp(admin)?, "/api/reload", header)?;
        ensure!(status == 403 && text.contains("token"), "{status} {text}");
    }
    let (status, text) = post(gate.tcp(admin)?, "/api/reload", &token)?;
    ensure!(
        status == 200 && text.contains("\"result\":\"good\""),
        "{status} {text}"
    );
    let line = gate.wait_for_log("admin command", SOON)?;
    ensure!(line.contains("token from 127.0.0.1"), "{line}");
    ensure!(!gate.log().contains(TOKEN), "the token is in the log");
    let (status, text) = post(gate.tcp(admin)?, "/api/verdicts/flush", &token)?;
    ensure!(status == 400, "no JSON: {status} {text}");
    gate.terminate()?;

    fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    let open = Process::start(&(keys + &configuration));
    let error = format!("{:#}", open.err().context("every user can read the token")?);
    ensure!(
        error.contains("admin_token_file") && error.contains("chmod"),
        "{error}"
    );
    Ok(())
}
