//! `portcullis filter status`: what is in force, and the counters.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use portcullis::filter::{self, Events, InterfaceStatus, ListStatus, READ_EVERY, Reasons, Status};

use super::super::finished;
use super::super::table::Table;
use super::{Place, failed};

/// Time between two readings with `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Top sources in the table; `--json` has all.
const TOP_SOURCES_SHOWN: usize = 10;

/// Arguments of `portcullis filter status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
`passed` are all packets to a filtered port that passed: `permitted`, `granted`, `over budget` and
`monitored` are parts of it. Packets are counted since the filter was attached; a reload or a
restart of the gate keeps the counters of lists that keep their name and action. The top sources
need a reader of the events: a gate with an admin endpoint, or this command with --watch. They are
counted from a sample.

Examples:
  portcullis filter status -c /etc/portcullis.toml
  portcullis filter status --watch                   with packets per second beside the totals
  portcullis filter status --json | jq '.lists[] | {name, dropped_packets}'")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print it as JSON: `interfaces` and `lists` with their counters, `verdicts`, `top_sources`
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted; with --json one line each
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, ExitCode> {
    let pin_path = args.place.pin_path()?;
    let config = args.place.config.as_deref();
    let look = || filter::status(&pin_path).map_err(|error| failed(&error, config));
    let mut stdout = io::stdout().lock();
    if !args.watch {
        return Ok(finished(print(args, &Look::alone(look()?), &mut stdout)));
    }
    let mut events = reader(&pin_path);
    let mut before: Option<(Status, Instant)> = None;
    loop {
        let (status, now) = (look()?, Instant::now());
        let look = Look {
            status: status.clone(),
            before: before.map(|(status, then)| (status, now - then)),
        };
        if let Err(error) = print(args, &look, &mut stdout) {
            return Ok(finished(Err(error)));
        }
        before = Some((status, now));
        wait(&pin_path, &mut events);
    }
}

/// The events, if no other process reads them. If one does, it counts the top sources.
fn reader(pin_path: &Path) -> Option<Events> {
    let mut events = Events::open(pin_path).ok()?;
    events.become_reader().ok()?;
    Some(events)
}

/// Waits for the next reading, and counts the top sources meanwhile. If the reader of the events
/// has ended, this process becomes the reader.
fn wait(pin_path: &Path, events: &mut Option<Events>) {
    if events.is_none() {
        *events = reader(pin_path);
    }
    let Some(events) = events else {
        return thread::sleep(WATCH_EVERY);
    };
    for _ in 0..WATCH_EVERY.as_millis() / READ_EVERY.as_millis() {
        thread::sleep(READ_EVERY);
        events.count_all();
    }
    // If it fails, the age of the top sources shows it.
    let _ = events.announce();
}

/// The status now, and the last one with the time since then.
struct Look {
    status: Status,
    before: Option<(Status, Duration)>,
}

impl Look {
    fn alone(status: Status) -> Self {
        Self {
            status,
            before: None,
        }
    }

    /// A counter of an interface, with its rate if there is an earlier status.
    fn of_interface(
        &self,
        now: &InterfaceStatus,
        count: impl Fn(&InterfaceStatus) -> u64,
    ) -> String {
        let before = self.before.as_ref().and_then(|(status, elapsed)| {
            let mut interfaces = status.interfaces.iter();
            let before = interfaces.find(|before| before.name == now.name)?;
            Some((count(before), *elapsed))
        });
        with_rate(count(now), before)
    }

    /// The same for a list.
    fn of_list(&self, now: &ListStatus, count: impl Fn(&ListStatus) -> u64) -> String {
        let before = self.before.as_ref().and_then(|(status, elapsed)| {
            let mut lists = status.lists.iter();
            let before = lists.find(|before| before.name == now.name)?;
            Some((count(before), *elapsed))
        });
        with_rate(count(now), before)
    }
}

/// `1200 (+30/s)`; without the rate if that is 0.
fn with_rate(now: u64, before: Option<(u64, Duration)>) -> String {
    let rate = before.map_or(0.0, |(before, elapsed)| {
        now.saturating_sub(before) as f64 / elapsed.as_secs_f64().max(0.001)
    });
    match rate.ceil() as u64 {
        0 => now.to_string(),
        rate => format!("{now} (+{rate}/s)"),
    }
}

