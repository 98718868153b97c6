//! The gateway as a contestant: a process of its own on a free port of the loopback interface, with
//! one route.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::process::{Privileges, Running, free_address};
use crate::tls::Certificate;

/// A server that listens.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Running,
    pub(crate) address: SocketAddrV4,
}

impl Server {
    /// Waits until the process listens on the address.
    pub(crate) fn listening(mut process: Running, address: SocketAddrV4) -> Result<Self> {
        process.wait_until_listening(address)?;
        Ok(Self { process, address })
    }
}

/// How a gateway is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gateway<'a> {
    /// Tells its files from those of another one.
    pub(crate) name: &'static str,
    pub(crate) binary: &'a Path,
    pub(crate) workers: u32,
    /// Where messages go; nowhere (`discard`) if missing.
    pub(crate) next_hop: Option<SocketAddrV4>,
    /// Sessions that it has room for.
    pub(crate) sessions: u32,
    /// What STARTTLS shows; missing: it is not offered.
    pub(crate) certificate: Option<&'a Certificate>,
}

impl Gateway<'_> {
    /// Starts it, with its files in a directory of its own below `directory`.
    pub(crate) fn start(self, directory: &Path) -> Result<Server> {
        let directory = directory.join(self.name);
        fs::create_dir_all(directory.join("state"))?;
        let address = free_address()?;
        let configuration = self.configuration(address)?;
        fs::write(directory.join("portcullis.toml"), configuration)?;
        let binary = fs::canonicalize(self.binary)
            .with_context(|| format!("no gateway at {}", self.binary.display()))?;
        let process = Running::start(
            self.name,
            &binary.to_string_lossy(),
            &["run", "-c", "portcullis.toml"],
            Privileges::Kept,
            &directory,
        )?;
        Server::listening(process, address)
    }

    /// All load comes from the loopback interface, and no message is logged.
    fn configuration(self, address: SocketAddrV4) -> Result<String> {
        let Self {
            workers, sessions, ..
        } = self;
        let admin = free_address()?;
        let next_hop = self.next_hop.map(|next_hop| next_hop.to_string());
        let next_hop = next_hop.as_deref().unwrap_or("discard");
        let (tls, offer) = self.certificate.map_or_else(Default::default, tls);
        Ok(format!(
            r#"hostname = "gateway.bench.example"
state_dir = "state"
workers = {workers}
admin = "{admin}"

[[listener]]
address = "{address}"
service = "relay"
{offer}

[relay]
networks = ["127.0.0.0/8"]
domains = ["bench.example"]

[[route]]
domains = ["*"]
next_hop = ["{next_hop}"]
mode = "cut-through"

[limits]
sessions = {sessions}
sessions_per_source = {sessions}

{tls}
[log]
level = "warn"
"#
        ))
    }
}

/// The table of the certificate, and the listener's key. What holds up a flood is out of the way:
/// the load comes from one address.
fn tls(certificate: &Certificate) -> (String, &'static str) {
    let Certificate { chain, key } = certificate;
    let table = format!(
        "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        chain.display(),
        key.display()
    );
    (table, "tls = \"starttls\"")
}
