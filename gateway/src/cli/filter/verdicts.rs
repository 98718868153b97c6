//! `portcullis filter verdicts`: sources that are kept out for a while.

mod file;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::config::{self, write_duration};
use portcullis::control::ask;
use portcullis::control::refusals::RefusedSource;
use portcullis::filter::{
    self, Cause, Exemption, Given, NewVerdict, VerdictStatus, Verdicts, verdict_network,
};
use portcullis::printable::printable;
use serde::Serialize;

use super::super::table::Table;
use super::super::{EXIT_USAGE, finished};
use super::{Place, failed};

/// Arguments of `portcullis filter verdicts`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A recent verdict has the kernel drop the packets of a source until its time is over. The relay gives
them, and you can. For the first ten seconds only new connections are refused, so that one that is
open can end. A source that a list permits or that is in a local network is never dropped by one.
Of IPv6 a verdict is always on the /64; parts of it that are local or permitted stay in.

There is room for 262144. When they are all in use, those that were learned and are of least use are
given up; what was added here never is, until its time is over.

Examples:
  portcullis filter verdicts list --why
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
#[command(after_help = "\
With --why the gate that holds the filter is asked, at its admin endpoint, whom it has refused: who,
how often, since when, by which rules, and until when the filter drops it. It remembers the last
16384 sources since it was started; with --json there are two arrays, `verdicts` and `refusals`.")]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// And who was refused by the gate of late, why, how often, and until when
    #[arg(long)]
    why: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A source is refused if it is local or permitted by a list of the filter in place.

A FILE has a line for each source: an IPv4 address, an IPv6 address or its /64, and perhaps a time
that holds for this line in place of --for; behind a # or ; its note. Empty lines are skipped. Lines
that cannot be read are told with their numbers and the others are added; the exit code is 1 then, and
so it is if a source is refused or there is no room.
  203.0.113.9
  203.0.113.10   2h    # ticket 4711
  2001:db8:7::/64 30m

Examples:
  portcullis filter verdicts add 2001:db8::66 --for 30m -c /etc/portcullis.toml
  portcullis filter verdicts add --file attackers.txt --for 1d --note 'flood of May'
  fail2ban-client get sshd banip | tr ' ' '\\n' | portcullis filter verdicts add --file - --for 1d")]
struct AddArgs {
    /// The source; of IPv6 its /64 is meant
    #[arg(value_name = "IP", value_parser = source, required_unless_present = "file")]
    source: Option<IpNet>,
    /// Add all sources that stand in a file, a line each; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    file: Option<PathBuf>,
    /// Print what came of the file as JSON
    #[arg(long, requires = "file", conflicts_with = "source")]
    json: bool,
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
    sources: Vec<IpNet>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct FlushArgs {
    #[command(flatten)]
    place: Place,
}

/// An address, or what `list` prints for one.
fn source(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    match text.parse() {
        Ok(IpNet::V4(network)) if network.prefix_len() == 32 => Ok(network.into()),
        Ok(IpNet::V6(network)) if network.prefix_len() == 64 => Ok(network.trunc().into()),
        Ok(_) => Err(
            "a verdict is on one IPv4 address or on one IPv6 /64; a list is for networks"
                .to_owned(),
        ),
        Err(_) => Err("an IPv4 or IPv6 address is wanted".to_owned()),
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
    if !args.why {
        return Ok(finished(print(args.json, &verdicts, &mut stdout)));
    }
    let history = History {
        verdicts,
        refusals: refusals(&args.place)?,
    };
    Ok(finished(history.print(args.json, &mut stdout)))
}

/// The verdicts in force, and whom the gate remembers to have refused.
#[derive(Serialize)]
struct History {
    verdicts: Vec<VerdictStatus>,
    refusals: Vec<RefusedSource>,
}

/// Asks the gate that holds the filter.
fn refusals(place: &Place) -> Result<Vec<RefusedSource>, ExitCode> {
    let failed = |why: &str| {
        eprintln!(
            "portcullis filter verdicts: who was refused is known to the gate that holds the filter, and {why}"
        );
        ExitCode::FAILURE
    };
    let admin = filter::admin(&place.pin_path()?).map_err(|error| failure(&error, place))?;
    let admin = admin.ok_or_else(|| {
        failed("none with an admin endpoint does: set `admin` in its configuration")
    })?;
    let answer = ask::get(admin, "/api/refusals")
        .and_then(|answer| serde_json::from_reader(answer).map_err(io::Error::from));
    answer.map_err(|error| failed(&format!("the one at {admin} cannot be asked: {error}")))
}

impl History {
    fn print(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        print(false, &self.verdicts, out)?;
        writeln!(out)?;
        if self.refusals.is_empty() {
            return writeln!(out, "nobody was refused since the gate was started");
        }
        let mut table = Table::new([
            "refused", "times", "first", "last", "client", "by", "kept out",
        ]);
        for source in &self.refusals {
            let by = source.rules.iter();
            let by: Vec<String> = by.map(|by| format!("{} ({})", by.rule, by.times)).collect();
            table.row([
                source.source.clone(),
                source.times.to_string(),
                source.first.clone(),
                source.last.clone(),
                source.client.to_string(),
                by.join(", "),
                match (&source.kept_out_until, &source.not_kept_out) {
                    (Some(until), _) => format!("until {until}"),
                    (None, Some(why)) => format!("no: {why}"),
                    (None, None) => String::new(),
                },
            ]);
        }
        table.write(out)
    }
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
            noted(verdict),
        ]);
    }
    table.write(out)
}

