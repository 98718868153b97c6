//! The clock of the program: CLOCK_MONOTONIC, in nanoseconds.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Now.
pub(super) fn now_ns() -> u64 {
    let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    in_ns(since)
}

/// A duration in nanoseconds, as the program counts it; the largest one stands for ever.
pub(super) fn in_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