fn print(args: &Args, look: &Look, out: &mut io::StdoutLock<'_>) -> io::Result<()> {
    if args.json {
        let write = if args.watch {
            serde_json::to_writer
        } else {
            serde_json::to_writer_pretty
        };
        write(&mut *out, &look.status)?;
        writeln!(out)?;
    } else {
        let redraws = args.watch && out.is_terminal();
        if redraws {
            // Cursor home, and clear the screen.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        print_tables(look, out)?;
        if args.watch && !redraws {
            writeln!(out)?;
        }
    }
    out.flush()
}

fn print_tables(look: &Look, out: &mut impl Write) -> io::Result<()> {
    let status = &look.status;
    let ports: Vec<String> = status.ports.iter().map(u16::to_string).collect();
    writeln!(
        out,
        "{}: {}, ports {}, unlisted sources {}\n",
        status.pin_path.display(),
        status.mode,
        ports.join(" "),
        status.unlisted
    )?;
    interfaces(look, out)?;
    if status.interfaces.iter().any(|interface| !interface.present) {
        writeln!(
            out,
            "not here: there is no interface of that name: it is gone, or the filter is in \
             another network namespace"
        )?;
    }
    for interface in &status.interfaces {
        if interface.answers_lost && interface.present {
            let reason = match interface.link {
                Some("ip") => "its packets have no Ethernet header",
                _ => "the other end of this veth runs no XDP program",
            };
            writeln!(
                out,
                "{}: nothing is answered there, because it would be lost: {reason}",
                interface.name
            )?;
        }
    }
    reasons(look, "dropped", |interface| &interface.dropped, out)?;
    let monitors = |interface: &InterfaceStatus| interface.monitored.total() > 0;
    if status.mode == "monitor" || status.interfaces.iter().any(monitors) {
        reasons(look, "monitored", |interface| &interface.monitored, out)?;
    }
    unread(look, out)?;
    lists(look, out)?;
    verdicts(status, out)?;
    top_sources(status, out)
}

fn interfaces(look: &Look, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new([
        "interface",
        "role",
        "link",
        "xdp mode",
        "passed",
        "of them permitted",
        "granted",
        "over budget",
        "dropped",
        "resets",
        "syn cookies",
        "hidden",
        "other",
    ]);
    for interface in &look.status.interfaces {
        let mode = match interface {
            interface if interface.attached => interface.xdp_mode,
            interface if interface.present => "detached",
            _ => "not here",
        };
        let count = |count: fn(&InterfaceStatus) -> u64| look.of_interface(interface, count);
        let name = match &interface.current_name {
            Some(now) => format!("{} (now {now})", interface.name),
            None => interface.name.clone(),
        };
        table.row([
            name,
            interface.role.to_owned(),
            interface.link.unwrap_or_default().to_owned(),
            mode.to_owned(),
            count(|interface| interface.passed),
            count(|interface| interface.permitted),
            count(|interface| interface.granted),
            count(|interface| interface.over_budget),
            count(|interface| interface.dropped.total()),
            count(|interface| interface.resets),
            count(|interface| interface.syn_cookies),
            count(|interface| interface.hidden),
            count(|interface| interface.other),
        ]);
    }
    table.write(out)
}

/// A table of packets by reason.
fn reasons(
    look: &Look,
    heading: &str,
    of: fn(&InterfaceStatus) -> &Reasons,
    out: &mut impl Write,
) -> io::Result<()> {
    let [a, b, c, d, e] = Reasons::default().each().map(|(name, _)| name);
    let mut table = Table::new([heading, a, b, c, d, e]);
    for interface in &look.status.interfaces {
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|reason| {
            look.of_interface(interface, |interface| {
                let (_, packets) = of(interface).each()[reason];
                packets
            })
        });
        table.row([interface.name.clone(), a, b, c, d, e]);
    }
    writeln!(out)?;
    table.write(out)
}

