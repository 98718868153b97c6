//! `portcullis filter events`: what is dropped, while it happens.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use portcullis::filter::{self, ANNOUNCE_EVERY, Event, Events, Names, READ_EVERY};
use serde::Serialize;

use super::super::finished;
use super::{Place, failed};

/// Arguments of `portcullis filter events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The program tells of at most 2000 drops a second and CPU, and only while somebody reads: these lines
are a sample, what was counted is in `filter status`. There can be one reader; a gate with an admin
endpoint is one, and has the top sources in its /metrics.

Examples:
  portcullis filter events
  portcullis filter events --count 100 --json | jq -r .source | sort | uniq -c")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print a JSON object for each
    #[arg(long)]
    json: bool,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// An event with the time of day.
#[derive(Serialize)]
struct Timed<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    let failed = |error| failed(&error, args.place.config.as_deref());
    let mut events = Events::open(&pin_path).map_err(failed)?;
    events.take_turn().map_err(failed)?;
    let mut stdout = io::stdout().lock();
    let mut names = filter::names(&pin_path).map_err(failed)?;
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
            names = filter::names(&pin_path).map_err(failed)?;
            announced = Instant::now();
        }
    }
}

/// Prints what there is, but not more than is left.
fn print_all(
    args: &Args,
    events: &mut Events,
    names: &Names,
    left: &mut Option<u64>,
    out: &mut impl Write,
) -> io::Result<()> {
    while *left != Some(0) {
        let Some(event) = events.next(names) else {
            break;
        };
        print(args, &event, out)?;
        *left = left.map(|left| left - 1);
    }
    out.flush()
}

fn print(args: &Args, event: &Event, out: &mut impl Write) -> io::Result<()> {
    let time = time_of_day(event.age);
    if args.json {
        serde_json::to_writer(&mut *out, &Timed { time, event })?;
        writeln!(out)
    } else {
        writeln!(out, "{time}  {}", in_words(event))
    }
}

/// UTC, to the millisecond.
fn time_of_day(age: Duration) -> String {
    let time = SystemTime::now().checked_sub(age);
    let time = time.and_then(|time| jiff::Timestamp::try_from(time).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}

fn in_words(event: &Event) -> String {
    let mut words = format!("{}  {}", event.source, event.reason);
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

    #[test]
    fn an_event_is_told_in_one_line() {
        let event = Event {
            age: Duration::ZERO,
            source: "192.0.2.66".parse().unwrap(),
            reason: "listed",
            list: Some("spammers".to_owned()),
            interface: Some("eth0".to_owned()),
            port: Some(25),
            monitored: false,
        };
        assert_eq!(
            in_words(&event),
            "192.0.2.66  listed (spammers)  on eth0  to port 25"
        );
        let hidden = Event {
            list: None,
            port: None,
            monitored: true,
            ..event
        };
        assert_eq!(
            in_words(&hidden),
            "192.0.2.66  listed  on eth0  to a port that cannot be read  passed: the mode is monitor"
        );
    }

    #[test]
    fn the_time_is_that_of_the_packet() {
        let time = time_of_day(Duration::from_secs(86_400));
        assert!(
            time.ends_with('Z') && time.len() == "2026-01-02T03:04:05.678Z".len(),
            "{time}"
        );
        assert!(time < time_of_day(Duration::ZERO));
    }
}
