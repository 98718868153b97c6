//! The load: one run of `smtp-source`.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{Privileges, Running};

/// Octets of a message's body.
pub(crate) const MESSAGE_LEN: u32 = 1024;
/// A turn takes seconds; one that takes this long hangs.
const TURN_TIME_MAX: Duration = Duration::from_secs(120);

/// What `smtp-source` is to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) messages: u32,
    pub(crate) sessions: u32,
    /// Many messages per connection, not one.
    pub(crate) keep_connections: bool,
}

impl Load {
    /// Sends it all and returns how long that took.
    ///
    /// `smtp-source` ends with an error at the first reply that is not the one it expects, so
    /// success means that every message was answered with a 250.
    pub(crate) fn run(self, to: SocketAddrV4, directory: &Path) -> Result<Duration> {
        let sessions = self.sessions.min(self.messages).to_string();
        let messages = self.messages.to_string();
        let len = MESSAGE_LEN.to_string();
        let to = to.to_string();
        let mut args = vec!["-s", &sessions, "-m", &messages, "-l", &len];
        args.extend(["-M", "load.bench.example", "-f", "sender@bench.example"]);
        args.extend(["-t", "recipient@bench.example"]);
        if self.keep_connections {
            args.push("-d");
        }
        args.push(&to);
        let start = Instant::now();
        let mut source = Running::start(
            "smtp-source",
            "smtp-source",
            &args,
            Privileges::Dropped,
            directory,
        )?;
        let status = source.wait(TURN_TIME_MAX)?;
        let elapsed = start.elapsed();
        if !status.success() {
            bail!("smtp-source ended ({status})\n{}", source.log_tail());
        }
        Ok(elapsed)
    }
}
