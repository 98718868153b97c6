//! Looking at processes and waiting for things, with a bound on every wait.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Waits until `ready` gives something, at most `limit`; `what` is for the error.
///
/// # Errors
/// When the time is over.
pub fn until<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = ready() {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Resident memory of a process in KiB (`VmRSS`).
///
/// # Errors
/// When the process is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that a process has had, in KiB (`VmHWM`).
///
/// # Errors
/// When the process is gone.
pub fn resident_most_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.with_context(|| format!("no {field}"))?
        .trim()
        .parse()
        .context("no number")
}

/// A loopback address with a port that nobody has just now.
///
/// # Errors
/// When there are no ports left.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Lets this process, and what it starts, have `count` open files.
///
/// # Errors
/// When the hard limit is lower and this process may not raise it.
pub fn allow_open_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).with_context(|| {
            format!("cannot have {count} open files (now {soft}, at most {hard})")
        })?;
    }
    Ok(())
}
