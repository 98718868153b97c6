//! What the gate records of sessions and transactions: in the log and in the memory of refusals,
//! soon, in order, and complete after a stop; and no mail waits for a log that nothing takes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::process::{Process, binary, relay_to};
use portcullis_tests::wait;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// Strangers are clients that come from the loopback; one of them is on a list.
const STRANGERS: &str = r#"
[relay]
networks = ["192.0.2.0/24"]
domains = ["gate.example"]
[limits]
errors_per_session = 5
[[list]]
name = "unwanted"
file = "@DIR@/unwanted"
action = "reject"
"#;

fn configuration(more: &str) -> Result<String> {
    Ok(relay_to("192.0.2.1:25", more)?.replace("\"192.0.2.1:25\"", "\"discard\""))
}

fn from(source: [u8; 4], to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(Ipv4Addr::from(source).into(), 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// A session with one message.
fn session(gate: &Process<'_>) -> Result<()> {
    let mut client = gate.dialogue()?;
    client.expect("EHLO client.example", "250")?;
    client.message("a@client.example", &["b@gate.example"], b"x\r\n")?;
    client.expect("QUIT", "221")?;
    Ok(())
}

#[test]
fn a_clean_stop_loses_no_line_of_the_log_and_the_order_is_that_of_the_worker() -> Result<()> {
    let mut gate = Process::start(&configuration("")?)?;
    let sessions = 300;
    for _ in 0..sessions {
        session(&gate)?;
    }
    gate.signal(Signal::SIGTERM)?;
    ensure!(gate.wait(Duration::from_secs(10))?.success());
    let lines = gate.log_lines();
    let of = |target: &str| {
        let lines = lines.iter().filter(|line| line["target"] == target);
        lines.filter(|line| line["bytes"] == 3).count()
    };
    ensure!(
        (of("transaction"), of("session")) == (sessions, sessions),
        "{} transactions and {} sessions of {sessions}",
        of("transaction"),
        of("session")
    );
    let mut open = 0_i32;
    for line in &lines {
        open += match line["target"].as_str() {
            Some("transaction") => 1,
            Some("session") if line["bytes"] == 3 => -1,
            _ => 0,
        };
        ensure!(open >= 0, "a session ends before its transaction: {line}");
    }
    let serving = lines.iter().find(|line| line["message"] == "serving");
    ensure!(
        serving.is_some_and(|line| line["schema"] == 1),
        "{serving:?}"
    );
    let last = lines.last().map(|line| line["message"].clone());
    ensure!(last == Some("stopped".into()), "{last:?}");
    Ok(())
}

#[test]
fn a_session_is_in_the_log_soon_after_its_end() -> Result<()> {
    let gate = Process::start(&configuration("")?)?;
    let mut took = Vec::new();
    for number in 1..=5 {
        session(&gate)?;
        let ended = Instant::now();
        wait::until("the line", Duration::from_secs(5), || {
            let lines = gate.log_lines();
            let mail = lines.iter().filter(|line| line["accepted"] == 1);
            (mail.count() == number).then_some(())
        })?;
        took.push(ended.elapsed());
    }
    // The machine may be busy now and then.
    let best = took.iter().min();
    ensure!(
        best.is_some_and(|took| *took < Duration::from_millis(100)),
        "{took:?}"
    );
    Ok(())
}

#[test]
fn refusals_by_other_rules_than_dns_lists_are_remembered_too() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("unwanted"), "127.0.0.66\n")?;
    let more = STRANGERS.replace("@DIR@", &directory.path().display().to_string());
    let gate = Process::start(&configuration(&more)?)?;

    let mut listed = Dialogue::new(from([127, 0, 0, 66], gate.address())?)?;
    listed.expect_reply("554")?;
    let mut relaying = Dialogue::greeted(from([127, 0, 0, 67], gate.address())?)?;
    relaying.expect("EHLO client.example", "250")?;
    relaying.expect("MAIL FROM:<a@client.example>", "250")?;
    relaying.expect("RCPT TO:<b@elsewhere.example>", "550")?;
    // That another is accepted does not hide it.
    relaying.expect("RCPT TO:<b@gate.example>", "250")?;
    relaying.expect("QUIT", "221")?;
    let mut clumsy = Dialogue::greeted(from([127, 0, 0, 68], gate.address())?)?;
    while clumsy.say("XXXX")?.code != 421 {}
    // What SMTP itself refuses, at MAIL and at RCPT.
    let mut malformed = Dialogue::greeted(from([127, 0, 0, 69], gate.address())?)?;
    malformed.expect("EHLO client.example", "250")?;
    malformed.expect("MAIL FROM:<a@>", "501")?;
    malformed.expect("QUIT", "221")?;
    let mut unknown = Dialogue::greeted(from([127, 0, 0, 70], gate.address())?)?;
    unknown.expect("EHLO client.example", "250")?;
    unknown.expect("MAIL FROM:<a@client.example>", "250")?;
    unknown.expect("RCPT TO:<b@gate.example> COLOUR=red", "555")?;
    unknown.expect("RCPT TO:<b@gate.example>", "250")?;
    unknown.expect("QUIT", "221")?;

    let refusals = wait::until("five refusals", Duration::from_secs(5), || {
        let (_, body) = gate.get("/api/refusals").ok()?;
        let refusals: Vec<Value> = serde_json::from_str(&body).ok()?;
        (refusals.len() == 5).then_some(refusals)
    })?;
    for (source, rule) in [
        ("127.0.0.66", "reject-list:unwanted"),
        ("127.0.0.67", "closed-relay"),
        ("127.0.0.68", "errors"),
        ("127.0.0.69", "syntax"),
        ("127.0.0.70", "parameter"),
    ] {
        let refused = refusals.iter().find(|refused| refused["source"] == source);
        ensure!(
            refused.is_some_and(|refused| refused["rules"][0]["rule"] == rule
                && refused["times"] == 1
                && refused["kept_out_until"].is_null()
                && refused["not_kept_out"].is_string()),
            "{source} by {rule}: {refusals:#?}"
        );
    }
    let lost = gate.metric("portcullis_records_lost_total", "")?;
    ensure!(lost == 0.0, "{lost} records were lost");
    Ok(())
}

/// A gate whose log is never read; killed when dropped.
struct Unread(std::process::Child);

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nothing_takes_holds_up_no_mail() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = configuration("")?;
    let table: toml::Table = text.parse()?;
    let listener = table["listener"][0]["address"].as_str().map(str::parse);
    let Some(Ok(address)) = listener else {
        anyhow::bail!("no listener in {text}");
    };
    let file = directory.path().join("portcullis.toml");
    fs::write(
        &file,
        text.replace("@DIR@", &directory.path().display().to_string()),
    )?;
    // A pipe that is never read holds 64 KiB.
    let process = Command::new(binary()?)
        .args(["run", "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let process = Unread(process);
    let address: SocketAddr = address;
    wait::until("the gate", Duration::from_secs(20), || {
        TcpStream::connect(address).ok()
    })?;
    for number in 0..600 {
        let mut client = TcpStream::connect(address)?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut said = String::new();
        let name = "x".repeat(200);
        client.write_all(format!("EHLO {name}.example\r\nQUIT\r\n").as_bytes())?;
        // It may take the two commands for input before its greeting; that is a reply as well.
        let read = client.read_to_string(&mut said);
        ensure!(
            read.is_ok() && said.starts_with("220") || said.starts_with("554"),
            "session {number}: {read:?}, {said:?}"
        );
    }
    drop(process);
    Ok(())
}
