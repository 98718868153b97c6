//! Hostile clients: thousands of silent ones, slow ones, endless lines, and each limit exceeded on
//! purpose. Meanwhile honest mail is accepted, the gate's memory stays bounded, and every limit has
//! its reply code.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::postfix::{Sink, source};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::{machine, root, wait};

const SILENT_SESSIONS: usize = 10_000;
const DRIPPING_SESSIONS: usize = 500;
const ENDLESS_LINE: usize = 1 << 30;

/// More than any test of this file needs.
const OPEN_FILES: u64 = 20_000;

/// One test at a time: the sessions of all together would need too many open files.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn ten_thousand_silent_sessions_cost_little_and_are_ended_with_421() -> Result<()> {
    let _turn = TURN.lock();
    machine::allow_open_files(OPEN_FILES)?;
    machine::forbid_huge_pages()?;
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(
        &sink.address().to_string(),
        "[limits]\ncommand_timeout = \"20s\"\n",
    )?)?;
    source(&["-s", "20", "-m", "500"], gate.address())?;
    let before = gate.resident_kib()?;

    let opened = Instant::now();
    let mut sessions = Vec::with_capacity(SILENT_SESSIONS);
    for _ in 0..SILENT_SESSIONS {
        sessions.push(gate.tcp(gate.address())?);
    }
    // If the last one is greeted, all are accepted.
    Dialogue::greeted(sessions[SILENT_SESSIONS - 1].try_clone()?)?;
    ensure!(
        opened.elapsed() < Duration::from_secs(15),
        "opening took {:?}",
        opened.elapsed()
    );

    honest_mail(gate.address(), 1_000)?;
    let each = (gate.resident_kib()? - before) * 1024 / SILENT_SESSIONS as u64;
    ensure!(
        each <= 1024,
        "{each} octets of memory for each silent session"
    );

    for session in sessions.iter().step_by(SILENT_SESSIONS / 50) {
        let mut session = Dialogue::new(session.try_clone()?)?;
        session.patience(Duration::from_secs(40))?;
        // All but the last have not read their greeting yet.
        let rest = session.closed()?;
        ensure!(rest.contains("421 4.4.2 "), "ended with {rest:?}");
    }
    honest_mail(gate.address(), 500)
}

#[test]
fn dripping_does_not_extend_the_time_for_a_command() -> Result<()> {
    drip(Duration::from_secs(12), |session| {
        session.expect("EHLO drip.example", "250")?;
        Ok(())
    })
}

#[test]
fn dripping_does_not_extend_the_time_for_a_message() -> Result<()> {
    drip(Duration::from_secs(25), |session| {
        session.expect("EHLO drip.example", "250")?;
        session.envelope("drip@client.example", &["user@d.example"])?;
        session.expect("DATA", "354")?;
        Ok(())
    })
}

/// 500 clients, each prepared by `open`, then one octet a second: every session is ended with 421
/// 4.4.2 within `limit`, and honest mail is accepted meanwhile.
fn drip(limit: Duration, open: impl Fn(&mut Dialogue) -> Result<()>) -> Result<()> {
    let _turn = TURN.lock();
    machine::allow_open_files(OPEN_FILES)?;
    let sink = Sink::start(false)?;
    let times = "[limits]\ncommand_timeout = \"5s\"\ndata_timeout = \"5s\"\n";
    let gate = Process::start(&relay_to(&sink.address().to_string(), times)?)?;
    let before = gate.resident_kib()?;
    let mut dripping = Vec::new();
    for _ in 0..DRIPPING_SESSIONS {
        let mut session = gate.dialogue()?;
        open(&mut session)?;
        dripping.push(session);
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let honest = scope.spawn(|| honest_until(&over, gate.address()));
        let ended = drip_until_closed(&mut dripping, limit);
        over.store(true, Ordering::Relaxed);
        let sent = honest
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(sent > 0, "no honest message went through");
        for rest in ended? {
            ensure!(rest.starts_with("421 4.4.2 "), "ended with {rest:?}");
        }
        Ok(())
    })?;
    let grown = gate.resident_kib()?.saturating_sub(before);
    ensure!(grown < 32 * 1024, "grown by {grown} KiB");
    Ok(())
}

