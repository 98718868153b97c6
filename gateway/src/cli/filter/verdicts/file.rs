//! `portcullis filter verdicts add --file` and `remove --file`: many sources at once, one per line.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::control::admin::verdicts::Added;
use portcullis::filter::Exemption;
use portcullis::lists::format::foreign::foreign;
use portcullis::printable::printable;
use serde::Serialize;

use super::super::super::progress::Bar;
use super::super::Place;
use super::target::{Target, wanted};
use super::words::NO_ROOM;
use super::{duration, source};

/// Maximum size of a file in bytes: 256 for each verdict that the map can hold.
const SIZE_MAX: u64 = 64 << 20;
/// Maximum number of invalid lines, and of refused sources, that are reported one by one.
const REPORTED_MAX: usize = 20;
/// Characters of an invalid line that are shown.
const SHOWN_MAX: usize = 80;
/// Verdicts in one request, between two updates of the progress.
const STEP: usize = 5_000;

/// The verdict of a line.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    line: usize,
    source: IpNet,
    duration: Option<Duration>,
    note: Option<&'a str>,
}

/// An invalid line.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Invalid {
    line: usize,
    text: String,
    reason: String,
}

/// A source that is exempt from verdicts.
#[derive(Debug, Serialize)]
struct Refused {
    line: usize,
    source: IpNet,
    #[serde(flatten)]
    exemption: Exemption,
}

/// The result for all lines.
#[derive(Debug, Default, Serialize)]
struct Summary {
    added: u64,
    renewed: u64,
    /// Sources that a list permits or that are local.
    refused: u64,
    /// Sources for which there was no room.
    without_room: u64,
    /// Invalid lines.
    invalid: u64,
    /// Learned verdicts that were evicted to make room.
    given_up: u64,
    /// Addresses that have a grant, and pass until it ends.
    granted: u64,
    /// The first refused sources.
    refused_sources: Vec<Refused>,
    /// The first invalid lines.
    invalid_lines: Vec<Invalid>,
}

/// Options for all lines.
pub(super) struct Options<'a> {
    pub(super) file: &'a Path,
    pub(super) duration: Duration,
    pub(super) note: &'a str,
    pub(super) json: bool,
    pub(super) place: &'a Place,
}

