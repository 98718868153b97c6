//! Postfix's load tools as peers: `smtp-source` sends, `smtp-sink` takes and, when told to, writes
//! every message to a file of its own. Both are what mail engineers reproduce a problem with.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portcullis::netns::Namespace;
use tempfile::TempDir;

use crate::{machine, wait};

/// Both tools live where only root has its path.
const DIRECTORY: &str = "/usr/sbin";

/// A running `smtp-sink`; killed when dropped.
#[derive(Debug)]
pub struct Sink {
    child: Child,
    address: SocketAddr,
    dump: TempDir,
}

/// A message as `smtp-sink -d` wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// The path of MAIL with its brackets and parameters.
    pub sender: String,
    /// The paths of the RCPTs, likewise.
    pub recipients: Vec<String>,
    /// Header and body as received, with LF line ends, and without what the tool adds.
    pub content: Vec<u8>,
}

impl Sink {
    /// Starts it on a free port of the loopback; `dump`: and keeps every message.
    ///
    /// # Errors
    /// When the tool is missing (`cargo xtask setup` installs it) or does not listen.
    pub fn start(dump: bool) -> Result<Self> {
        Self::start_at(machine::free_address()?, dump, None)
    }

    /// Starts it at an address inside a namespace.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_in(namespace: &Namespace, address: SocketAddr, dump: bool) -> Result<Self> {
        Self::start_at(address, dump, Some(namespace))
    }

    fn start_at(address: SocketAddr, dump: bool, namespace: Option<&Namespace>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-sink-")
            .tempdir()?;
        let mut command = tool("smtp-sink", namespace)?;
        command.args(["-m", "1024"]);
        if portcullis::netns::permitted() {
            command.args(["-u", "nobody"]);
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        }
        if dump {
            command.arg("-d").arg(directory.path().join("m."));
        }
        let child = command
            .args([&address.to_string(), "1024"])
            .stdin(Stdio::null())
            .spawn()?;
        let sink = Self {
            child,
            address,
            dump: directory,
        };
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
        wait::until(
            "smtp-sink to listen",
            Duration::from_secs(10),
            || match namespace {
                Some(namespace) => namespace.run(connect).ok().flatten(),
                None => connect(),
            },
        )?;
        Ok(sink)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The files of the messages so far, complete or not.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        fs::read_dir(self.dump.path())?
            .map(|entry| Ok(entry?.path()))
            .collect()
    }

    /// The messages so far. Only for a sink with a dump, and when nothing is being received.
    ///
    /// # Errors
    /// When a file is not in the format of the tool.
    pub fn messages(&self) -> Result<Vec<Dumped>> {
        self.files()?
            .iter()
            .map(|file| Dumped::read(file))
            .collect()
    }

    /// Forgets the messages so far.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        self.files()?
            .iter()
            .try_for_each(|file| Ok(fs::remove_file(file)?))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Dumped {
    /// Reads one file: `X-` lines, the tool's own `Received:` of three lines, the message, an empty
    /// line.
    fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file)?;
        let mut dumped = Self {
            sender: String::new(),
            recipients: Vec::new(),
            content: Vec::new(),
        };
        let mut rest = bytes.as_slice();
        while rest.starts_with(b"X-") {
            let (line, after) = split_line(rest);
            rest = after;
            let line = std::str::from_utf8(line)?;
            if let Some(sender) = line.strip_prefix("X-Mail-Args: ") {
                sender.clone_into(&mut dumped.sender);
            } else if let Some(recipient) = line.strip_prefix("X-Rcpt-Args: ") {
                dumped.recipients.push(recipient.to_owned());
            }
        }
        for _ in 0..3 {
            rest = split_line(rest).1;
        }
        rest.strip_suffix(b"\n")
            .with_context(|| format!("{} does not end with an empty line", file.display()))?
            .clone_into(&mut dumped.content);
        Ok(dumped)
    }

    /// The content without its first header field, with the field (the gate's `Received:`) by
    /// itself.
    #[must_use]
    pub fn split_received(&self) -> (String, &[u8]) {
        let mut rest = split_line(&self.content).1;
        while rest.starts_with(b"\t") || rest.starts_with(b" ") {
            rest = split_line(rest).1;
        }
        let field = &self.content[..self.content.len() - rest.len()];
        (String::from_utf8_lossy(field).into_owned(), rest)
    }
}

fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

/// Runs `smtp-source` with these arguments against `to`, to its end.
///
/// # Errors
/// When the tool is missing, or ends with an error: it does at the first reply that it did not
/// expect.
pub fn source(arguments: &[&str], to: SocketAddr) -> Result<Output> {
    source_from(None, arguments, to)
}

/// The same from inside a namespace.
///
/// # Errors
/// As [`source`].
pub fn source_in(namespace: &Namespace, arguments: &[&str], to: SocketAddr) -> Result<Output> {
    source_from(Some(namespace), arguments, to)
}

fn source_from(
    namespace: Option<&Namespace>,
    arguments: &[&str],
    to: SocketAddr,
) -> Result<Output> {
    let output = tool("smtp-source", namespace)?
        .args(arguments)
        .arg(to.to_string())
        .output()?;
    if !output.status.success() || !output.stderr.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "smtp-source {} {to}: {}: {}",
            arguments.join(" "),
            output.status,
            said.trim()
        );
    }
    Ok(output)
}

fn tool(name: &str, namespace: Option<&Namespace>) -> Result<Command> {
    let path = Path::new(DIRECTORY).join(name);
    if !path.exists() {
        bail!(
            "{} is missing: `cargo xtask setup` installs it (package postfix)",
            path.display()
        );
    }
    Ok(namespace.map_or_else(|| Command::new(&path), |namespace| namespace.command(&path)))
}
