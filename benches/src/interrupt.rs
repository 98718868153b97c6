//! Ctrl-C during a run: servers are stopped and temporary files removed, as at any other end of a
//! run.
//!
//! The signals are blocked and a thread waits for them; code that waits for anything asks [`check`]
//! now and then. So the end comes as an ordinary error up the stack, and destructors do the
//! clearing up. Rejected: a signal handler, which may do next to nothing and needs unsafe code.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

/// Makes SIGINT, SIGTERM and SIGHUP set a flag. To be called before any other thread is started.
///
/// # Errors
/// If the kernel refuses, which it has no reason to.
pub fn watch() -> Result<()> {
    let signals = ending_signals();
    signals.thread_block()?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Fails once one of the signals has come.
///
/// # Errors
/// "interrupted".
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Runs something that starts a process, with the signals unblocked: a child inherits what is
/// blocked, and one that cannot hear SIGTERM cannot be stopped politely.
///
/// # Errors
/// If the kernel refuses to change the mask.
pub fn unblocked<T>(start: impl FnOnce() -> T) -> Result<T> {
    let before = SigSet::thread_get_mask()?;
    ending_signals().thread_unblock()?;
    let started = start();
    before.thread_set_mask()?;
    Ok(started)
}
