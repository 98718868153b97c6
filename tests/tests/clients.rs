//! Clients of every sort get the same answers: swaks, curl, Python's smtplib, and hands on a
//! keyboard.
//!
//! Each sends the same two messages, one to a recipient that is accepted and one to a recipient
//! that the next hop refuses. The reply lines that it saw are compared, word by word, with those of
//! a client that sends one line at a time.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};

const ACCEPTED: &str = "friend@accepted.example";
const REFUSED: &str = "nobody@refused.example";
const SENDER: &str = "me@client.example";
/// As it goes over the wire, with a line that is a dot.
const MESSAGE: &str = "Subject: the same\r\n\r\nfor\r\n..\r\neverybody\r\n";

#[test]
fn swaks_gets_the_same_answers() -> Result<()> {
    compare(|gate, recipient| {
        let server = gate.address().to_string();
        let data = MESSAGE.replace("\r\n..\r\n", "\r\n.\r\n");
        let output = Command::new("swaks")
            .args([
                "--server",
                &server,
                "--ehlo",
                "client.example",
                "--from",
                SENDER,
                "--to",
                recipient,
            ])
            .args(["--data", &data, "--timeout", "10s"])
            .output()
            .context("swaks is missing: `cargo xtask setup` installs it")?;
        let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
        // " -> " was sent, "<-  " is a reply, "<** " one that swaks did not want.
        let replies = transcript
            .lines()
            .filter(|line| line.starts_with("<-") || line.starts_with("<**"));
        Ok(replies
            .filter_map(|line| line.get(4..))
            .map(str::to_owned)
            .collect())
    })
}

#[test]
fn curl_gets_the_same_answers() -> Result<()> {
    compare(|gate, recipient| {
        let file = gate.directory().join("message");
        std::fs::write(&file, MESSAGE.replace("\r\n..\r\n", "\r\n.\r\n"))?;
        let output = Command::new("curl")
            .args([
                "--silent",
                "--verbose",
                "--max-time",
                "10",
                "--mail-from",
                SENDER,
                "--mail-rcpt",
                recipient,
            ])
            .arg("--upload-file")
            .arg(&file)
            .arg(format!("smtp://{}/client.example", gate.address()))
            .output()
            .context("curl is missing: `cargo xtask setup` installs it")?;
        let transcript = String::from_utf8_lossy(&output.stderr).into_owned();
        let replies = transcript
            .lines()
            .filter_map(|line| line.strip_prefix("< "));
        Ok(replies.map(|line| line.trim_end().to_owned()).collect())
    })
}

#[test]
fn pythons_smtplib_gets_the_same_answers() -> Result<()> {
    const PROGRAM: &str = r#"
import smtplib, sys
host, port, sender, recipient, message = sys.argv[1:]
class Client(smtplib.SMTP):
    def _print_debug(self, *args):
        if args[0] == "reply:":
            print(args[1].decode() if isinstance(args[1], bytes) else args[1].strip("b'").replace("\\r\\n", ""))
client = Client(local_hostname="client.example", timeout=10)
client.set_debuglevel(1)
client.connect(host, int(port))
try:
    client.sendmail(sender, [recipient], message.encode())
except smtplib.SMTPRecipientsRefused:
    pass
client.quit()
"#;
    compare(|gate, recipient| {
        let (host, port) = (
            gate.address().ip().to_string(),
            gate.address().port().to_string(),
        );
        let message = MESSAGE.replace("\r\n..\r\n", "\r\n.\r\n");
        let output = Command::new("python3")
            .args(["-c", PROGRAM, &host, &port, SENDER, recipient, &message])
            .output()
            .context("python3 is missing: `cargo xtask setup` installs it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        let replies = String::from_utf8_lossy(&output.stdout);
        Ok(replies
            .lines()
            .filter(|line| is_reply(line))
            .map(|line| line.trim_end().to_owned())
            .collect())
    })
}

#[test]
fn hands_on_a_keyboard_get_the_same_answers() -> Result<()> {
    // One octet in a segment, with a pause after some: the gate sees pieces of commands.
    compare(|gate, recipient| {
        by_line(gate, recipient, |session, text| {
            for (position, octet) in text.bytes().enumerate() {
                session.raw(&[octet])?;
                if position % 8 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        })
    })
}

/// Sends the two messages by `client`, and by a client that sends one line at a time.
fn compare(client: impl Fn(&Process<'_>, &str) -> Result<Vec<String>>) -> Result<()> {
    let receiver = Receiver::scripted(|point| {
        if point.starts_with("RCPT") && point.contains(REFUSED) {
            Act::Say("550 5.1.1 nobody of that name")
        } else {
            Act::Usual
        }
    })?;
    let gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    for recipient in [ACCEPTED, REFUSED] {
        let expected = by_line(&gate, recipient, |session, text| {
            session.raw(text.as_bytes())
        })?;
        let seen = client(&gate, recipient)?;
        // After a refusal a client may say RSET or not, and curl does not show the answer to its
        // QUIT.
        let asked = |line: &&String| {
            !line.contains(" 2.0.0 ") || line.starts_with("250") && recipient == ACCEPTED
        };
        let expected: Vec<_> = expected.iter().filter(asked).collect();
        let seen: Vec<_> = seen.iter().filter(asked).collect();
        ensure!(
            seen == expected,
            "to {recipient}\nexpected {expected:#?}\nbut saw {seen:#?}"
        );
    }
    let arrived = receiver.arrived();
    ensure!(arrived.len() == 2, "{} messages arrived", arrived.len());
    let bodies: Vec<_> = arrived
        .iter()
        .map(|message| body(&message.content))
        .collect();
    ensure!(bodies[0] == bodies[1], "the messages differ: {bodies:#?}");
    Ok(())
}

/// A session in which `send` gets each line; the reply lines as they came.
fn by_line(
    gate: &Process<'_>,
    recipient: &str,
    send: impl Fn(&mut portcullis_tests::dialogue::Dialogue, &str) -> Result<()>,
) -> Result<Vec<String>> {
    let mut session = portcullis_tests::dialogue::Dialogue::new(gate.tcp(gate.address())?)?;
    let mut lines = session.reply()?.wire();
    let (mail, rcpt) = (
        format!("MAIL FROM:<{SENDER}>"),
        format!("RCPT TO:<{recipient}>"),
    );
    let message = format!("{MESSAGE}.");
    for text in [
        "EHLO client.example",
        &mail,
        &rcpt,
        "DATA",
        &message,
        "QUIT",
    ] {
        if recipient == REFUSED && ["DATA", &message].contains(&text) {
            continue;
        }
        send(&mut session, &format!("{text}\r\n"))?;
        lines.extend(
            session
                .reply()
                .with_context(|| format!("after {text}"))?
                .wire(),
        );
    }
    Ok(lines)
}

fn is_reply(line: &str) -> bool {
    line.len() > 3 && line.as_bytes()[..3].iter().all(u8::is_ascii_digit)
}

/// What follows the header, without white space at the end: clients differ in the last line ends.
fn body(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    body.trim_end().to_owned()
}