/// Packets that enclose another packet and passed unread, each encapsulation that was seen.
fn unread(look: &Look, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["unread", "encapsulation", "passed"]);
    let mut seen = false;
    for interface in &look.status.interfaces {
        for (name, packets) in interface.unread.each().filter(|(_, packets)| *packets > 0) {
            seen = true;
            let count = |now: &InterfaceStatus| {
                let mut kinds = now.unread.each();
                kinds
                    .find(|(kind, _)| *kind == name)
                    .map_or(packets, |(_, packets)| packets)
            };
            let passed = look.of_interface(interface, count);
            table.row([interface.name.clone(), name.to_owned(), passed]);
        }
    }
    if !seen {
        return Ok(());
    }
    writeln!(out)?;
    table.write(out)
}

fn lists(look: &Look, out: &mut impl Write) -> io::Result<()> {
    if look.status.lists.is_empty() {
        return writeln!(out, "\nno lists");
    }
    writeln!(out)?;
    let mut table = Table::new([
        "list",
        "action",
        "entries",
        "dropped",
        "permitted",
        "monitored",
    ]);
    for list in &look.status.lists {
        table.row([
            list.name.clone(),
            list.action.to_owned(),
            list.entries.to_string(),
            look.of_list(list, |list| list.dropped_packets),
            look.of_list(list, |list| list.permitted_packets),
            look.of_list(list, |list| list.monitored_packets),
        ]);
    }
    table.write(out)
}

fn verdicts(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let verdicts = &status.verdicts;
    writeln!(
        out,
        "\nrecent verdicts: {} of at most {}, {} by hand; {} added, {} renewed, {} removed, \
         {} expired, {} evicted, {} refused, {} without room",
        verdicts.number,
        verdicts.capacity,
        verdicts.by_operator,
        verdicts.added,
        verdicts.renewed,
        verdicts.removed,
        verdicts.expired,
        verdicts.evicted,
        verdicts.refused,
        verdicts.no_room
    )
}

fn top_sources(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let top = &status.top_sources;
    let watched = if top.watched {
        String::new()
    } else {
        match top.age_seconds {
            Some(age) => format!(", as of {age} s ago (the events have no reader now)"),
            None => {
                return writeln!(
                    out,
                    "top sources: the events have no reader (--watch is one, and so is a gate \
                     with `admin`)"
                );
            }
        }
    };
    if top.sources.is_empty() {
        return writeln!(out, "top sources: none dropped in the last minutes");
    }
    writeln!(
        out,
        "\ntop sources by sampled drops, one a minute ago counting for a half{watched}:"
    )?;
    let mut table = Table::new(["source", "drops", "reason", "list", "interface", "last, s"]);
    for source in top.sources.iter().take(TOP_SOURCES_SHOWN) {
        table.row([
            source.source.clone(),
            source.recent_events.to_string(),
            source.reason.to_owned(),
            source.list.clone().unwrap_or_default(),
            source.interface.clone().unwrap_or_default(),
            source.last_seconds_ago.to_string(),
        ]);
    }
    table.write(out)
}

#[cfg(test)]
mod tests {
    use portcullis::config::PIN_PATH;
    use portcullis::filter::{TopSourceStatus, TopSources, Unread, VerdictCounts};

    use super::*;

