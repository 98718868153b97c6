//! Clients that are known by their certificate, from addresses that are not local.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis::netns::Namespace;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::pki::{Files, Pki};
use portcullis_tests::process::Process;
use portcullis_tests::tls_client::{TlsClient, settings};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_client_known_by_its_certificate_may_relay_from_anywhere_and_as_its_senders_say() -> Result<()>
{
    if !portcullis_tests::root() {
        return Ok(());
    }
    let pki = Pki::new()?;
    let gate_files = pki.issue("gate", &["gate.example"])?;
    let (alice, bob, other) = (
        pki.issue("alice", &["a.example"])?,
        pki.issue("bob", &["b.example"])?,
        pki.issue("other", &["c.example"])?,
    );
    let mut command = Command::new("openssl");
    command
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&alice.certificate);
    let print = String::from_utf8(command.output()?.stdout)?;
    let print = print.trim().split_once('=').context("a fingerprint")?.1;
    let text = format!(
        "hostname = \"gate.example\"\nstate_dir = \"@DIR@\"\nworkers = 1\n\
         [[listener]]\naddress = \"10.9.0.1:465\"\ntls = \"implicit\"\n\
         client_certificates = \"ask\"\n\
         [[listener]]\naddress = \"10.9.0.1:25\"\nclient_certificates = \"ask\"\n\
         xclient_from = [\"10.9.0.3\"]\n\
         [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n\
         [relay]\ndomains = [\"gate.example\"]\n\
         [tls]\n{}client_authorities = \"{}\"\n\
         [[tls.client]]\nuser = \"alice\"\nfingerprint = \"{print}\"\n\
         [[tls.client]]\nuser = \"bob\"\nsubject = \"CN=bob\"\n",
        gate_files.keys(),
        pki.authority().display(),
    );
    let namespace = Namespace::create("tls")?;
    namespace.up("lo")?;
    namespace.address("lo", "10.9.0.1/32")?;
    namespace.address("lo", "10.9.0.2/32")?;
    namespace.address("lo", "10.9.0.3/32")?;
    let gate = Process::start_in(&namespace, &text)?;
    let connect = |source: &str, to: &str| {
        let (source, to) = (source.parse()?, to.parse()?);
        portcullis_tests::wait::until("the gate to listen", PATIENCE, || {
            portcullis_tests::dialogue::connect_from(&namespace, source, to).ok()
        })
    };
    let rcpt = |client: &mut TlsClient| -> Result<String> {
        client.expect("EHLO client.example", "250-")?;
        client.expect("MAIL FROM:<a@client.example>", "250")?;
        client.send(b"RCPT TO:<b@elsewhere.example>\r\n")?;
        client.reply()
    };
    let implicit = |files: Option<&Files>| -> Result<String> {
        let client = settings(&pki.authority(), files)?;
        let stream = connect("10.9.0.2", "10.9.0.1:465")?;
        let mut client = TlsClient::connect(stream, &client, "gate.example")?;
        client.reply()?;
        rcpt(&mut client)
    };
    let starttls = |source: &str, before: &[&str], files: Option<&Files>| -> Result<TlsClient> {
        let mut dialogue = Dialogue::new(connect(source, "10.9.0.1:25")?)?;
        dialogue.reply()?;
        for line in before {
            dialogue.expect(line, "220")?;
        }
        let client = settings(&pki.authority(), files)?;
        TlsClient::upgrade(dialogue, &client, "gate.example")
    };
    for files in [&alice, &bob] {
        let reply = implicit(Some(files))?;
        ensure!(reply.starts_with("250"), "{reply}\n{}", gate.log());
        let reply = rcpt(&mut starttls("10.9.0.2", &[], Some(files))?)?;
        ensure!(reply.starts_with("250"), "{reply}\n{}", gate.log());
    }
    for files in [Some(&other), None] {
        for reply in [
            implicit(files)?,
            rcpt(&mut starttls("10.9.0.2", &[], files)?)?,
        ] {
            ensure!(reply.starts_with("550 5.7.1"), "{files:?}: {reply}");
        }
    }
    // The certificate of a front says nothing of the client that it names.
    let named = ["XCLIENT ADDR=203.0.113.9"];
    let reply = rcpt(&mut starttls("10.9.0.3", &named, Some(&alice))?)?;
    ensure!(reply.starts_with("550 5.7.1"), "{reply}");

    // A reload that takes a client away holds for its open session, too.
    let mut open = starttls("10.9.0.2", &[], Some(&alice))?;
    let reply = rcpt(&mut open)?;
    ensure!(reply.starts_with("250"), "{reply}");
    open.expect("RSET", "250")?;
    gate.rewrite(
        &text
            .replace("\"alice\"", "\"carol\"")
            .replace(print, &"0".repeat(64)),
    )?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reloaded", PATIENCE)?;
    let reply = rcpt(&mut open)?;
    ensure!(reply.starts_with("550 5.7.1"), "{reply}");
    Ok(())
}
