//! A real rbldnsd with zone files of a test, and questions to it.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::{machine, wait};
use tempfile::TempDir;

const PROGRAM: &str = "/usr/sbin/rbldnsd";

/// Runs until it is dropped.
pub(crate) struct Rbldnsd {
    child: Child,
    socket: UdpSocket,
    question: u16,
    _zones: TempDir,
}

impl Rbldnsd {
    /// Serves these files, each with its type, as the zones `z0`, `z1` and so on.
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: `cargo xtask setup` installs it (package rbldnsd)"
        );
        let zones = tempfile::Builder::new()
            .prefix("portcullis-rbldnsd-")
            .tempdir()?;
        fs::set_permissions(zones.path(), fs::Permissions::from_mode(0o755))?;
        let address = machine::free_address()?;
        let mut command = Command::new(PROGRAM);
        command.args(["-n", "-b", &format!("{}/{}", address.ip(), address.port())]);
        if portcullis::netns::permitted() {
            command.args(["-u", "nobody"]);
        }
        command.arg("-w").arg(zones.path());
        for (number, (kind, file)) in files.iter().enumerate() {
            fs::write(zones.path().join(format!("f{number}")), file)?;
            command.arg(format!("z{number}:{kind}:f{number}"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut rbldnsd = Self {
            child,
            socket: connected(address)?,
            question: 0,
            _zones: zones,
        };
        wait::until("rbldnsd to answer", Duration::from_secs(20), || {
            rbldnsd.lists(0, IpAddr::from([127, 0, 0, 1])).ok()
        })?;
        Ok(rbldnsd)
    }

    /// Whether a zone lists an address.
    pub(crate) fn lists(&mut self, zone: usize, address: IpAddr) -> Result<bool> {
        self.question += 1;
        let labels: Vec<String> = match address {
            IpAddr::V4(address) => {
                let octets = address.octets();
                octets.iter().rev().map(u8::to_string).collect()
            }
            IpAddr::V6(address) => {
                let digits = format!("{:032x}", address.to_bits());
                digits.chars().rev().map(String::from).collect()
            }
        };
        let mut query = self.question.to_be_bytes().to_vec();
        query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in labels.iter().chain([&format!("z{zone}")]) {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        self.socket.send(&query)?;
        let mut answer = [0; 512];
        loop {
            let length = self.socket.recv(&mut answer).context("no answer")?;
            ensure!(length >= 12, "an answer of {length} octets");
            if answer[..2] == self.question.to_be_bytes() {
                break;
            }
        }
        match (answer[3] & 0xf, answer[7]) {
            (0, answers) => Ok(answers > 0),
            (3, _) => Ok(false),
            (code, _) => bail!("rbldnsd answers with code {code} for z{zone}"),
        }
    }
}

fn connected(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address.ip(), 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

impl Drop for Rbldnsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
