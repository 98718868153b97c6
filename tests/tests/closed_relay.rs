//! The relay is closed: from an outside address every known form of asking for a relay is refused,
//! nothing arrives, and mail for the gate's own domain still does.
//!
//! The client sits in a namespace with an address outside of the gate's networks; from the loopback
//! such a test would prove nothing, since loopback clients are trusted.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::postfix::Sink;
use portcullis_tests::process::Process;
use portcullis_tests::root;

/// The recipients that relay testers try. `IP` is the gate's address, `SERVER` its name, `LOCAL`
/// its own domain.
const RECIPIENTS: &[&str] = &[
    "user@foreign.example",
    "user@foreign.example.",
    "user%foreign.example@[IP]",
    "user%foreign.example@SERVER",
    "user%foreign.example@LOCAL",
    "user%foreign.example",
    "\"user@foreign.example\"",
    "\"user%foreign.example\"",
    "\"user@foreign.example\"@[IP]",
    "\"user@foreign.example\"@SERVER",
    "\"user@foreign.example\"@LOCAL",
    "user@foreign.example@[IP]",
    "user@foreign.example@SERVER",
    "user@foreign.example@LOCAL",
    "@[IP]:user@foreign.example",
    "@SERVER:user@foreign.example",
    "@LOCAL:user@foreign.example",
    "@LOCAL,@SERVER:user@foreign.example",
    "foreign.example!user",
    "foreign.example!user@[IP]",
    "foreign.example!user@SERVER",
    "foreign.example!user@LOCAL",
    "\"foreign.example!user\"@LOCAL",
    "user@foreign.example@",
    "user@[192.0.2.99]",
    "user@[IPv6:2001:db8::99]",
    "IMCEASMTP-user+40foreign+2Eexample@LOCAL",
    "IMCEASMTP-user+40foreign.example@SERVER",
];

/// The senders that they try them with: a stranger, the gate's own domain, its name, its address,
/// nobody.
const SENDERS: &[&str] = &[
    "tester@stranger.example",
    "user@LOCAL",
    "spamtest@SERVER",
    "spamtest@[IP]",
    "spamtest",
    "",
];

/// Fewer than `errors_per_session`, so that a session is never cut and each recipient gets its own
/// answer.
const RECIPIENTS_PER_SESSION: usize = 12;

const CONFIGURATION: &str = r#"
hostname = "gate.example"
state_dir = "@DIR@"
workers = 2

[log]
format = "json"

[[listener]]
address = "198.51.100.1:25"
service = "relay"
[[listener]]
address = "[2001:db8:1::1]:25"
service = "relay"

[relay]
networks = ["192.0.2.0/24", "127.0.0.0/8"]
domains = ["isp.example"]

[[route]]
domains = ["*"]
next_hop = ["127.0.0.1:2525"]
"#;

/// The gate in one namespace with its sink, a stranger in another.
struct Scene {
    inside: Namespace,
    outside: Namespace,
}

impl Scene {
    fn set() -> Result<Self> {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("stranger")?);
        inside.veth("edge", &outside, "up")?;
        inside.addresses("edge", ["198.51.100.1/24", "2001:db8:1::1/64"])?;
        outside.addresses("up", ["198.51.100.66/24", "2001:db8:1::66/64"])?;
        Ok(Self { inside, outside })
    }

    /// The next hop, which keeps what it is sent.
    fn sink(&self) -> Result<Sink> {
        let address = SocketAddr::from(([127, 0, 0, 1], 2525));
        Sink::start_in(&self.inside, address, true)
    }
}

