//! What a route demands of its next hops (TLS, AUTH, the name of the client), with a real Postfix,
//! and with next hops that break it.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::dialogue::{Dialogue, Reply};
use portcullis_tests::dovecot::Dovecot;
use portcullis_tests::mail_server::MailServer;
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};
use portcullis_tests::{root, wait};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use socket2::{Domain, Socket, Type};

const PASSWORD: &str = "open sesame 4711";

fn connect(gate: &Process<'_>, source: Ipv4Addr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&gate.address().into())?;
    Ok(socket.into())
}

/// Sends a message with this subject in a new session from an address of the loopback; the reply.
fn send_from(gate: &Process<'_>, source: Ipv4Addr, subject: &str) -> Result<Reply> {
    let mut session = Dialogue::greeted(connect(gate, source)?)?;
    session.expect("EHLO client.example", "250")?;
    offer(&mut session, subject)
}

fn offer(session: &mut Dialogue, subject: &str) -> Result<Reply> {
    for line in ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"] {
        let reply = session.say(line)?;
        if reply.code >= 400 {
            return Ok(reply);
        }
    }
    session.raw(format!("Subject: {subject}\r\n\r\ntext\r\n").as_bytes())?;
    session.say(".")
}

fn send(gate: &Process<'_>, subject: &str) -> Result<Reply> {
    send_from(gate, Ipv4Addr::LOCALHOST, subject)
}

fn ensure_reply(reply: &Reply, beginning: &str, gate: &Process<'_>) -> Result<()> {
    let text = reply.text();
    ensure!(text.starts_with(beginning), "{text}\n{}", gate.log());
    Ok(())
}

/// Writes an authority, and certificates for `names` that it issued, expired ones too.
fn write_certificates(directory: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(directory.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for (file, is_expired) in [("good", false), ("expired", true)] {
        let mut params = CertificateParams::new(vec!["hop.example".to_owned()])?;
        if is_expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        fs::write(directory.join(format!("{file}.pem")), certificate.pem())?;
        fs::write(directory.join(format!("{file}.key")), key.serialize_pem())?;
    }
    Ok(())
}

const GOOD: &[&str] = &[
    "smtpd_tls_security_level=may",
    "smtpd_tls_cert_file=@DIR@/good.pem",
    "smtpd_tls_key_file=@DIR@/good.key",
];
const EXPIRED: &[&str] = &[
    "smtpd_tls_security_level=may",
    "smtpd_tls_cert_file=@DIR@/expired.pem",
    "smtpd_tls_key_file=@DIR@/expired.key",
];

fn fingerprint(certificate: &Path) -> Result<String> {
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()?;
    let shown = String::from_utf8(output.stdout)?;
    let (_, digits) = shown.trim().split_once('=').context("no fingerprint")?;
    Ok(digits.to_owned())
}

#[test]
fn a_next_hop_is_verified_as_its_route_says() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let postfix = MailServer::start("", &[GOOD, EXPIRED, &[]], write_certificates)?;
    let [good, expired, plain] = postfix.addresses() else {
        anyhow::bail!("three services");
    };
    let authorities = format!("tls_authorities = \"{}/ca.pem\"", postfix.path().display());
    let pin = fingerprint(&postfix.path().join("expired.pem"))?;
    let refused = "451 4.7.5";
    let cases = [
        (
            "by-name",
            good,
            format!("{authorities}\ntls_name = \"hop.example\""),
            "250",
        ),
        (
            "resumed",
            good,
            format!("{authorities}\ntls_name = \"hop.example\""),
            "250",
        ),
        (
            "wrong-name",
            good,
            format!("{authorities}\ntls_name = \"other.example\""),
            refused,
        ),
        ("address", good, authorities.clone(), refused),
        (
            "system",
            good,
            "tls_name = \"hop.example\"".to_owned(),
            refused,
        ),
        (
            "expired",
            expired,
            format!("{authorities}\ntls_name = \"hop.example\""),
            refused,
        ),
        (
            "pinned",
            expired,
            format!("tls_fingerprints = [\"{pin}\"]"),
            "250",
        ),
        (
            "other-pin",
            good,
            format!("tls_fingerprints = [\"{pin}\"]"),
            refused,
        ),
        ("not-offered", plain, authorities.clone(), "451 4.7.4"),
    ];
    for (name, address, keys, expected) in cases {
        let keys = format!("tls = \"required\"\n{keys}\n");
        let gate = Process::start(&relay_to(&address.to_string(), &keys)?)?;
        let reply = send(&gate, name)?;
        ensure_reply(&reply, expected, &gate).with_context(|| name)?;
        if expected == "250" {
            let message = postfix.wait_for(name)?;
            ensure!(message.contains("using TLSv1.3"), "{message}");
            gate.wait_for_log("\"next_hop_tls\":\"TLS1.3\"", Duration::from_secs(5))?;
        } else {
            let result = if name == "not-offered" {
                name.replace('-', "_")
            } else {
                "failed".to_owned()
            };
            let label = format!("result=\"{result}\"");
            let counted = || gate.metric("portcullis_next_hop_tls_total", &label).ok();
            let counted = || counted().filter(|count| *count >= 1.0);
            wait::until("the failure to be counted", Duration::from_secs(5), counted)?;
        }
    }
    ensure!(postfix.messages()?.len() == 3, "{:?}", postfix.messages());
    Ok(())
}