/// Sends an octet a second to each until all are closed. Returns the last reply of each.
fn drip_until_closed(sessions: &mut [Dialogue], limit: Duration) -> Result<Vec<String>> {
    let begun = Instant::now();
    let mut told: Vec<Option<String>> = vec![None; sessions.len()];
    for session in &mut *sessions {
        session.stream().set_nonblocking(true)?;
    }
    while told.iter().any(Option::is_none) {
        ensure!(
            begun.elapsed() < limit,
            "{} still open",
            told.iter().filter(|end| end.is_none()).count()
        );
        thread::sleep(Duration::from_secs(1));
        for (session, told) in sessions
            .iter_mut()
            .zip(&mut told)
            .filter(|(_, told)| told.is_none())
        {
            let mut said = [0; 512];
            match session.stream().read(&mut said) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(session.raw(b"a")),
                Ok(length) => *told = Some(String::from_utf8_lossy(&said[..length]).into_owned()),
                Err(error) => *told = Some(error.to_string()),
            }
        }
    }
    Ok(told.into_iter().flatten().collect())
}

/// Sends honest messages, a few at a time, until stopped. Returns how many.
fn honest_until(over: &AtomicBool, to: SocketAddr) -> Result<usize> {
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        honest_mail(to, 100)?;
        sent += 100;
    }
    Ok(sent)
}

/// Honest messages must be accepted without an error, and fast.
fn honest_mail(to: SocketAddr, messages: usize) -> Result<()> {
    let begun = Instant::now();
    source(&["-s", "10", "-m", &messages.to_string(), "-l", "1024"], to).context("honest mail")?;
    let limit = Duration::from_secs(10);
    ensure!(
        begun.elapsed() < limit,
        "{messages} honest messages took {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// Sends a line that does not end; the most resident memory meanwhile, in KiB.
fn send_endless_line(session: &mut Dialogue, gate: &Process<'_>) -> Result<u64> {
    let piece = vec![b'A'; 1 << 20];
    let mut highest = 0;
    for number in 0..ENDLESS_LINE / piece.len() {
        session
            .raw(&piece)
            .with_context(|| format!("after {number} MiB"))?;
        if number % 64 == 0 {
            highest = highest.max(gate.resident_kib()?);
        }
    }
    Ok(highest)
}

#[test]
fn a_gigabyte_with_no_line_end_costs_no_memory_and_one_error() -> Result<()> {
    let _turn = TURN.lock();
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(&sink.address().to_string(), "")?)?;
    honest_mail(gate.address(), 200)?;
    let before = gate.resident_kib()?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO endless.example", "250")?;
    let highest = send_endless_line(&mut session, &gate)?;
    honest_mail(gate.address(), 200)?;
    ensure!(
        highest < before + 8 * 1024,
        "grown from {before} to {highest} KiB"
    );
    session.expect("", "500 5.5.2")?;
    session.expect("NOOP", "250")?;
    Ok(())
}

#[test]
fn a_gigabyte_of_message_with_no_line_end_is_swallowed_and_refused() -> Result<()> {
    let _turn = TURN.lock();
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(
        &sink.address().to_string(),
        "[limits]\nmessage_size = \"10MB\"\n",
    )?)?;
    let before = gate.resident_kib()?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO endless.example", "250")?;
    session.envelope("a@b.example", &["c@d.example"])?;
    session.expect("DATA", "354")?;
    let highest = send_endless_line(&mut session, &gate)?;
    ensure!(
        highest < before + 16 * 1024,
        "grown from {before} to {highest} KiB"
    );
    session.raw(b"\r\n")?;
    session.expect(".", "552 5.3.4")?;
    session.expect("NOOP", "250")?;
    honest_mail(gate.address(), 200)
}

#[test]
fn each_limit_of_a_session_has_its_code() -> Result<()> {
    let _turn = TURN.lock();
    let sink = Sink::start(false)?;
    let limits =
        "[limits]\nrecipients_per_message = 5\nmessage_size = \"1MB\"\nerrors_per_session = 4\n";
    let gate = Process::start(&relay_to(&sink.address().to_string(), limits)?)?;

    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@b.example> SIZE=2000000", "552 5.3.4")?;
    session.expect("MAIL FROM:<a@b.example> SIZE=1000", "250")?;
    for number in 0..5 {
        session.expect(&format!("RCPT TO:<r{number}@d.example>"), "250")?;
    }
    session.expect("RCPT TO:<r5@d.example>", "452 4.5.3")?;
    session.expect("DATA", "354")?;
    session.expect(".", "250")?;

    let mut session = gate.dialogue()?;
    let long = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(20_000);
    let reply = session.message("a@b.example", &["c@d.example"], &long)?;
    ensure!(
        reply.text().starts_with("552 5.3.4"),
        "a message over the size: {}",
        reply.text()
    );
    session.expect("NOOP", "250")?;

    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    for _ in 0..3 {
        session.expect("NONSENSE", "500 5.5")?;
    }
    session.raw(b"NONSENSE\r\n")?;
    let rest = session.closed()?;
    ensure!(
        rest.contains("421 4.7.0"),
        "after too many errors: {rest:?}"
    );
    honest_mail(gate.address(), 100)
}