    fn status() -> Status {
        Status {
            pin_path: PIN_PATH.into(),
            layout: 1,
            mode: "enforce",
            unlisted: "pass",
            ports: vec![25, 587],
            generation: 2,
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                role: "customer",
                link: Some("ethernet"),
                xdp_mode: "driver",
                attached: true,
                present: true,
                current_name: None,
                unfiltered_since: None,
                unfiltered_reason: None,
                passed: 1_000_000,
                permitted: 2,
                granted: 14,
                over_budget: 7,
                other: 3,
                unread: Unread::new(|kind| if kind.name() == "gre" { 2 } else { 0 }),
                dropped: Reasons {
                    listed: 4,
                    verdict: 5,
                    unlisted: 6,
                    customer: 8,
                    vlan_tags: 13,
                },
                resets: 9,
                syn_cookies: 10,
                answers_lost: false,
                hidden: 11,
                monitored: Reasons {
                    listed: 12,
                    ..Reasons::default()
                },
            }],
            lists: vec![ListStatus {
                name: "spamhaus-drop".to_owned(),
                action: "drop",
                entries: 8,
                dropped_packets: 4,
                permitted_packets: 0,
                monitored_packets: 6,
            }],
            verdicts: VerdictCounts {
                number: 1,
                by_operator: 8,
                capacity: 262_144,
                added: 2,
                renewed: 3,
                removed: 4,
                expired: 5,
                evicted: 6,
                refused: 7,
                no_room: 9,
            },
            top_sources: TopSources {
                watched: true,
                age_seconds: Some(0),
                sources: vec![TopSourceStatus {
                    source: "192.0.2.66".to_owned(),
                    recent_events: 40,
                    reason: "listed",
                    list: Some("spamhaus-drop".to_owned()),
                    interface: Some("eth0".to_owned()),
                    last_seconds_ago: 2,
                }],
            },
        }
    }

    fn printed(look: &Look) -> String {
        let mut written = Vec::new();
        print_tables(look, &mut written).unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn every_count_stands_under_its_heading() {
        let expected = "\
/sys/fs/bpf/portcullis: enforce, ports 25 587, unlisted sources pass

interface  role      link      xdp mode   passed  of them permitted  granted  over budget  \
dropped  resets  syn cookies  hidden  other
eth0       customer  ethernet  driver    1000000                  2       14            7       \
36       9           10      11      3

dropped  listed  verdict  unlisted  customer  vlan-tags
eth0          4        5         6         8         13

monitored  listed  verdict  unlisted  customer  vlan-tags
eth0           12        0         0         0          0

unread  encapsulation  passed
eth0    gre                 2

list           action  entries  dropped  permitted  monitored
spamhaus-drop  drop          8        4          0          6

recent verdicts: 1 of at most 262144, 8 by hand; 2 added, 3 renewed, 4 removed, 5 expired, \
6 evicted, 7 refused, 9 without room

top sources by sampled drops, one a minute ago counting for a half:
source      drops  reason  list           interface  last, s
192.0.2.66     40  listed  spamhaus-drop  eth0             2
";
        assert_eq!(printed(&Look::alone(status())), expected);
    }

    #[test]
    fn a_counter_that_grows_has_its_rate_beside_it() {
        let mut before = status();
        before.interfaces[0].passed -= 500;
        before.lists[0].dropped_packets -= 3;
        let text = printed(&Look {
            status: status(),
            before: Some((before, Duration::from_secs(2))),
        });
        assert!(
            text.contains("1000000 (+250/s)                  2"),
            "{text}"
        );
        assert!(text.contains("4 (+2/s)          0"), "{text}");
    }

    #[test]
    fn an_interface_on_which_answers_would_be_lost_is_named() {
        let mut status = status();
        let is_named = |status: &Status| {
            printed(&Look::alone(status.clone())).contains("eth0: nothing is answered there")
        };
        assert!(!is_named(&status));
        status.interfaces[0].answers_lost = true;
        assert!(is_named(&status));
    }

    #[test]
    fn an_interface_of_another_namespace_is_not_said_to_have_lost_its_filter() {
        let mut status = status();
        status.interfaces[0].attached = false;
        assert!(printed(&Look::alone(status.clone())).contains("ethernet  detached"));
        status.interfaces[0].present = false;
        let text = printed(&Look::alone(status));
        assert!(
            text.contains("ethernet  not here") && !text.contains("detached"),
            "{text}"
        );
    }

    #[test]
    fn a_filter_without_a_reader_is_not_said_to_have_no_top_sources() {
        let mut unwatched = status();
        unwatched.top_sources = TopSources::default();
        assert!(printed(&Look::alone(unwatched)).contains("the events have no reader (--watch is"));
        let mut left = status();
        left.top_sources.watched = false;
        left.top_sources.age_seconds = Some(90);
        assert!(printed(&Look::alone(left)).contains("as of 90 s ago"));
    }
}
