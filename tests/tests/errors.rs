//! What counts as an error of the client, and what does not: refusals of a next hop end nobody's
//! session, but guessing addresses is not free.

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};

const CONTENT: &[u8] = b"Subject: onward\r\n\r\ntext\r\n";
/// The client of these tests is on the loopback.
const TRUSTED: &str = "[relay]\nnetworks = [\"127.0.0.0/8\"]\ndomains = [\"d.example\"]\n";
const STRANGER: &str = "[relay]\nnetworks = [\"192.0.2.0/24\"]\ndomains = [\"d.example\"]\n";

/// A next hop that knows `good` users, and says `refusal` to all others.
fn receiver(refusal: &'static str) -> Result<Receiver> {
    Receiver::scripted(move |at| {
        if at.starts_with("RCPT") && !at.contains("<good") {
            Act::Say(refusal)
        } else {
            Act::Usual
        }
    })
}

fn gate_to(receiver: &Receiver, more: &str) -> Result<Process<'static>> {
    Process::start(&relay_to(&receiver.address().to_string(), more)?)
}

fn begin(gate: &Process<'_>) -> Result<Dialogue> {
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    Ok(session)
}

fn content(session: &mut Dialogue) -> Result<()> {
    session.expect("DATA", "354")?;
    session.raw(CONTENT)?;
    session.expect(".", "250").map(drop)
}

#[test]
fn a_hundred_recipients_are_possible_whatever_the_next_hop_says_to_them() -> Result<()> {
    let refusals = [
        "450 4.2.0 greylisted",
        "451 4.3.0 not now",
        "452 4.2.2 mailbox full",
        "550 5.1.1 no such user",
        "550 nobody of that name",
        "550 5.7.1 not from you",
    ];
    for refusal in refusals {
        let receiver = receiver(refusal)?;
        for terms in [TRUSTED, STRANGER] {
            let case = format!("{refusal}, {terms}");
            let gate = gate_to(&receiver, terms)?;
            let mut session = begin(&gate)?;
            session.expect("MAIL FROM:<a@b.example>", "250")?;
            for number in 0..99 {
                session
                    .expect(&format!("RCPT TO:<r{number}@d.example>"), &refusal[..3])
                    .with_context(|| case.clone())?;
            }
            session.expect("RCPT TO:<good@d.example>", "250")?;
            content(&mut session).with_context(|| case)?;
            session.expect("QUIT", "221")?;
        }
    }
    Ok(())
}

#[test]
fn a_kept_connection_with_a_refused_recipient_in_each_message_lives_on() -> Result<()> {
    let receiver = receiver("550 5.1.1 no such user")?;
    for terms in [TRUSTED, STRANGER] {
        let limit = "[limits]\nunknown_recipients_per_session = 2\nerrors_per_session = 2\n";
        let gate = gate_to(&receiver, &format!("{terms}{limit}"))?;
        let mut session = begin(&gate)?;
        for _ in 0..10 {
            session.expect("MAIL FROM:<a@b.example>", "250")?;
            session.expect("RCPT TO:<bad@d.example>", "550 5.1.1")?;
            session.expect("RCPT TO:<good@d.example>", "250")?;
            // An error of its own is made up for by the message as well.
            session.expect("NONSENSE", "500")?;
            content(&mut session)?;
        }
        session.expect("QUIT", "221")?;
    }
    Ok(())
}

#[test]
fn guessing_addresses_is_for_trusted_clients_alone() -> Result<()> {
    // What the next hop says to RCPT, and whether it gives away that there is no such recipient.
    let table = [
        ("550 5.1.1 no such user", true),
        ("550 5.1.10 recipient not found", true),
        ("550 5.4.1 recipient address rejected", true),
        ("553 no such user", true),
        ("550 5.1.8 no such sender domain", false),
        ("550 5.7.1 not from you", false),
        ("450 4.2.0 greylisted", false),
    ];
    let limit = "[limits]\nunknown_recipients_per_session = 5\n";
    for (refusal, counts) in table {
        let receiver = receiver(refusal)?;
        for (terms, stranger) in [(TRUSTED, false), (STRANGER, true)] {
            let gate = gate_to(&receiver, &format!("{terms}{limit}"))?;
            let mut session = begin(&gate)?;
            session.expect("MAIL FROM:<a@b.example>", "250")?;
            for _ in 0..5 {
                session.expect("RCPT TO:<guess@d.example>", &refusal[..3])?;
            }
            session.raw(b"RCPT TO:<guess@d.example>\r\n")?;
            session.expect_reply(&refusal[..3])?;
            let end = session.say("NOOP");
            let cut =
                matches!(&end, Ok(reply) if reply.text().starts_with("421 4.7.0")) || end.is_err();
            ensure!(
                cut == (stranger && counts),
                "{refusal}, stranger: {stranger}: {end:?}"
            );
            if cut {
                let ended = gate.metric("portcullis_sessions_ended_total", "unknown-recipients")?;
                ensure!(ended == 1.0, "counted {ended} times");
            }
        }
    }
    Ok(())
}

#[test]
fn a_sender_that_the_next_hop_refuses_is_no_guess() -> Result<()> {
    let receiver = Receiver::scripted(|at| match at {
        at if at.starts_with("MAIL") => Act::Say("550 we do not know you"),
        _ => Act::Usual,
    })?;
    let limit = "[limits]\nunknown_recipients_per_session = 2\nerrors_per_session = 2\n";
    let gate = gate_to(&receiver, &format!("{STRANGER}{limit}"))?;
    let mut session = begin(&gate)?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    for _ in 0..10 {
        session.expect("RCPT TO:<c@d.example>", "550")?;
    }
    session.expect("NOOP", "250").map(drop)
}

#[test]
fn what_the_policy_refuses_is_an_error_of_strangers_only() -> Result<()> {
    let receiver = Receiver::start(false)?;
    let other = Receiver::start(false)?;
    let routes = format!(
        "[[route]]\ndomains = [\"other.example\"]\nnext_hop = [\"{}\"]\n",
        other.address()
    );
    let limit = "[limits]\nerrors_per_session = 4\n";

    let gate = gate_to(&receiver, &format!("{routes}{TRUSTED}{limit}"))?;
    let mut session = begin(&gate)?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    session.expect("RCPT TO:<good@d.example>", "250")?;
    for _ in 0..10 {
        // Ours, and for a reason that the client cannot know.
        session.expect("RCPT TO:<x@other.example>", "451 4.5.3")?;
    }
    content(&mut session)?;

    let gate = gate_to(&receiver, &format!("{routes}{STRANGER}{limit}"))?;
    let mut session = begin(&gate)?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    for _ in 0..3 {
        session.expect("RCPT TO:<x@foreign.example>", "550 5.7.1")?;
    }
    session.raw(b"RCPT TO:<x@foreign.example>\r\n")?;
    let rest = session.closed()?;
    ensure!(rest.contains("421 4.7.0 Too many errors"), "{rest:?}");
    Ok(())
}
