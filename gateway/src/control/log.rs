//! Where the log goes: to the standard error, as text or JSON, a line for each event. What has
//! several lines of its own (what the kernel's verifier says, for one) is put into one: a log is
//! read by the line, by people and by programs.

use std::env;
use std::fmt;
use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat, LogLevel};

/// The level of the running log.
pub struct Level(Box<dyn Fn(EnvFilter) -> bool + Send + Sync>);

impl Level {
    /// For tests, in which nothing is logged.
    #[cfg(test)]
    pub(super) fn of_no_log() -> Self {
        Self(Box::new(|_| true))
    }

    /// Changes the level, unless `RUST_LOG` says it.
    pub fn set(&self, level: LogLevel) {
        if env::var_os(EnvFilter::DEFAULT_ENV).is_none() && !(self.0)(filter(level)) {
            tracing::warn!("the level of the log cannot be changed any more");
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Level")
    }
}

/// Starts the log. `RUST_LOG` overrides the level of the configuration, to debug one part.
pub fn start(log: Log) -> Level {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| filter(log.level));
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // A log that is there already stays: there is one per process.
    match log.format {
        LogFormat::Text => {
            let lines = lines.with_writer(StandardError);
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Level(Box::new(move |filter| handle.reload(filter).is_ok()))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true);
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Level(Box::new(move |filter| handle.reload(filter).is_ok()))
        }
    }
}

/// The standard error, to which every write is an event of the log and becomes a line.
struct StandardError;

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = OneLine<io::StderrLock<'static>>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(io::stderr().lock())
    }
}

/// Writes what it is given as one line.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if text.contains(&b'\n') {
            let lines = text.split(|octet| *octet == b'\n');
            let lines = lines
                .map(<[u8]>::trim_ascii)
                .filter(|line| !line.is_empty());
            let mut joined = lines.collect::<Vec<_>>().join(&b" | "[..]);
            joined.push(b'\n');
            self.0.write_all(&joined)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What the resolver says about single packets is for debugging: its caller logs what follows.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(match level {
        LogLevel::Error => "error,hickory_proto=off",
        LogLevel::Warn => "warn,hickory_proto=off",
        LogLevel::Info => "info,hickory_proto=off",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_several_lines_is_one_line_of_the_log() {
        let mut written = OneLine(Vec::new());
        let events = [
            "WARN plain\n",
            "ERROR refused:\n  R0 !read_ok\n\n  see /tmp/log\n",
            "no end",
        ];
        for event in events {
            written.write_all(event.as_bytes()).unwrap();
        }
        let expected = "WARN plain\nERROR refused: | R0 !read_ok | see /tmp/log\nno end";
        assert_eq!(String::from_utf8(written.0).unwrap(), expected);
    }
}
