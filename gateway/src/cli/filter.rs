//! `portcullis filter`: the in-kernel half by itself.

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use portcullis::config::{FilterMode, PIN_PATH};
use portcullis::control::lists::hold_against_last;
use portcullis::filter::{self, Filter, Status};

use super::table::Table;
use super::{ConfigFile, EXIT_USAGE, finished};

/// Between two looks of `filter status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `portcullis filter`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The filter stays in place when the gate ends, and works without one. These commands need root (or
CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON).

Examples:
  portcullis filter attach -c /etc/portcullis.toml   drop listed sources, without a relay
  portcullis filter status                           who was dropped, by which list
  portcullis filter detach                           the only way to take it away

Exit codes: 0 good, 1 it failed or there is no filter, 2 the command line or the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What is in force and what was counted
    Status(StatusArgs),
    /// Put the filter of a configuration in place, or bring the one in place in line with it
    Attach(AttachArgs),
    /// Take the filter off its interfaces; on the last one its maps and counters go too
    Detach(DetachArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Packets are counted since the filter was put in place; a reload or a restart of the gate keeps the
counts of lists that keep their name and action.

Examples:
  portcullis filter status -c /etc/portcullis.toml
  portcullis filter status --watch
  portcullis filter status --json | jq '.lists[] | {name, dropped_packets}'")]
struct StatusArgs {
    #[command(flatten)]
    place: Place,
    /// Print it as JSON: `interfaces` and `lists`, with their counts
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted; with --json one line each
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lists and settings are in force before the first packet meets the program. A filter that is in place
already is taken over with no packet unfiltered. While a gate runs it holds the filter: reload the
gate instead (SIGHUP), or restart it if the filter was detached under it.

Example:
  sudo portcullis filter attach -c /etc/portcullis.toml")]
struct AttachArgs {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Works while a gate runs, too: it is the way out when the filter is the trouble.

Examples:
  sudo portcullis filter detach
  sudo portcullis filter detach -c /etc/portcullis.toml --interface eth0")]
struct DetachArgs {
    #[command(flatten)]
    place: Place,
    /// From this interface only; may be given more than once
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
}

/// Which filter is meant.
#[derive(Debug, clap::Args)]
struct Place {
    /// The configuration file, for its filter.pin_path; without one, the default: /sys/fs/bpf/portcullis
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    fn pin_path(&self) -> Result<PathBuf, ExitCode> {
        match &self.config {
            None => Ok(PathBuf::from(PIN_PATH)),
            Some(file) => Ok(without_lists(file)?.pin_path),
        }
    }
}

/// The `[filter]` of a configuration, without reading its lists.
fn without_lists(file: &Path) -> Result<portcullis::config::Filter, ExitCode> {
    let config = portcullis::config::load_without_lists(file).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(EXIT_USAGE)
    })?;
    config.filter.ok_or_else(|| no_filter(file))
}

/// The `[filter]` of a configuration, with all of it for its lists.
fn settings(
    file: &Path,
) -> Result<(portcullis::config::Filter, portcullis::config::Config), ExitCode> {
    let config = ConfigFile {
        config: Some(file.to_owned()),
    };
    let config = config.load_for_filter()?;
    let settings = config.filter.clone().ok_or_else(|| no_filter(file))?;
    Ok((settings, config))
}

fn no_filter(file: &Path) -> ExitCode {
    eprintln!("portcullis filter: {} has no [filter]", file.display());
    ExitCode::from(EXIT_USAGE)
}

/// Does what the command line says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Status(args) => status(args),
        Command::Attach(args) => attach(args),
        Command::Detach(args) => detach(args),
    };
    done.unwrap_or_else(|code| code)
}

fn failed(error: &filter::Error, config: Option<&Path>) -> ExitCode {
    eprintln!("portcullis filter: {error}");
    if matches!(
        error,
        filter::Error::NotAttached {
            interface: None,
            ..
        }
    ) {
        let file = config.map_or("FILE".to_owned(), |file| file.display().to_string());
        eprintln!(
            "`portcullis filter attach -c {file}` puts one in place, and so does `portcullis run -c {file}`"
        );
    }
    ExitCode::FAILURE
}

fn status(args: &StatusArgs) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    let mut stdout = io::stdout().lock();
    loop {
        let config = args.place.config.as_deref();
        let status = filter::status(&pin_path).map_err(|error| failed(&error, config))?;
        let printed = print(args, &status, &mut stdout);
        if !args.watch || printed.is_err() {
            return Ok(finished(printed));
        }
        thread::sleep(WATCH_EVERY);
    }
}

