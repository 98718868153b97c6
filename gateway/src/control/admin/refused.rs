//! Callers that were refused: counted, and in the log at most once a minute. A caller that may do
//! nothing else does not fill the log, either.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of the log.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// What was refused since the start.
#[derive(Debug, Default)]
pub(in super::super) struct Refused {
    total: AtomicU64,
    /// When the last line was written, and how many had been refused by then.
    line: Mutex<Option<(Instant, u64)>>,
}

impl Refused {
    /// Counts a caller that is refused. If a line is due, gives how many were since the last one,
    /// this one included.
    pub(super) fn count(&self, now: Instant) -> Option<u64> {
        let total = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match *line {
            Some((then, _)) if now.saturating_duration_since(then) < LINE_EVERY => return None,
            Some((_, before)) => total.saturating_sub(before),
            None => total,
        };
        *line = Some((now, total));
        Some(number)
    }

    /// How many.
    pub(in super::super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_tries_all_the_time_is_one_line_a_minute() {
        let (refused, now) = (Refused::default(), Instant::now());
        assert_eq!(refused.count(now), Some(1));
        for _ in 0..1_000 {
            assert_eq!(refused.count(now + LINE_EVERY / 2), None);
        }
        assert_eq!(refused.count(now + LINE_EVERY), Some(1_001));
        assert_eq!(refused.count(now + LINE_EVERY), None);
        assert_eq!(refused.total(), 1_003);
    }
}
