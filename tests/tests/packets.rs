//! The packet cases of `tests/packets`, on the host and through the program in the kernel; and both
//! against each other with random frames.
//!
//! A trial has the namespace of the thread that runs it, so each test makes one of its own, in
//! which the addresses that the cases are sent to listen.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{self, Command};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use portcullis::config::{self, FilterMode, Unlisted};
use portcullis::filter::{self, Filter, Trial, TrialResult};
use portcullis_ebpf_common::layout::{
    InterfaceCounter, InterfaceCounters, LinkLayer, Mode, NO_LIST, RecentVerdict, Role, Settings,
    VERDICT_NOTE_MAX, unread_counter,
};
use portcullis_ebpf_common::{Content, Verdict, packet, reply};
use portcullis_tests::packet_cases::{
    self, Case, Circumstances, Expected, File, FirstBuffer, judge_on_host, source, tagged,
};
use portcullis_tests::root;

/// The filter with the file's lists, on no interface.
struct InKernel {
    filter: Filter,
    /// On each kind of interface that a case has asked for: the verifier takes its time for each.
    trials: Vec<((Role, LinkLayer), Trial)>,
    /// A change of settings waits until no packet sees the old ones any more, and most cases change
    /// nothing.
    settings: Option<Settings>,
    pin_path: PathBuf,
}

impl InKernel {
    fn new(file: &File, name: &str) -> Result<Self> {
        let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
        let pin_path = PathBuf::from(format!(
            "/sys/fs/bpf/portcullis-test-{}-{name}-{stem}",
            process::id()
        ));
        let settings = config::Filter {
            ports: file.ports.clone(),
            mode: FilterMode::Enforce,
            unlisted: Unlisted::Pass,
            pin_path: pin_path.clone(),
            ..config::Filter::default()
        };
        let filter = Filter::attach(&settings, &file.lists)?;
        let mut edge = filter.trial()?;
        let now_ns = now_ns();
        for (address, age) in &file.recent {
            let (added_ns, expires_ns) = age.term(now_ns);
            let verdict = RecentVerdict {
                expires_ns,
                added_ns,
                last_ns: 0,
                packets: 0,
                cause: 0,
                reserved: 0,
                note: [0; VERDICT_NOTE_MAX],
            };
            edge.set_recent(source(*address).key(), verdict)?;
        }
        for (address, age) in &file.grants {
            edge.set_grant(source(*address), age.term(now_ns).1)?;
        }
        for network in &file.local {
            edge.add_local(source(network.network()), network.prefix_len())?;
        }
        edge.set_reader(u64::MAX);
        Ok(Self {
            filter,
            trials: vec![((Role::Edge, LinkLayer::Ethernet), edge)],
            settings: None,
            pin_path,
        })
    }

    fn trial(&mut self, circumstances: Circumstances) -> Result<&mut Trial> {
        let kind = (circumstances.role, circumstances.layer);
        let found = self.trials.iter().position(|(other, _)| *other == kind);
        let place = match found {
            Some(place) => place,
            None => {
                let trial = self.filter.trial_as(kind.0, kind.1)?;
                self.trials.push((kind, trial));
                self.trials.len() - 1
            }
        };
        Ok(&mut self.trials[place].1)
    }

    /// The trial for a case, with its settings in force.
    fn under(&mut self, file: &File, circumstances: Circumstances) -> Result<&mut Trial> {
        let settings = circumstances.settings(&file.ports);
        if self.settings != Some(settings) {
            self.trial(circumstances)?.set_settings(settings)?;
            self.settings = Some(settings);
        }
        self.trial(circumstances)
    }

