//! `portcullis filter verdicts`: sources whose packets are dropped for a while.

mod file;
mod target;
mod why;
mod words;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::config;
use portcullis::control::admin::verdicts::{Added, DURATIONS};
use portcullis::filter::{self, AddResult, VerdictStatus};
use portcullis::lists::entries::{MappedTooWide, unmapped};
use portcullis::printable::printable;

use self::target::{Target, wanted};
use self::why::{History, refusals};
use self::words::{in_words, noted, still_pass, whom};
use super::super::table::Table;
use super::super::{EXIT_USAGE, finished};
use super::{Place, failed};

/// Arguments of `portcullis filter verdicts`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A recent verdict makes the kernel drop the packets of a source until it expires. The relay adds
verdicts, and you can. For the first ten seconds only new connections are dropped, so that open ones
can end. Sources that are local or that a list permits are never dropped by a verdict. A verdict on
an IPv6 source covers its /64; parts of it that are local or permitted still pass.

While a gate runs, it makes the changes and logs who asked for them: users in `admin_users` and
`admin_groups` need not be root. Without a gate the command changes the filter itself, as root.

There is room for 262144. When the map is full, learned verdicts of least use are evicted; a verdict
that was added here stays until it expires.

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
    /// The verdicts in force, the newest first
    List(ListArgs),
    /// Add verdicts, or renew them
    Add(AddArgs),
    /// Remove verdicts
    Remove(RemoveArgs),
    /// Remove all verdicts
    Flush(FlushArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --why the command also asks the gate that holds the filter, at its admin endpoint, which
sources it has refused: how often, since when, by which rules (DNS lists, reject lists, relaying,
limits), and until when the filter drops them, or why it does not. The gate remembers the last
16384 since its start; with --json there are two arrays, `verdicts` and `refusals`.")]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Also the sources that the gate has refused recently, why, how often, and until when
    #[arg(long)]
    why: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A source is refused if it is local or permitted by a list of the attached filter.

A FILE has a line for each source: an IPv4 address, an IPv6 address or its /64; optionally a time
for this line in place of --for; after a # or ; its note. Empty lines are skipped. Invalid lines are
reported with their numbers, and the others are added. The exit code is 1 then, and also if a source
is refused or there is no room.
  203.0.113.9
  203.0.113.10   2h    # ticket 4711
  2001:db8:7::/64 30m

Examples:
  portcullis filter verdicts add 2001:db8::66 --for 30m -c /etc/portcullis.toml
  portcullis filter verdicts add --file attackers.txt --for 1d --note 'flood of May'
  fail2ban-client get sshd banip | xargs -n1 | portcullis filter verdicts add --file - --for 1d")]
struct AddArgs {
    /// The source; an IPv6 address stands for its /64
    #[arg(value_name = "IP", value_parser = source, required_unless_present = "file")]
    source: Option<IpNet>,
    /// Add all sources in a file, one per line; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    file: Option<PathBuf>,
    /// Print the result for the file as JSON
    #[arg(long, requires = "file", conflicts_with = "source")]
    json: bool,
    /// Duration: 90s, 30m, 1h, 7d
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = duration)]
    duration: Duration,
    /// The reason, for users who read the list; at most 64 bytes are kept
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
#[command(after_help = "\
A FILE is as for `add`; times and notes in it are ignored. The exit code is 1 if a source on the
command line has no verdict, or a line of the file is invalid.

Examples:
  portcullis filter verdicts remove 192.0.2.66 2001:db8:1:2::/64
  portcullis filter verdicts remove --file attackers.txt")]
struct RemoveArgs {
    /// The sources; an IPv6 address stands for its /64
    #[arg(value_name = "IP", value_parser = source, required_unless_present = "file")]
    sources: Vec<IpNet>,
    /// Remove the verdicts on all sources in a file, one per line; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "sources")]
    file: Option<PathBuf>,
    /// Print the result for the file as JSON
    #[arg(long, requires = "file", conflicts_with = "sources")]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct FlushArgs {
    #[command(flatten)]
    place: Place,
}

