//! The progress of reading a list, or of other work, on a terminal. It shows after one second.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use portcullis::lists::format::Progress;

/// Time without a progress line.
const SILENT: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(100);

/// A progress line, rewritten in place.
pub(super) struct Bar {
    is_terminal: bool,
    next: Instant,
    shown: bool,
}

impl Bar {
    pub(super) fn new() -> Bar {
        Bar {
            is_terminal: stderr().is_terminal(),
            next: Instant::now() + SILENT,
            shown: false,
        }
    }

    /// Shows the progress of a list of `size` bytes.
    pub(super) fn show(&mut self, list: &str, progress: Progress, size: u64) {
        if !self.is_terminal || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + EVERY;
        self.shown = true;
        let _ = write!(stderr(), "\r\x1b[K{}", line(list, progress, size));
    }

    /// Shows what is being done.
    pub(super) fn say(&mut self, what: &str) {
        if self.is_terminal && Instant::now() >= self.next {
            self.shown = true;
            let _ = write!(stderr(), "\r\x1b[K{what}");
        }
    }

    /// Removes the line.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(list: &str, progress: Progress, size: u64) -> String {
    let percent = progress.octets.saturating_mul(100) / size.max(1);
    format!(
        "{list}: {:.1} of {:.1} MB ({}%), {} entries",
        progress.octets as f64 / 1e6,
        size as f64 / 1e6,
        percent.min(100),
        progress.entries
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_file_that_grows_meanwhile_stops_at_100_percent() {
        let progress = Progress {
            octets: 3_000_000,
            entries: 200_000,
        };
        assert_eq!(
            line("drop", progress, 2_000_000),
            "drop: 3.0 of 2.0 MB (100%), 200000 entries"
        );
        assert!(line("drop", progress, 0).contains("(100%)"));
    }
}
