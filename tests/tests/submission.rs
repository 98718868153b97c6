//! Submission through the whole gate: what a message lacks is added on its way to a next hop, the
//! limits of a user hold over all sessions, and manners are not asked of a user's program.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::machine;
use portcullis_tests::pki::Pki;
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::Receiver;
use portcullis_tests::users::{UserFile, plain};
use portcullis_tests::wait;

const SOON: Duration = Duration::from_secs(10);
const USERS: &[(&str, &str)] = &[("alice", "of-alice"), ("bob", "of-bob")];
/// Where every client is a stranger.
const STRANGERS: &str = "[relay]\nnetworks = [\"192.0.2.0/24\"]\ndomains = [\"gate.example\"]\n";

/// A gate with one listener of this service, which offers AUTH.
fn gate(service: &str, next_hop: &str, more: &str) -> Result<(Process<'static>, UserFile)> {
    let users = UserFile::new(USERS)?;
    let auth = format!("[auth]\nusers = \"{}\"\n", users.path().display());
    let listener = format!("service = \"{service}\"\nauth = \"on\"\nauth_without_tls = true");
    let text = relay_to(next_hop, &format!("{auth}{more}"))?;
    let gate = Process::start(&text.replace("service = \"relay\"", &listener))?;
    Ok((gate, users))
}

/// A session of this user.
fn session(gate: &Process<'_>, user: &str) -> Result<Dialogue> {
    let mut session = gate.dialogue()?;
    session.patience(SOON)?;
    session.expect("EHLO client.example", "250")?;
    session.expect(&plain(user, &format!("of-{}", user.to_lowercase())), "235")?;
    Ok(session)
}

/// The last message, without the line of ours that is its first, and what that is.
fn last(receiver: &Receiver, messages: usize) -> Result<(String, String)> {
    let arrived = receiver.wait_for(messages, SOON)?;
    let message = arrived.last().context("a message")?;
    let text = String::from_utf8(message.content.clone())?;
    let end = text.find("+0000\r\n").context("a Received line")? + "+0000\r\n".len();
    let (received, rest) = text.split_at(end);
    Ok((received.to_owned(), rest.to_owned()))
}

#[test]
fn a_message_gets_the_fields_that_it_lacks_however_it_comes() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let next_hop = receiver.address().to_string();
    let (gate, _users) = gate("submission", &next_hop, "")?;
    let mut session = session(&gate, "alice")?;
    let to = ["user@far.example"];

    session.envelope("alice@gate.example", &to)?;
    session.expect("DATA", "354")?;
    session.raw(b"Subject: x\r\n\r\n..dot\r\nDate: body\r\n")?;
    session.expect(".", "250")?;
    let (received, message) = last(&receiver, 1)?;
    ensure!(received.contains(" with ESMTPA id "), "{received}");
    let id = received.split(" id ").nth(1).context("an id")?;
    let id = id.split_whitespace().next().unwrap_or_default();
    let (date, end) = message.split_once("Message-ID: ").context("an id")?;
    let date = date
        .strip_prefix("Subject: x\r\nDate: ")
        .context("a date")?;
    ensure!(
        received.ends_with(&format!("\r\n\t{date}")),
        "{date} in {received}"
    );
    let expected = format!("<{id}@gate.example>\r\n\r\n.dot\r\nDate: body\r\n");
    ensure!(end == expected, "{message}");

    // BDAT, cut within the name of a field.
    session.envelope("alice@gate.example", &to)?;
    session.raw(b"BDAT 15\r\nDate: d\r\nMessag")?;
    session.expect_reply("250")?;
    session.raw(b"BDAT 15 LAST\r\ne-Id:<m>\r\n\r\n.\r\n")?;
    session.expect_reply("250")?;
    let (_, message) = last(&receiver, 2)?;
    ensure!(
        message == "Date: d\r\nMessage-Id:<m>\r\n\r\n.\r\n",
        "{message}"
    );

    // All header, and nothing at all.
    for (number, content) in [(3, "X: y\r\n"), (4, "")] {
        session.envelope("alice@gate.example", &to)?;
        session.expect("DATA", "354")?;
        session.raw(content.as_bytes())?;
        session.expect(".", "250")?;
        let (_, message) = last(&receiver, number)?;
        let added = message.strip_prefix(content).context("what was sent")?;
        let is_added = added.starts_with("Date: ") && added.contains("\r\nMessage-ID: <");
        ensure!(is_added && added.lines().count() == 2, "{message}");
    }
    Ok(())
}

#[test]
fn a_relayed_message_stays_as_it_is_also_of_a_user() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let next_hop = receiver.address().to_string();
    let (gate, _users) = gate("relay", &next_hop, STRANGERS)?;
    let mut session = session(&gate, "alice")?;
    session.envelope("alice@gate.example", &["user@far.example"])?;
    session.expect("DATA", "354")?;
    session.raw(b"Subject: x\r\n\r\ntext\r\n")?;
    session.expect(".", "250")?;
    let (received, message) = last(&receiver, 1)?;
    ensure!(received.contains(" with ESMTPA id "), "{received}");
    ensure!(message == "Subject: x\r\n\r\ntext\r\n", "{message}");
    Ok(())
}

