//! Sessions under TLS with the real binary: what real clients agree on with it, certificates by
//! name and by a reload, certificates of clients, and what does not get through.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::tls::ClientTls;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::machine;
use portcullis_tests::pki::{Files, Pki};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::Receiver;
use portcullis_tests::tls_client::{TlsClient, settings};

const PATIENCE: Duration = Duration::from_secs(15);

/// A gate with TLS on two listeners, STARTTLS on the first and implicit on the second, and what is
/// behind it.
struct Scene {
    pki: Pki,
    receiver: Receiver,
    gate: Process<'static>,
    client: ClientTls,
}

impl Scene {
    fn new(more: &str) -> Result<Self> {
        Self::with_listener("", more)
    }

    /// `listener` is appended to the implicit one, `more` to `[tls]`. `@PKI@` in them stands for
    /// the directory of the authority.
    fn with_listener(listener: &str, more: &str) -> Result<Self> {
        let pki = Pki::new()?;
        let files = pki.issue("gate", &["gate.example"])?;
        let receiver = Receiver::start(true)?;
        let implicit = machine::free_address()?;
        let text = format!(
            "[[listener]]\naddress = \"{implicit}\"\ntls = \"implicit\"\n{listener}\n\
             [tls]\n{}{more}\n",
            files.keys()
        );
        let text = text.replace("@PKI@", &pki.path("").display().to_string());
        let gate = Process::start(&relay_to(&receiver.address().to_string(), &text)?)?;
        let client = settings(&pki.authority(), None)?;
        Ok(Self {
            pki,
            receiver,
            gate,
            client,
        })
    }

    fn implicit(&self) -> SocketAddr {
        self.gate.address_of(1)
    }

    /// A session after STARTTLS.
    fn starttls(&self) -> Result<TlsClient> {
        TlsClient::upgrade(self.gate.dialogue()?, &self.client, "gate.example")
    }

    /// A session of the implicit listener, greeted.
    fn secured_as(&self, client: &ClientTls) -> Result<TlsClient> {
        let stream = self.gate.tcp(self.implicit())?;
        let mut client = TlsClient::connect(stream, client, "gate.example")?;
        let greeting = client.reply()?;
        ensure!(greeting.starts_with("220 gate.example"), "{greeting}");
        Ok(client)
    }

    /// The `with` clauses of the messages that have arrived.
    fn protocols(&self, messages: usize) -> Result<Vec<String>> {
        let arrived = self.receiver.wait_for(messages, PATIENCE)?;
        let protocol = |content: &[u8]| {
            let text = String::from_utf8_lossy(content).into_owned();
            let rest = text.split_once("(Portcullis) with ")?.1.to_owned();
            Some(rest.split_once(' ')?.0.to_owned())
        };
        arrived
            .iter()
            .map(|message| protocol(&message.content).context("no Received"))
            .collect()
    }

