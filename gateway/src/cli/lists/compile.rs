//! `portcullis lists compile`: the lists of a configuration or of the command line, read, settled
//! and written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use portcullis::config::Config;
use portcullis::control::lists;
use portcullis::lists::file::{self, About, Stored};
use portcullis::lists::format::{Format, Progress, Reading};
use portcullis::lists::source::{FileFinding, FileFindings, ListSource, Sources};
use portcullis::lists::{Before, Compiled, LISTS_MAX, ListAction, Placed, ReadObserver, Refusal};
use serde::Serialize;

use super::super::progress::Bar;
use super::super::table::Table;
use super::super::{EXIT_USAGE, finished};
use super::settings;

/// Arguments of `portcullis lists compile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An invalid line is skipped and counted, and the first ten are shown. A list that came out empty, or
lost more entries than lists.shrink_max allows since the last compile, is refused, and the
snapshot that is there stays: the file may have been cut off on its way. So is a drop or reject list
that would newly cover more of all addresses than lists.grow_max allows, or a local network, an
address of the gate, a next hop or a name server of the configuration.

Formats: cidr, rbldnsd-ip4set, rbldnsd-ip4trie, rbldnsd-ip4tset, rbldnsd-ip6trie, rbldnsd-ip6tset,
spamhaus-json. Actions: drop, reject, permit.

Examples:
  portcullis lists compile -c /etc/portcullis.toml
  portcullis lists compile -c /etc/portcullis.toml --force    the loss or the growth is meant
  portcullis lists compile --list zone=drop:rbldnsd-ip4set:/srv/bl/zone -o lists.snapshot
  portcullis lists compile -c new.toml -o /dev/null --strict  is every line good?

Exit code: 0 if the snapshot was written, 1 if a list was refused or could not be read, 2 if the
command line or the configuration is wrong.")]
pub(super) struct Args {
    /// The configuration file, for its [[list]] tables
    #[arg(
        short,
        long = "config",
        value_name = "FILE",
        required_unless_present = "list"
    )]
    config: Option<PathBuf>,
    /// A list, in place of those of a configuration; may be given more than once
    #[arg(
        long,
        value_name = "NAME=ACTION:FORMAT:FILE",
        value_parser = source,
        conflicts_with = "config",
        requires = "output"
    )]
    list: Vec<ListSource>,
    /// Where to write the snapshot; without this, to lists.snapshot in the state_dir of the
    /// configuration
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// An invalid line is an error
    #[arg(long)]
    strict: bool,
    /// Take a list that lost more than it may, or would newly cover more
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// A list as the command line has it.
fn source(text: &str) -> Result<ListSource, String> {
    let parts = text.split_once('=').and_then(|(name, rest)| {
        let (action, rest) = rest.split_once(':')?;
        let (format, file) = rest.split_once(':')?;
        Some((name, action, format, file))
    });
    let Some((name, action, format, file)) = parts else {
        return Err("write NAME=ACTION:FORMAT:FILE, such as zone=drop:cidr:zone.netset".to_owned());
    };
    let action = ListAction::ALL
        .into_iter()
        .find(|known| known.as_str() == action);
    Ok(ListSource {
        name: name.to_owned(),
        action: action.ok_or("the action can be drop, reject or permit")?,
        format: Format::named(format).ok_or_else(|| {
            let known: Vec<&str> = Format::ALL.iter().map(|&(name, _)| name).collect();
            format!("the format can be {}", known.join(", "))
        })?,
        file: file.into(),
        strict: false,
    })
}

/// The result.
#[derive(Serialize)]
struct Report {
    output: PathBuf,
    /// Whether the snapshot was written.
    written: bool,
    octets: u64,
    seconds: f64,
    lists: Vec<Row>,
    /// Lists that lost more than they may.
    losses: Vec<String>,
    /// What lists would newly cover, and may not.
    growths: Vec<String>,
}

/// A list, as it was read.
#[derive(Serialize)]
struct Row {
    name: String,
    action: &'static str,
    format: &'static str,
    file: PathBuf,
    lines: u64,
    entries: u64,
    ipv6_entries: u64,
    merged: u64,
    masked: u64,
    excluded: u64,
    skipped: u64,
    refused: u64,
    incomplete: Option<&'static str>,
    bad_lines: Vec<Bad>,
}

#[derive(Serialize)]
struct Bad {
    line: u64,
    text: String,
    reason: &'static str,
}