fn print(args: &StatusArgs, status: &Status, out: &mut io::StdoutLock<'_>) -> io::Result<()> {
    if args.json {
        let write = if args.watch {
            serde_json::to_writer
        } else {
            serde_json::to_writer_pretty
        };
        write(&mut *out, status)?;
        writeln!(out)?;
    } else {
        if args.watch && out.is_terminal() {
            // Home, and what was there is gone.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        print_tables(status, out)?;
    }
    out.flush()
}

fn print_tables(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let ports: Vec<String> = status.ports.iter().map(u16::to_string).collect();
    writeln!(
        out,
        "{}: {}, ports {}, unlisted sources {}\n",
        status.pin_path.display(),
        status.mode,
        ports.join(" "),
        status.unlisted
    )?;
    let headings = [
        "interface",
        "role",
        "xdp mode",
        "passed",
        "permitted",
        "dropped: listed",
        "unlisted",
        "monitored",
        "other",
    ];
    let mut interfaces = Table::new(headings);
    for interface in &status.interfaces {
        let mode = if interface.attached {
            interface.xdp_mode
        } else {
            "detached"
        };
        interfaces.row([
            interface.name.clone(),
            interface.role.to_owned(),
            mode.to_owned(),
            interface.passed.to_string(),
            interface.permitted.to_string(),
            interface.dropped.listed.to_string(),
            interface.dropped.unlisted.to_string(),
            (interface.monitored.listed + interface.monitored.unlisted).to_string(),
            interface.other.to_string(),
        ]);
    }
    interfaces.write(out)?;
    if status.lists.is_empty() {
        return writeln!(out, "\nno lists");
    }
    writeln!(out)?;
    let mut lists = Table::new([
        "list",
        "action",
        "entries",
        "dropped",
        "permitted",
        "monitored",
    ]);
    for list in &status.lists {
        lists.row([
            list.name.clone(),
            list.action.to_owned(),
            list.entries.to_string(),
            list.dropped_packets.to_string(),
            list.permitted_packets.to_string(),
            list.monitored_packets.to_string(),
        ]);
    }
    lists.write(out)
}

fn attach(args: &AttachArgs) -> Result<ExitCode, ExitCode> {
    let (settings, mut config) = settings(&args.config)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    for line in hold_against_last(&mut config) {
        eprintln!("portcullis filter: {line}");
    }
    if settings.mode == FilterMode::Off {
        eprintln!(
            "portcullis filter: filter.mode is \"off\" in {}; set it to \"enforce\" or \"monitor\"",
            args.config.display()
        );
        return Err(ExitCode::from(EXIT_USAGE));
    }
    Filter::attach(&settings, config.policy.lists()).map_err(|error| failed(&error, None))?;
    let names: Vec<&str> = settings
        .interfaces
        .iter()
        .map(|interface| &*interface.name)
        .collect();
    println!("the filter is in place on {}", names.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn detach(args: &DetachArgs) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    filter::detach(&pin_path, &args.interface)
        .map_err(|error| failed(&error, args.place.config.as_deref()))?;
    println!("the filter of {} is taken off", pin_path.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use portcullis::filter::{InterfaceStatus, ListStatus, Reasons};

    use super::*;

    #[test]
    fn every_count_stands_under_its_heading() {
        let status = Status {
            pin_path: PIN_PATH.into(),
            layout: 1,
            mode: "enforce",
            unlisted: "pass",
            ports: vec![25, 587],
            generation: 2,
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                role: "edge",
                xdp_mode: "driver",
                attached: true,
                passed: 1_000_000,
                permitted: 2,
                other: 3,
                dropped: Reasons {
                    listed: 4,
                    unlisted: 5,
                },
                monitored: Reasons {
                    listed: 6,
                    unlisted: 7,
                },
            }],
            lists: vec![ListStatus {
                name: "spamhaus-drop".to_owned(),
                action: "drop",
                entries: 8,
                dropped_packets: 4,
                permitted_packets: 0,
                monitored_packets: 6,
            }],
        };
        let mut written = Vec::new();
        print_tables(&status, &mut written).unwrap();
        let expected = "\
/sys/fs/bpf/portcullis: enforce, ports 25 587, unlisted sources pass

interface  role  xdp mode   passed  permitted  dropped: listed  unlisted  monitored  other
eth0       edge  driver    1000000          2                4         5         13      3

list           action  entries  dropped  permitted  monitored
spamhaus-drop  drop          8        4          0          6
";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }
}
