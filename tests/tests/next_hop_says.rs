//! What a next hop says of itself is used: its limits, what it offers and what it does not, and why
//! it refuses us. The client hears the truth of it, and a message goes through wherever it can.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::{Dialogue, Reply};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};

const CONTENT: &[u8] = b"Subject: onward\r\n\r\ntext\r\n";
const PLAIN: &str = "250-plain.example\r\n250-PIPELINING\r\n250 8BITMIME";

/// A next hop, and every line that it was told.
struct Listening {
    receiver: Receiver,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Listening {
    fn new(script: impl Fn(&str) -> Act + Send + Sync + 'static) -> Result<Self> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let receiver = Receiver::scripted({
            let lines = Arc::clone(&lines);
            move |at| {
                if let Ok(mut lines) = lines.lock() {
                    lines.push(at.to_owned());
                }
                script(at)
            }
        })?;
        Ok(Self { receiver, lines })
    }

    /// One that offers this and accepts everything.
    fn offering(ehlo: &'static str) -> Result<Self> {
        Self::new(move |at| says(at, "EHLO", ehlo))
    }

    /// What it was told, of the lines that begin like this.
    fn told(&self, beginning: &str) -> Vec<String> {
        let lines = self.lines.lock().expect("nobody panics with it");
        let lines = lines.iter().filter(|line| line.starts_with(beginning));
        lines.cloned().collect()
    }

    fn gate(&self, more: &str) -> Result<Process<'static>> {
        // One worker: each has connections of its own.
        let configuration = relay_to(&self.receiver.address().to_string(), more)?;
        Process::start(&configuration.replace("workers = 2", "workers = 1"))
    }
}

/// This reply to commands that begin like this.
fn says(at: &str, beginning: &str, reply: &'static str) -> Act {
    if at.starts_with(beginning) {
        Act::Say(reply)
    } else {
        Act::Usual
    }
}

fn session(gate: &Process<'_>) -> Result<Dialogue> {
    let mut session = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    Ok(session)
}

/// Sends these lines one by one, up to the first that is refused, and the content after DATA. The
/// last reply.
fn transaction(session: &mut Dialogue, lines: &[&str], content: &[u8]) -> Result<Reply> {
    for line in lines.iter().chain(&["DATA"]) {
        let reply = session.say(line)?;
        if reply.code >= 400 {
            return Ok(reply);
        }
    }
    session.raw(content)?;
    session.say(".")
}

/// A message in a session of its own; the first reply that is no success, or the final one.
fn offer(gate: &Process<'_>) -> Result<Reply> {
    let lines = ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"];
    let reply = transaction(&mut session(gate)?, &lines, CONTENT)?;
    Ok(reply)
}

#[test]
fn no_more_transactions_are_made_on_a_connection_than_mailmax_allows() -> Result<()> {
    let hop = Listening::offering("250-limited.example\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=2")?;
    let gate = hop.gate("")?;
    for _ in 0..5 {
        ensure!(offer(&gate)?.code == 250);
    }
    ensure!(hop.receiver.sessions() == 3, "{}", hop.receiver.sessions());
    ensure!(hop.told("QUIT").len() >= 2, "it was not taken leave of");
    Ok(())
}

#[test]
fn recipients_beyond_the_limit_of_the_next_hop_are_put_off_in_their_order() -> Result<()> {
    // What it says, and which of the recipients it has room for.
    let cases = [
        ("RCPTMAX=2", [true, true, false, false]),
        ("RCPTDOMAINMAX=1 MAILMAX=100", [true, false, true, false]),
        ("RCPTMAX=3 RCPTDOMAINMAX=2", [true, true, true, false]),
    ];
    for (limits, taken) in cases {
        let ehlo = format!("250-limited.example\r\n250-PIPELINING\r\n250 LIMITS {limits}").leak();
        let hop = Listening::offering(ehlo)?;
        let gate = hop.gate("")?;
        let mut session = session(&gate)?;
        let recipients = ["a@d.example", "b@e.example", "c@D.example", "d@f.example"];
        let group = recipients.map(|path| format!("RCPT TO:<{path}>\r\n"));
        session.raw(format!("MAIL FROM:<a@b.example>\r\n{}DATA\r\n", group.concat()).as_bytes())?;
        session.expect_reply("250")?;
        for taken in taken {
            let expected = if taken { "250" } else { "452 4.5.3" };
            session
                .expect_reply(expected)
                .with_context(|| format!("{limits}: {taken:?}"))?;
        }
        session.expect_reply("354")?;
        session.raw(CONTENT)?;
        session.expect(".", "250")?;
        let arrived = hop.receiver.arrived();
        ensure!(arrived[0].recipients.len() == taken.iter().filter(|taken| **taken).count());
        // Sent again, they have room.
        let rest = ["MAIL FROM:<a@b.example>", "RCPT TO:<d@f.example>"];
        let reply = transaction(&mut session, &rest, CONTENT)?;
        ensure!(reply.code == 250, "{limits}: {}", reply.text());
    }
    Ok(())
}