    /// Packets that each list dropped, permitted and would have dropped.
    fn counted(&self) -> Result<Vec<(String, [u64; 3])>> {
        let lists = self.filter.status()?.lists.into_iter();
        let counters = lists.map(|list| {
            let counters = [
                list.dropped_packets,
                list.permitted_packets,
                list.monitored_packets,
            ];
            (list.name, counters)
        });
        Ok(counters.collect())
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        let _ = filter::detach(&self.pin_path, &[]);
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A namespace for this thread in which what the cases are sent to listens, and wants cookies for
/// all SYNs.
fn listening() -> Result<TcpListener> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let ip = |arguments: &str| -> Result<()> {
        let status = Command::new("ip")
            .args(arguments.split_whitespace())
            .status()?;
        ensure!(status.success(), "ip {arguments}");
        Ok(())
    };
    ip("link set lo up")?;
    ip("address add 192.0.2.1/32 dev lo")?;
    ip("address add 2001:db8::1/128 dev lo")?;
    // A router: what is not for it is on its way to somewhere else.
    ip("route add default dev lo")?;
    ip("-6 route add default dev lo")?;
    for setting in [
        "ipv4/tcp_syncookies=2",
        "ipv4/ip_forward=1",
        "ipv6/conf/all/forwarding=1",
    ] {
        let (name, value) = setting.split_once('=').context(setting)?;
        fs::write(format!("/proc/sys/net/{name}"), value)?;
    }
    Ok(TcpListener::bind("[::]:25")?)
}

/// The ways in which a case is run: the number of tags.
fn tags(case: &Case, number: usize) -> Vec<usize> {
    if !case.taggable {
        vec![0]
    } else if case.circumstances.syn_budget == 0 {
        vec![0, 1, 2, 3 + number % 6]
    } else {
        // A budget is used up for the rest of the second.
        vec![number % 9]
    }
}

/// The verdict on the host, which has to be the one that is written down.
fn on_host(file: &File, case: &Case, frame: &[u8], what: &str) -> Verdict {
    let frame = FirstBuffer::of(frame);
    let verdict = judge_on_host(file, case, frame);
    let expected = Expected::unanswered(case);
    assert_eq!(Expected::of(file, verdict), expected, "{what}");
    let content = packet::read(&frame, case.circumstances.layer);
    let segment = content.segment();
    let hidden = segment.is_some_and(|segment| segment.port.is_hidden());
    assert_eq!(hidden, case.hidden, "{what}: hidden");
    let unread = match content {
        Content::Unread(encapsulation) => Some(encapsulation),
        _ => None,
    };
    assert_eq!(unread, case.unread, "{what}: what it encloses");
    let left = case.circumstances.resets.unwrap_or_default() > case.before
        && !case.circumstances.answers_lost;
    let answerable = segment.is_some_and(|segment| reply::reset(&frame, &segment).is_some());
    if verdict == Verdict::Customer && case.circumstances.mode == Mode::Enforce {
        let reset = case.expected == Expected::Reset;
        assert_eq!(left && answerable, reset, "{what}: a RST");
    }
    verdict
}

#[test]
fn the_verdict_on_the_host_is_the_one_written_down() -> Result<()> {
    let (mut cases, mut runs) = (0, 0);
    for file in packet_cases::all()? {
        for (number, case) in file.cases.iter().enumerate() {
            for tags in tags(case, number) {
                let what = format!("{}: {}, {tags} tags", file.path.display(), case.name);
                on_host(&file, case, &tagged(&case.frame, tags), &what);
                runs += 1;
            }
            cases += 1;
        }
    }
    println!("{cases} cases, run in {runs} ways");
    ensure!(cases >= 150, "only {cases} cases were found");
    Ok(())
}

#[test]
fn the_program_in_the_kernel_carries_out_the_verdict_counts_it_and_answers() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let listener = listening()?;
    for file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "cases")?;
        for (number, case) in file.cases.iter().enumerate() {
            for tags in tags(case, number) {
                let what = format!("{}: {}, {tags} tags", file.path.display(), case.name);
                let frame = tagged(&case.frame, tags);
                in_kernel(&mut kernel, &file, case, &frame, &what).context(what)?;
            }
        }
    }
    drop(listener);
    Ok(())
}

