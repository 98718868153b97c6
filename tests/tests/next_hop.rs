//! The next hop misbehaves and the client gets an honest answer: a 250 only for what arrived, the
//! next hop's own refusals word for word, a 451 for everything that may be better later, and all
//! within the time that was set.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::{Dialogue, Reply};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};
use portcullis_tests::{machine, wait};

/// Short times, so that a test need not wait; the margin is for a busy machine.
const RELAY: &str = r#"
[relay]
networks = ["127.0.0.0/8"]
domains = ["gate.example"]
connect_timeout = "2s"
reply_timeout = "2s"
message_timeout = "4s"
"#;
const TIME_SET: Duration = Duration::from_secs(2);
const MESSAGE_TIME_SET: Duration = Duration::from_secs(4);
const MARGIN: Duration = Duration::from_secs(2);

const CONTENT: &[u8] = b"Subject: onward\r\n\r\ntext\r\n";

fn gate_to(receiver: &Receiver) -> Result<Process<'static>> {
    Process::start(&relay_to(&receiver.address().to_string(), RELAY)?)
}

/// A message in a session of its own. The reply is the first one that is not positive, or the final
/// one.
fn offer(gate: &Process<'_>) -> Result<Reply> {
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    let reply = transaction(&mut session, "c@d.example")?;
    // Whatever became of the message, the session is in order.
    session.expect("RSET", "250")?;
    session.expect("QUIT", "221")?;
    Ok(reply)
}

fn transaction(session: &mut Dialogue, recipient: &str) -> Result<Reply> {
    for line in [
        "MAIL FROM:<a@b.example>",
        &format!("RCPT TO:<{recipient}>"),
        "DATA",
    ] {
        let reply = session.say(line)?;
        if reply.code >= 400 {
            return Ok(reply);
        }
    }
    session.raw(CONTENT)?;
    session.say(".")
}

#[test]
fn a_next_hop_that_is_down_is_a_451_in_time_and_is_found_again() -> Result<()> {
    let address = machine::free_address()?;
    let gate = Process::start(&relay_to(&address.to_string(), RELAY)?)?;
    let begun = Instant::now();
    let reply = offer(&gate)?;
    ensure!(reply.text().starts_with("451 4.4.1"), "{}", reply.text());
    ensure!(
        begun.elapsed() < TIME_SET + MARGIN,
        "after {:?}",
        begun.elapsed()
    );

    let receiver = Receiver::start_on(TcpListener::bind(address)?, true, |_| Act::Usual)?;
    let recovered = || offer(&gate).ok().filter(|reply| reply.code == 250);
    wait::until(
        "the next hop to be used again",
        Duration::from_secs(10),
        recovered,
    )?;
    ensure!(receiver.arrived().len() == 1);
    Ok(())
}

#[test]
fn trouble_at_any_point_is_a_451_in_time_and_the_next_message_goes_through() -> Result<()> {
    let silence = Act::Wait(Duration::from_secs(8));
    let faults = [
        Act::HangUp,
        Act::Rubbish(b"\xff\x00rubbish\r\n"),
        silence,
        Act::Say("421 4.3.2 going down"),
    ];
    for point in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."] {
        for fault in &faults {
            let case = format!("{fault:?} at {point}");
            trouble(point, fault).with_context(|| case)?;
        }
    }
    Ok(())
}

