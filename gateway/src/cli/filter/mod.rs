//! `portcullis filter`: the filter in the kernel, without a gate. Attaching and detaching are here;
//! status, events and recent verdicts have files of their own.

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

use super::admin_socket::AdminSocket;
use super::{ConfigFile, EXIT_USAGE};

/// Arguments of `portcullis filter`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The filter stays attached when the gate ends, and works without one. These commands need root (or
CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON). `verdicts` works for the users that `admin_users` and
`admin_groups` name, too, through the gate that runs.

Examples:
  portcullis filter attach -c /etc/portcullis.toml   drop listed sources, without a relay
  portcullis filter status                           packets dropped, by list and by reason
  portcullis filter events                           drops as they happen
  portcullis filter verdicts add 192.0.2.66 --for 1h drop the packets of a source for a while
  portcullis filter detach                           the only way to remove it

Exit codes: 0 good, 1 it failed or there is no filter, 2 the command line or the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What is in force, and the counters
    Status(status::Args),
    /// Dropped packets as they happen: a sample, one line each
    Events(events::Args),
    /// Sources whose packets are dropped for a while: by the relay, or by hand
    Verdicts(verdicts::Args),
    /// Attach the filter of a configuration, or update the attached one
    Attach(AttachArgs),
    /// Detach the filter from its interfaces; with the last one its maps and counters go too
    Detach(DetachArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lists and settings are in force before the first packet reaches the program. A filter that is
attached already is taken over with no packet unfiltered. While a gate runs it holds the filter:
reload the gate instead (SIGHUP), or restart it if the filter was detached meanwhile. Without a gate
the filter does not come back by itself to an interface that is deleted and created again: attach it
again.

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
Works while a gate runs, too: use it when the filter itself causes trouble.

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

/// Selects a filter by its pin path.
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
        Ok(self.find()?.0)
    }

    /// The pin path, and the gate that may hold the filter.
    fn find(&self) -> Result<(PathBuf, Option<AdminSocket>), ExitCode> {
        let path = match (&self.config, &self.pin_path) {
            (Some(file), _) => {
                let config = without_lists(file)?;
                let gate = AdminSocket::of(&config);
                let filter = config.filter.ok_or_else(|| no_filter(file))?;
                return Ok((filter.pin_path, gate));
            }
            (None, Some(path)) => path.clone(),
            (None, None) => PathBuf::from(PIN_PATH),
        };
        Ok((path, Some(AdminSocket::usual())))
    }
}

/// A configuration, without reading its lists.
fn without_lists(file: &Path) -> Result<Config, ExitCode> {
    portcullis::config::load_without_lists(file).map_err(|errors| {
        eprintln!("{errors}");
        AdminSocket::hint(file);
        ExitCode::from(EXIT_USAGE)
    })
}

/// The `[filter]` of a configuration, and the whole configuration, for its lists.
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
        if let Some(found) = filter::attached_filter(path) {
            eprintln!(
                "another version of it has a filter on {}: a start takes it over, and `{}` takes \
                 it off",
                found.interfaces.join(", "),
                found.detach_command()
            );
        }
        let file = config.map_or("FILE".to_owned(), |file| file.display().to_string());
        eprintln!(
            "`portcullis filter attach -c {file}` puts one in place, and so does \
             `portcullis run -c {file}`"
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
    // Before the links are removed, which have the names.
    let to_detach = filter::unconfigured_interfaces(&settings).unwrap_or_default();
    let filter = Filter::attach(&settings, config.policy.lists());
    let filter = filter.map_err(|error| failed(&error, None))?;
    for fault in filter.answer_faults() {
        eprintln!("warning: {fault}");
    }
    if filter::pins_are_private(&settings.pin_path) == Some(true) {
        eprintln!("warning: {PINS_ARE_PRIVATE}");
    }
    attach::print_result(&filter, &settings, &to_detach);
    Ok(ExitCode::SUCCESS)
}

/// Warns of attached filters that the configuration does not name.
fn warn_of_unconfigured(config: &Config) {
    for found in unconfigured(config, true) {
        eprintln!("warning: {}; `{}` takes it off", found.text, found.removal);
    }
}

fn detach(args: &DetachArgs) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    // No advice on how to attach one: the caller wants none.
    filter::detach(&pin_path, &args.interface).map_err(|error| {
        eprintln!("portcullis filter: {error}");
        ExitCode::FAILURE
    })?;
    if args.interface.is_empty() {
        println!("the filter of {} is taken off", pin_path.display());
    } else {
        let rest = match filter::attached_filter(&pin_path) {
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
