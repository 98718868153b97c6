//! `cargo xtask bench`: builds what is measured, then hands over to `benches`.

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
    /// The contestants take turns under the same load, smtp-source's. Exit code 0 unless something broke, so that the
    /// figures are seen where they are bad; --enforce makes a missed bar exit 1.
    Relay(Box<relay::Options>),
}

/// Measures.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    match bench {
        Bench::Relay(mut options) => {
            if options.portcullis.is_none() && !options.peers_only {
                let built = workspace::build_gateway()
                    .status()
                    .context("cannot start cargo")?;
                ensure!(built.success(), "the release build of portcullis failed");
                options.portcullis = Some(workspace::gateway_binary());
            }
            relay::run(&options)
        }
    }
}
