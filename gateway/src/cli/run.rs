//! `portcullis run`: the gate.

use std::process::ExitCode;

use portcullis::control;

use super::ConfigFile;

/// Arguments of `portcullis run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signals:
  SIGHUP   read the configuration and its lists again; a bad one changes nothing and says why
  SIGTERM  accept no more, finish what is in flight (limits.shutdown_timeout), 421 to the rest;
           a second one stops at once. The filter stays in place: see `portcullis filter detach`

Examples:
  portcullis run                             try it: swaks --server 127.0.0.1:2525 --to you@example
  sudo portcullis run -c /etc/portcullis.toml")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs the gate until a signal stops it.
pub(crate) fn run(args: &Args) -> ExitCode {
    let pending = match args.config.read_for_start() {
        Ok(pending) => pending,
        Err(code) => return code,
    };
    let log_level = control::log::start(pending.config.log);
    match control::serve::serve(pending, log_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis: {error}");
            ExitCode::FAILURE
        }
    }
}
