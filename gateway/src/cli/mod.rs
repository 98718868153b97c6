//! The commands. Each has a file of its own with its arguments and its help; what it does is in the library.

mod check;
mod demo;
mod explain;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use portcullis::config::{self, Config};

/// The command line was wrong, or the configuration.
const EXIT_USAGE: u8 = 2;

/// The gate in front of TCP port 25: drops listed sources in the kernel, relays what is allowed, and nothing else.
#[derive(Debug, clap::Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the gate
    Run(run::Args),
    /// Is the configuration good? Print what is in force, or every error with its line
    Check(check::Args),
    /// What would happen to a client, stage by stage, and which rule decides
    Explain(explain::Args),
    /// Show the whole gate at work: namespaces, lists, a flood, honest mail, the figures
    Demo(demo::Args),
}

/// Runs the command that the command line names.
pub(crate) fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(args),
        Command::Demo(args) => demo::run(&args),
    }
}

/// The option of all commands that need the configuration.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file; without one, a harmless default: 127.0.0.1:2525, no filter, mail is thrown away
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The configuration, or the exit code after its errors were printed.
    fn load(&self) -> Result<Config, ExitCode> {
        match &self.config {
            None => Ok(Config::default_gate()),
            Some(path) => config::load(path).map_err(|errors| {
                eprintln!("{errors}");
                ExitCode::from(EXIT_USAGE)
            }),
        }
    }
}
