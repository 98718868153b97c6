//! Waiting for something to become true, with a bound on every wait.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

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
