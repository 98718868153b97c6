//! The commands. Each has a file with its arguments and its help; its work is in the library.

mod admin_socket;
mod check;
mod demo;
mod doctor;
mod explain;
mod filter;
mod grant;
mod lists;
mod progress;
mod reload;
mod run;
mod table;
mod user;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis::config::{self, Config, Pending};

/// The command line was wrong, or the configuration.
const EXIT_USAGE: u8 = 2;

/// The gate in front of TCP port 25: drops listed sources in the kernel, and relays only what the
/// policy allows.
#[derive(Debug, clap::Parser)]
#[command(
    version,
    about,
    max_term_width = 100,
    after_help = "\
Examples:
  portcullis run                                  try it out: 127.0.0.1:2525, mail is discarded
  sudo portcullis demo                            the whole gate at work, in namespaces of its own
  portcullis check -c /etc/portcullis.toml        before a reload
  sudo portcullis doctor -c /etc/portcullis.toml  before the first start
  sudo portcullis run -c /etc/portcullis.toml

Exit codes: 0 good, 1 it failed, 2 the command line or the configuration is wrong."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the gate
    Run(run::Args),
    /// Have the running gate read its configuration and lists again
    Reload(reload::Args),
    /// Is the configuration good? Print what is in force, or every error with its line
    Check(check::Args),
    /// What would happen to a client, stage by stage, and which rule decides
    Explain(explain::Args),
    /// Let an address relay for a while (POP-before-SMTP); list grants, revoke one
    Grant(grant::Args),
    /// The filter in the kernel, without a gate: its status, attach it, detach it
    Filter(filter::Args),
    /// Compile lists into a snapshot; look an address up; what is in a snapshot
    Lists(lists::Args),
    /// The users who may authenticate: add, change, remove and list them
    User(user::Args),
    /// Is this machine able to run the gate: kernel, io_uring, BPF, limits, ports
    Doctor(doctor::Args),
    /// Show the whole gate at work: namespaces, lists, a flood, honest mail, the figures
    Demo(demo::Args),
}

/// Runs the command that the command line names.
pub(crate) fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(args),
        Command::Grant(args) => grant::run(&args),
        Command::Filter(args) => filter::run(&args),
        Command::Lists(args) => lists::run(&args),
        Command::User(args) => user::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

/// The exit code of a command after printing. A closed standard output is no failure.
fn finished(printed: io::Result<()>) -> ExitCode {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// The option of the commands that need the configuration.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file; without one, a harmless default: 127.0.0.1:2525, no filter, mail is
    /// discarded
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The configuration. After printing its errors: the exit code.
    fn load(&self) -> Result<Config, ExitCode> {
        self.load_by(config::load)
    }

    /// The configuration as at a start: for a file of lists that cannot be used, its last compiled
    /// lists are used. This takes no kernel memory.
    fn load_as_a_start(&self) -> Result<Config, ExitCode> {
        self.load_by(|path| config::read_for_start(path)?.unchecked())
    }

    /// The same, with the lists read and not in force yet.
    fn read_for_start(&self) -> Result<Pending, ExitCode> {
        self.by(config::read_for_start, || Config::default_gate().into())
    }

    fn load_by(
        &self,
        load: fn(&Path) -> Result<Config, config::Errors>,
    ) -> Result<Config, ExitCode> {
        self.by(load, Config::default_gate)
    }

    fn by<C>(
        &self,
        load: fn(&Path) -> Result<C, config::Errors>,
        default: fn() -> C,
    ) -> Result<C, ExitCode> {
        match &self.config {
            None => Ok(default()),
            Some(path) => load(path).map_err(|errors| {
                eprintln!("{errors}");
                ExitCode::from(EXIT_USAGE)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// clap breaks a longer line at any place.
    #[test]
    fn no_line_of_a_help_text_is_wider_than_the_help() {
        let mut left = vec![Cli::command()];
        while let Some(command) = left.pop() {
            let help = command.get_after_help().map(ToString::to_string);
            for line in help.iter().flat_map(|help| help.lines()) {
                assert!(
                    line.chars().count() <= 100,
                    "{}: {line}",
                    command.get_name()
                );
            }
            left.extend(command.get_subcommands().cloned());
        }
    }
}
