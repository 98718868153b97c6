//! `portcullis lists`: from lists to a snapshot, and what is in it.

mod compile;
mod lookup;
mod stat;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis::config::{self, Config};
use portcullis::lists::file::{self, Fault, Stored};

use super::EXIT_USAGE;

/// Arguments of `portcullis lists`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A snapshot holds all lists as the filter and the policy read them, with their overlaps settled. A
gate compiles its lists by itself, at the start, on SIGHUP and when a file changes, and keeps the
result in STATE_DIR/lists.snapshot; these commands are for looking before, and for machines that
only load.

Examples:
  portcullis lists compile -c /etc/portcullis.toml
  portcullis lists lookup -c /etc/portcullis.toml 192.0.2.1 2001:db8::1
  portcullis lists stat /var/lib/portcullis/lists.snapshot

Exit codes: 0 good, 1 it failed or a list was refused, 2 the command line or the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read the lists, settle their overlaps, and write the snapshot
    Compile(compile::Args),
    /// Which list speaks for an address, and by which prefix
    Lookup(lookup::Args),
    /// What is in a snapshot
    Stat(stat::Args),
}

/// Does what the command line says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Compile(args) => compile::run(args),
        Command::Lookup(args) => lookup::run(args),
        Command::Stat(args) => stat::run(args),
    };
    done.unwrap_or_else(|code| code)
}

/// A configuration, without reading its lists.
fn settings(path: &Path) -> Result<Config, ExitCode> {
    config::load_without_lists(path).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(EXIT_USAGE)
    })
}

/// Where a gate keeps its snapshot: the one that it loads, or that of the last compile.
fn snapshot_of(config: &Config) -> PathBuf {
    let given = config.lists.sources.snapshot().map(Path::to_owned);
    given.unwrap_or_else(|| config.saved_lists())
}

/// Opens the snapshot that is named, or that of the configuration, or that of a gate with the
/// default directory.
fn open(snapshot: Option<&Path>, config: Option<&Path>) -> Result<Stored, ExitCode> {
    let path = match (snapshot, config) {
        (Some(snapshot), _) => snapshot.to_owned(),
        (None, Some(file)) => snapshot_of(&settings(file)?),
        (None, None) => snapshot_of(&Config::default_gate()),
    };
    let stored = Stored::open(&path).map_err(|error| {
        eprintln!("portcullis lists: {error}");
        if is_not_there(&error) {
            let file = config.map_or_else(|| "FILE".into(), Path::to_string_lossy);
            eprintln!("`portcullis lists compile -c {file}` makes it");
        }
        ExitCode::FAILURE
    })?;
    if let Some(list) = changed_since(&stored) {
        eprintln!(
            "warning: {} has changed since {} was compiled",
            list.display(),
            path.display()
        );
    }
    Ok(stored)
}

fn is_not_there(error: &file::Error) -> bool {
    matches!(&error.fault, Fault::Io(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// A file that is newer than what was compiled from it.
fn changed_since(stored: &Stored) -> Option<PathBuf> {
    let about = stored.about();
    let files = about.lists.iter().filter_map(|list| list.file.as_ref());
    let mut newer = files.filter(|file| {
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        let since = modified
            .ok()
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        since.is_some_and(|since| since.as_secs() > about.compiled_at)
    });
    newer.next().cloned()
}
