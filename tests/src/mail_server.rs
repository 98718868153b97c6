//! A real Postfix as a next hop, with a configuration, a queue and mailboxes of its own, ended with
//! the test. It has to be started as root, because its processes have users of their own.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

use crate::{machine, wait};

/// A running Postfix that keeps all mail.
#[derive(Debug)]
pub struct MailServer {
    directory: TempDir,
    addresses: Vec<SocketAddr>,
}

impl MailServer {
    /// Starts one whose configuration ends with `main`, with a server of SMTP for each of
    /// `services`, which are options of its own: `smtpd_tls_security_level=may ...`. `@DIR@` stands
    /// for a directory that all users can read, which `prepare` may write into before the start.
    ///
    /// # Errors
    /// When it is missing (`cargo xtask setup` installs it) or does not listen.
    pub fn start(
        main: &str,
        services: &[&[&str]],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-postfix-")
            .tempdir()?;
        let path = directory.path();
        let shown = path.display().to_string();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        for name in ["conf", "spool", "data", "mail"] {
            fs::create_dir(path.join(name))?;
        }
        give(&path.join("data"), "postfix")?;
        let mailbox_owner = give(&path.join("mail"), "mail")?;
        prepare(path)?;
        let mut addresses = Vec::new();
        let mut master = String::new();
        for options in services {
            let address = machine::free_address()?;
            addresses.push(address);
            master.push_str(&format!("{address} inet n - n - - smtpd\n"));
            for option in *options {
                master.push_str(&format!("  -o {}\n", option.replace("@DIR@", &shown)));
            }
        }
        master.push_str(MASTER);
        let main = format!("{}{main}\n", configuration(&shown, mailbox_owner));
        fs::write(path.join("conf/main.cf"), main.replace("@DIR@", &shown))?;
        fs::write(path.join("conf/master.cf"), master)?;
        let server = Self {
            directory,
            addresses,
        };
        server.command("start")?;
        for address in &server.addresses {
            let connect = || TcpStream::connect_timeout(address, Duration::from_secs(1)).ok();
            wait::until("Postfix to listen", Duration::from_secs(20), connect)
                .with_context(|| server.log())?;
        }
        Ok(server)
    }

    fn command(&self, command: &str) -> Result<()> {
        let output = Command::new("/usr/sbin/postfix")
            .arg("-c")
            .arg(self.directory.path().join("conf"))
            .arg(command)
            .stdin(Stdio::null())
            .output()
            .context("postfix cannot be started; `cargo xtask setup` installs it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "postfix {command}: {said}");
        Ok(())
    }

    /// Where its services listen, in their order.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The messages in its mailbox.
    ///
    /// # Errors
    /// When the mailbox cannot be read.
    pub fn messages(&self) -> Result<Vec<String>> {
        let box_ = self.path().join("mail/box/new");
        if !box_.exists() {
            return Ok(Vec::new());
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(box_)? {
            files.push(entry?.path());
        }
        files.sort();
        let read = |file: &PathBuf| Ok(String::from_utf8_lossy(&fs::read(file)?).into_owned());
        files.iter().map(read).collect()
    }

    /// The message with this subject, once it is there.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_for(&self, subject: &str) -> Result<String> {
        let line = format!("Subject: {subject}\n");
        let found = || {
            let messages = self.messages().ok()?;
            messages.into_iter().find(|text| text.contains(&line))
        };
        wait::until("a message in the mailbox", Duration::from_secs(20), found)
            .with_context(|| self.log())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        // It ends its own processes alone: those of its own queue.
        let _ = self.command("stop");
    }
}

fn give(path: &Path, user: &str) -> Result<Uid> {
    let user = User::from_name(user)?.context("there is no such user")?;
    chown(path, Some(user.uid), None)?;
    Ok(user.uid)
}

fn configuration(directory: &str, mailbox_owner: Uid) -> String {
    format!(
        "compatibility_level = 3.6\n\
         queue_directory = {directory}/spool\n\
         data_directory = {directory}/data\n\
         command_directory = /usr/sbin\n\
         daemon_directory = /usr/lib/postfix/sbin\n\
         mail_owner = postfix\n\
         setgid_group = postdrop\n\
         myhostname = hop.example\n\
         mydestination =\n\
         mynetworks = 127.0.0.0/8\n\
         inet_protocols = ipv4\n\
         local_recipient_maps =\n\
         alias_maps =\n\
         alias_database =\n\
         smtpd_peername_lookup = no\n\
         smtpd_relay_restrictions = permit_mynetworks, reject\n\
         virtual_mailbox_domains = static:all\n\
         virtual_mailbox_base = {directory}/mail\n\
         virtual_mailbox_maps = static:box/\n\
         virtual_uid_maps = static:{mailbox_owner}\n\
         virtual_gid_maps = static:{mailbox_owner}\n\
         virtual_minimum_uid = 1\n\
         maillog_file = {directory}/log\n\
         maillog_file_prefixes = {directory}\n\
         smtpd_tls_received_header = yes\n\
         smtpd_sasl_authenticated_header = yes\n"
    )
}

const MASTER: &str = "\
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
";
