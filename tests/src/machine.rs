//! What a test takes from the machine it runs on: a free port, enough open files, small pages.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A loopback address with a port that is free just now.
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

/// Lets what this process starts have no huge pages: with them memory comes in steps of 2 MiB,
/// which hide what a session takes.
///
/// # Errors
/// When the kernel refuses it.
pub fn forbid_huge_pages() -> Result<()> {
    prctl::set_thp_disable(true).context("turning huge pages off")
}