impl Row {
    fn of(source: &ListSource, reading: &Reading) -> Row {
        let bad = reading.invalid_lines.iter();
        Row {
            name: source.name.clone(),
            action: source.action.as_str(),
            format: source.format.as_str(),
            file: source.file.clone(),
            lines: reading.lines,
            entries: reading.entries.len() as u64,
            ipv6_entries: reading.entries.ipv6.len() as u64,
            merged: reading.merged,
            masked: reading.masked,
            excluded: reading.excluded,
            skipped: reading.skipped,
            refused: reading.invalid_line_count,
            incomplete: reading.incomplete,
            bad_lines: bad
                .map(|bad| Bad {
                    line: bad.line,
                    text: bad.text.clone(),
                    reason: bad.reason,
                })
                .collect(),
        }
    }
}

/// Reads, checks, places, writes: the way of all lists into force, with a file at its end.
pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let begun = Instant::now();
    let Wanted {
        sources,
        output,
        config,
    } = what(args)?;
    let guard = config.as_ref().map(lists::guard).unwrap_or_default();
    let mut reading = ReadReport::new();
    let read = sources.read(args.strict, &mut reading).read;
    let ReadReport { rows, mut bar } = reading;
    let read = read.ok_or(ExitCode::FAILURE)?.forced(args.force);
    bar.say("settling overlaps");
    let checked = match last_compile(&output) {
        None => Ok(read.first(&guard)),
        Some(last) => read.check(&guard, &Before::Kept(&last)),
    };
    let mut report = Report {
        written: false,
        output,
        octets: 0,
        seconds: 0.0,
        lists: rows,
        losses: Vec::new(),
        growths: Vec::new(),
    };
    let refusal = match checked {
        Ok(checked) => {
            let placed = checked.place(None).map_err(|error| failed(&error))?;
            bar.clear();
            tell_doubts(&placed, config.as_ref());
            bar.say("writing the snapshot");
            let compiled = &placed.compiled;
            report.octets = compiled.filtered.size() + compiled.rejected.size();
            let written = write(&report.output, compiled, args.force);
            bar.clear();
            written?;
            report.written = true;
            Refusal::default()
        }
        Err(refusal) => refusal,
    };
    bar.clear();
    report.losses = refusal.losses.iter().map(ToString::to_string).collect();
    report.growths = refusal.growths.iter().map(ToString::to_string).collect();
    report.seconds = begun.elapsed().as_secs_f64();
    let mut stdout = io::stdout().lock();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        print(&report, &mut stdout)
    };
    let code = finished(printed);
    if report.written {
        return Ok(code);
    }
    tell_refused(&refusal, &report.output);
    Err(ExitCode::FAILURE)
}

fn failed(error: &file::Error) -> ExitCode {
    eprintln!("portcullis lists: {error}");
    ExitCode::FAILURE
}

fn tell_doubts(placed: &Placed, config: Option<&Config>) {
    let doubts = config.map(|config| config.list_doubts(&placed.compiled));
    for doubt in doubts.iter().flatten().chain(&placed.warnings) {
        eprintln!("warning: {doubt}");
    }
}

/// What is to be compiled.
struct Wanted {
    sources: Sources,
    output: PathBuf,
    /// Where the lists come from, if not from the command line.
    config: Option<Config>,
}

fn what(args: &Args) -> Result<Wanted, ExitCode> {
    let wrong = |message: String| {
        eprintln!("portcullis lists: {message}");
        ExitCode::from(EXIT_USAGE)
    };
    let (sources, saved, config) = match &args.config {
        None => (args.list.clone(), PathBuf::new(), None),
        Some(path) => {
            let config = settings(path)?;
            if let Some(snapshot) = config.lists.sources.snapshot() {
                return Err(wrong(format!(
                    "{} loads {}, and has no [[list]] that could be compiled",
                    path.display(),
                    snapshot.display()
                )));
            }
            let sources = config.lists.sources.lists().to_vec();
            (sources, config.saved_lists(), Some(config))
        }
    };
    let names: Vec<&str> = sources.iter().map(|source| &*source.name).collect();
    let twice = (1..)
        .zip(&names)
        .find(|&(next, name)| names[next..].contains(name));
    match twice {
        _ if sources.is_empty() => Err(wrong("there is no [[list]] to compile".to_owned())),
        _ if sources.len() > LISTS_MAX => Err(wrong(format!("more than {LISTS_MAX} lists"))),
        Some((_, name)) => Err(wrong(format!("the list \"{name}\" is named twice"))),
        None => Ok(Wanted {
            sources: Sources::Files(sources),
            output: args.output.clone().unwrap_or(saved),
            config,
        }),
    }
}

/// Prints progress and faults while the files are read, and keeps a row for each list.
struct ReadReport {
    bar: Bar,
    rows: Vec<Row>,
}