/// A next hop that takes one message on a connection and then defers; `connections`: with how many
/// it does so.
fn one_message_each(connections: usize) -> Result<Listening> {
    let (connected, mails) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Listening::new(move |at| {
        if at == "CONNECT" {
            mails.store(0, Ordering::Relaxed);
            if connected.fetch_add(1, Ordering::Relaxed) >= connections {
                return Act::Say("554 5.7.1 not again");
            }
        }
        if at.starts_with("MAIL") && mails.fetch_add(1, Ordering::Relaxed) >= 1 {
            return Act::Say("452 4.3.0 no more of this");
        }
        Act::Usual
    })
}

#[test]
fn a_sender_deferred_on_a_kept_connection_is_tried_on_a_new_one() -> Result<()> {
    let hop = one_message_each(usize::MAX)?;
    let gate = hop.gate("")?;
    for number in 1..=4 {
        let reply = offer(&gate)?;
        ensure!(reply.code == 250, "message {number}: {}", reply.text());
    }
    ensure!(hop.receiver.sessions() == 4);
    Ok(())
}

#[test]
fn a_sender_that_is_deferred_on_a_new_connection_too_hears_it() -> Result<()> {
    // With no other connection to be had, and with one that says the same.
    for connections in [1, usize::MAX] {
        let hop = one_message_each(connections)?;
        let gate = hop.gate("")?;
        ensure!(offer(&gate)?.code == 250);
        if connections > 1 {
            hop.receiver
                .script(|at| says(at, "MAIL", "452 4.3.0 no more of this"));
        }
        let reply = offer(&gate)?;
        ensure!(
            reply.text() == "452 4.3.0 no more of this",
            "{}",
            reply.text()
        );
        ensure!(hop.receiver.sessions() == 2, "{}", hop.receiver.sessions());
    }
    Ok(())
}

#[test]
fn why_a_next_hop_refuses_us_is_in_the_log_and_in_the_answer() -> Result<()> {
    // Where, what it says, and what of it the client and the log have.
    let cases = [
        (
            "CONNECT",
            "554-5.7.1 198.51.100.7 is on our list\r\n554 5.7.1 see https://hop.example/why",
            "554 5.7.1 198.51.100.7 is on our list 5.7.1 see https://hop.example/why",
        ),
        (
            "CONNECT",
            "421 4.7.0 too busy today",
            "421 4.7.0 too busy today",
        ),
        ("CONNECT", "450 greylisted", "450 greylisted"),
        (
            "HELO",
            "550 5.7.1 never heard of you",
            "550 5.7.1 never heard of you",
        ),
        ("EHLO", "421 4.3.2 closing", "421 4.3.2 closing"),
    ];
    for (point, said, heard) in cases {
        let hop = Listening::new(move |at| match at {
            at if at.starts_with(point) => Act::Say(said),
            at if at.starts_with("EHLO") => Act::Say("502 5.5.1 what?"),
            _ => Act::Usual,
        })?;
        let gate = hop.gate("")?;
        // The second one comes while the next hop is left alone, and is told no less.
        for _ in 0..2 {
            let reply = offer(&gate)?;
            ensure!(
                reply.text().starts_with("451 4.4.1") && reply.text().ends_with(heard),
                "{said}: {}",
                reply.text()
            );
        }
        let limit = Duration::from_secs(5);
        let line = gate.wait_for_log("refuses this server", limit)?;
        ensure!(line.contains(heard), "{line}");
    }
    Ok(())
}

