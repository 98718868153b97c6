//! The gate as a process: the real binary with a configuration and a directory of its own.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::netns::Namespace;
use tempfile::TempDir;

use crate::dialogue::Dialogue;
use crate::{machine, wait};

/// How long a gate may take to listen; it takes milliseconds, unless the machine is very busy.
const START_MAX: Duration = Duration::from_secs(20);

/// The binary under test: `PORTCULLIS_BIN`, else what was built last in this checkout's target
/// directory.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PORTCULLIS_BIN") {
        let named = PathBuf::from(named);
        if !named.exists() {
            bail!(
                "PORTCULLIS_BIN names {}, which does not exist",
                named.display()
            );
        }
        return Ok(named);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    ["release", "debug"]
        .map(|profile| target.join(profile).join("portcullis"))
        .into_iter()
        .filter_map(|binary| Some((fs::metadata(&binary).ok()?.modified().ok()?, binary)))
        .max()
        .map(|(_, binary)| binary)
        .context("there is no portcullis binary to test: run `cargo xtask test`, which builds it")
}

/// `portcullis` with these arguments, to its end.
///
/// # Errors
/// When there is no binary, or it cannot be started.
pub fn portcullis<I, A>(arguments: I) -> Result<std::process::Output>
where
    I: IntoIterator<Item = A>,
    A: AsRef<std::ffi::OsStr>,
{
    Ok(Command::new(binary()?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

/// A running gate; killed when dropped.
#[derive(Debug)]
pub struct Process<'n> {
    child: Child,
    directory: TempDir,
    listeners: Vec<SocketAddr>,
    /// Those that say something before the client does.
    greeting: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    /// Where it runs, for connections to it.
    namespace: Option<&'n Namespace>,
}

impl<'n> Process<'n> {
    /// Starts the gate with this configuration and waits until it listens. `@DIR@` in the text
    /// stands for the gate's own directory, which is deleted with it.
    ///
    /// # Errors
    /// When it does not come up; the error holds its log.
    pub fn start(configuration: &str) -> Result<Self> {
        Self::launch(configuration, Command::new(binary()?), None)
    }

    /// The same inside a namespace.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_in(namespace: &'n Namespace, configuration: &str) -> Result<Self> {
        Self::launch(configuration, namespace.command(binary()?), Some(namespace))
    }

    fn launch(
        configuration: &str,
        mut command: Command,
        namespace: Option<&'n Namespace>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-test-")
            .tempdir()?;
        let configuration = write_configuration(directory.path(), configuration)?;
        let table: toml::Table = configuration.parse()?;
        let log = File::create(directory.path().join("log"))?;
        let child = command
            .args(["run", "-c"])
            .arg(directory.path().join("portcullis.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut gate = Self {
            child,
            directory,
            listeners: listeners(&table, |_| true)?,
            greeting: listeners(&table, is_greeting)?,
            admin: admin(&table)?,
            namespace,
        };
        gate.wait_until_it_listens()?;
        Ok(gate)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let mut ended = None;
        let listening = wait::until("the gate to listen", START_MAX, || {
            ended = self.child.try_wait().ok().flatten();
            let all = self
                .greeting
                .iter()
                .all(|address| self.says_something(*address));
            (all || ended.is_some()).then_some(all)
        });
        match (listening, ended) {
            (Ok(true), _) => Ok(()),
            (_, Some(status)) => bail!(
                "the gate ended ({status}) instead of listening:\n{}",
                self.log()
            ),
            _ => bail!("the gate does not listen:\n{}", self.log()),
        }
    }

    /// Whether a worker is there and speaks: a socket that listens is not enough, connections wait
    /// in its backlog.
    fn says_something(&self, address: SocketAddr) -> bool {
        let Ok(mut stream) = self.tcp(address) else {
            return false;
        };
        let waits = stream.set_read_timeout(Some(Duration::from_secs(5)));
        waits.is_ok() && stream.read(&mut [0]).is_ok_and(|octets| octets > 0)
    }

    /// The first listener's address, for a client: an unspecified address (`0.0.0.0`) becomes the
    /// loopback.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listeners[0]
    }

    /// The address of the listener with this number, counted from 0, as [`address`](Self::address).
    #[must_use]
    pub fn address_of(&self, listener: usize) -> SocketAddr {
        self.listeners[listener]
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The gate's own directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Everything it has written to its standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines of a log in JSON (`[log] format = "json"`); lines that are not JSON are left out.
    #[must_use]
    pub fn log_lines(&self) -> Vec<serde_json::Value> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until the log holds `text`, and gives the line it is in.
    ///
    /// # Errors
    /// When it does not come; the error holds the log.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        let find = || {
            self.log()
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
        };
        wait::until(text, limit, find).with_context(|| format!("the log was:\n{}", self.log()))
    }

    /// Resident memory in KiB (`VmRSS`).
    ///
    /// # Errors
    /// When the gate is gone.
    pub fn resident_kib(&self) -> Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory that the gate has had, in KiB (`VmHWM`).
    ///
    /// # Errors
    /// When the gate is gone.
    pub fn resident_most_kib(&self) -> Result<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib = kib.with_context(|| format!("no {field} of a gate that is gone"))?;
        Ok(kib.trim().parse()?)
    }

    /// A session with the gate, greeted.
    ///
    /// # Errors
    /// When it cannot be reached or greets with anything but 220.
    pub fn dialogue(&self) -> Result<Dialogue> {
        Dialogue::greeted(self.tcp(self.address())?)
    }

    /// A connection to the gate from where the gate is (its own namespace), not yet greeted.
    ///
    /// # Errors
    /// When nothing listens.
    pub fn tcp(&self, to: SocketAddr) -> Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
        match self.namespace {
            Some(namespace) => Ok(namespace.run(connect)??),
            None => Ok(connect()?),
        }
    }

    /// What the admin endpoint says at `path`: the status code and the body.
    ///
    /// # Errors
    /// When there is no admin endpoint, or it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let admin = self
            .admin
            .context("the configuration has no admin address")?;
        let mut stream = self.tcp(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("no end of the HTTP header")?;
        let code = head.split(' ').nth(1).context("no status code")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// The sum of all samples of a metric whose labels hold `label` (`""`: all), 0 when there is
    /// none.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let (_, metrics) = self.get("/metrics")?;
        let samples = metrics.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let labels = sample.strip_prefix(name)?;
            let whole = labels.is_empty() || labels.starts_with('{');
            (whole && labels.contains(label))
                .then(|| value.parse::<f64>().ok())
                .flatten()
        });
        Ok(samples.sum())
    }

    /// Writes a new configuration in place of the old one. Nothing is reloaded yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rewrite(&self, configuration: &str) -> Result<()> {
        write_configuration(self.directory.path(), configuration).map(drop)
    }

    /// Sends the gate a signal.
    ///
    /// # Errors
    /// When the gate is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Waits for the gate to end.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait::until("the gate to end", limit, || {
            self.child.try_wait().ok().flatten()
        })
        .with_context(|| format!("the log was:\n{}", self.log()))
    }

    /// SIGTERM, and the end.
    ///
    /// # Errors
    /// When it does not end within ten seconds.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(10))
    }

    /// Whether the gate runs.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gate's log:\n{}", self.log());
        }
    }
}