fn trouble(point: &'static str, fault: &Act) -> Result<()> {
    let receiver = Receiver::scripted({
        let fault = fault.clone();
        move |at| {
            if at.starts_with(point) {
                fault.clone()
            } else {
                Act::Usual
            }
        }
    })?;
    let gate = gate_to(&receiver)?;
    let begun = Instant::now();
    let reply = offer(&gate)?;
    // A 421 of the next hop is about its session, not ours; everything else is the gate's own 451.
    let expected =
        reply.code == 451 || (matches!(fault, Act::Say(_)) && (400..500).contains(&reply.code));
    ensure!(expected && reply.code != 421, "{}", reply.text());
    let limit = if point == "." {
        MESSAGE_TIME_SET
    } else {
        TIME_SET
    };
    ensure!(
        begun.elapsed() < limit + MARGIN,
        "after {:?}",
        begun.elapsed()
    );
    let lost_reply = receiver.arrived().len();

    receiver.script(|_| Act::Usual);
    let recovered = || offer(&gate).ok().filter(|reply| reply.code == 250);
    wait::until(
        "the next hop to be used again",
        Duration::from_secs(10),
        recovered,
    )?;
    let arrived = receiver.arrived().len();
    // What the next hop took without saying so comes twice at worst: a duplicate, never a loss.
    ensure!(
        arrived == lost_reply + 1 && lost_reply <= usize::from(point == "."),
        "{arrived} arrived"
    );
    Ok(())
}

#[test]
fn a_lost_final_reply_is_a_451_and_not_a_250() -> Result<()> {
    let receiver = Receiver::scripted(|at| if at == "." { Act::HangUp } else { Act::Usual })?;
    let gate = gate_to(&receiver)?;
    let reply = offer(&gate)?;
    ensure!(reply.text().starts_with("451 4.4"), "{}", reply.text());
    ensure!(
        receiver.arrived().len() == 1,
        "tried {} times by itself",
        receiver.arrived().len()
    );
    Ok(())
}

#[test]
fn connections_are_kept_and_used_again() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(&receiver)?;
    for _ in 0..20 {
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "{}", reply.text());
    }
    ensure!(receiver.arrived().len() == 20);
    // Each worker has a pool of its own.
    ensure!(
        receiver.sessions() <= 4,
        "{} connections for 20 messages",
        receiver.sessions()
    );
    Ok(())
}

#[test]
fn a_kept_connection_that_the_next_hop_closed_costs_no_message() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(&receiver)?;
    for number in 1..=20 {
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "message {number}: {}", reply.text());
        receiver.hang_up();
        // Now and then so short that the gate may not have seen it before it uses the connection.
        std::thread::sleep(Duration::from_millis(if number % 2 == 0 { 50 } else { 0 }));
    }
    ensure!(
        receiver.arrived().len() == 20,
        "{} of 20 arrived",
        receiver.arrived().len()
    );
    Ok(())
}

#[test]
fn next_hops_are_tried_in_their_order() -> Result<()> {
    let (first, second) = (Receiver::start(true)?, Receiver::start(true)?);
    let both = format!("{}\", \"{}", first.address(), second.address());
    let gate = Process::start(&relay_to(&both, RELAY)?)?;
    ensure!(offer(&gate)?.code == 250);
    ensure!(
        (first.arrived().len(), second.arrived().len()) == (1, 0),
        "the first one has it"
    );

    // A next hop that says 554 or 421 at once is as good as down, as is one that is silent.
    for act in [
        Act::Say("554 5.3.2 no service"),
        Act::Say("421 4.3.2 later"),
        Act::Wait(Duration::from_secs(5)),
    ] {
        first.script({
            let act = act.clone();
            move |at| {
                if at == "CONNECT" {
                    act.clone()
                } else {
                    Act::Usual
                }
            }
        });
        first.hang_up();
        let before = second.arrived().len();
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "{act:?}: {}", reply.text());
        ensure!(
            second.arrived().len() == before + 1,
            "{act:?}: the second one has it"
        );
    }
    drop(first);
    ensure!(offer(&gate)?.code == 250, "with the first one gone");
    Ok(())
}

#[test]
fn refusals_of_the_next_hop_are_the_clients() -> Result<()> {
    // Where the next hop refuses, and what the client is told, word for word.
    let table = [
        ("MAIL", "550 5.7.1 not from you"),
        ("MAIL", "452 4.3.1 no room"),
        ("RCPT", "550 5.1.1 nobody of that name"),
        ("RCPT", "450 4.2.0 try again later"),
        ("DATA", "554 5.7.0 not today"),
        (".", "554 5.7.1 looks like spam"),
        (".", "452 4.2.2 mailbox full"),
    ];
    for (point, refusal) in table {
        let receiver = Receiver::scripted(move |at| {
            if at.starts_with(point) {
                Act::Say(refusal)
            } else {
                Act::Usual
            }
        })?;
        let gate = gate_to(&receiver)?;
        let reply = offer(&gate)?;
        ensure!(
            reply.text() == refusal,
            "{refusal} at {point} became {}",
            reply.text()
        );
        ensure!(receiver.arrived().is_empty());
    }
    Ok(())
}