/// Parses an address, or a source as `list` prints it.
fn source(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let written: Option<IpNet> = text.parse().ok();
    // An IPv4-mapped IPv6 prefix is an IPv4 prefix.
    match written.map(unmapped).transpose() {
        Ok(Some(IpNet::V4(network))) if network.prefix_len() == 32 => Ok(network.into()),
        Ok(Some(IpNet::V6(network))) if network.prefix_len() == 64 => Ok(network.trunc().into()),
        Ok(Some(_)) | Err(MappedTooWide) => Err(
            "a verdict is on one IPv4 address or on one IPv6 /64; a list is for networks"
                .to_owned(),
        ),
        Ok(None) => Err("expected an IPv4 or IPv6 address".to_owned()),
    }
}

/// Parses a duration that makes sense for a verdict.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = config::duration(text)?;
    if DURATIONS.contains(&duration) {
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

fn failure(error: &filter::Error, place: &Place) -> ExitCode {
    failed(error, place.config.as_deref())
}

fn list(args: &ListArgs) -> Result<ExitCode, ExitCode> {
    let verdicts = Target::find(&args.place)?.list()?;
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

/// A duration in the largest unit of which there are at least two.
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
    let mut target = Target::find(&args.place)?;
    let Added {
        added,
        no_room,
        evicted,
        mut refused,
        except,
        granted,
        ..
    } = target.add(vec![wanted(source, args.duration, &args.note)])?;
    let result = match refused.pop() {
        Some(refused) => AddResult::Refused(refused.exemption),
        None if no_room > 0 => AddResult::NoRoom,
        None if added > 0 => AddResult::Added,
        None => AddResult::Renewed,
    };
    let (text, code) = in_words(source, args.duration, &result, &except);
    if code == ExitCode::SUCCESS {
        println!("{}", printable(&text));
    } else {
        eprintln!("portcullis filter verdicts: {}", printable(&text));
    }
    if !granted.is_empty() {
        println!("{}", still_pass(&granted));
    }
    if evicted > 0 {
        println!("there was no room: {evicted} learned verdicts of least use were evicted");
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

fn remove(args: &RemoveArgs) -> Result<ExitCode, ExitCode> {
    if let Some(file) = &args.file {
        return file::remove(file, args.json, &args.place);
    }
    let mut code = ExitCode::SUCCESS;
    let removed = Target::find(&args.place)?.remove(&args.sources)?;
    for (source, removed) in args.sources.iter().zip(removed) {
        if removed {
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
    let number = Target::find(&args.place)?.flush()?.removed;
    let verdicts = if number == 1 { "verdict" } else { "verdicts" };
    println!("{number} recent {verdicts} removed");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use portcullis::filter::{Cause, Exemption};

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
    fn the_64_that_holds_all_of_ipv4_is_no_verdict_on_an_ipv4_address() {
        assert_eq!(source("::/64").unwrap().to_string(), "::/64");
        assert!(
            source("::ffff:192.0.2.1/64").is_err(),
            "most likely one address is meant"
        );
        assert_eq!(
            source("::ffff:192.0.2.1").unwrap().to_string(),
            "192.0.2.1/32"
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
    fn verdicts_are_printed_as_a_table() {
        let expected = "\
source      cause  since  expires in  packets  last packet  note
192.0.2.66  dnsbl  60s    59m               7  never        bl.example
";
        assert_eq!(printed(verdict()), expected);
        let partly = VerdictStatus {
            except: vec![Exemption::Local {
                network: "2001:db8:0:0:1::/80".parse().unwrap(),
            }],
            ..verdict()
        };
        let text = printed(partly);
        let words = "bl.example (but for 2001:db8:0:0:1::/80, which is local)\n";
        assert!(text.ends_with(words), "{text}");
    }

    #[test]
    fn control_characters_in_a_note_are_escaped() {
        let strange = VerdictStatus {
            note: "\u{1b}[2J\nall is well".to_owned(),
            ..verdict()
        };
        let text = printed(strange);
        assert!(text.ends_with("\\u{1b}[2J\\nall is well\n"), "{text:?}");
    }
}
