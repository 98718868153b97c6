//! `portcullis filter verdicts`: sources that are kept out for a while.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::config::{self, Config, PIN_PATH, write_duration};
use portcullis::filter::{self, Cause, Exemption, Given, NewVerdict, VerdictStatus, Verdicts};
use portcullis::lists::entries::{MappedTooWide, unmapped};

use super::super::finished;
use super::super::table::Table;
use super::{Place, failed, settings};

/// Arguments of `portcullis filter verdicts`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A recent verdict has the kernel drop the packets of a source until its time is over. The relay gives
them, and you can. For the first ten seconds only new connections are refused, so that one that is
open can end. A source that a list permits or that is in a local network is never dropped by one.
Of IPv6 a verdict is always on the /64.

Examples:
  portcullis filter verdicts list
  portcullis filter verdicts add 192.0.2.66 --for 1h --note 'ticket 4711'
  portcullis filter verdicts remove 192.0.2.66 2001:db8:1:2::/64
  portcullis filter verdicts flush")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Those in force, the newest first
    List(ListArgs),
    /// Keep a source out for a while, or for a while longer
    Add(AddArgs),
    /// Let sources in again
    Remove(RemoveArgs),
    /// Let all of them in again
    Flush(FlushArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
With -c it is refused for a source that a list of the configuration permits; without, the filter
passes such a source nevertheless.

Example:
  portcullis filter verdicts add 2001:db8::66 --for 30m -c /etc/portcullis.toml")]
struct AddArgs {
    /// The source; of IPv6 its /64 is meant
    #[arg(value_name = "IP", value_parser = source)]
    source: IpAddr,
    /// For how long: 90s, 30m, 1h, 7d
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = duration)]
    duration: Duration,
    /// Why, for those who will look at the list; 64 octets are kept
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    note: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The sources; of IPv6 their /64 are meant
    #[arg(value_name = "IP", value_parser = source, required = true)]
    sources: Vec<IpAddr>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct FlushArgs {
    #[command(flatten)]
    place: Place,
}

/// An address, or what `list` prints for one.
fn source(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let written: Option<IpNet> = text.parse().ok();
    // IPv4 that is written as IPv6 is IPv4, in a prefix too.
    match written.map(unmapped).transpose() {
        Ok(Some(IpNet::V4(network))) if network.prefix_len() == 32 => Ok(network.addr().into()),
        Ok(Some(IpNet::V6(network))) if network.prefix_len() == 64 => Ok(network.addr().into()),
        Ok(Some(_)) | Err(MappedTooWide) => Err(
            "a verdict is on one IPv4 address or on one IPv6 /64; a list is for networks"
                .to_owned(),
        ),
        Ok(None) => Err("an IPv4 or IPv6 address is wanted".to_owned()),
    }
}

/// A length of time that makes sense for a verdict.
fn duration(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(365 * 86_400);
    let duration = config::duration(text)?;
    if (LEAST..=MOST).contains(&duration) {
        Ok(duration)
    } else {
        Err("from 1s to 365d make sense; a list is for longer".to_owned())
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    match &args.command {
        Command::List(args) => list(args),
        Command::Add(args) => add(args),
        Command::Remove(args) => remove(args),
        Command::Flush(args) => flush(args),
    }
}

fn open(place: &Place) -> Result<Verdicts, ExitCode> {
    Verdicts::open(&place.pin_path()?).map_err(|error| failure(&error, place))
}

fn failure(error: &filter::Error, place: &Place) -> ExitCode {
    failed(error, place.config.as_deref())
}

fn list(args: &ListArgs) -> Result<ExitCode, ExitCode> {
    let verdicts = open(&args.place)?.list();
    let verdicts = verdicts.map_err(|error| failure(&error, &args.place))?;
    let mut stdout = io::stdout().lock();
    Ok(finished(print(args.json, &verdicts, &mut stdout)))
}

fn print(json: bool, verdicts: &[VerdictStatus], out: &mut impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, verdicts)?;
        return writeln!(out);
    }
    if verdicts.is_empty() {
        return writeln!(out, "no recent verdicts");
    }
    let mut table = Table::new([
        "source",
        "cause",
        "since",
        "expires in",
        "packets",
        "last packet",
        "note",
    ]);
    for verdict in verdicts {
        let last = verdict.last_packet_seconds_ago;
        table.row([
            verdict.source.clone(),
            verdict.cause.name().to_owned(),
            roughly(verdict.age_seconds),
            roughly(verdict.expires_in_seconds),
            verdict.packets.to_string(),
            last.map_or("never".to_owned(), |last| format!("{} ago", roughly(last))),
            verdict.note.clone(),
        ]);
    }
    table.write(out)
}

