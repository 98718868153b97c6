//! What goes in comes out: every message once, byte for byte, whatever the sessions, sizes and
//! recipients, and without the gate growing.
//!
//! The load is `smtp-source`'s. What must arrive is learnt by sending one message of each kind
//! straight to a sink of the same sort: the gate may add its `Received:` field in front, and
//! nothing else.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::postfix::{Dumped, Sink, source};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::Receiver;
use portcullis_tests::{full, machine};

/// One way of sending: what it is, the options of `smtp-source`, messages (short run, full run),
/// recipients of each.
type Load = (&'static str, &'static [&'static str], [usize; 2], usize);

const LOADS: &[Load] = &[
    (
        "one message per session",
        &["-s", "100", "-l", "4096"],
        [4_000, 20_000],
        1,
    ),
    (
        "sessions kept",
        &["-s", "100", "-l", "4096", "-d"],
        [4_000, 20_000],
        1,
    ),
    (
        "five recipients",
        &["-s", "100", "-l", "4096", "-r", "5"],
        [2_000, 20_000],
        5,
    ),
    (
        "no recipient twice",
        &["-s", "100", "-l", "4096", "-N"],
        [2_000, 20_000],
        1,
    ),
    (
        "no recipient twice, sessions kept, five each",
        &["-s", "50", "-N", "-d", "-r", "5"],
        [2_000, 20_000],
        5,
    ),
    (
        "two megabytes each",
        &["-s", "20", "-l", "2000000"],
        [60, 200],
        1,
    ),
];

#[test]
fn every_message_arrives_once_and_unchanged() -> Result<()> {
    let sink = Sink::start(true)?;
    let gate = Process::start(&relay_to(&sink.address().to_string(), "")?)?;
    for load in LOADS {
        deliver_and_compare(load, &sink, gate.address()).with_context(|| load.0)?;
    }
    Ok(())
}

#[test]
fn every_message_over_ipv6_arrives_once_and_unchanged() -> Result<()> {
    let sink = Sink::start(true)?;
    let configuration = relay_to(&sink.address().to_string(), "")?;
    let listener = machine::free_address()?;
    let on_ipv6 = SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), listener.port());
    let more = format!("\n[[listener]]\naddress = \"{on_ipv6}\"\nservice = \"relay\"\n");
    let gate = Process::start(&(configuration + &more))?;
    let load = (
        "IPv6",
        &["-6", "-s", "100", "-l", "4096"][..],
        [2_000, 20_000],
        1,
    );
    deliver_and_compare(&load, &sink, SocketAddr::new(on_ipv6.ip(), on_ipv6.port()))?;
    gate.terminate()?;
    Ok(())
}

#[test]
fn memory_does_not_grow_from_run_to_run() -> Result<()> {
    let sink = Sink::start(false)?;
    let gate = Process::start(&relay_to(&sink.address().to_string(), "")?)?;
    let messages = if full() { "20000" } else { "6000" };
    let mut resident = Vec::new();
    for _ in 0..3 {
        source(&["-s", "20", "-l", "2000000", "-m", "60"], gate.address())?;
        // Small messages last: the allocator gives what large ones have had back only as it goes on
        // working.
        for kept in [&[][..], &["-d"]] {
            let load = [&["-s", "100", "-l", "4096", "-m", messages], kept].concat();
            source(&load, gate.address())?;
        }
        resident.push(gate.resident_kib()?);
    }
    // A kibibyte lost with each message would be three times this.
    let allowed = resident[0] + 8 * 1024;
    ensure!(
        resident[2] <= allowed,
        "KiB after each run: {resident:?}, allowed {allowed}"
    );
    Ok(())
}

#[test]
fn awkward_content_arrives_byte_for_byte() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    let contents = awkward();
    for (number, (_, content)) in contents.iter().enumerate() {
        let mut session = gate.dialogue()?;
        let stuffed = stuff(content);
        let reply = session.message("a@b.example", &[&format!("n{number}@d.example")], &stuffed)?;
        ensure!(
            reply.code == 250,
            "{}: {}",
            contents[number].0,
            reply.text()
        );
    }
    let arrived = receiver.wait_for(contents.len(), Duration::from_secs(5))?;
    ensure!(arrived.len() == contents.len(), "{} arrived", arrived.len());
    for ((what, sent), arrived) in contents.iter().zip(arrived) {
        let content = without_received(&arrived.content);
        ensure!(
            content == sent.as_slice(),
            "{what}: {:?}",
            String::from_utf8_lossy(content)
        );
    }
    Ok(())
}

#[test]
fn a_message_in_many_small_pieces_arrives_as_one() -> Result<()> {
    let receiver = Receiver::start(true)?;
    let gate = Process::start(&relay_to(&receiver.address().to_string(), "")?)?;
    let mut session: Dialogue = gate.dialogue()?;
    session.expect("EHLO client.example", "250")?;
    session.envelope("a@b.example", &["c@d.example"])?;
    session.expect("DATA", "354")?;
    let content = b"Subject: pieces\r\n\r\n..\r\n.stuffed\r\n\r\n".repeat(20);
    for octet in stuff(&content) {
        session.raw(&[octet])?;
    }
    session.expect(".", "250")?;
    let arrived = receiver.wait_for(1, Duration::from_secs(5))?;
    ensure!(without_received(&arrived[0].content) == content.as_slice());
    Ok(())
}