#[test]
fn the_gate_as_a_whole_has_a_limit_of_sessions() -> Result<()> {
    let _turn = TURN.lock();
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(
        &sink.address().to_string(),
        "[limits]\nsessions = 40\n",
    )?)?;
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..60 {
        let mut session = Dialogue::new(gate.tcp(gate.address())?)?;
        match session.reply()?.code {
            220 => held.push(session),
            421 => refused += 1,
            other => anyhow::bail!("answered {other}"),
        }
    }
    ensure!(
        held.len() <= 40 && refused >= 20,
        "{} held, {refused} refused",
        held.len()
    );
    // Each worker has its share of the limit, and the kernel spreads connections unevenly.
    ensure!(held.len() >= 20, "only {} held", held.len());
    drop(held);
    wait::until("room for new sessions", Duration::from_secs(5), || {
        gate.dialogue().ok()
    })?;
    Ok(())
}

#[test]
fn one_source_cannot_take_all_the_sessions() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let _turn = TURN.lock();
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("crowd")?);
    inside.veth("edge", &outside, "up")?;
    inside.addresses("edge", ["198.51.100.1/24", "2001:db8:1::1/32"])?;
    let crowd = (1..=3u8).map(|number| format!("198.51.100.{}/24", 10 + number));
    // Two addresses of one /64, and one of another.
    let crowd6 = [
        "2001:db8:66::1/32",
        "2001:db8:66::2/32",
        "2001:db8:67::1/32",
    ]
    .map(String::from);
    outside.addresses("up", crowd.chain(crowd6))?;
    let gate = Process::start_in(&inside, PER_SOURCE)?;

    // The source, and how many of twelve attempts are accepted: ten from one address or /64.
    let table = [
        ("198.51.100.11", "198.51.100.1:25", 10),
        ("198.51.100.12", "198.51.100.1:25", 10),
        ("2001:db8:66::1", "[2001:db8:1::1]:25", 10),
        ("2001:db8:66::2", "[2001:db8:1::1]:25", 0),
        ("2001:db8:67::1", "[2001:db8:1::1]:25", 10),
    ];
    let mut all = Vec::new();
    for (source, to, expected) in table {
        let (source, to): (IpAddr, SocketAddr) = (source.parse()?, to.parse()?);
        let (mut held, mut refusal) = (Vec::new(), None);
        for _ in 0..12 {
            let mut session = Dialogue::new(connect_from(&outside, source, to)?)?;
            let reply = session.reply()?;
            if reply.code == 220 {
                held.push(session);
            } else {
                refusal = Some(reply.text());
            }
        }
        let refusal = refusal.unwrap_or_default();
        ensure!(
            held.len() == expected,
            "{source}: {} held; {refusal}",
            held.len()
        );
        ensure!(refusal.starts_with("421 4.7.0"), "{source}: {refusal}");
        all.extend(held);
    }
    // The places of sessions that end are free again.
    drop(all);
    let again = || {
        let mut session = Dialogue::new(
            connect_from(&outside, "198.51.100.11".parse().ok()?, gate.address()).ok()?,
        )
        .ok()?;
        (session.reply().ok()?.code == 220).then_some(())
    };
    wait::until(
        "a place for the first source",
        Duration::from_secs(5),
        again,
    )
}

const PER_SOURCE: &str = r#"
hostname = "gate.example"
state_dir = "@DIR@"
workers = 2

[[listener]]
address = "198.51.100.1:25"
service = "relay"
[[listener]]
address = "[2001:db8:1::1]:25"
service = "relay"

[relay]
domains = ["isp.example"]
networks = ["192.0.2.0/24"]

[[route]]
domains = ["*"]
next_hop = ["discard"]

[limits]
sessions_per_source = 10
"#;

#[test]
fn a_client_that_never_reads_its_replies_is_ended() -> Result<()> {
    let _turn = TURN.lock();
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(
        &sink.address().to_string(),
        "[limits]\ncommand_timeout = \"3s\"\n",
    )?)?;
    honest_mail(gate.address(), 1_000)?;
    let before = gate.resident_kib()?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO deaf.example", "250")?;
    let mut stream = session.stream().try_clone()?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let noops = b"NOOP\r\n".repeat(10_000);
    let begun = Instant::now();
    // The gate stops reading when its replies are not read: our writes then stall, and fail at
    // last.
    let ended = loop {
        match stream.write(&noops) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break true,
        }
        if begun.elapsed() > Duration::from_secs(20) {
            break false;
        }
    };
    let grown = gate.resident_kib()?.saturating_sub(before);
    ensure!(grown < 8 * 1024, "grown by {grown} KiB");
    ensure!(ended, "still connected after {:?}", begun.elapsed());
    honest_mail(gate.address(), 100)
}