fn in_kernel(
    kernel: &mut InKernel,
    file: &File,
    case: &Case,
    frame: &[u8],
    what: &str,
) -> Result<()> {
    let verdict = on_host(file, case, frame, what);
    let circumstances = case.circumstances;
    let trial = kernel.under(file, circumstances)?;
    trial.clear_rates()?;
    if case.before > 0 {
        // All in one second, which is the kernel's.
        let left = 1_000_000_000 - now_ns() % 1_000_000_000;
        if left < 300_000_000 {
            thread::sleep(Duration::from_nanos(left + 10_000_000));
        }
        // One by one: the kernel repeats a frame as the program has left it.
        for _ in 0..case.before {
            trial.run(frame, 1)?;
        }
    }
    trial.events()?;
    let before = trial.counted()?;
    let lists_before = kernel.counted()?;
    let outcome = kernel.trial(circumstances)?.run(frame, 1)?;

    let answered = matches!(case.expected, Expected::Reset | Expected::Cookie);
    let dropped = verdict.drops(circumstances.mode) && !answered;
    assert_eq!(outcome.dropped, dropped, "{what}");
    match (&case.reply, &outcome) {
        (None, TrialResult { sent: None, .. }) => {}
        (
            Some(reply),
            TrialResult {
                sent: Some(sent), ..
            },
        ) => reply.check(frame, sent)?,
        _ => panic!("{what}: {:02x?}", outcome.sent),
    }
    let after = kernel.trial(circumstances)?.counted()?;
    assert_eq!(counted(before, after), counters(case, verdict), "{what}");
    lists(kernel, case, lists_before, what)?;
    events(kernel, case, verdict, frame, what)
}

/// Which counters went up, once each.
fn counted(before: InterfaceCounters, after: InterfaceCounters) -> Vec<usize> {
    let pairs = before.iter().zip(&after).enumerate();
    let risen = pairs.flat_map(|(counter, (before, after))| {
        std::iter::repeat_n(counter, usize::try_from(after - before).unwrap_or(99))
    });
    risen.collect()
}

/// Which have to.
fn counters(case: &Case, verdict: Verdict) -> Vec<usize> {
    if case.circumstances.mode == Mode::Off {
        return Vec::new();
    }
    let counter = match case.expected {
        Expected::Reset => InterfaceCounter::ResetCustomer,
        Expected::Cookie => InterfaceCounter::SynCookie,
        _ => verdict.interface_counter(case.circumstances.mode),
    };
    let mut counters = vec![counter as usize];
    if case.hidden && verdict != Verdict::Other {
        counters.push(InterfaceCounter::Hidden as usize);
    }
    counters.extend(case.unread.map(unread_counter));
    counters.sort_unstable();
    counters
}

/// The list that decided counts the packet, and no other does.
fn lists(
    kernel: &InKernel,
    case: &Case,
    before: Vec<(String, [u64; 3])>,
    what: &str,
) -> Result<()> {
    let mode = case.circumstances.mode;
    let expected: Vec<_> = before
        .into_iter()
        .map(|(list, [dropped, permitted, monitored])| {
            let drops = u64::from(case.expected == Expected::Drop(list.clone()));
            let permits = u64::from(case.expected == Expected::Permit(list.clone()));
            let counters = match mode {
                Mode::Enforce => [dropped + drops, permitted + permits, monitored],
                Mode::Monitor => [dropped, permitted + permits, monitored + drops],
                Mode::Off => [dropped, permitted, monitored],
            };
            (list, counters)
        })
        .collect();
    assert_eq!(kernel.counted()?, expected, "{what}");
    Ok(())
}