/// Adds the verdicts of a file. Invalid lines are reported, and the others are added.
pub(super) fn add(options: &Options<'_>) -> Result<ExitCode, ExitCode> {
    let name = name_of(options.file);
    let text = read_or_say(options.file, &name)?;
    let mut summary = Summary::default();
    let wanted = parse(&text, &mut summary);
    add_all(options, &wanted, &mut summary)?;
    report(options, &printable(&name), &summary).map_err(|_| ExitCode::FAILURE)?;
    let all_well = summary.refused + summary.without_room + summary.invalid == 0;
    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What became of the verdicts to remove.
#[derive(Debug, Default, Serialize)]
struct Removal {
    removed: u64,
    /// Sources that had none, or not any more.
    without_verdict: u64,
    /// Invalid lines.
    invalid: u64,
    /// The first invalid lines.
    invalid_lines: Vec<Invalid>,
}

/// Removes the verdicts on the sources of a file, whatever time and note a line has. Invalid lines
/// are reported, and the others are carried out.
pub(super) fn remove(file: &Path, json: bool, place: &Place) -> Result<ExitCode, ExitCode> {
    let name = name_of(file);
    let text = read_or_say(file, &name)?;
    let mut summary = Summary::default();
    let sources: Vec<IpNet> = parse(&text, &mut summary)
        .iter()
        .map(|line| line.source)
        .collect();
    let removed = Target::find(place)?.remove(&sources)?;
    let number = removed.iter().filter(|removed| **removed).count();
    let removal = Removal {
        removed: number as u64,
        without_verdict: (removed.len() - number) as u64,
        invalid: summary.invalid,
        invalid_lines: summary.invalid_lines,
    };
    if json {
        let text = serde_json::to_string_pretty(&removal).map_err(|_| ExitCode::FAILURE)?;
        println!("{text}");
    } else {
        report_invalid(&printable(&name), &removal.invalid_lines, removal.invalid);
        println!(
            "{} removed, {} had none",
            removal.removed, removal.without_verdict
        );
    }
    Ok(match removal.invalid {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn name_of(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => file.display().to_string(),
    }
}

fn read_or_say(file: &Path, name: &str) -> Result<String, ExitCode> {
    read(file).map_err(|error| {
        eprintln!("portcullis filter verdicts: cannot read {name}: {error}");
        ExitCode::FAILURE
    })
}

fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    match file.to_str() {
        Some("-") => io::stdin().take(SIZE_MAX + 1).read_to_end(&mut bytes)?,
        _ => File::open(file)?
            .take(SIZE_MAX + 1)
            .read_to_end(&mut bytes)?,
    };
    if bytes.len() as u64 > SIZE_MAX {
        return Err(io::Error::other(
            "it is longer than 64 MiB; there is room for 262144 verdicts",
        ));
    }
    if let Some(foreign) = foreign(&bytes) {
        return Err(io::Error::other(format!("it is {foreign}")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The verdicts of all lines; invalid lines go into the summary.
fn parse<'a>(text: &'a str, summary: &mut Summary) -> Vec<Line<'a>> {
    let mut wanted = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        match parse_line(line, text) {
            Ok(None) => {}
            Ok(Some(one)) => wanted.push(one),
            Err(reason) => {
                summary.invalid += 1;
                if summary.invalid_lines.len() < REPORTED_MAX {
                    let shown: String = text.trim().chars().take(SHOWN_MAX).collect();
                    summary.invalid_lines.push(Invalid {
                        line,
                        text: printable(&shown).into_owned(),
                        reason,
                    });
                }
            }
        }
    }
    wanted
}

/// `SOURCE [TIME] [# NOTE]`; `None` for an empty line or a comment.
fn parse_line(line: usize, text: &str) -> Result<Option<Line<'_>>, String> {
    let (words, note) = match text.split_once(['#', ';']) {
        Some((words, note)) => (words, Some(note.trim())),
        None => (text, None),
    };
    // A byte order mark is no part of the first address.
    let mut words = words.trim_start_matches('\u{feff}').split_whitespace();
    let Some(first) = words.next() else {
        return Ok(None);
    };
    let source = source(first)?;
    let duration = words.next().map(duration).transpose()?;
    if words.next().is_some() {
        return Err("more than a source and a time; a note comes after a #".to_owned());
    }
    let note = note.filter(|note| !note.is_empty());
    Ok(Some(Line {
        line,
        source,
        duration,
        note,
    }))
}

fn add_all(options: &Options<'_>, all: &[Line<'_>], summary: &mut Summary) -> Result<(), ExitCode> {
    let mut target = Target::find(options.place)?;
    let mut bar = Bar::new();
    for (number, lines) in all.chunks(STEP).enumerate() {
        bar.say(&format!("{} of {} verdicts", number * STEP, all.len()));
        let request = lines.iter().map(|line| {
            let duration = line.duration.unwrap_or(options.duration);
            wanted(line.source, duration, line.note.unwrap_or(options.note))
        });
        let result = target.add(request.collect()).inspect_err(|_| {
            bar.clear();
            eprintln!(
                "{} of {} verdicts were added before",
                number * STEP,
                all.len()
            );
        })?;
        summary.take(lines, result);
    }
    bar.clear();
    Ok(())
}

impl Summary {
    /// Counts what became of some lines.
    fn take(&mut self, lines: &[Line<'_>], result: Added) {
        self.added += result.added;
        self.renewed += result.renewed;
        self.without_room += result.no_room;
        self.given_up += result.evicted;
        self.granted += result.granted.len() as u64;
        self.refused += result.refused.len() as u64;
        for refused in result.refused {
            if self.refused_sources.len() == REPORTED_MAX {
                break;
            }
            let Some(line) = lines.get(refused.index) else {
                continue;
            };
            self.refused_sources.push(Refused {
                line: line.line,
                source: line.source,
                exemption: refused.exemption,
            });
        }
    }
}

fn report(options: &Options<'_>, file: &str, summary: &Summary) -> io::Result<()> {
    if options.json {
        println!("{}", serde_json::to_string_pretty(summary)?);
        return Ok(());
    }
    report_invalid(file, &summary.invalid_lines, summary.invalid);
    for refused in &summary.refused_sources {
        let (network, reason) = (refused.exemption.network(), refused.exemption.reason());
        eprintln!(
            "{file}:{}: {} is not kept out: {network} is {}",
            refused.line,
            refused.source,
            printable(&reason)
        );
    }
    more(file, "are not kept out", summary.refused);
    println!("{} added, {} renewed", summary.added, summary.renewed);
    if summary.given_up > 0 {
        println!(
            "{} learned verdicts of least use were evicted for them",
            summary.given_up
        );
    }
    if summary.granted > 0 {
        println!(
            "{} addresses have a grant and still pass: `portcullis grant list`",
            summary.granted
        );
    }
    if summary.without_room > 0 {
        eprintln!(
            "portcullis filter verdicts: {} not added: {}",
            summary.without_room, NO_ROOM
        );
    }
    Ok(())
}

fn report_invalid(file: &str, first: &[Invalid], number: u64) {
    for Invalid { line, text, reason } in first {
        eprintln!("{file}:{line}: {reason}: {text}");
    }
    more(file, "are invalid", number);
}

/// Prints how many there were beyond those reported one by one.
fn more(file: &str, what: &str, number: u64) {
    if number > REPORTED_MAX as u64 {
        let more = number - REPORTED_MAX as u64;
        eprintln!("{file}: {more} more {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Line<'_>>, String> {
        parse_line(7, text)
    }

    #[test]
    fn a_file_that_is_not_text_is_one_error_and_not_one_for_each_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sources");
        for (octets, what) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"1\x001\0.\x001\0", "UTF-16"),
        ] {
            std::fs::write(&file, octets).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_line_has_a_source_and_perhaps_a_time_and_a_note() {
        let wanted = |source: &str, duration: Option<u64>, note| Line {
            line: 7,
            source: source.parse().unwrap(),
            duration: duration.map(Duration::from_secs),
            note,
        };
        let cases = [
            ("203.0.113.9", wanted("203.0.113.9/32", None, None)),
            (
                "\u{feff}203.0.113.9/32 30m\r",
                wanted("203.0.113.9/32", Some(1_800), None),
            ),
            (
                "  2001:db8:7::/64\t7d # ticket 12 # mail",
                wanted("2001:db8:7::/64", Some(604_800), Some("ticket 12 # mail")),
            ),
            (
                "2001:db8:7::9;SBL1",
                wanted("2001:db8:7::9/128", None, Some("SBL1")),
            ),
            ("::ffff:203.0.113.9 #", wanted("203.0.113.9/32", None, None)),
        ];
        for (text, expected) in cases {
            assert_eq!(parsed(text), Ok(Some(expected)), "{text}");
        }
        for empty in ["", "  ", "# all of them", "; and these"] {
            assert_eq!(parsed(empty), Ok(None), "{empty:?}");
        }
    }

    #[test]
    fn an_invalid_line_is_reported_with_its_number_and_the_others_are_added() {
        let text = "203.0.113.9\n203.0.113.0/24\n\u{1b}[2Jx\n203.0.113.9 soon\n\
                    203.0.113.9 1h 2h\n203.0.113.8\n";
        let mut summary = Summary::default();
        let wanted = parse(text, &mut summary);
        assert_eq!(
            wanted.iter().map(|one| one.line).collect::<Vec<_>>(),
            [1, 6]
        );
        let lines: Vec<_> = summary.invalid_lines.iter().map(|bad| bad.line).collect();
        assert_eq!((summary.invalid, lines), (4, vec![2, 3, 4, 5]));
        assert_eq!(summary.invalid_lines[1].text, "\\u{1b}[2Jx");
    }

    #[test]
    fn of_a_file_in_another_format_only_a_few_lines_are_reported() {
        let mut summary = Summary::default();
        assert!(parse(&"<html>\n".repeat(100_000), &mut summary).is_empty());
        assert_eq!(
            (summary.invalid, summary.invalid_lines.len()),
            (100_000, REPORTED_MAX)
        );
    }
}
