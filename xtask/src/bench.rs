//! `cargo xtask bench`: builds what is measured, then hands over to `benches`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use portcullis_benches::relay;

use crate::workspace;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// CPU per message beside smtp-sink (accept and discard) and nginx's mail proxy (cut-through)
    ///
    /// The contestants take turns under the same load, smtp-source's. Exit code 0 unless something
    /// broke, so that the figures are seen where they are bad; --enforce makes a missed bar exit 1.
    Relay(Box<relay::Options>),
    /// The XDP filter beside a bare program, hash maps, LPM tries, nftables and xdp-filter:
    /// verdicts, lists, floods
    #[command(disable_help_flag = true)]
    Filter {
        /// Given to the bench, which knows --help, too
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

/// Measures.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    match bench {
        Bench::Relay(mut options) => {
            if options.portcullis.is_none() && !options.peers_only {
                build_gateway()?;
                options.portcullis = Some(workspace::gateway_binary());
            }
            relay::run(&options)
        }
        Bench::Filter { options } => {
            build_gateway()?;
            let mut bench = workspace::cargo();
            bench.args(["run", "--release", "--package", "portcullis-bench-filter"]);
            // The first of two loses: whoever names a binary means it.
            bench
                .args(["--", "--portcullis"])
                .arg(workspace::gateway_binary());
            let status = bench.args(options).status();
            let status = status.context("cannot start cargo")?;
            Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

fn build_gateway() -> Result<()> {
    let built = workspace::build_gateway()
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the release build of portcullis failed");
    Ok(())
}