    /// The line of the log for the session in which the client said this name.
    fn session_of(&self, helo: &str) -> Result<serde_json::Value> {
        let line = format!("\"helo\":\"{helo}\"");
        let line = self.gate.wait_for_log(&line, PATIENCE)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// `command` with this on its standard input, to its end.
fn run(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}: `cargo xtask setup` installs what it needs"))?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    for line in input.split_inclusive('\n') {
        // Line by line, as EHLO has to be waited for.
        std::thread::sleep(Duration::from_millis(500));
        pipe.write_all(line.as_bytes())?;
    }
    drop(pipe);
    Ok(child.wait_with_output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn openssl_verifies_the_gate_and_gets_its_replies_by_both_ways_and_both_versions() -> Result<()> {
    let scene = Scene::new("")?;
    let authority = scene.pki.authority();
    let ways: [(SocketAddr, &[&str]); 2] = [
        (scene.gate.address(), &["-starttls", "smtp"]),
        (scene.implicit(), &[]),
    ];
    for (address, way) in ways {
        for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let mut command = Command::new("openssl");
            command
                .args(["s_client", "-connect", &address.to_string(), version])
                .args(["-crlf", "-ign_eof", "-verify_return_error"])
                .args(["-servername", "gate.example", "-verify_hostname"])
                .arg("gate.example")
                .arg("-CAfile")
                .arg(&authority)
                .args(way);
            // Lines that begin with Q or R are commands to s_client itself.
            let output = run(&mut command, "EHLO openssl.example\nquit\n")?;
            let said = said(&output);
            ensure!(output.status.success(), "{way:?} {version}: {said}");
            ensure!(said.contains("Verification: OK"), "{said}");
            ensure!(said.contains(name), "{said}");
            ensure!(said.contains("221 2.0.0"), "{said}");
            // Under TLS it is not offered again.
            let under_tls = said.rsplit("250-PIPELINING").next().unwrap_or_default();
            ensure!(!under_tls.contains("STARTTLS"), "{said}");
        }
    }
    let line = scene.session_of("openssl.example")?;
    ensure!(
        line["tls"]
            .as_str()
            .is_some_and(|tls| tls.starts_with("TLS1.")),
        "{line}"
    );
    ensure!(
        line["cipher"]
            .as_str()
            .is_some_and(|suite| suite.starts_with("TLS_")),
        "{line}"
    );
    Ok(())
}

#[test]
fn swaks_curl_and_smtplib_send_messages_that_say_esmtps() -> Result<()> {
    const PROGRAM: &str = r#"
import smtplib, ssl, sys
host, starttls, implicit, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
class Client(smtplib.SMTP):
    def _get_socket(self, *args):
        self._host = "gate.example"
        return super()._get_socket(*args)
client = Client(host, int(starttls), local_hostname="python.example", timeout=10)
client.starttls(context=context)
client.sendmail("me@client.example", ["a@b.example"], "Subject: 1\r\n\r\nby smtplib\r\n")
client.quit()
context.check_hostname = False
client = smtplib.SMTP_SSL(host, int(implicit), local_hostname="python.example", timeout=10,
                          context=context)
client.sendmail("me@client.example", ["a@b.example"], "Subject: 2\r\n\r\nby smtplib\r\n")
client.quit()
"#;
    let scene = Scene::new("")?;
    let (plain, implicit) = (scene.gate.address(), scene.implicit());
    let envelope = ["--from", "me@client.example", "--to", "a@b.example"];
    for (address, option) in [(plain, "--tls"), (implicit, "--tlsc")] {
        let mut command = Command::new("swaks");
        command
            .args(["--server", &address.to_string(), option, "--timeout", "10s"])
            .args(["--ehlo", "swaks.example", "--tls-verify", "--tls-ca-path"])
            .arg(scene.pki.authority())
            .args(envelope);
        let output = run(&mut command, "")?;
        ensure!(output.status.success(), "{}", said(&output));
    }
    let message = scene.pki.path("message");
    std::fs::write(&message, "Subject: curl\r\n\r\nby curl\r\n")?;
    for (scheme, address) in [("smtp", plain), ("smtps", implicit)] {
        let port = address.port();
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--verbose", "--max-time", "10"])
            .args(["--ssl-reqd", "--mail-from", "me@client.example"])
            .args(["--mail-rcpt", "a@b.example", "--resolve"])
            .arg(format!("gate.example:{port}:127.0.0.1"))
            .arg("--cacert")
            .arg(scene.pki.authority())
            .arg("--upload-file")
            .arg(&message)
            .arg(format!("{scheme}://gate.example:{port}/curl.example"));
        let output = run(&mut command, "")?;
        ensure!(output.status.success(), "{}", said(&output));
    }
    let mut command = Command::new("python3");
    command
        .args(["-c", PROGRAM, &plain.ip().to_string()])
        .args([plain.port().to_string(), implicit.port().to_string()])
        .arg(scene.pki.authority());
    let output = run(&mut command, "")?;
    ensure!(output.status.success(), "{}", said(&output));
    let protocols = scene.protocols(6)?;
    ensure!(
        protocols == ["ESMTPS"; 6],
        "{protocols:?}\n{}",
        scene.gate.log()
    );
    Ok(())
}

#[test]
fn posttls_finger_finds_the_certificate_trusted() -> Result<()> {
    let scene = Scene::new("")?;
    let address = scene.gate.address();
    std::fs::write(scene.pki.path("main.cf"), "")?;
    let mut command = Command::new("posttls-finger");
    command
        .env("MAIL_CONFIG", scene.pki.path(""))
        .args(["-c", "-l", "verify", "-F"])
        .arg(scene.pki.authority())
        .args(["-o", "inet_protocols=ipv4"])
        .arg(format!("[{}]:{}", address.ip(), address.port()))
        .arg("gate.example");
    let output = run(&mut command, "")?;
    let said = said(&output);
    ensure!(
        said.contains("Verified TLS connection established"),
        "{said}"
    );
    Ok(())
}

#[test]
fn the_certificate_is_the_one_for_the_name_that_the_client_asks_for() -> Result<()> {
    let pki = Pki::new()?;
    let first = pki.issue("first", &["gate.example"])?;
    let second = pki.issue("second", &["other.example", "*.customers.example"])?;
    let text = format!("[tls]\n{}[[tls.also]]\n{}", first.keys(), second.keys());
    let gate = Process::start(&relay_to("127.0.0.1:1", &text)?)?;
    let client = settings(&pki.authority(), None)?;
    for name in ["gate.example", "other.example", "mx.customers.example"] {
        // It verifies the name.
        let mut session = TlsClient::upgrade(gate.dialogue()?, &client, name)?;
        session.expect("EHLO client.example", "250-")?;
    }
    let refused = TlsClient::upgrade(gate.dialogue()?, &client, "unknown.example");
    ensure!(refused.is_err(), "the certificate is for another name");
    Ok(())
}

#[test]
fn a_reload_shows_a_new_certificate_and_a_bad_one_leaves_the_old_in_force() -> Result<()> {
    let scene = Scene::new("")?;
    let mut before = scene.starttls()?;
    before.expect("EHLO client.example", "250-")?;
    let reload = |result: &str, count: f64| -> Result<()> {
        scene.gate.signal(Signal::SIGHUP)?;
        portcullis_tests::wait::until("the reload", PATIENCE, || {
            let label = format!("result=\"{result}\"");
            let reloads = scene.gate.metric("portcullis_reloads_total", &label);
            reloads.is_ok_and(|reloads| reloads == count).then_some(())
        })
    };
    scene.pki.issue("gate", &["renewed.example"])?;
    reload("good", 1.0)?;
    // Each without the tickets of the others: a session that is resumed shows no certificate.
    let connect = |name| {
        let client = settings(&scene.pki.authority(), None)?;
        TlsClient::upgrade(scene.gate.dialogue()?, &client, name)
    };
    connect("renewed.example")?;
    ensure!(connect("gate.example").is_err(), "the old certificate");
    // The session of before goes on.
    before.expect("MAIL FROM:<a@client.example>", "250")?;
    std::fs::write(scene.pki.path("gate.key"), "no key\n")?;
    reload("bad", 1.0)?;
    let log = scene.gate.log();
    ensure!(log.contains("has no private key in it"), "{log}");
    connect("renewed.example")?;
    Ok(())
}

#[test]
fn a_session_is_resumed_also_after_a_reload() -> Result<()> {
    let scene = Scene::new("")?;
    ensure!(!scene.secured_as(&scene.client)?.is_resumed());
    ensure!(scene.secured_as(&scene.client)?.is_resumed());
    scene.gate.signal(Signal::SIGHUP)?;
    scene.gate.wait_for_log("reloaded", PATIENCE)?;
    ensure!(scene.secured_as(&scene.client)?.is_resumed());
    let resumed = scene
        .gate
        .metric("portcullis_tls_handshakes_total", "result=\"resumed\"")?;
    ensure!(resumed == 2.0, "{resumed}");
    Ok(())
}

#[test]
fn certificates_of_clients_are_verified_as_the_listener_says() -> Result<()> {
    let other = Pki::new()?;
    for (demand, takes_none) in [("ask", true), ("require", false)] {
        let scene = Scene::with_listener(
            &format!("client_certificates = \"{demand}\""),
            "client_authorities = \"@PKI@/ca.pem\"",
        )?;
        let client = |files: &Files| settings(&scene.pki.authority(), Some(files));
        let good = client(&scene.pki.issue("good", &["client.example"])?)?;
        let expired = client(&scene.pki.issue_expired("expired", &["client.example"])?)?;
        let foreign = client(&other.issue("foreign", &["client.example"])?)?;
        let mut session = scene.secured_as(&good)?;
        session.expect("EHLO good.example", "250-")?;
        session.expect("QUIT", "221")?;
        let line = scene.session_of("good.example")?;
        ensure!(
            line["certificate"]
                .as_str()
                .is_some_and(|name| name.contains("good"))
                && line["fingerprint"]
                    .as_str()
                    .is_some_and(|print| print.len() == 64),
            "{line}"
        );
        let without = scene.secured_as(&scene.client).is_ok();
        ensure!(without == takes_none, "{demand}: without one");
        for (what, bad) in [("expired", expired), ("of another authority", foreign)] {
            ensure!(scene.secured_as(&bad).is_err(), "{demand}: one {what}");
        }
        let failed = scene
            .gate
            .metric("portcullis_tls_handshakes_total", "result=\"certificate\"")?;
        ensure!(
            failed == if takes_none { 2.0 } else { 3.0 },
            "{demand}: {failed}"
        );
        scene
            .gate
            .wait_for_log("of an authority that is not trusted", PATIENCE)?;
    }
    Ok(())
}

#[test]
fn a_message_cut_off_under_tls_never_reaches_the_next_hop() -> Result<()> {
    type Cut = fn(&mut TlsClient) -> Result<()>;
    let cuts: [(&str, Cut); 5] = [
        ("a close without close_notify", |_| Ok(())),
        ("close_notify", TlsClient::close_notify),
        ("an alert", |client| {
            // A fatal alert under TLS would have to be sealed; in the clear it is one all the same.
            client.send_raw(&[21, 3, 3, 0, 2, 2, 80])
        }),
        ("a record that was changed", |client| {
            let mut sealed = client.sealed(b"the end\r\n.\r\n")?;
            let last = sealed.len() - 1;
            sealed[last] ^= 1;
            client.send_raw(&sealed)
        }),
        ("a record that claims too much", |client| {
            client.send_raw(&[23, 3, 3, 0xff, 0xff])?;
            client.send_raw(&vec![0; 1 << 16])
        }),
    ];
    let scene = Scene::new("")?;
    for (what, cut) in cuts {
        let mut client = scene.starttls()?;
        client.expect("EHLO cut.example", "250-")?;
        client.expect("MAIL FROM:<a@client.example>", "250")?;
        client.expect("RCPT TO:<b@b.example>", "250")?;
        client.expect("DATA", "354")?;
        client.send(b"Subject: cut\r\n\r\nsome of it\r\n")?;
        // The gate may have closed already.
        let _ = cut(&mut client);
        client.stream().shutdown(std::net::Shutdown::Write)?;
        let (rest, _) = client.end()?;
        ensure!(!rest.contains("250"), "{what}: {rest}");
    }
    let mut whole = scene.starttls()?;
    whole.expect("EHLO whole.example", "250-")?;
    whole.expect("MAIL FROM:<a@client.example>", "250")?;
    whole.expect("RCPT TO:<b@b.example>", "250")?;
    whole.expect("DATA", "354")?;
    whole.expect("Subject: whole\r\n\r\nall of it\r\n.", "250")?;
    whole.send(b"QUIT\r\n")?;
    let (last, has_closed) = whole.end()?;
    ensure!(last.starts_with("221") && has_closed, "{last}");
    let arrived = scene.receiver.wait_for(1, PATIENCE)?;
    ensure!(arrived.len() == 1, "{} messages", arrived.len());
    let log = scene.gate.log();
    ensure!(log.contains("\"rule\":\"tls\""), "{log}");
    Ok(())
}

#[test]
fn nothing_said_before_the_handshake_is_known_after_it() -> Result<()> {
    let scene = Scene::new("")?;
    let mut dialogue = scene.gate.dialogue()?;
    dialogue.expect("EHLO before.example", "250")?;
    dialogue.expect("MAIL FROM:<a@client.example>", "250")?;
    dialogue.expect("RCPT TO:<b@b.example>", "250")?;
    dialogue.expect("STARTTLS", "220")?;
    let stream = dialogue.stream().try_clone()?;
    let mut client = TlsClient::connect(stream, &scene.client, "gate.example")?;
    client.expect("MAIL FROM:<a@client.example>", "503")?;
    client.expect("EHLO after.example", "250-")?;
    client.expect("RCPT TO:<b@b.example>", "503")?;
    client.expect("STARTTLS", "50")?;
    client.expect("QUIT", "221")?;
    scene.session_of("after.example")?;
    Ok(())
}

#[test]
fn commands_behind_starttls_get_554_and_are_never_read_wherever_the_write_is_split() -> Result<()> {
    let injected = [
        "EHLO evil.example\r\nMAIL FROM:<evil@evil.example>\r\n",
        "BDAT 5 LAST\r\nhello",
        "\r\n",
    ];
    let scene = Scene::new("")?;
    for (number, injected) in injected.into_iter().enumerate() {
        let text = format!("STARTTLS\r\n{injected}");
        // A split is a second write a moment later, when our 220 may have been read.
        let splits: Vec<_> = if number == 0 && portcullis_tests::full() {
            (1..text.len()).collect()
        } else {
            vec![text.len(), 3, 10, 11, text.len() - 1]
        };
        for split in splits {
            let mut dialogue = scene.gate.dialogue()?;
            dialogue.expect("EHLO client.example", "250")?;
            dialogue.expect("MAIL FROM:<a@client.example>", "250")?;
            dialogue.raw(&text.as_bytes()[..split])?;
            if split < text.len() {
                std::thread::sleep(Duration::from_millis(3));
                // The gate may have closed.
                let _ = dialogue.raw(&text.as_bytes()[split..]);
            }
            let said = dialogue.closed()?;
            let replies: Vec<_> = said.lines().collect();
            ensure!(
                replies.len() == 2
                    && replies[0].starts_with("220 2.0.0")
                    && replies[1].starts_with("554 5.5.0"),
                "split at {split} of {text:?}: {replies:?}"
            );
        }
    }
    ensure!(!scene.gate.log().contains("evil.example"));
    Ok(())
}

#[test]
fn a_handshake_of_single_octets_ends_in_time_and_others_are_served_meanwhile() -> Result<()> {
    let scene = Scene::new("handshake_timeout = \"2s\"\nhandshakes = 6\n")?;
    let hello = TlsClient::hello(&scene.client, "gate.example")?;
    let mut slow = Vec::new();
    // Each of the two workers has room for three, and the kernel spreads them.
    let mut refused = 0;
    for _ in 0..60 {
        let mut stream = scene.gate.tcp(scene.implicit())?;
        stream.write_all(&hello[..1])?;
        slow.push(stream);
    }
    let begun = std::time::Instant::now();
    let gone = |stream: &std::net::TcpStream| -> Result<bool> {
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut stream = stream;
        Ok(matches!(std::io::Read::read(&mut stream, &mut [0]), Ok(0)))
    };
    for stream in &slow {
        refused += usize::from(gone(stream)?);
    }
    ensure!(refused >= 54, "{refused} of 60 were refused");
    // In the clear there is room, and STARTTLS is put off.
    let mut dialogue = scene.gate.dialogue()?;
    dialogue.expect("EHLO client.example", "250")?;
    dialogue.expect("STARTTLS", "454 4.7.0")?;
    dialogue.expect("NOOP", "250")?;
    let open = scene.gate.metric("portcullis_tls_handshakes_open", "")?;
    ensure!(open == 6.0, "{open} handshakes");
    while begun.elapsed() < Duration::from_millis(1_500) {
        std::thread::sleep(Duration::from_millis(300));
        for (place, stream) in slow.iter_mut().enumerate() {
            let _ = stream.write_all(&hello[1 + place % 3..2 + place % 3]);
        }
    }
    scene
        .gate
        .wait_for_log("\"rule\":\"tls-handshake\"", PATIENCE)?;
    portcullis_tests::wait::until("the slow handshakes to end", PATIENCE, || {
        let open = scene.gate.metric("portcullis_tls_handshakes_open", "");
        open.is_ok_and(|open| open == 0.0).then_some(())
    })?;
    scene.secured_as(&scene.client)?;
    dialogue.expect("STARTTLS", "220")?;
    Ok(())
}

#[test]
fn a_front_says_who_the_client_is_before_the_handshake() -> Result<()> {
    let scene = Scene::with_listener("proxy_protocol_from = [\"127.0.0.1\"]", "")?;
    let mut stream = scene.gate.tcp(scene.implicit())?;
    stream.write_all(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 465\r\n")?;
    let mut client = TlsClient::connect(stream, &scene.client, "gate.example")?;
    let greeting = client.reply()?;
    ensure!(greeting.starts_with("220 gate.example"), "{greeting}");
    client.expect("EHLO behind.example", "250-")?;
    client.expect("MAIL FROM:<a@client.example>", "250")?;
    // It is the stranger that the front names, and not a host of the local network.
    client.expect("RCPT TO:<b@elsewhere.example>", "550")?;
    client.expect("QUIT", "221")?;
    let session = scene.session_of("behind.example")?;
    ensure!(session["client"] == "203.0.113.9", "{session}");
    Ok(())
}

#[test]
fn what_is_no_tls_on_the_implicit_listener_is_closed_with_an_alert_and_logged() -> Result<()> {
    let scene = Scene::new("")?;
    let mut dialogue = Dialogue::new(scene.gate.tcp(scene.implicit())?)?;
    dialogue.raw(b"EHLO client.example\r\n")?;
    let said = dialogue.closed()?;
    ensure!(!said.contains("220"), "{said:?}");
    scene.gate.wait_for_log("what came is not TLS", PATIENCE)?;
    let count = scene
        .gate
        .metric("portcullis_tls_handshakes_total", "result=\"not-tls\"")?;
    ensure!(count == 1.0, "{count}");
    Ok(())
}

#[test]
fn a_configuration_with_a_wrong_key_is_refused_with_its_line() -> Result<()> {
    let pki = Pki::new()?;
    let (one, other) = (
        pki.issue("one", &["a.example"])?,
        pki.issue("other", &["b.example"])?,
    );
    let check = |text: &str| -> Result<(bool, String)> {
        let path = pki.path("gate.toml");
        std::fs::write(&path, text)?;
        let output = portcullis_tests::process::portcullis([
            "check".as_ref(),
            "-c".as_ref(),
            path.as_os_str(),
        ])?;
        Ok((output.status.success(), said(&output)))
    };
    let listener = "[[listener]]\naddress = \"127.0.0.1:2525\"\n";
    let route = "[[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n";
    let (is_good, said) = check(&format!("{listener}{route}[tls]\n{}", one.keys()))?;
    ensure!(is_good, "{said}");
    let mixed = Files {
        certificate: one.certificate,
        key: other.key,
    };
    let (is_good, said) = check(&format!("{listener}{route}[tls]\n{}", mixed.keys()))?;
    ensure!(
        !is_good && said.contains("is not the key of the certificate"),
        "{said}"
    );
    ensure!(said.contains(":8:7:"), "{said}");
    let text = format!("{listener}tls = \"implicit\"\n{route}");
    let (is_good, said) = check(&text)?;
    ensure!(!is_good && said.contains("there is no [tls]"), "{said}");
    Ok(())
}
