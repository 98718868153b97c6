//! `portcullis lists stat`: what is in a snapshot. Only its description is read.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis::lists::file::Stored;
use serde::Serialize;

use super::super::finished;
use super::super::table::Table;
use super::open;

/// Arguments of `portcullis lists stat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portcullis lists stat -c /etc/portcullis.toml
  portcullis lists stat lists.snapshot --json | jq '.lists[] | {name, entries}'")]
pub(super) struct Args {
    /// A configuration: the snapshot that it loads, or that of the last compile in its state_dir
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The snapshot, if it is not that of the configuration
    #[arg(value_name = "SNAPSHOT", conflicts_with = "config")]
    snapshot: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What a snapshot says of itself.
#[derive(Serialize)]
struct Stat {
    file: PathBuf,
    /// Of the lines.
    layout: u32,
    compiled_at: String,
    /// Of the lines of permit and drop lists, which go into the kernel.
    filter_octets: u64,
    /// Of the lines of reject lists.
    reject_octets: u64,
    lists: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    action: &'static str,
    entries: u64,
    ipv4_entries: u64,
    ipv6_entries: u64,
    file: Option<PathBuf>,
}

/// Prints it.
pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let stored = open(args.snapshot.as_deref(), args.config.as_deref())?;
    let stat = Stat::of(&stored);
    let mut stdout = io::stdout().lock();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut stdout, &stat)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        print(&stat, &mut stdout)
    };
    Ok(finished(printed))
}

impl Stat {
    fn of(stored: &Stored) -> Stat {
        let about = stored.about();
        let (filter_octets, reject_octets) = stored.sizes();
        let compiled_at = i64::try_from(about.compiled_at).ok();
        let compiled_at = compiled_at.and_then(|at| jiff::Timestamp::from_second(at).ok());
        let lists = about.lists.iter().map(|list| Row {
            name: list.name.clone(),
            action: list.action.as_str(),
            entries: list.entries,
            ipv4_entries: list.entries.saturating_sub(list.ipv6_entries),
            ipv6_entries: list.ipv6_entries,
            file: list.file.clone(),
        });
        Stat {
            file: stored.path().to_owned(),
            layout: portcullis_ebpf_common::snapshot::VERSION,
            compiled_at: compiled_at.map_or_else(String::new, |at| at.to_string()),
            filter_octets,
            reject_octets,
            lists: lists.collect(),
        }
    }
}

fn print(stat: &Stat, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{}: compiled at {}, layout {}, {:.1} MB to permit and drop, {:.1} MB to reject\n",
        stat.file.display(),
        stat.compiled_at,
        stat.layout,
        stat.filter_octets as f64 / 1e6,
        stat.reject_octets as f64 / 1e6
    )?;
    let mut table = Table::new(["list", "action", "entries", "ipv4", "ipv6", "file"]);
    for row in &stat.lists {
        let file = row.file.as_ref().map(|file| file.display().to_string());
        table.row([
            row.name.clone(),
            row.action.to_owned(),
            row.entries.to_string(),
            row.ipv4_entries.to_string(),
            row.ipv6_entries.to_string(),
            file.unwrap_or_default(),
        ]);
    }
    table.write(out)
}
