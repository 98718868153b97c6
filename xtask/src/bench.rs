//! `cargo xtask bench`: builds what is measured, then hands over to `benches`.

use std::process::ExitCode;

use anyhow::Result;
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
                options.portcullis = Some(workspace::build_gateway()?);
            }
            relay::run(&options)
        }
    }
}