#[test]
fn an_ehlo_that_is_refused_for_good_is_the_reason_when_the_next_hop_hangs_up_then() -> Result<()> {
    let hop = Listening::new(|at| match at {
        at if at.starts_with("EHLO") => Act::Say("554-5.7.1 no\r\n554 5.7.1 entry"),
        at if at.starts_with("HELO") => Act::HangUp,
        _ => Act::Usual,
    })?;
    let reply = offer(&hop.gate("")?)?;
    ensure!(
        reply.text().ends_with("554 5.7.1 no 5.7.1 entry"),
        "{}",
        reply.text()
    );
    Ok(())
}

#[test]
fn what_a_next_hop_says_cannot_do_anything_in_the_answer() -> Result<()> {
    let said: &'static str =
        format!("554 a\r250 b\x07\x1b[31m\tc {} \u{fc}ber", "x".repeat(2000)).leak();
    let hop = Listening::new(move |at| says(at, "CONNECT", said))?;
    let gate = hop.gate("")?;
    let mut session = session(&gate)?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    let reply = session.expect("RCPT TO:<c@d.example>", "451 4.4.1")?;
    ensure!(reply.lines.len() == 1, "{:?}", reply.lines);
    let text = reply.text();
    ensure!(
        text.len() <= 510 && text.bytes().all(|octet| matches!(octet, b' '..=b'~')),
        "{text}"
    );
    ensure!(text.contains("554 a 250 b"), "{text}");
    session.expect("NOOP", "250 2.0.0")?;
    Ok(())
}

#[test]
fn a_session_that_the_next_hop_ends_is_told_with_its_words() -> Result<()> {
    for (point, beginning) in [("RCPT", "451 4.4.1"), (".", "451 4.4.2")] {
        let hop = Listening::new(move |at| says(at, point, "421 4.7.0 you again"))?;
        let reply = offer(&hop.gate("")?)?;
        ensure!(
            reply.text().starts_with(beginning) && reply.text().ends_with("421 4.7.0 you again"),
            "{point}: {}",
            reply.text()
        );
    }
    Ok(())
}

#[test]
fn a_new_connection_that_breaks_within_the_envelope_is_replaced_once() -> Result<()> {
    for point in ["MAIL", "RCPT", "DATA"] {
        for breaks in [1, usize::MAX] {
            let count = AtomicUsize::new(0);
            let hop = Listening::new(move |at| {
                if at.starts_with(point) && count.fetch_add(1, Ordering::Relaxed) < breaks {
                    Act::HangUp
                } else {
                    Act::Usual
                }
            })?;
            let reply = offer(&hop.gate("")?)?;
            let expected = if breaks == 1 { 250 } else { 451 };
            ensure!(
                reply.code == expected && hop.receiver.sessions() == 2,
                "{point}, {breaks}: {} after {} connections",
                reply.text(),
                hop.receiver.sessions()
            );
        }
    }
    Ok(())
}