#[test]
fn one_refused_recipient_leaves_the_others() -> Result<()> {
    let receiver = Receiver::scripted(|at| {
        if at.contains("<bad") {
            Act::Say("550 5.1.1 no such user")
        } else {
            Act::Usual
        }
    })?;
    let gate = gate_to(&receiver)?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    // Pipelined, as a client does that was offered PIPELINING: the replies come in order.
    let recipients = ["good1", "bad1", "good2", "bad2", "good3"]
        .map(|user| format!("RCPT TO:<{user}@d.example>\r\n"));
    session
        .raw(format!("MAIL FROM:<a@b.example>\r\n{}DATA\r\n", recipients.concat()).as_bytes())?;
    session.expect_reply("250")?;
    for expected in [
        "250",
        "550 5.1.1 no such user",
        "250",
        "550 5.1.1 no such user",
        "250",
        "354",
    ] {
        session.expect_reply(expected)?;
    }
    session.raw(CONTENT)?;
    session.expect(".", "250")?;
    let arrived = receiver.arrived();
    let recipients: Vec<_> = arrived
        .iter()
        .flat_map(|message| &message.recipients)
        .collect();
    ensure!(
        recipients == ["good1@d.example", "good2@d.example", "good3@d.example"],
        "{recipients:?}"
    );
    Ok(())
}

#[test]
fn an_old_next_hop_without_extensions_is_good_enough() -> Result<()> {
    for ehlo in ["502 5.5.1 what?", "250 plain.example"] {
        let receiver = Receiver::scripted(move |at| {
            if at.starts_with("EHLO") {
                Act::Say(ehlo)
            } else {
                Act::Usual
            }
        })?;
        let gate = gate_to(&receiver)?;
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "{ehlo}: {}", reply.text());
        ensure!(receiver.arrived()[0].content.ends_with(CONTENT));
    }
    Ok(())
}

#[test]
fn a_recipient_that_needs_another_next_hop_waits_for_another_transaction() -> Result<()> {
    let (one, other) = (Receiver::start(true)?, Receiver::start(true)?);
    let more = format!(
        "[[route]]\ndomains = [\"other.example\"]\nnext_hop = [\"{}\"]\n{RELAY}",
        other.address()
    );
    let gate = Process::start(&relay_to(&one.address().to_string(), &more)?)?;
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    session.expect("RCPT TO:<x@d.example>", "250")?;
    session.expect("RCPT TO:<y@other.example>", "451 4.5.3")?;
    session.expect("RCPT TO:<z@d.example>", "250")?;
    session.expect("DATA", "354")?;
    session.raw(CONTENT)?;
    session.expect(".", "250")?;
    ensure!(transaction(&mut session, "y@other.example")?.code == 250);
    ensure!(one.arrived()[0].recipients == ["x@d.example", "z@d.example"]);
    ensure!(other.arrived()[0].recipients == ["y@other.example"]);
    Ok(())
}

#[test]
fn fifty_megabytes_do_not_cost_fifty_megabytes() -> Result<()> {
    let receiver = Receiver::start(false)?;
    let size = "[limits]\nmessage_size = \"60MB\"\n";
    let configuration = relay_to(&receiver.address().to_string(), size)?;
    // One worker, so that the second message meets the buffers of the first.
    let gate = Process::start(&configuration.replace("workers = 2", "workers = 1"))?;
    // Touches the buffers that every message goes through, so that what grows from here on is the
    // message's.
    send_megabytes(&gate, 50)?;
    let before = gate.resident_most_kib()?;

    // The next hop reads nothing for a while: the client must be held back meanwhile, not stored.
    let stall = Act::Stall(Duration::from_secs(2));
    receiver.script(move |at| {
        if at == "DATA" {
            stall.clone()
        } else {
            Act::Usual
        }
    });
    send_megabytes(&gate, 50)?;
    let most = gate.resident_most_kib()?;
    ensure!(
        before < 48 * 1024 && most < before + 12 * 1024,
        "{before}, then at most {most} KiB"
    );
    let sizes: Vec<_> = receiver
        .arrived()
        .iter()
        .map(|message| message.size)
        .collect();
    ensure!(
        sizes.len() == 2 && sizes[0] >= 50_000_000 && sizes[0].abs_diff(sizes[1]) < 100,
        "{sizes:?} arrived"
    );
    Ok(())
}