/// A configuration that relays everything to one next hop from a free loopback port: what most
/// tests start from. `more` is appended.
///
/// # Errors
/// When there are no free ports.
pub fn relay_to(next_hop: &str, more: &str) -> Result<String> {
    let (listener, admin) = (machine::free_address()?, machine::free_address()?);
    Ok(format!(
        r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 2
admin = "{admin}"

[log]
format = "json"

[[listener]]
address = "{listener}"
service = "relay"

[[route]]
domains = ["*"]
next_hop = ["{next_hop}"]
{more}
{networks}"#,
        networks = if more.contains("[relay]") {
            ""
        } else {
            LOOPBACK_IS_LOCAL
        },
    ))
}

/// A configuration that discards all mail, for a gate in a namespace of its own that becomes an
/// ordinary user once it serves; its admin address is `127.0.0.1:9925`. `more` is appended.
#[must_use]
pub fn discard_as_user(listener: &str, more: &str) -> String {
    format!(
        r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 1
user = "nobody"
admin = "127.0.0.1:9925"
[[listener]]
address = "{listener}"
[[route]]
domains = ["*"]
next_hop = ["discard"]
{more}"#
    )
}

/// So that a test's client on the loopback may relay.
const LOOPBACK_IS_LOCAL: &str =
    "[relay]\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\ndomains = [\"gate.example\"]\n";

fn write_configuration(directory: &Path, text: &str) -> Result<String> {
    let text = text.replace("@DIR@", &directory.display().to_string());
    fs::write(directory.join("portcullis.toml"), &text)?;
    Ok(text)
}

/// Whether a listener greets before a TLS handshake.
fn is_greeting(listener: &toml::Value) -> bool {
    let is = |key, value| listener.get(key).and_then(toml::Value::as_str) == Some(value);
    !is("tls", "implicit") && !is("service", "submissions")
}

fn listeners(
    table: &toml::Table,
    is_wanted: impl Fn(&toml::Value) -> bool,
) -> Result<Vec<SocketAddr>> {
    let entries = table.get("listener").and_then(toml::Value::as_array);
    let entries = entries.context("the configuration has no listener")?;
    entries
        .iter()
        .filter(|entry| is_wanted(entry))
        .map(|entry| reachable(entry.get("address")))
        .collect()
}

fn admin(table: &toml::Table) -> Result<Option<SocketAddr>> {
    table
        .get("admin")
        .map(|admin| reachable(Some(admin)))
        .transpose()
}

fn reachable(value: Option<&toml::Value>) -> Result<SocketAddr> {
    let text = value
        .and_then(toml::Value::as_str)
        .context("an address that is no string")?;
    let mut address: SocketAddr = text
        .parse()
        .with_context(|| format!("no address: {text}"))?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}