#[test]
fn opportunistic_tls_takes_any_certificate_and_goes_without_where_there_is_none() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let postfix = MailServer::start("", &[EXPIRED, &[]], write_certificates)?;
    for (address, subject) in postfix.addresses().iter().zip(["encrypted", "plain"]) {
        // It is what is in force without the key.
        let gate = Process::start(&relay_to(&address.to_string(), "")?)?;
        ensure_reply(&send(&gate, subject)?, "250", &gate)?;
        let message = postfix.wait_for(subject)?;
        ensure!(
            message.contains("using TLSv1.3") == (subject == "encrypted"),
            "{message}"
        );
    }
    let gate = Process::start(&relay_to(
        &postfix.addresses()[0].to_string(),
        "tls = \"off\"\n",
    )?)?;
    ensure_reply(&send(&gate, "off")?, "250", &gate)?;
    ensure!(!postfix.wait_for("off")?.contains("using TLS"));
    Ok(())
}

/// A next hop that offers STARTTLS and then does this.
fn breaking(act: &Act) -> Result<Receiver> {
    let act = act.clone();
    Receiver::scripted(move |point| match point.split(' ').next() {
        Some("EHLO") => Act::Say("250-hop.example\r\n250 STARTTLS"),
        Some("STARTTLS") => act.clone(),
        _ => Act::Usual,
    })
}

#[test]
fn a_handshake_that_breaks_costs_no_mail_where_that_may_go_in_the_clear() -> Result<()> {
    let acts = [
        (Act::Say("454 4.7.0 not now"), "refused"),
        (Act::HangUp, "failed"),
        (Act::Rubbish(b"220 go on\r\nno TLS at all\r\n"), "failed"),
        (Act::Rubbish(b"220 go on\r\n"), "failed"),
        (Act::Wait(Duration::from_secs(20)), "failed"),
    ];
    const HASTE: &str = "[relay]\nnetworks = [\"127.0.0.0/8\"]\nconnect_timeout = \"2s\"\n";
    for (act, result) in acts {
        let case = format!("{act:?}");
        let next_hop = breaking(&act)?;
        let gate = Process::start(&relay_to(&next_hop.address().to_string(), HASTE)?)?;
        ensure_reply(&send(&gate, "one")?, "250", &gate).with_context(|| case.clone())?;
        ensure_reply(&send(&gate, "two")?, "250", &gate)?;
        ensure!(next_hop.arrived().len() == 2, "{case}");
        let label = format!("result=\"{result}\"");
        let counted = || gate.metric("portcullis_next_hop_tls_total", &label).ok();
        let counted = || counted().filter(|count| *count >= 1.0);
        wait::until("the failure to be counted", Duration::from_secs(5), counted)?;

        for keys in ["tls_fallback = false\n", "tls = \"required\"\n"] {
            let text = format!("{keys}{HASTE}");
            let gate = Process::start(&relay_to(&next_hop.address().to_string(), &text)?)?;
            ensure_reply(&send(&gate, "three")?, "451 4.7.5", &gate)
                .with_context(|| format!("{case} with {keys}"))?;
        }
        ensure!(next_hop.arrived().len() == 2, "{case}");
    }
    Ok(())
}

#[test]
fn the_gate_authenticates_and_a_wrong_password_costs_no_mail() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let dovecot = Dovecot::start(&[("gate", PASSWORD)])?;
    fs::set_permissions(dovecot.socket(), fs::Permissions::from_mode(0o666))?;
    let main = format!(
        "smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {}\n\
         smtpd_tls_auth_only = yes\nsmtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
         smtpd_sasl_security_options = noanonymous",
        dovecot.socket().display()
    );
    let only = |mechanism: &'static str| {
        let filter = match mechanism {
            "SCRAM-SHA-256" => "smtpd_sasl_mechanism_filter=!plain,!login,static:rest",
            "PLAIN" => "smtpd_sasl_mechanism_filter=plain",
            _ => "smtpd_sasl_mechanism_filter=login",
        };
        [GOOD, &[filter]].concat()
    };
    let services = [only("SCRAM-SHA-256"), only("PLAIN"), only("LOGIN")];
    let services: Vec<&[&str]> = services.iter().map(Vec::as_slice).collect();
    let postfix = MailServer::start(&main, &services, write_certificates)?;
    let keys = format!(
        "tls = \"required\"\ntls_authorities = \"{}/ca.pem\"\ntls_name = \"hop.example\"\n\
         auth = {{ user = \"gate\", password_file = \"{}/password\" }}\n",
        postfix.path().display(),
        postfix.path().display()
    );
    let password = postfix.path().join("password");
    for (address, mechanism) in postfix
        .addresses()
        .iter()
        .zip(["SCRAM-SHA-256", "PLAIN", "LOGIN"])
    {
        fs::write(&password, format!("{PASSWORD}\n"))?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        let gate = Process::start(&relay_to(&address.to_string(), &keys)?)?;
        ensure_reply(&send(&gate, mechanism)?, "250", &gate).with_context(|| mechanism)?;
        let message = postfix.wait_for(mechanism)?;
        ensure!(message.contains("Authenticated sender: gate"), "{message}");

        fs::write(&password, "wrong password 4712")?;
        let gate = Process::start(&relay_to(&address.to_string(), &keys)?)?;
        ensure_reply(&send(&gate, "wrong")?, "451 4.7.0", &gate).with_context(|| mechanism)?;
        let log = gate.wait_for_log(
            "does not accept the user and password",
            Duration::from_secs(5),
        )?;
        ensure!(!gate.log().contains("4712"), "{log}");
        let refused = || {
            gate.metric("portcullis_next_hop_auth_total", "result=\"refused\"")
                .ok()
        };
        let refused = || refused().filter(|count| *count == 1.0);
        wait::until("the refusal to be counted", Duration::from_secs(5), refused)?;

        // The file is read again.
        fs::write(&password, PASSWORD)?;
        gate.signal(Signal::SIGHUP)?;
        let sent = || {
            send(&gate, "after the reload")
                .ok()
                .filter(|reply| reply.code == 250)
        };
        wait::until("the new password", Duration::from_secs(10), sent)
            .with_context(|| gate.log())?;
    }
    Ok(())
}

