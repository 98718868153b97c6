//! Connections to a next hop are few, and shared: what one client, or one odd reply, does to the
//! others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};

const CONTENT: &[u8] = b"Subject: onward\r\n\r\ntext\r\n";
const ADDRESSES: (&str, [&str; 1]) = ("a@b.example", ["c@d.example"]);

/// Times in seconds: for a connection, for a reply, and for a client's command; and connections to
/// the next hop.
fn gate_to(
    next_hop: SocketAddr,
    connect: u32,
    reply: u32,
    command: u32,
    connections: u32,
) -> Result<Process<'static>> {
    let more = format!(
        "[relay]\nnetworks = [\"127.0.0.0/8\"]\ndomains = [\"gate.example\"]\nconnect_timeout = \"{connect}s\"\n\
         reply_timeout = \"{reply}s\"\nconnections = {connections}\n[limits]\ncommand_timeout = \"{command}s\"\n"
    );
    // One worker: each has connections of its own.
    let configuration = relay_to(&next_hop.to_string(), &more)?;
    Process::start(&configuration.replace("workers = 2", "workers = 1"))
}

/// A whole message in a session of its own; the code of its final reply.
fn offer(gate: &Process<'_>) -> Result<u16> {
    let mut session = gate.dialogue()?;
    session.patience(Duration::from_secs(30))?;
    session.expect("EHLO client.example", "250")?;
    let (from, to) = ADDRESSES;
    Ok(session.message(from, &to, CONTENT)?.code)
}

#[test]
fn a_positive_reply_of_the_wrong_kind_is_not_taken_for_a_success() -> Result<()> {
    let cases = [
        ("MAIL", "354 go on"),
        ("RCPT", "354 go on"),
        ("DATA", "250 2.0.0 Ok"),
        (".", "354 more"),
    ];
    for (point, reply) in cases {
        let receiver = Receiver::scripted(move |at| {
            if at.starts_with(point) {
                Act::Say(reply)
            } else {
                Act::Usual
            }
        })?;
        let gate = gate_to(receiver.address(), 2, 2, 60, 10)?;
        let mut session = gate.dialogue()?;
        session.expect("EHLO client.example", "250")?;
        let mut last = 250;
        for line in ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"] {
            last = session.say(line)?.code;
            if last >= 400 {
                break;
            }
        }
        if last == 354 {
            session.raw(CONTENT)?;
            last = session.say(".")?.code;
        }
        ensure!(last == 451, "{reply} to {point}: the client heard {last}");
    }
    Ok(())
}

#[test]
fn a_kept_connection_needs_no_rset_between_messages() -> Result<()> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let receiver = Receiver::scripted({
        let said = Arc::clone(&said);
        move |at| {
            said.lock()
                .expect("nobody panics with it")
                .push(at.to_owned());
            Act::Usual
        }
    })?;
    let gate = gate_to(receiver.address(), 2, 2, 60, 1)?;
    for _ in 0..3 {
        ensure!(offer(&gate)? == 250);
    }
    let said = said.lock().expect("nobody panics with it").clone();
    ensure!(!said.iter().any(|line| line == "RSET"), "{said:?}");
    ensure!(receiver.sessions() == 1);
    Ok(())
}

#[test]
fn a_next_hop_that_takes_only_so_many_connections_costs_nobody_a_message() -> Result<()> {
    let greeted = Arc::new(AtomicUsize::new(0));
    let receiver = Receiver::scripted({
        let greeted = Arc::clone(&greeted);
        move |at| match at {
            "CONNECT" if greeted.fetch_add(1, Ordering::Relaxed) >= 2 => {
                Act::Say("421 4.7.0 too many connections")
            }
            "." => Act::Wait(Duration::from_millis(100)),
            _ => Act::Usual,
        }
    })?;
    let gate = gate_to(receiver.address(), 10, 10, 60, 10)?;
    // One connection has to work before others are refused; until then a refusal is a next hop that
    // is down.
    ensure!(offer(&gate)? == 250);
    let codes = thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| offer(&gate))).collect();
        let codes = clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"));
        codes.collect::<Result<Vec<_>>>()
    })?;
    ensure!(codes.iter().all(|code| *code == 250), "{codes:?}");
    ensure!(greeted.load(Ordering::Relaxed) > 2, "nothing was refused");
    Ok(())
}

