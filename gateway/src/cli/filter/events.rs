//! `portcullis filter events`: dropped packets as they happen.
//!
//! The buffer in the kernel has one reader. If that is a gate with an admin endpoint, this command
//! gets the events from the gate.

use std::io::{self, BufRead as _, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use portcullis::control::ask;
use portcullis::filter::{self, ANNOUNCE_EVERY, Error, Events, READ_EVERY, SlotNames, TimedEvent};
use portcullis::printable::printable;

use super::super::finished;
use super::{Place, failed};

/// Arguments of `portcullis filter events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The program reports at most 2000 drops a second on each CPU, and only while there is a reader. So
these lines are a sample; the counters are in `filter status`. A gate with an admin endpoint is the
reader itself: then the events come from it (/api/events), to any number of commands. Without such a
gate there can be one reader.

Examples:
  portcullis filter events
  portcullis filter events --count 100 --json | jq -r .source | sort | uniq -c")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print a JSON object for each event
    #[arg(long)]
    json: bool,
    /// End after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    let failed = |error| failed(&error, args.place.config.as_deref());
    let mut events = Events::open(&pin_path).map_err(failed)?;
    match events.become_reader() {
        Ok(()) => read(args, &pin_path, events),
        Err(taken @ Error::EventsTaken { .. }) => {
            match filter::admin(&pin_path).map_err(failed)? {
                Some(admin) => follow(args, admin, &taken),
                None => Err(failed(taken)),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Reads the buffer.
fn read(args: &Args, pin_path: &Path, mut events: Events) -> Result<ExitCode, ExitCode> {
    let failed = |error| failed(&error, args.place.config.as_deref());
    let mut stdout = io::stdout().lock();
    let mut names = filter::slot_names(pin_path).map_err(failed)?;
    let mut announced = Instant::now();
    let mut left = args.count;
    loop {
        match print_all(args, &mut events, &names, &mut left, &mut stdout) {
            Ok(()) if left != Some(0) => {}
            done => return Ok(finished(done)),
        }
        thread::sleep(READ_EVERY);
        if announced.elapsed() >= ANNOUNCE_EVERY {
            events.announce().map_err(failed)?;
            names = filter::slot_names(pin_path).map_err(failed)?;
            announced = Instant::now();
        }
    }
}

/// Gets the events from the gate that reads the buffer.
fn follow(args: &Args, admin: SocketAddr, taken: &Error) -> Result<ExitCode, ExitCode> {
    let mut lines = ask::get(admin, "/api/events").map_err(|error| {
        eprintln!("portcullis filter: {taken}");
        eprintln!("portcullis filter: cannot get them from the gate at {admin}: {error}");
        ExitCode::FAILURE
    })?;
    let mut stdout = io::stdout().lock();
    let mut line = String::new();
    let mut left = args.count;
    while left != Some(0) {
        line.clear();
        let read = lines.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            eprintln!("portcullis filter: the gate at {admin} sends no more events");
            return Err(ExitCode::FAILURE);
        }
        let Ok(event) = serde_json::from_str(&line) else {
            eprintln!("portcullis filter: the gate at {admin} is of another version");
            return Err(ExitCode::FAILURE);
        };
        let printed = print(args, &event, &mut stdout).and_then(|()| stdout.flush());
        if printed.is_err() {
            return Ok(finished(printed));
        }
        left = left.map(|left| left - 1);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the waiting events, but not more than `left`.
fn print_all(
    args: &Args,
    events: &mut Events,
    names: &SlotNames,
    left: &mut Option<u64>,
    out: &mut impl Write,
) -> io::Result<()> {
    while *left != Some(0) {
        let Some(event) = events.next(names) else {
            break;
        };
        print(args, &event.into(), out)?;
        *left = left.map(|left| left - 1);
    }
    out.flush()
}

fn print(args: &Args, event: &TimedEvent, out: &mut impl Write) -> io::Result<()> {
    if args.json {
        serde_json::to_writer(&mut *out, event)?;
        writeln!(out)
    } else {
        writeln!(out, "{}", printable(&in_words(event)))
    }
}

fn in_words(event: &TimedEvent) -> String {
    let mut words = format!("{}  {}  {}", event.time, event.source, event.reason);
    if let Some(list) = &event.list {
        words += &format!(" ({list})");
    }
    if let Some(interface) = &event.interface {
        words += &format!("  on {interface}");
    }
    words += &match event.port {
        Some(port) => format!("  to port {port}"),
        None => "  to a port that cannot be read".to_owned(),
    };
    if event.monitored {
        words += "  passed: the mode is monitor";
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> TimedEvent {
        TimedEvent {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            source: "192.0.2.66".parse().unwrap(),
            reason: "listed".into(),
            list: Some("spammers".to_owned()),
            interface: Some("eth0".to_owned()),
            port: Some(25),
            monitored: false,
        }
    }

    fn printed(event: &TimedEvent) -> String {
        let args = Args {
            place: Place {
                config: None,
                pin_path: None,
            },
            json: false,
            count: None,
        };
        let mut written = Vec::new();
        print(&args, event, &mut written).unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(
            printed(&event()),
            "2026-01-02T03:04:05.678Z  192.0.2.66  listed (spammers)  on eth0  to port 25\n"
        );
        let hidden = TimedEvent {
            list: None,
            port: None,
            monitored: true,
            ..event()
        };
        let end = "192.0.2.66  listed  on eth0  to a port that cannot be read  \
                   passed: the mode is monitor\n";
        assert!(printed(&hidden).ends_with(end));
    }

    #[test]
    fn control_characters_in_the_name_of_an_interface_are_escaped() {
        let strange = TimedEvent {
            interface: Some("x\u{1b}[2J".to_owned()),
            ..event()
        };
        assert!(printed(&strange).contains("on x\\u{1b}[2J  to"));
    }
}