/// A length of time in a unit that leaves at least two of it.
fn roughly(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn add(args: &AddArgs) -> Result<ExitCode, ExitCode> {
    let (pin_path, config): (_, Option<Config>) = match &args.place.config {
        None => (PIN_PATH.into(), None),
        Some(file) => settings(file).map(|(settings, config)| (settings.pin_path, Some(config)))?,
    };
    let new = NewVerdict {
        address: args.source,
        duration: args.duration,
        cause: Cause::Operator,
        note: &args.note,
    };
    let lists = config.as_ref().map(|config| config.policy.lists());
    let given = Verdicts::open(&pin_path).and_then(|verdicts| verdicts.add(&new, lists));
    let given = given.map_err(|error| failure(&error, &args.place))?;
    let (said, code) = in_words(args.source, args.duration, &given);
    if code == ExitCode::SUCCESS {
        println!("{said}");
    } else {
        eprintln!("portcullis filter verdicts: {said}");
    }
    Ok(code)
}

/// Who is meant by an address, in words.
fn whom(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => match ipnet::Ipv6Net::new(address, 64) {
            Ok(network) => format!("{} (the /64 of {address})", network.trunc()),
            Err(_) => address.to_string(),
        },
    }
}

fn in_words(source: IpAddr, duration: Duration, given: &Given) -> (String, ExitCode) {
    let (whom, duration) = (whom(source), write_duration(duration));
    match given {
        Given::Added => (
            format!("{whom} is kept out for {duration}"),
            ExitCode::SUCCESS,
        ),
        Given::Renewed => (
            format!("{whom} was kept out already, and is for {duration} from now"),
            ExitCode::SUCCESS,
        ),
        Given::Refused(Exemption::Local) => (
            format!("{whom} is in a local network (relay.networks), which no verdict keeps out"),
            ExitCode::FAILURE,
        ),
        Given::Refused(Exemption::Permitted { list }) => (
            format!("{whom} is permitted by the list \"{list}\", which no verdict overrules"),
            ExitCode::FAILURE,
        ),
    }
}

fn remove(args: &RemoveArgs) -> Result<ExitCode, ExitCode> {
    let verdicts = open(&args.place)?;
    let mut code = ExitCode::SUCCESS;
    for source in &args.sources {
        let removed = verdicts.remove(*source);
        if removed.map_err(|error| failure(&error, &args.place))? {
            println!("{} is let in again", whom(*source));
        } else {
            eprintln!(
                "portcullis filter verdicts: {} has no verdict",
                whom(*source)
            );
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn flush(args: &FlushArgs) -> Result<ExitCode, ExitCode> {
    let flushed = open(&args.place)?.flush();
    let number = flushed.map_err(|error| failure(&error, &args.place))?;
    let verdicts = if number == 1 { "verdict" } else { "verdicts" };
    println!("{number} recent {verdicts} taken back");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_list_prints_can_be_given_to_remove() {
        for text in [
            "192.0.2.66",
            "192.0.2.66/32",
            "2001:db8::66",
            "2001:db8::/64",
            "::ffff:192.0.2.66",
            "::ffff:192.0.2.66/128",
        ] {
            assert!(source(text).is_ok(), "{text}");
        }
        for text in [
            "192.0.2.0/24",
            "2001:db8::/32",
            "2001:db8::1/128",
            "::ffff:192.0.2.66/64",
            "::ffff:192.0.2.66/120",
            "host",
        ] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whoever_keeps_out_an_ipv6_address_hears_that_it_is_a_64() {
        let (said, _) = in_words(
            "2001:db8::66".parse().unwrap(),
            Duration::from_secs(3_600),
            &Given::Added,
        );
        assert_eq!(
            said,
            "2001:db8::/64 (the /64 of 2001:db8::66) is kept out for 1h"
        );
    }

    #[test]
    fn verdicts_are_told_in_a_table() {
        let verdict = VerdictStatus {
            source: "192.0.2.66".to_owned(),
            cause: Cause::Dnsbl,
            note: "bl.example".to_owned(),
            age_seconds: 60,
            expires_in_seconds: 3_540,
            packets: 7,
            last_packet_seconds_ago: None,
        };
        let mut written = Vec::new();
        print(false, &[verdict], &mut written).unwrap();
        let expected = "\
source      cause  since  expires in  packets  last packet  note
192.0.2.66  dnsbl  60s    59m               7  never        bl.example
";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }
}