#[test]
fn what_needs_no_smtputf8_goes_through_without_it() -> Result<()> {
    let hop = Listening::offering(PLAIN)?;
    let gate = hop.gate("")?;
    let mut session = session(&gate)?;
    let ascii = [
        "MAIL FROM:<a@b.example> SMTPUTF8 BODY=8BITMIME",
        "RCPT TO:<c@d.example>",
    ];
    // Header and body, and what becomes of it.
    let cases = [
        ("Subject: onward\r\n\r\ntext\r\n", "250"),
        ("Subject: onward\r\n\r\nGr\u{fc}\u{df}e\r\n", "250"),
        ("Subject: Gr\u{fc}\u{df}e\r\n\r\ntext\r\n", "550 5.6.9"),
        (
            "Subject: a\r\n\tGr\u{fc}\u{df}e\r\n\r\ntext\r\n",
            "550 5.6.9",
        ),
    ];
    for (content, expected) in cases {
        let reply = transaction(&mut session, &ascii, content.as_bytes())?;
        ensure!(
            reply.text().starts_with(expected),
            "{content}: {}",
            reply.text()
        );
    }
    ensure!(hop.receiver.arrived().len() == 2);
    let told = hop.told("MAIL");
    ensure!(
        told.iter()
            .all(|line| line == "MAIL FROM:<a@b.example> BODY=8BITMIME"),
        "{told:?}"
    );
    let sender = [
        "MAIL FROM:<j\u{fc}rgen@b.example> SMTPUTF8",
        "RCPT TO:<c@d.example>",
    ];
    let reply = transaction(&mut session, &sender, CONTENT)?;
    ensure!(reply.text().starts_with("550 5.6.7"), "{}", reply.text());
    session.expect("RSET", "250")?;
    // One recipient that cannot be told does not keep the others.
    session.raw(
        "MAIL FROM:<a@b.example> SMTPUTF8\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<j\u{fc}rgen@d.example>\r\n\
         RCPT TO:<e@d.example>\r\nDATA\r\n"
            .as_bytes(),
    )?;
    for expected in ["250", "250", "550 5.6.7", "250", "354"] {
        session.expect_reply(expected)?;
    }
    session.raw(CONTENT)?;
    session.expect(".", "250")?;
    let last = hop.receiver.arrived().pop().context("nothing arrived")?;
    ensure!(last.recipients == ["c@d.example", "e@d.example"]);
    Ok(())
}

#[test]
fn smtputf8_is_passed_on_where_it_is_offered() -> Result<()> {
    let hop = Listening::new(|_| Act::Usual)?;
    let gate = hop.gate("")?;
    let lines = [
        "MAIL FROM:<j\u{fc}rgen@b.example> SMTPUTF8",
        "RCPT TO:<\u{fc}@d.example>",
    ];
    let content = "Subject: Gr\u{fc}\u{df}e\r\n\r\ntext\r\n";
    let reply = transaction(&mut session(&gate)?, &lines, content.as_bytes())?;
    ensure!(reply.code == 250, "{}", reply.text());
    ensure!(
        hop.told("MAIL")[0].ends_with(" SMTPUTF8"),
        "{:?}",
        hop.told("MAIL")
    );
    Ok(())
}

const DSN: &str = "250-dsn.example\r\n250-PIPELINING\r\n250 DSN";
const WITH_DSN: [&str; 2] = [
    "MAIL FROM:<a@b.example> RET=HDRS ENVID=QQ1",
    "RCPT TO:<c@d.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@d.example",
];

#[test]
fn dsn_is_offered_and_passed_on_where_every_route_says_so() -> Result<()> {
    let other = "[[route]]\ndomains = [\"other.example\"]\nnext_hop = [\"10.0.0.9\"]\n";
    // What the routes say, and whether it is offered.
    let cases = [
        ("dsn = true\n".to_owned(), true),
        (String::new(), false),
        (format!("dsn = true\n{other}"), false),
        (format!("dsn = true\n{other}dsn = true\n"), true),
        (format!("{other}dsn = true\n"), false),
    ];
    for (more, offered) in cases {
        let hop = Listening::offering(DSN)?;
        let gate = hop.gate(&more)?;
        let mut session = gate.dialogue()?;
        let hello = session.expect("EHLO client.example", "250")?;
        ensure!(
            hello.lines.iter().any(|line| line == "DSN") == offered,
            "{more}: {:?}",
            hello.lines
        );
        let reply = transaction(&mut session, &WITH_DSN, CONTENT)?;
        if offered {
            ensure!(reply.code == 250, "{more}: {}", reply.text());
            ensure!(hop.told("MAIL") == WITH_DSN[..1] && hop.told("RCPT") == WITH_DSN[1..]);
        } else {
            ensure!(
                reply.text().starts_with("555 5.5.4"),
                "{more}: {}",
                reply.text()
            );
        }
    }
    Ok(())
}

