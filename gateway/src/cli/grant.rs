//! `portcullis grant`: addresses that may relay for a while (POP-before-SMTP), asked of the gate.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use portcullis::config::{self, Config};
use portcullis::control::grants::operator::{Granted, Request, Response, ask};
use portcullis::printable::printable;

use super::table::Table;
use super::{ConfigFile, EXIT_USAGE, finished};

/// Arguments of `portcullis grant`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
A client with a grant may send to anywhere, as one in a local network may, and the filter passes it
unless it is on a drop list with hard = true. A grant is for one address, of IPv6 too. The gate adds
grants by itself for the logins in the logs that [grants] follows.

The command asks the gate at operator.sock in its state_dir: as root, or in the group of its user.

Examples:
  portcullis grant 203.0.113.7 -c /etc/portcullis.toml
  portcullis grant 2001:db8::7 --for 2h -c /etc/portcullis.toml
  portcullis grant list --json -c /etc/portcullis.toml
  portcullis grant revoke 203.0.113.7 -c /etc/portcullis.toml"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The address that may relay
    #[arg(value_name = "IP", required = true)]
    address: Option<IpAddr>,
    /// Duration: 90s, 30m, 1h (default: grants.time)
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Output {
    #[command(flatten)]
    config: ConfigFile,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The grants in force
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Remove a grant
    Revoke {
        /// The address
        #[arg(value_name = "IP")]
        address: IpAddr,
        #[command(flatten)]
        output: Output,
    },
}

/// Parses a duration that makes sense for a grant.
fn duration(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(30 * 86_400);
    let duration = config::duration(text)?;
    if (Duration::from_secs(1)..=MOST).contains(&duration) {
        Ok(duration)
    } else {
        Err("from 1s to 30d make sense; relay.networks is for longer".to_owned())
    }
}

/// Asks the gate, and prints what it says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let (request, output) = match (&args.command, args.address) {
        (Some(Command::List { output }), _) => (Request::List, output),
        (Some(Command::Revoke { address, output }), _) => {
            (Request::Revoke { address: *address }, output)
        }
        (None, Some(address)) => {
            let seconds = args.duration.map(|duration| duration.as_secs());
            (Request::Grant { address, seconds }, &args.output)
        }
        // The command line wants one of them.
        (None, None) => return ExitCode::from(EXIT_USAGE),
    };
    let config = output
        .config
        .by(config::load_without_lists, Config::default_gate);
    let config = match config {
        Ok(config) => config,
        Err(code) => return code,
    };
    if config.grants.is_none() {
        eprintln!("portcullis grant: the configuration has no [grants]: add the table");
        return ExitCode::from(EXIT_USAGE);
    }
    match ask(&config.state_dir, &request) {
        Ok(response) => print(&request, &response, output.json),
        Err(error) => {
            eprintln!("portcullis grant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(request: &Request, response: &Response, json: bool) -> ExitCode {
    let mut out = io::stdout().lock();
    let printed = match (request, response) {
        (_, Response::Error(error)) => {
            eprintln!("portcullis grant: {}", printable(error));
            return ExitCode::FAILURE;
        }
        (Request::Revoke { address }, Response::Revoked(false)) => {
            eprintln!("portcullis grant: {address} has no grant");
            return ExitCode::FAILURE;
        }
        (Request::Revoke { address }, _) if json => {
            writeln!(out, "{{\"revoked\":\"{address}\"}}")
        }
        (Request::Revoke { address }, _) => writeln!(out, "{address} has no grant any more"),
        (_, Response::Revoked(_)) => Ok(()),
        (_, Response::Grants(grants)) if json => {
            let written = serde_json::to_writer_pretty(&mut out, grants);
            written
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        }
        (Request::List, Response::Grants(grants)) => table(grants, &mut out),
        (_, Response::Grants(grants)) => grants.iter().try_for_each(|grant| {
            let (address, seconds) = (grant.address, grant.expires_in_seconds);
            writeln!(out, "{address} may relay for {seconds} seconds")
        }),
    };
    finished(printed)
}

fn table(grants: &[Granted], out: &mut impl io::Write) -> io::Result<()> {
    if grants.is_empty() {
        return writeln!(out, "no grants");
    }
    let mut table = Table::new(["address", "expires in", "by"]);
    for grant in grants {
        table.row([
            grant.address.to_string(),
            format!("{}s", grant.expires_in_seconds),
            printable(&grant.by).to_string(),
        ]);
    }
    table.write(out)
}