/// Each packet that is kept out is reported to a reader, and no other.
fn events(
    kernel: &mut InKernel,
    case: &Case,
    verdict: Verdict,
    frame: &[u8],
    what: &str,
) -> Result<()> {
    let mode = case.circumstances.mode;
    let events = kernel.trial(case.circumstances)?.events()?;
    // Behind too many tags there is no source to be told.
    let is_told = mode != Mode::Off && verdict != Verdict::Tags;
    let Some(reason) = verdict.reason().filter(|_| is_told) else {
        assert!(events.is_empty(), "{what}: {events:?}");
        return Ok(());
    };
    assert_eq!(events.len(), 1, "{what}: {events:?}");
    let (event, segment) = (
        events[0],
        packet::read(&FirstBuffer::of(frame), case.circumstances.layer)
            .segment()
            .context("no segment")?,
    );
    assert_eq!(event.source, segment.source.0, "{what}");
    assert_eq!(event.port, segment.port.get().unwrap_or(0), "{what}");
    assert_eq!(event.reason, reason as u32, "{what}");
    assert_eq!(event.monitored == 1, mode == Mode::Monitor, "{what}");
    let listed = matches!(verdict, Verdict::Listed(_));
    assert_eq!(event.list_slot != NO_LIST, listed, "{what}");
    assert!(event.time_ns.abs_diff(now_ns()) < 5_000_000_000, "{what}");
    Ok(())
}

#[test]
fn monitoring_drops_no_packet_whatever_it_is() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "monitor")?;
        for case in &file.cases {
            let mut circumstances = case.circumstances;
            circumstances.mode = Mode::Monitor;
            let trial = kernel.under(&file, circumstances)?;
            let outcome = trial.run(&case.frame, 1)?;
            assert!(!outcome.dropped, "{}", case.name);
            assert_eq!(outcome.sent, None, "{}", case.name);
        }
    }
    Ok(())
}

#[test]
fn host_and_kernel_agree_on_random_frames() -> Result<()> {
    if !root() {
        return Ok(());
    }
    // The same frames in every run.
    let mut random = fastrand::Rng::with_seed(25);
    let (mut drops, mut resets) = (0, 0);
    for mut file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "random")?;
        // What depends on the frames before is not of interest here.
        file.cases.retain(|case| case.circumstances.syn_budget == 0);
        for case in &mut file.cases {
            (case.before, case.circumstances.cookies) = (0, false);
            let limit = case.circumstances.resets.as_mut();
            limit.into_iter().for_each(|limit| *limit = u32::MAX);
        }
        for case in &file.cases {
            let trial = kernel.under(&file, case.circumstances)?;
            for _ in 0..100 {
                let mut frame = case.frame.clone();
                if case.circumstances.layer == LinkLayer::Ethernet {
                    let most = if random.bool() { 3 } else { 11 };
                    frame = tagged(&frame, random.usize(..most));
                }
                for _ in 0..random.usize(..4) {
                    let at = random.usize(..frame.len());
                    frame[at] = random.u8(..);
                }
                if random.usize(..4) == 0 {
                    frame.truncate(14.max(random.usize(..frame.len())));
                }
                let seen = FirstBuffer::of(&frame);
                let verdict = judge_on_host(&file, case, seen);
                let enforced = verdict.drops(case.circumstances.mode);
                let answers = case.circumstances.resets.is_some()
                    && !case.circumstances.answers_lost
                    && verdict == Verdict::Customer
                    && packet::read(&seen, case.circumstances.layer)
                        .segment()
                        .is_some_and(|segment| reply::reset(&seen, &segment).is_some());
                let outcome = trial.run(&frame, 1)?;
                let what = || format!("{}: {:02x?}", case.name, &frame[..frame.len().min(200)]);
                assert_eq!(outcome.sent.is_some(), enforced && answers, "{}", what());
                assert_eq!(outcome.dropped, enforced && !answers, "{}", what());
                drops += u64::from(outcome.dropped);
                resets += u64::from(outcome.sent.is_some());
            }
        }
    }
    assert!(
        drops > 1000 && resets > 100,
        "only {drops} frames were dropped and {resets} answered: too few to test anything"
    );
    Ok(())
}
