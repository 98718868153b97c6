//! `portcullis grant`: addresses that may relay for a while (POP-before-SMTP), asked of the gate.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use portcullis::config;
use portcullis::control::admin::grants::{Add, DURATIONS, GrantStatus, Revoke, Revoked};
use portcullis::control::ask;
use portcullis::printable::printable;

use super::admin_socket::AdminSocket;
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

The command asks the gate at its admin_socket, or at /run/portcullis/admin.sock without -c;
admin_users and admin_groups say who may use it.

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
    let duration = config::duration(text)?;
    if DURATIONS.contains(&duration) {
        Ok(duration)
    } else {
        Err("from 1s to 30d make sense; relay.networks is for longer".to_owned())
    }
}

/// Asks the gate, and prints what it says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match (&args.command, args.address) {
        (Some(Command::List { output }), _) => list(output),
        (Some(Command::Revoke { address, output }), _) => revoke(*address, output),
        (None, Some(address)) => add(address, args),
        // The command line wants one of them.
        (None, None) => Err(ExitCode::from(EXIT_USAGE)),
    };
    done.unwrap_or_else(|code| code)
}

fn gate(output: &Output) -> Result<AdminSocket, ExitCode> {
    let Some(file) = &output.config.config else {
        return Ok(AdminSocket::usual());
    };
    let config = config::load_without_lists(file).map_err(|errors| {
        eprintln!("{errors}");
        AdminSocket::hint(file);
        ExitCode::from(EXIT_USAGE)
    })?;
    let missing = match (&config.grants, AdminSocket::of(&config)) {
        (Some(_), Some(gate)) => return Ok(gate),
        (None, _) => "[grants]: no address can have one",
        (Some(_), None) => "`admin_socket`: there the gate takes this command",
    };
    eprintln!("portcullis grant: {} has no {missing}", file.display());
    Err(ExitCode::from(EXIT_USAGE))
}

fn add(address: IpAddr, args: &Args) -> Result<ExitCode, ExitCode> {
    let gate = gate(&args.output)?;
    let seconds = args.duration.map(|duration| duration.as_secs());
    let request = Add { address, seconds };
    let added: GrantStatus = ask::command(gate.path(), "/api/grants/add", &request)
        .map_err(|why_not| gate.say(&why_not))?;
    if args.output.json {
        return Ok(json(&added));
    }
    println!(
        "{} may relay for {} seconds",
        added.address, added.expires_in_seconds
    );
    Ok(ExitCode::SUCCESS)
}

fn list(output: &Output) -> Result<ExitCode, ExitCode> {
    let gate = gate(output)?;
    let grants: Vec<GrantStatus> =
        ask::read(gate.path(), "/api/grants").map_err(|why_not| gate.say(&why_not))?;
    if output.json {
        return Ok(json(&grants));
    }
    Ok(finished(table(&grants, &mut io::stdout().lock())))
}

fn revoke(address: IpAddr, output: &Output) -> Result<ExitCode, ExitCode> {
    let gate = gate(output)?;
    let request = Revoke { address };
    let done: Revoked = ask::command(gate.path(), "/api/grants/revoke", &request)
        .map_err(|why_not| gate.say(&why_not))?;
    if output.json {
        json(&done);
    } else if done.revoked {
        println!("{address} has no grant any more");
    } else {
        eprintln!("portcullis grant: {address} has no grant");
    }
    Ok(if done.revoked {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn json(answer: &impl serde::Serialize) -> ExitCode {
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer_pretty(&mut out, answer);
    finished(
        written
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    )
}

fn table(grants: &[GrantStatus], out: &mut impl io::Write) -> io::Result<()> {
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