fn send_megabytes(gate: &Process<'_>, megabytes: usize) -> Result<()> {
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    session.envelope("a@b.example", &["c@d.example"])?;
    session.expect("DATA", "354")?;
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    let piece = line.repeat(1000);
    for _ in 0..megabytes {
        session.raw(&piece)?;
    }
    session.expect(".", "250")?;
    session.expect("QUIT", "221").map(drop)
}

#[test]
fn every_message_gets_a_received_field() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(&receiver)?;
    offer(&gate)?;
    let mut plain = gate.dialogue()?;
    plain.expect("HELO old.example", "250")?;
    transaction(&mut plain, "c@d.example")?;

    for (message, (helo, with)) in receiver
        .arrived()
        .iter()
        .zip([("client.example", "ESMTP"), ("old.example", "SMTP")])
    {
        let content = String::from_utf8_lossy(&message.content);
        let field = content.split("\r\nSubject").next().unwrap_or_default();
        for part in [
            &format!("Received: from {helo} ")[..],
            "[127.0.0.1]",
            "by gate.example",
            &format!("with {with} "),
            ";\r\n\t",
        ] {
            ensure!(field.contains(part), "no {part:?} in {field}");
        }
        ensure!(
            field.lines().all(|line| line.len() <= 998)
                && field
                    .lines()
                    .skip(1)
                    .all(|line| line.starts_with(['\t', ' ']))
        );
    }
    Ok(())
}

#[test]
fn more_than_fifty_received_fields_are_a_loop() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(&receiver)?;
    for (fields, expected) in [(50, "250"), (51, "554 5.4.6")] {
        let mut session = gate.dialogue()?;
        let mut content =
            "Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\n".repeat(fields / 2);
        content += &"RECEIVED: from a\r\n\tby b; Thu, 1 Jan 2026 00:00:00 +0000\r\n"
            .repeat(fields - fields / 2);
        // In the body they are only text.
        content += &format!("Subject: loop\r\n\r\n{}", "Received: text\r\n".repeat(60));
        let reply = session.message("a@b.example", &["c@d.example"], content.as_bytes())?;
        ensure!(
            reply.text().starts_with(expected),
            "{fields}: {}",
            reply.text()
        );
        session.expect("NOOP", "250")?;
    }
    ensure!(
        receiver.arrived().len() == 1,
        "{} arrived",
        receiver.arrived().len()
    );
    Ok(())
}

#[test]
fn discard_takes_everything_and_keeps_nothing() -> Result<()> {
    let gate = Process::start(&relay_to("discard", "")?)?;
    for _ in 0..10 {
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "{}", reply.text());
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_in_the_middle_sends_nothing() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = gate_to(&receiver)?;
    for content in [
        &b""[..],
        b"Subject: half\r\n",
        b"Subject: half\r\n\r\ntext\r\n.",
        b"text\r\n.\r",
    ] {
        let mut session = gate.dialogue()?;
        session.expect("EHLO client.example", "250")?;
        session.envelope("a@b.example", &["c@d.example"])?;
        session.expect("DATA", "354")?;
        session.raw(content)?;
        drop(session);
    }
    let reply = offer(&gate)?;
    ensure!(reply.code == 250, "{}", reply.text());
    ensure!(
        receiver.arrived().len() == 1,
        "{} arrived",
        receiver.arrived().len()
    );
    Ok(())
}