impl ReadReport {
    fn new() -> Self {
        Self {
            bar: Bar::new(),
            rows: Vec::new(),
        }
    }
}

impl ReadObserver for ReadReport {
    fn progress(&mut self, source: &ListSource, progress: Progress) {
        let size = source.file.metadata().map_or(0, |metadata| metadata.len());
        self.bar.show(&source.name, progress, size);
    }

    fn read(&mut self, source: &ListSource, reading: &Reading, found: &FileFindings) {
        self.bar.clear();
        tell(source, reading, found);
        self.rows.push(Row::of(source, reading));
    }

    fn unreadable(&mut self, _: usize, _: &Path, why: String) {
        self.bar.clear();
        eprintln!("portcullis lists: {why}");
    }
}

/// Tells what is wrong with a list.
fn tell(source: &ListSource, reading: &Reading, findings: &FileFindings) {
    let file = source.file.display();
    for bad in reading
        .invalid_lines
        .iter()
        .filter(|_| findings.faults.is_empty())
    {
        eprintln!("{file}:{}: skipped: {}: {}", bad.line, bad.reason, bad.text);
    }
    let more = reading.invalid_line_count - reading.invalid_lines.len() as u64;
    if more > 0 && findings.faults.is_empty() {
        eprintln!("{file}: {more} more lines are skipped");
    }
    let of_file = |finding: &&FileFinding| finding.line.is_none();
    for doubt in findings.doubts.iter().filter(of_file) {
        eprintln!("{file}: {}", doubt.message);
    }
    for fault in &findings.faults {
        match &fault.line {
            Some((line, text)) => eprintln!("{file}:{line}: {}: {text}", fault.message),
            None => eprintln!("{file}: {}", fault.message),
        }
        if let Some(advice) = fault.advice {
            eprintln!("      = {advice}");
        }
    }
}

/// The snapshot that is there. One of another version has nothing to compare with.
fn last_compile(output: &Path) -> Option<Stored> {
    if is_device(output) {
        return None;
    }
    Stored::open_last(output).unwrap_or_else(|error| {
        eprintln!("warning: {error}; the earlier lists are not known");
        None
    })
}

fn tell_refused(refusal: &Refusal, output: &Path) {
    for line in refusal.lines() {
        eprintln!("portcullis lists: {line}");
    }
    let what = if refusal.growths.is_empty() {
        "loss"
    } else {
        "growth"
    };
    eprintln!(
        "{} stays as it was; if the {what} is meant, say --force",
        output.display()
    );
}

fn is_device(output: &Path) -> bool {
    output
        .metadata()
        .is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Writes the snapshot; a device, such as /dev/null, is written to and not replaced.
fn write(output: &Path, compiled: &Compiled, forced: bool) -> Result<(), ExitCode> {
    if is_device(output) {
        return Ok(());
    }
    let about = About {
        forced,
        ..About::of(compiled, SystemTime::now())
    };
    file::write_as(output, compiled, &about).map_err(|error| {
        eprintln!("portcullis lists: cannot write {error}");
        if let Some(directory) = output.parent()
            && !directory.as_os_str().is_empty()
            && !directory.exists()
        {
            eprintln!(
                "there is no directory {0}: `install -d -m 750 -o USER {0}` makes it, with the \
                 user of the gate, and so \
                 does a start of the gate that has it as its state_dir; -o names another file",
                directory.display()
            );
        }
        ExitCode::FAILURE
    })
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new([
        "list", "action", "format", "lines", "entries", "merged", "excluded", "skipped", "refused",
    ]);
    for row in &report.lists {
        table.row([
            row.name.clone(),
            row.action.to_owned(),
            row.format.to_owned(),
            row.lines.to_string(),
            row.entries.to_string(),
            row.merged.to_string(),
            row.excluded.to_string(),
            row.skipped.to_string(),
            row.refused.to_string(),
        ]);
    }
    table.write(out)?;
    if report.written {
        let took = Duration::from_secs_f64(report.seconds);
        writeln!(
            out,
            "\n{}: {:.1} MB of lines, in {:.1} s",
            report.output.display(),
            report.octets as f64 / 1e6,
            took.as_secs_f64()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_the_command_line_is_taken_apart_at_the_right_places() {
        let list = source("zone=drop:rbldnsd-ip4set:/srv/a:b=c").unwrap();
        assert_eq!(
            (&*list.name, list.action, list.format, list.file.to_str()),
            ("zone", ListAction::Drop, Format::Ip4set, Some("/srv/a:b=c"))
        );
        for bad in [
            "zone",
            "zone=drop",
            "zone=drop:cidr",
            "zone=allow:cidr:f",
            "zone=drop:text:f",
        ] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }
}