#[test]
fn the_limits_of_a_user_hold_over_all_its_sessions_and_for_no_other() -> Result<()> {
    let limits = "[limits]\nmessages_per_user = 2\nrecipients_per_user = 3\n";
    let (gate, _users) = gate("submission", "discard", limits)?;
    let mut one = session(&gate, "alice")?;
    one.envelope("a@gate.example", &["a@b.example", "b@b.example"])?;
    let mut two = session(&gate, "Alice")?;
    two.envelope("a@gate.example", &["c@b.example"])?;
    let refused = two.expect("RCPT TO:<d@b.example>", "450 4.7.1")?;
    ensure!(refused.text().contains("recipients"), "{}", refused.text());
    two.expect("DATA", "354")?;
    two.expect(".", "250")?;
    let refused = two.expect("MAIL FROM:<a@gate.example>", "450 4.7.1")?;
    ensure!(refused.text().contains("messages"), "{}", refused.text());
    // What is refused counts for nothing, and ends no session.
    two.expect("MAIL FROM:<a@gate.example>", "450 4.7.1")?;
    two.expect("NOOP", "250")?;
    let mut other = session(&gate, "bob")?;
    other.envelope(
        "b@gate.example",
        &["a@b.example", "b@b.example", "c@b.example"],
    )?;

    wait::until("the refusals in the metrics", SOON, || {
        let recipients = gate.metric("portcullis_recipients_refused_total", "recipients-per-user");
        let messages = gate.metric(
            "portcullis_transactions_total",
            "rule=\"messages-per-user\"",
        );
        (recipients.ok()? >= 1.0 && messages.ok()? >= 2.0).then_some(())
    })?;
    wait::until("the user in the log", SOON, || {
        let lines = gate.log_lines();
        let mut lines = lines
            .iter()
            .filter(|line| line["rule"] == "messages-per-user");
        lines.any(|line| line["user"] == "alice").then_some(())
    })
    .with_context(|| gate.log())
}

#[test]
fn no_user_waits_for_the_greeting_and_none_sends_without_authentication() -> Result<()> {
    let more = format!("{STRANGERS}[limits]\ngreeting_delay = \"30s\"\n");
    let (gate, _users) = gate("submission", "discard", &more)?;
    let begun = Instant::now();
    let mut stranger = gate.dialogue()?;
    ensure!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    stranger.expect("EHLO client.example", "250")?;
    stranger.expect("MAIL FROM:<a@gate.example>", "530 5.7.0")?;
    // As on port 25 a local domain would be open to it.
    stranger.expect("RCPT TO:<postmaster>", "503")?;
    Ok(())
}

/// Sends a message as alice: host, port, whether TLS comes first, the authority.
const SMTPLIB: &str = "import smtplib, ssl, sys\n\
    host, port, implicit, authority = sys.argv[1:]\n\
    context = ssl.create_default_context(cafile=authority)\n\
    context.check_hostname = False\n\
    if implicit == 'yes':\n \
    client = smtplib.SMTP_SSL(host, int(port), context=context, timeout=20)\n\
    else:\n \
    client = smtplib.SMTP(host, int(port), timeout=20)\n \
    client.starttls(context=context)\n\
    client.login('alice', 'of-alice')\n\
    client.sendmail('alice@gate.example', ['b@far.example'], 'Subject: x\\n\\nhello')\n\
    client.quit()\n";

#[test]
fn a_users_program_submits_under_tls_on_both_services() -> Result<()> {
    let (pki, users) = (Pki::new()?, UserFile::new(USERS)?);
    let keys = pki.issue("gate", &["gate.example"])?.keys();
    let implicit = machine::free_address()?;
    let more = format!(
        "[[listener]]\naddress = \"{implicit}\"\nservice = \"submissions\"\n\
         [tls]\n{keys}\n[auth]\nusers = \"{}\"\n{STRANGERS}",
        users.path().display()
    );
    let receiver = Receiver::start(true)?;
    let text = relay_to(&receiver.address().to_string(), &more)?;
    let text = text.replace("service = \"relay\"", "service = \"submission\"");
    let gate = Process::start(&text)?;
    for (number, (address, is_implicit)) in
        (1..).zip([(gate.address(), "no"), (gate.address_of(1), "yes")])
    {
        let output = Command::new("python3")
            .args(["-c", SMTPLIB, &address.ip().to_string()])
            .args([&address.port().to_string(), is_implicit])
            .arg(pki.authority())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}\n{}", gate.log());
        let (received, message) = last(&receiver, number)?;
        ensure!(received.contains(" with ESMTPSA id "), "{received}");
        ensure!(message.contains("\r\nMessage-ID: <"), "{message}");
    }
    // Without TLS there is no AUTH, and so nothing else.
    let mut client = gate.dialogue()?;
    client.expect("EHLO client.example", "250")?;
    client.expect("MAIL FROM:<alice@gate.example>", "530 5.7.0")?;
    client.expect(&plain("alice", "of-alice"), "538 5.7.11")?;
    Ok(())
}
