//! `portcullis doctor`: is this machine able to run the gate?

use std::io::{self, Write};
use std::process::ExitCode;

use portcullis::doctor::{Finding, Level, examine, rehearse};
use portcullis::printable::printable;

use super::{ConfigFile, finished};

/// Arguments of `portcullis doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Looks at the kernel, io_uring, limits, TCP settings and ports; with a [filter] also at BPF and at
the interfaces; asks the DNS lists for their test entries. Takes rings, threads and the user as a
start does, and looks as that user at the files that the gate reads and writes later. Changes
nothing and listens nowhere, so it can be run beside a gate that serves. Run it as the user who
starts the gate, most likely root.

Examples:
  portcullis doctor
  sudo portcullis doctor -c /etc/portcullis.toml
  portcullis doctor -c gate.toml --json | jq '.[] | select(.level != \"ok\")'

Exit code: 0 if the gate can run (there may be warnings), 1 if it cannot, 2 if the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// Prints a line for each finding, and below it the next step.
pub(crate) fn run(args: &Args) -> ExitCode {
    let config = match args.config.load_as_a_start() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut findings = examine(&config);
    findings.extend(rehearse(&config));
    let worst = findings.iter().map(|finding| finding.level).max();
    let mut stdout = io::stdout().lock();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut stdout, &findings)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        print(&findings, &mut stdout)
    };
    match finished(printed) {
        code if worst != Some(Level::Problem) => code,
        _ => ExitCode::FAILURE,
    }
}

fn print(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    let subjects = findings
        .iter()
        .map(|finding| printable(&finding.subject).chars().count());
    let width = subjects.max().unwrap_or(0);
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        writeln!(
            out,
            "{level:<7}  {:<width$}  {}",
            printable(&finding.subject),
            printable(&finding.found)
        )?;
        if let Some(next_step) = &finding.next_step {
            let next_step = printable(next_step);
            writeln!(out, "{:<7}  {:<width$}  -> {next_step}", "", "")?;
        }
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .count();
    match problems {
        0 => writeln!(out, "\nthe gate can run"),
        1 => writeln!(out, "\nthe gate cannot run: 1 problem"),
        n => writeln!(out, "\nthe gate cannot run: {n} problems"),
    }
}
