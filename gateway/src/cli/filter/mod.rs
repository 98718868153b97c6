//! `portcullis filter`: the in-kernel half by itself. Putting it in place and taking it away are
//! here, looking at it and its recent verdicts have files of their own.

mod attach;
mod events;
mod status;
mod verdicts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis::config::{Config, FilterMode, PIN_PATH};
use portcullis::control::interfaces::{PINS_ARE_PRIVATE, unconfigured};
use portcullis::control::lists::{self, Started};
use portcullis::filter::{self, Filter};
use portcullis::printable::printable;

use super::{ConfigFile, EXIT_USAGE};

/// Arguments of `portcullis filter`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The filter stays in place when the gate ends, and works without one. These commands need root (or
CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON).

Examples:
  portcullis filter attach -c /etc/portcullis.toml   drop listed sources, without a relay
  portcullis filter status                           who was dropped, by which list
  portcullis filter events                           drops as they happen
  portcullis filter verdicts add 192.0.2.66 --for 1h keep somebody out for a while
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
    Status(status::Args),
    /// What is dropped while it happens: a sample, one line each
    Events(events::Args),
    /// Sources that are kept out for a while: by the relay, or by hand
    Verdicts(verdicts::Args),
    /// Put the filter of a configuration in place, or bring the one in place in line with it
    Attach(AttachArgs),
    /// Take the filter off its interfaces; on the last one its maps and counters go too
    Detach(DetachArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lists and settings are in force before the first packet meets the program. A filter that is in place
already is taken over with no packet unfiltered. While a gate runs it holds the filter: reload the
gate instead (SIGHUP), or restart it if the filter was detached under it. Without a gate the filter
does not come back by itself to an interface that is deleted and made again: attach it again.

Examples:
  sudo portcullis filter attach -c /etc/portcullis.toml --dry-run
  sudo portcullis filter attach -c /etc/portcullis.toml")]
struct AttachArgs {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
    /// Say what would be done, or what is in the way, and change nothing
    #[arg(long)]
    dry_run: bool,
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
    /// The configuration file, for its filter.pin_path; without one, the default:
    /// /sys/fs/bpf/portcullis
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The path itself, for a filter that no configuration names any more
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pin_path: Option<PathBuf>,
}

impl Place {
    fn pin_path(&self) -> Result<PathBuf, ExitCode> {
        match (&self.config, &self.pin_path) {
            (Some(file), _) => Ok(without_lists(file)?.pin_path),
            (None, Some(path)) => Ok(path.clone()),
            (None, None) => Ok(PathBuf::from(PIN_PATH)),
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
) -> Result<(portcullis::config::Filter, portcullis::config::Pending), ExitCode> {
    let config = ConfigFile {
        config: Some(file.to_owned()),
    };
    let pending = config.read_for_start()?;
    let settings = pending.config.filter.clone().ok_or_else(|| {
        let code = no_filter(file);
        warn_of_unconfigured(&pending.config);
        code
    })?;
    Ok((settings, pending))
}

fn no_filter(file: &Path) -> ExitCode {
    eprintln!("portcullis filter: {} has no [filter]", file.display());
    ExitCode::from(EXIT_USAGE)
}

/// Does what the command line says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Status(args) => status::run(args),
        Command::Events(args) => events::run(args),
        Command::Verdicts(args) => verdicts::run(args),
        Command::Attach(args) => attach(args),
        Command::Detach(args) => detach(args),
    };
    done.unwrap_or_else(|code| code)
}

fn failed(error: &filter::Error, config: Option<&Path>) -> ExitCode {
    eprintln!("portcullis filter: {}", printable(&error.to_string()));
    if let filter::Error::NotAttached {
        path,
        interface: None,
    } = error
    {
        if let Some(found) = filter::in_place_under(path) {
            eprintln!(
                "another version of it has a filter on {}: a start takes it over, and `{}` takes it off",
                found.interfaces.join(", "),
                found.removal()
            );
        }
        let file = config.map_or("FILE".to_owned(), |file| file.display().to_string());
        eprintln!(
            "`portcullis filter attach -c {file}` puts one in place, and so does `portcullis run -c {file}`"
        );
    }
    ExitCode::FAILURE
}

fn attach(args: &AttachArgs) -> Result<ExitCode, ExitCode> {
    let (settings, pending) = settings(&args.config)?;
    let Started { config, errors } = lists::start(pending).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::FAILURE
    })?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    for line in &errors {
        eprintln!("portcullis filter: {line}");
    }
    if settings.mode == FilterMode::Off {
        eprintln!(
            "portcullis filter: filter.mode is \"off\" in {}; set it to \"enforce\" or \"monitor\"",
            args.config.display()
        );
        warn_of_unconfigured(&config);
        return Err(ExitCode::from(EXIT_USAGE));
    }
    warn_of_unconfigured(&config);
    if args.dry_run {
        return attach::dry_run(&settings);
    }
    // The names are lost with the links.
    let let_go = filter::superfluous(&settings).unwrap_or_default();
    let filter = Filter::attach(&settings, config.policy.lists());
    let filter = filter.map_err(|error| failed(&error, None))?;
    for fault in filter.answer_faults() {
        eprintln!("warning: {fault}");
    }
    if filter::pins_are_private(&settings.pin_path) == Some(true) {
        eprintln!("warning: {PINS_ARE_PRIVATE}");
    }
    attach::print_result(&filter, &settings, &let_go);
    Ok(ExitCode::SUCCESS)
}

/// What still drops although the configuration does not say so.
fn warn_of_unconfigured(config: &Config) {
    for found in unconfigured(config, true) {
        eprintln!("warning: {}; `{}` takes it off", found.text, found.removal);
    }
}

fn detach(args: &DetachArgs) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    // There is nothing to advise: whoever wants none has none.
    filter::detach(&pin_path, &args.interface).map_err(|error| {
        eprintln!("portcullis filter: {error}");
        ExitCode::FAILURE
    })?;
    if args.interface.is_empty() {
        println!("the filter of {} is taken off", pin_path.display());
    } else {
        let rest = match filter::in_place_under(&pin_path) {
            Some(_) => "",
            None => "; it was on no other, so its maps and counters are gone, too",
        };
        println!(
            "the filter of {} is taken off {}{rest}",
            pin_path.display(),
            args.interface.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}
