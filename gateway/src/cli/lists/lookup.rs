//! `portcullis lists lookup`: which list speaks for an address. A few lines of the snapshot are
//! read, however large it is.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis::lists::Listing;
use portcullis::lists::file::Stored;
use serde::Serialize;

use super::super::table::Table;
use super::super::{EXIT_USAGE, finished};
use super::open;

/// Arguments of `portcullis lists lookup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Answers from the snapshot, as a gate with it would: a permit list first, then drop lists, then
reject lists; where prefixes overlap, the longest. The time does not depend on the size of the
lists.

Examples:
  portcullis lists lookup -c /etc/portcullis.toml 192.0.2.1
  portcullis lists lookup lists.snapshot 192.0.2.1 2001:db8::1 --json

Exit code: 0, whether listed or not; 1 if there is no snapshot that can be read.")]
pub(super) struct Args {
    /// A configuration: the snapshot that it loads, or that of the last compile in its state_dir
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The snapshot, if it is not that of the configuration; then the addresses
    #[arg(value_name = "[SNAPSHOT] IP", required = true)]
    words: Vec<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// The listings of an address.
#[derive(Serialize)]
struct Lookup {
    address: IpAddr,
    /// The list that the filter acts on, or SMTP if there is none; then the reject list, where the
    /// address is on both.
    listings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    list: String,
    action: &'static str,
    prefix: String,
}

/// Looks addresses up.
pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let (snapshot, addresses) = words(&args.words).map_err(|message| {
        eprintln!("portcullis lists: {message}");
        ExitCode::from(EXIT_USAGE)
    })?;
    let stored = open(snapshot.as_deref(), args.config.as_deref())?;
    let mut answers = Vec::new();
    for address in addresses {
        answers.push(look_up(&stored, address).map_err(|error| {
            eprintln!("portcullis lists: {error}");
            ExitCode::FAILURE
        })?);
    }
    let mut stdout = io::stdout().lock();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut stdout, &answers)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        print(&answers, &mut stdout)
    };
    Ok(finished(printed))
}

/// The first word is a file if it is no address.
fn words(words: &[String]) -> Result<(Option<PathBuf>, Vec<IpAddr>), String> {
    let (snapshot, rest) = match words {
        [first, rest @ ..] if first.parse::<IpAddr>().is_err() => (Some(first.into()), rest),
        _ => (None, words),
    };
    if rest.is_empty() {
        return Err("no address is given: expected an IPv4 or IPv6 address".to_owned());
    }
    let address = |word: &String| match word.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(format!("{word} is no IP address")),
    };
    Ok((
        snapshot,
        rest.iter().map(address).collect::<Result<_, _>>()?,
    ))
}

fn look_up(stored: &Stored, address: IpAddr) -> Result<Lookup, portcullis::lists::file::Error> {
    let listings = [stored.filtered(address)?, stored.rejected(address)?];
    let found = |listing: Listing| Found {
        list: stored
            .about()
            .lists
            .get(usize::from(listing.list))
            .map_or_else(String::new, |list| list.name.clone()),
        action: listing.action.as_str(),
        prefix: listing.prefix.to_string(),
    };
    Ok(Lookup {
        address,
        listings: listings.into_iter().flatten().map(found).collect(),
    })
}

fn print(answers: &[Lookup], out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["address", "list", "action", "prefix"]);
    for answer in answers {
        let address = answer.address.to_string();
        for found in &answer.listings {
            table.row([
                address.clone(),
                found.list.clone(),
                found.action.to_owned(),
                found.prefix.clone(),
            ]);
        }
        if answer.listings.is_empty() {
            table.row([address, "-".into(), "on no list".into(), String::new()]);
        }
    }
    table.write(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(Option<PathBuf>, Vec<IpAddr>), String> {
        let split: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words(&split)
    }

    #[test]
    fn an_address_is_never_taken_for_a_file_and_a_file_never_for_an_address() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(of("192.0.2.1"), Ok((None, vec![address])));
        assert_eq!(of("::ffff:192.0.2.1"), Ok((None, vec![address])));
        assert_eq!(
            of("a.snapshot 192.0.2.1"),
            Ok((Some("a.snapshot".into()), vec![address]))
        );
        for bad in ["a.snapshot", "192.0.2.1 a.snapshot", "192.0.2.1 192.0.2"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