#[test]
fn every_form_of_asking_for_a_relay_is_refused() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::set()?;
    let sink = scene.sink()?;
    let _gate = Process::start_in(&scene.inside, CONFIGURATION)?;
    let mut wrong = Vec::new();
    for (to, ip) in [
        ("198.51.100.1:25", "198.51.100.1"),
        ("[2001:db8:1::1]:25", "IPv6:2001:db8:1::1"),
    ] {
        for sender in SENDERS {
            for recipients in RECIPIENTS.chunks(RECIPIENTS_PER_SESSION) {
                wrong.extend(refused(&scene.outside, to, ip, sender, recipients)?);
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "answers that are no refusals:\n{}",
        wrong.join("\n")
    );
    ensure!(sink.files()?.is_empty(), "the next hop was sent something");
    Ok(())
}

#[test]
fn mail_for_the_own_domain_is_taken_from_a_stranger() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::set()?;
    let sink = scene.sink()?;
    let _gate = Process::start_in(&scene.inside, CONFIGURATION)?;
    for (number, to) in ["198.51.100.1:25", "[2001:db8:1::1]:25"]
        .into_iter()
        .enumerate()
    {
        for recipient in [
            "user@isp.example",
            "USER@ISP.Example",
            "postmaster@isp.example",
        ] {
            let mut session = Dialogue::from_inside(&scene.outside, to.parse()?)?;
            // A refusal before it must not spoil the message: the good recipient alone gets it.
            session.expect("EHLO tester.example", "250")?;
            session.expect("MAIL FROM:<tester@stranger.example>", "250")?;
            session.expect("RCPT TO:<user@foreign.example>", "550 5.7.1")?;
            session.expect(&format!("RCPT TO:<{recipient}>"), "250")?;
            session.expect("DATA", "354")?;
            session.raw(b"Subject: for you\r\n\r\n")?;
            session
                .expect(".", "250")
                .with_context(|| format!("{recipient} via {to}, {number}"))?;
            session.expect("QUIT", "221")?;
        }
    }
    let arrived = sink.messages()?;
    ensure!(arrived.len() == 6, "{} messages arrived", arrived.len());
    let strays = arrived
        .iter()
        .filter(|message| message.recipients.len() != 1)
        .count();
    ensure!(
        strays == 0,
        "{strays} messages with another number of recipients"
    );
    Ok(())
}

#[test]
fn a_local_client_may_relay_anywhere() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::set()?;
    scene.inside.address("edge", "192.0.2.1/24")?;
    scene.outside.address("up", "192.0.2.7/24")?;
    let sink = scene.sink()?;
    let configuration = CONFIGURATION.replacen("198.51.100.1:25", "192.0.2.1:25", 1);
    let _gate = Process::start_in(&scene.inside, &configuration)?;
    let mut session = Dialogue::from_inside(&scene.outside, "192.0.2.1:25".parse()?)?;
    let reply = session.message(
        "me@isp.example",
        &["user@foreign.example"],
        b"Subject: out\r\n\r\n",
    )?;
    ensure!(reply.code == 250, "{}", reply.text());
    ensure!(sink.messages()?.len() == 1);
    Ok(())
}

/// Offers these recipients in one session; gives those that were answered with anything but a
/// refusal.
fn refused(
    outside: &Namespace,
    to: &str,
    ip: &str,
    sender: &str,
    recipients: &[&str],
) -> Result<Vec<String>> {
    let real = |form: &str| {
        form.replace("[IP]", &format!("[{ip}]"))
            .replace("SERVER", "gate.example")
            .replace("LOCAL", "isp.example")
    };
    let mut session = Dialogue::from_inside(outside, to.parse()?)?;
    session.expect("EHLO tester.example", "250")?;
    let sender = real(sender);
    let mail = session.say(&format!("MAIL FROM:<{sender}>"))?;
    if mail.code >= 400 {
        // A sender without a domain may be refused by itself; there is nothing left to test then.
        let refused = mail.text().starts_with("501") || mail.text().starts_with("553");
        return Ok((!refused)
            .then(|| format!("MAIL FROM:<{sender}>: {}", mail.text()))
            .into_iter()
            .collect());
    }
    let mut wrong = Vec::new();
    for recipient in recipients {
        let recipient = real(recipient);
        let reply = session.say(&format!("RCPT TO:<{recipient}>"))?.text();
        if !["550 5.7.1", "501", "553"]
            .iter()
            .any(|refusal| reply.starts_with(refusal))
        {
            wrong.push(format!(
                "{to}: MAIL FROM:<{sender}>, RCPT TO:<{recipient}>: {reply}"
            ));
        }
    }
    // Nothing was accepted, so there is nothing to send.
    let data = session.say("DATA")?;
    if data.code < 500 {
        wrong.push(format!("{to}: MAIL FROM:<{sender}>, DATA: {}", data.text()));
    }
    Ok(wrong)
}
