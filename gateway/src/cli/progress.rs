//! How far the reading of a list, or other work, has come, on a terminal, for work that takes
//! longer than a second.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use portcullis::lists::format::Progress;

/// Nobody minds waiting this long.
const SILENT: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(100);

/// A line that is written again and again.
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

    /// Shows where the reading of a list of this many octets is.
    pub(super) fn show(&mut self, list: &str, progress: Progress, size: u64) {
        if !self.is_terminal || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + EVERY;
        self.shown = true;
        let _ = write!(stderr(), "\r\x1b[K{}", line(list, progress, size));
    }

    /// Says what is being done.
    pub(super) fn say(&mut self, what: &str) {
        if self.is_terminal && Instant::now() >= self.next {
            self.shown = true;
            let _ = write!(stderr(), "\r\x1b[K{what}");
        }
    }

    /// Takes the line away.
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
    fn a_file_that_grows_meanwhile_is_never_read_beyond_its_whole() {
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
