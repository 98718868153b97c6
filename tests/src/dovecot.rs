//! A real Dovecot with users and an auth socket, in a directory of its own, ended with the test. It
//! has to be started as root, because its processes have users of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::wait;

/// A running Dovecot without any protocol but that of its auth socket.
#[derive(Debug)]
pub struct Dovecot {
    child: Option<Child>,
    directory: TempDir,
}

impl Dovecot {
    /// Starts one with these users, by name and password.
    ///
    /// # Errors
    /// When it is missing (`cargo xtask setup` installs it) or makes no socket.
    pub fn start(users: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-dovecot-")
            .tempdir()?;
        let path = directory.path();
        // Its processes run as other users.
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
        let lines = users
            .iter()
            .map(|(name, password)| format!("{name}:{{PLAIN}}{password}\n"));
        fs::write(path.join("passwd"), lines.collect::<String>())?;
        fs::set_permissions(path.join("passwd"), fs::Permissions::from_mode(0o644))?;
        fs::write(
            path.join("dovecot.conf"),
            configuration(&path.display().to_string()),
        )?;
        let child = None;
        let mut dovecot = Self { child, directory };
        dovecot.run()?;
        Ok(dovecot)
    }

    /// Starts it again after [`stop`](Self::stop).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn run(&mut self) -> Result<()> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "/usr/sbin/dovecot", "-F", "-c"])
            .arg(self.directory.path().join("dovecot.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("dovecot cannot be started; `cargo xtask setup` installs it")?;
        self.child = Some(child);
        let socket = self.socket();
        let connect = || std::os::unix::net::UnixStream::connect(&socket).ok();
        let waited = wait::until("Dovecot's socket", Duration::from_secs(20), connect);
        waited.with_context(|| self.log()).map(drop)
    }

    /// Ends it, with all of its processes: by itself its auth process would stay until the last
    /// exchange is over.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let id = i32::try_from(child.id()).map(Pid::from_raw);
        if let Ok(id) = id {
            let _ = kill(id, Signal::SIGTERM);
        }
        let _ = child.wait();
        if let Ok(id) = id {
            let _ = killpg(id, Signal::SIGKILL);
        }
    }

    /// Its auth socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("auth-client")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        self.stop();
    }
}

fn configuration(directory: &str) -> String {
    format!(
        "base_dir = {directory}/run\n\
         state_dir = {directory}/run\n\
         log_path = {directory}/log\n\
         protocols =\n\
         ssl = no\n\
         auth_mechanisms = plain login scram-sha-256\n\
         auth_failure_delay = 1 s\n\
         passdb {{\n driver = passwd-file\n args = scheme=PLAIN {directory}/passwd\n}}\n\
         service auth {{\n unix_listener auth-client {{\n path = {directory}/auth-client\n \
         mode = 0600\n }}\n}}\n"
    )
}