#[test]
fn a_route_that_promises_dsn_for_a_next_hop_without_it_is_told_and_costs_no_message() -> Result<()>
{
    let hop = Listening::offering(PLAIN)?;
    let gate = hop.gate("dsn = true\n")?;
    for _ in 0..2 {
        let reply = transaction(&mut session(&gate)?, &WITH_DSN, CONTENT)?;
        ensure!(reply.code == 250, "{}", reply.text());
    }
    ensure!(hop.told("RCPT")[0] == "RCPT TO:<c@d.example>");
    gate.wait_for_log("does not offer DSN", Duration::from_secs(5))?;
    ensure!(
        gate.log().matches("does not offer DSN").count() == 1,
        "told twice"
    );
    Ok(())
}

#[test]
fn the_size_passed_on_is_that_of_what_arrives() -> Result<()> {
    let hop = Listening::offering("250-sized.example\r\n250-PIPELINING\r\n250 SIZE 1000")?;
    let gate = hop.gate("")?;
    let mut session = session(&gate)?;
    let mail = format!("MAIL FROM:<a@b.example> SIZE={}", CONTENT.len());
    let long = format!("RCPT TO:<{}@d.example>", "x".repeat(60));
    for recipient in ["RCPT TO:<c@d.example>", &long] {
        let reply = transaction(&mut session, &[&mail, recipient], CONTENT)?;
        ensure!(reply.code == 250, "{}", reply.text());
        let size = hop
            .receiver
            .arrived()
            .pop()
            .context("nothing arrived")?
            .size;
        let told = hop.told("MAIL").pop().context("no MAIL")?;
        let declared = told
            .split_once("SIZE=")
            .context("no SIZE")?
            .1
            .parse::<usize>()?;
        ensure!(
            (size..size + 4).contains(&declared),
            "SIZE={declared} for {size}"
        );
    }
    // It takes 1000 octets, and our own line is among them.
    let (mails, arrived) = (hop.told("MAIL").len(), hop.receiver.arrived().len());
    for size in [1001, 990] {
        let mail = format!("MAIL FROM:<a@b.example> SIZE={size}");
        let reply = transaction(&mut session, &[&mail, "RCPT TO:<c@d.example>"], CONTENT)?;
        ensure!(
            reply.text().starts_with("552 5.3.4"),
            "{size}: {}",
            reply.text()
        );
        session.expect("RSET", "250")?;
    }
    ensure!((hop.told("MAIL").len(), hop.receiver.arrived().len()) == (mails, arrived));
    Ok(())
}

#[test]
fn source_routes_are_not_passed_on() -> Result<()> {
    let hop = Listening::new(|_| Act::Usual)?;
    let gate = hop.gate("")?;
    let lines = [
        "MAIL FROM:<@one.example,@two.example:a@b.example>",
        "RCPT TO:<@three.example,@[IPv6:2001:db8::1]:c@d.example>",
    ];
    let reply = transaction(&mut session(&gate)?, &lines, CONTENT)?;
    ensure!(reply.code == 250, "{}", reply.text());
    let arrived = hop.receiver.arrived().pop().context("nothing arrived")?;
    ensure!(
        arrived.sender == "a@b.example" && arrived.recipients == ["c@d.example"],
        "{arrived:?}"
    );
    ensure!(String::from_utf8_lossy(&arrived.content).contains("\tfor <c@d.example>;"));
    Ok(())
}

#[test]
fn a_message_that_was_accepted_is_accepted_however_much_is_said_about_it() -> Result<()> {
    let replies = [
        format!("250 2.0.0 {}", "queued ".repeat(20_000)),
        format!("{}250 2.0.0 queued", "250-2.0.0 and more\r\n".repeat(5_000)),
        format!("250-{}\r\n250 2.0.0 queued", "x".repeat(10_000)),
        "250\tqueued".to_owned(),
    ];
    for reply in replies {
        let reply: &'static str = reply.leak();
        let hop = Listening::new(move |at| says(at, ".", reply))?;
        let gate = hop.gate("")?;
        let front = &reply[..reply.len().min(40)];
        for _ in 0..2 {
            let heard = offer(&gate)?;
            ensure!(heard.code == 250, "{front}: {}", heard.text());
            ensure!(heard.text().len() < 4_000, "{front}: it was not cut");
        }
        ensure!(
            hop.receiver.sessions() == 1,
            "{front}: the connection was not kept"
        );
    }
    Ok(())
}