/// The note, and what of the source is let in all the same.
fn noted(verdict: &VerdictStatus) -> String {
    if verdict.except.is_empty() {
        return verdict.note.clone();
    }
    let except = format!("({})", but_for(&verdict.except));
    format!("{} {except}", verdict.note).trim_start().to_owned()
}

/// The parts of a /64 that are let in all the same.
fn but_for(except: &[Exemption]) -> String {
    let parts: Vec<String> = except
        .iter()
        .map(|part| format!("{}, which is {}", part.network(), part.reason()))
        .collect();
    format!("but for {}", parts.join(", and "))
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
    let source = match (args.source, &args.file) {
        (Some(source), _) => source,
        (None, Some(file)) => return add_file(args, file),
        // The command line wants one of them.
        (None, None) => return Err(ExitCode::from(EXIT_USAGE)),
    };
    let new = NewVerdict {
        source,
        duration: args.duration,
        cause: Cause::Operator,
        note: &args.note,
    };
    let verdicts = open(&args.place)?;
    let add = || {
        let evicted = verdicts.evicted()?;
        let given = verdicts.add(&new, None)?;
        let given_up = verdicts.evicted()?.saturating_sub(evicted);
        Ok((given, given_up, verdicts.exceptions(source.addr())?))
    };
    let (given, given_up, except) = add().map_err(|error| failure(&error, &args.place))?;
    let (said, code) = in_words(source, args.duration, &given, &except);
    if code == ExitCode::SUCCESS {
        println!("{}", printable(&said));
    } else {
        eprintln!("portcullis filter verdicts: {}", printable(&said));
    }
    if given_up > 0 {
        println!("there was no room: {given_up} learned verdicts of least use were given up");
    }
    Ok(code)
}

fn add_file(args: &AddArgs, file: &Path) -> Result<ExitCode, ExitCode> {
    file::add(&file::Options {
        file,
        duration: args.duration,
        note: &args.note,
        json: args.json,
        place: &args.place,
    })
}

/// Whom a verdict is on, in words.
fn whom(source: IpNet) -> String {
    let network = verdict_network(source.addr());
    match source {
        IpNet::V6(address) if address.prefix_len() > 64 => {
            format!("{network} (the /64 of {})", address.addr())
        }
        _ => filter::written(&network),
    }
}

/// Why there is no room, and what makes some.
const NO_ROOM: &str = "there is no room: all verdicts that there can be were added by hand; `filter verdicts remove` and `flush` make some";

fn in_words(
    source: IpNet,
    duration: Duration,
    given: &Given,
    except: &[Exemption],
) -> (String, ExitCode) {
    let (whom, duration) = (whom(source), write_duration(duration));
    let except = match except {
        [] => String::new(),
        except => format!(", {}", but_for(except)),
    };
    match given {
        Given::Added => (
            format!("{whom} is kept out for {duration}{except}"),
            ExitCode::SUCCESS,
        ),
        // What a person adds stands whatever was there before.
        Given::Renewed | Given::Kept => (
            format!("{whom} was kept out already, and is for {duration} from now{except}"),
            ExitCode::SUCCESS,
        ),
        Given::Refused(exemption) => (refused(source, exemption), ExitCode::FAILURE),
        Given::NoRoom => (format!("{whom}: {NO_ROOM}"), ExitCode::FAILURE),
    }
}