#[test]
fn a_next_hop_sees_each_client_in_its_own_name() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let services: [&[&str]; 3] = [
        &["smtpd_authorized_xclient_hosts=127.0.0.1"],
        &["smtpd_upstream_proxy_protocol=haproxy"],
        &[],
    ];
    let postfix = MailServer::start("", &services, |_| Ok(()))?;
    let clients = [Ipv4Addr::new(127, 0, 0, 5), Ipv4Addr::new(127, 0, 0, 6)];
    for (address, by) in postfix.addresses().iter().zip(["xclient", "proxy-v2"]) {
        let keys = format!("send_client = \"{by}\"\n");
        let gate = Process::start(&relay_to(&address.to_string(), &keys)?)?;
        for client in clients.into_iter().chain(clients) {
            let subject = format!("{by} {client}");
            ensure_reply(&send_from(&gate, client, &subject)?, "250", &gate)?;
            let message = postfix.wait_for(&subject)?;
            ensure!(
                message.contains(&format!("[{client}]) by hop.example"))
                    || message.contains(&format!("[{client}])\n\tby hop.example")),
                "{message}"
            );
        }
        // A client's next transaction is in its name as well.
        let mut session = gate.dialogue()?;
        session.expect("EHLO client.example", "250")?;
        for _ in 0..2 {
            ensure_reply(&offer(&mut session, &format!("{by} again"))?, "250", &gate)?;
        }
    }
    let plain = &postfix.addresses()[2].to_string();
    let gate = Process::start(&relay_to(plain, "send_client = \"xclient\"\n")?)?;
    ensure_reply(&send_from(&gate, clients[0], "unnamed")?, "250", &gate)?;
    ensure!(postfix.wait_for("unnamed")?.contains("[127.0.0.1]"));
    let unnamed = || {
        gate.metric("portcullis_next_hop_clients_unnamed_total", "")
            .ok()
    };
    let unnamed = || unnamed().filter(|count| *count == 1.0);
    wait::until("the client to be counted", Duration::from_secs(5), unnamed)?;
    let required = "send_client = \"xclient\"\nsend_client_required = true\n";
    let gate = Process::start(&relay_to(plain, required)?)?;
    ensure_reply(&send(&gate, "refused")?, "451 4.3.5", &gate)
}

#[test]
fn a_next_hop_sees_the_client_that_a_front_named() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let services: [&[&str]; 2] = [
        &["smtpd_authorized_xclient_hosts=127.0.0.1"],
        &["smtpd_upstream_proxy_protocol=haproxy"],
    ];
    let postfix = MailServer::start("", &services, |_| Ok(()))?;
    for (address, by) in postfix.addresses().iter().zip(["xclient", "proxy-v2"]) {
        let keys = format!("send_client = \"{by}\"\n");
        let configuration = relay_to(&address.to_string(), &keys)?.replace(
            "service = \"relay\"",
            "service = \"relay\"\nproxy_protocol_from = [\"127.0.0.2\"]",
        );
        let gate = Process::start(&configuration)?;
        let mut stream = connect(&gate, Ipv4Addr::new(127, 0, 0, 2))?;
        stream.write_all(b"PROXY TCP4 127.0.0.9 127.0.0.1 4711 25\r\n")?;
        let mut session = Dialogue::greeted(stream)?;
        session.expect("EHLO client.example", "250")?;
        let subject = format!("{by} behind a front");
        ensure_reply(&offer(&mut session, &subject)?, "250", &gate)?;
        let message = postfix.wait_for(&subject)?;
        ensure!(message.contains("[127.0.0.9]"), "{message}");
    }
    Ok(())
}
