//! Where the log goes: to the standard error, as text or JSON, a line at a time.

use std::env;
use std::fmt;

use tracing_subscriber::EnvFilter;

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

/// Starts the log. `RUST_LOG` overrides the level of the configuration, for a closer look at one part.
pub fn start(log: Log) -> Level {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| filter(log.level));
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // A log that is there already stays: there is one per process.
    match log.format {
        LogFormat::Text => {
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

/// What the resolver says about single packets is for a closer look: what follows from it is told by whoever asked.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(match level {
        LogLevel::Error => "error,hickory_proto=off",
        LogLevel::Warn => "warn,hickory_proto=off",
        LogLevel::Info => "info,hickory_proto=off",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    })
}