#[test]
fn a_silent_client_is_sent_away_and_does_not_keep_the_next_hop_from_others() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(receiver.address(), 25, 5, 14, 1)?;
    let mut silent = gate.dialogue()?;
    silent.patience(Duration::from_secs(30))?;
    silent.expect("EHLO silent.example", "250")?;
    silent.expect("MAIL FROM:<a@b.example>", "250")?;
    silent.expect("RCPT TO:<c@d.example>", "250")?;
    let begun = Instant::now();
    ensure!(
        offer(&gate)? == 250,
        "the only connection stays with a client that says nothing"
    );
    ensure!(
        begun.elapsed() < Duration::from_secs(13),
        "only after {:?}",
        begun.elapsed()
    );
    silent
        .expect_reply("421 4.4.2")
        .context("to the silent client")?;
    Ok(())
}

#[test]
fn a_client_that_was_silent_for_a_while_goes_on_where_it_was() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(receiver.address(), 5, 5, 60, 1)?;
    let mut slow = gate.dialogue()?;
    slow.expect("EHLO slow.example", "250")?;
    slow.expect("MAIL FROM:<slow@b.example>", "250")?;
    slow.expect("RCPT TO:<one@d.example>", "250")?;
    thread::sleep(Duration::from_secs(12));
    ensure!(offer(&gate)? == 250);
    slow.expect("RCPT TO:<two@d.example>", "250")?;
    slow.expect("DATA", "354")?;
    slow.raw(CONTENT)?;
    slow.expect(".", "250")?;
    let arrived = receiver.arrived();
    let last = arrived.last().context("nothing arrived")?;
    ensure!(
        last.sender == "slow@b.example" && last.recipients == ["one@d.example", "two@d.example"],
        "{last:?}"
    );
    Ok(())
}

#[test]
fn recipients_added_one_by_one_do_not_make_a_stalled_next_hop_wait_longer() -> Result<()> {
    let receiver = Receiver::scripted(|at| match at {
        at if at.starts_with("RCPT") => Act::Wait(Duration::from_secs(30)),
        _ => Act::Usual,
    })?;
    let gate = gate_to(receiver.address(), 2, 2, 60, 10)?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    let begun = Instant::now();
    let mut adding = session.stream().try_clone()?;
    let added = thread::spawn(move || {
        use std::io::Write as _;
        for n in 0..6 {
            if write!(adding, "RCPT TO:<user{n}@d.example>\r\n").is_err() {
                break;
            }
            thread::sleep(Duration::from_secs(1));
        }
    });
    session.expect_reply("451 4.4.1")?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "only after {:?}",
        begun.elapsed()
    );
    added.join().expect("writing does not panic");
    Ok(())
}

#[test]
fn a_session_that_is_kept_with_noop_lives_on() -> Result<()> {
    let receiver = Receiver::start(false)?;
    let gate = gate_to(receiver.address(), 2, 2, 2, 10)?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(700));
        session.expect("NOOP", "250")?;
    }
    Ok(())
}

#[test]
fn a_client_that_closes_its_side_early_hears_every_reply() -> Result<()> {
    use std::io::{Read as _, Write as _};
    let receiver = Receiver::start(true)?;
    let gate = gate_to(receiver.address(), 2, 2, 60, 10)?;
    let session = gate.dialogue()?;
    let mut stream = session.stream();
    let commands = 20_000;
    let mut pipelined = "EHLO client.example\r\n".to_owned();
    stream.write_all(pipelined.as_bytes())?;
    thread::sleep(Duration::from_millis(300));
    pipelined = "RSET\r\n".repeat(commands);
    pipelined.push_str("QUIT\r\n");
    // A reader beside the writer: the gate stops reading from a client that does not read.
    let mut reading = stream.try_clone()?;
    let heard = thread::spawn(move || {
        let mut heard = String::new();
        reading.read_to_string(&mut heard).map(|_| heard)
    });
    stream.write_all(pipelined.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let heard = heard.join().expect("reading does not panic")?;
    ensure!(
        heard.matches("250 2.0.0").count() == commands,
        "{} replies",
        heard.matches("250 2.0.0").count()
    );
    ensure!(heard.ends_with("221 2.0.0 Bye\r\n"));
    Ok(())
}
