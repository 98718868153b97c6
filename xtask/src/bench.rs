//! `cargo xtask bench`: builds what is measured, then hands over to `benches`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use portcullis_benches::{idle, relay, tls};

use crate::workspace;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// CPU per message beside smtp-sink (accept and discard) and nginx's mail proxy (cut-through)
    ///
    /// The contestants take turns under the same load, smtp-source's. Exit code 0 unless something
    /// broke, so that the figures are seen where they are bad; --enforce makes a missed bar exit 1.
    Relay(Box<relay::Options>),
    /// Memory of the gateway per idle session: greeted, after EHLO, after MAIL
    Idle(Box<idle::Options>),
    /// Sessions under STARTTLS beside nginx's mail proxy: CPU per handshake and per message, the
    /// time of other sessions under a flood of handshakes, memory of an idle session
    Tls(Box<tls::Options>),
    /// Instructions of a worker per session, message, recipient and command, also beside another
    /// build
    #[command(disable_help_flag = true)]
    Instructions {
        /// Given to the bench, which knows --help, too
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
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
        Bench::Idle(mut options) => {
            if options.portcullis.is_none() {
                build_gateway()?;
                options.portcullis = Some(workspace::gateway_binary());
            }
            idle::run(&options)
        }
        Bench::Tls(mut options) => {
            if options.portcullis.is_none() {
                build_gateway()?;
                options.portcullis = Some(workspace::gateway_binary());
            }
            tls::run(&options)
        }
        Bench::Instructions { options } => run_package("portcullis-bench-instructions", &options),
        Bench::Filter { options } => {
            build_gateway()?;
            // The first of two loses: a binary that is named on the command line is meant.
            let ours = ["--portcullis".into(), workspace::gateway_binary().into()];
            run_package(
                "portcullis-bench-filter",
                &[&ours, options.as_slice()].concat(),
            )
        }
    }
}

/// Runs a bench that is a program of its own, built for release, and passes its exit code on.
fn run_package(package: &str, options: &[OsString]) -> Result<ExitCode> {
    let mut bench = workspace::cargo();
    bench.args(["run", "--release", "--package", package, "--"]);
    let status = bench.args(options).status().context("cannot start cargo")?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn build_gateway() -> Result<()> {
    let built = workspace::build_gateway()
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the release build of portcullis failed");
    Ok(())
}