fn refused(source: IpNet, exemption: &Exemption) -> String {
    let network = exemption.network();
    let source = match source.prefix_len() == source.max_prefix_len() {
        true => source.addr().to_string(),
        false => source.to_string(),
    };
    let mut said = match exemption {
        Exemption::Local { .. } => format!(
            "{source} is in the local network {network} (relay.networks), which no verdict keeps out"
        ),
        Exemption::Permitted { list, .. } => format!(
            "{source} is permitted by the list \"{list}\" ({network}), which no verdict overrules"
        ),
    };
    if network.addr().is_ipv6() && network.prefix_len() > 64 {
        said += &format!(
            "; the rest of its /64 can be kept out: add {}",
            verdict_network(network.addr())
        );
    }
    said
}

fn remove(args: &RemoveArgs) -> Result<ExitCode, ExitCode> {
    let verdicts = open(&args.place)?;
    let mut code = ExitCode::SUCCESS;
    for source in &args.sources {
        let removed = verdicts.remove(source.addr());
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
        ] {
            assert!(source(text).is_ok(), "{text}");
        }
        for text in ["192.0.2.0/24", "2001:db8::/32", "2001:db8::1/128", "host"] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_64_that_holds_an_ipv4_address_is_no_verdict_on_that() {
        let zero = source("::ffff:192.0.2.1/64").unwrap();
        assert_eq!(zero.to_string(), "::/64");
        assert_eq!(
            source("::ffff:192.0.2.1").unwrap().to_string(),
            "192.0.2.1/32"
        );
    }

    fn said(source: &str, given: &Given, except: &[Exemption]) -> String {
        let source = super::source(source).unwrap();
        in_words(source, Duration::from_secs(3_600), given, except).0
    }

    fn local(network: &str) -> Exemption {
        Exemption::Local {
            network: network.parse().unwrap(),
        }
    }

    #[test]
    fn whoever_keeps_out_an_ipv6_address_hears_that_it_is_a_64_and_what_of_it_stays_in() {
        assert_eq!(
            said("2001:db8::66", &Given::Added, &[]),
            "2001:db8::/64 (the /64 of 2001:db8::66) is kept out for 1h"
        );
        let friends = Exemption::Permitted {
            list: "friends".to_owned(),
            network: "2001:db8::7/128".parse().unwrap(),
        };
        assert_eq!(
            said(
                "2001:db8::/64",
                &Given::Added,
                &[local("2001:db8:0:0:1::/80"), friends]
            ),
            "2001:db8::/64 is kept out for 1h, but for 2001:db8:0:0:1::/80, which is local, and 2001:db8::7/128, \
             which is permitted by friends"
        );
    }

    #[test]
    fn a_part_of_a_64_that_is_local_is_not_said_to_be_all_of_it() {
        let given = Given::Refused(local("2001:db8:0:0:1::/80"));
        assert_eq!(
            said("2001:db8::1:0:0:9", &given, &[]),
            "2001:db8::1:0:0:9 is in the local network 2001:db8:0:0:1::/80 (relay.networks), which no verdict keeps \
             out; the rest of its /64 can be kept out: add 2001:db8::/64"
        );
        let given = Given::Refused(local("2001:db8::/32"));
        assert_eq!(
            said("2001:db8:1::/64", &given, &[]),
            "2001:db8:1::/64 is in the local network 2001:db8::/32 (relay.networks), which no verdict keeps out"
        );
    }

    fn verdict() -> VerdictStatus {
        VerdictStatus {
            source: "192.0.2.66".to_owned(),
            cause: Cause::Dnsbl,
            note: "bl.example".to_owned(),
            age_seconds: 60,
            expires_in_seconds: 3_540,
            packets: 7,
            last_packet_seconds_ago: None,
            except: Vec::new(),
        }
    }

    fn printed(verdict: VerdictStatus) -> String {
        let mut written = Vec::new();
        print(false, &[verdict], &mut written).unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn verdicts_are_told_in_a_table() {
        let expected = "\
source      cause  since  expires in  packets  last packet  note
192.0.2.66  dnsbl  60s    59m               7  never        bl.example
";
        assert_eq!(printed(verdict()), expected);
        let partly = VerdictStatus {
            except: vec![local("2001:db8:0:0:1::/80")],
            ..verdict()
        };
        let told = printed(partly);
        let words = "bl.example (but for 2001:db8:0:0:1::/80, which is local)\n";
        assert!(told.ends_with(words), "{told}");
    }

    #[test]
    fn a_note_does_not_clear_the_terminal_of_who_reads_the_list() {
        let strange = VerdictStatus {
            note: "\u{1b}[2J\nall is well".to_owned(),
            ..verdict()
        };
        let told = printed(strange);
        assert!(told.ends_with("\\u{1b}[2J\\nall is well\n"), "{told:?}");
    }
}