/// Contents that relays get wrong: what it is, and the octets before dot-stuffing.
fn awkward() -> Vec<(&'static str, Vec<u8>)> {
    let header = b"Subject: awkward\r\n\r\n".to_vec();
    let with = |body: &[u8]| [header.clone(), body.to_vec()].concat();
    vec![
        ("nothing at all", Vec::new()),
        ("a header only", b"Subject: only\r\n".to_vec()),
        ("a body only", b"\r\nno header\r\n".to_vec()),
        (
            "lines that begin with dots",
            with(b".\r\n..\r\n...\r\n.a\r\n. \r\n"),
        ),
        ("empty lines at the end", with(b"text\r\n\r\n\r\n\r\n")),
        (
            "a dot as the very first octet",
            b".\r\nSubject: x\r\n\r\n".to_vec(),
        ),
        ("every octet but NUL, CR and LF", with(&every_octet())),
        ("a line of 998 octets", with(&line_of(998))),
        ("a line of 100,000 octets", with(&line_of(100_000))),
        (
            "white space at the ends of lines",
            with(b"a \r\nb\t\r\n \r\n\t\r\n"),
        ),
        (
            "commands as text",
            with(b"QUIT\r\nRSET\r\nMAIL FROM:<x@y>\r\n"),
        ),
        ("a megabyte of dots", with(&b".\r\n".repeat(350_000))),
    ]
}

fn every_octet() -> Vec<u8> {
    let mut line: Vec<u8> = (1..=255).filter(|octet| !b"\r\n".contains(octet)).collect();
    line.extend_from_slice(b"\r\n");
    line
}

fn line_of(length: usize) -> Vec<u8> {
    [vec![b'a'; length], b"\r\n".to_vec()].concat()
}

fn stuff(content: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed
}

/// The content after the gate's own `Received:` field.
fn without_received(content: &[u8]) -> &[u8] {
    let mut rest = content;
    let mut first = true;
    while first || rest.starts_with(b"\t") || rest.starts_with(b" ") {
        first = false;
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        rest = end.map_or(&[], |end| &rest[end + 2..]);
    }
    rest
}

fn deliver_and_compare(load: &Load, sink: &Sink, gate: SocketAddr) -> Result<()> {
    let (_, options, counts, recipients) = *load;
    let messages = counts[usize::from(full())];
    let reference = reference(options)?;
    sink.clear()?;

    let count = messages.to_string();
    source(&[options, &["-m", &count]].concat(), gate)?;
    let arrived = sink.messages()?;
    ensure!(
        arrived.len() == messages,
        "{} of {messages} arrived",
        arrived.len()
    );

    let (mut identities, mut addressed) = (HashSet::new(), HashSet::new());
    for message in &arrived {
        let (received, content) = message.split_received();
        ensure!(
            received.contains("by gate.example"),
            "no field of the gate: {received}"
        );
        let (content, identity) = anonymous(content);
        ensure!(
            content == reference.0,
            "changed:\n{}",
            String::from_utf8_lossy(&content)
        );
        ensure!(
            message.sender == reference.1.sender,
            "another sender: {}",
            message.sender
        );
        ensure!(
            message.recipients.len() == recipients,
            "recipients: {:?}",
            message.recipients
        );
        identities.extend(identity);
        addressed.extend(message.recipients.iter().cloned());
    }
    ensure!(identities.len() == messages, "a message arrived twice");
    let distinct = if options.contains(&"-N") {
        messages * recipients
    } else {
        recipients
    };
    ensure!(
        addressed.len() == distinct,
        "{} distinct recipients",
        addressed.len()
    );
    sink.clear()
}

/// One message of this kind, straight into a sink: its anonymous content, and all of it.
fn reference(options: &[&str]) -> Result<(Vec<u8>, Dumped)> {
    let sink = Sink::start(true)?;
    // Over IPv4, also when the run itself is not.
    let options: Vec<&str> = options
        .iter()
        .copied()
        .filter(|option| *option != "-6")
        .collect();
    source(&[&options[..], &["-m", "1"]].concat(), sink.address())?;
    let message = sink
        .messages()?
        .pop()
        .context("the reference did not arrive")?;
    Ok((anonymous(&message.content).0, message))
}

/// The content without the values of Date and Message-Id, which differ from message to message, and
/// the latter.
fn anonymous(content: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut identity = None;
    let mut anonymous = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some(end) = rest
        .iter()
        .position(|octet| *octet == b'\n')
        .filter(|end| *end > 0)
    {
        let line = &rest[..=end];
        if line.starts_with(b"Message-Id: ") {
            identity = Some(line.to_vec());
        } else if !line.starts_with(b"Date: ") {
            anonymous.extend_from_slice(line);
        }
        rest = &rest[end + 1..];
    }
    anonymous.extend_from_slice(rest);
    (anonymous, identity)
}
