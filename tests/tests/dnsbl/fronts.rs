//! DNS lists and trusted fronts: a client behind a front is refused as any other, and the filter
//! learns nothing of it, for the packets are the front's.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};
use serde_json::Value;

use crate::BL;
use crate::filter::{Pinned, configuration, verdicts};
use crate::scene::{GATE4, HONEST4, LISTED4, LISTED6, SOON, Scene, policy};

/// What `/api/refusals` says of a source.
fn not_kept_out(gate: &Process<'_>, source: &str) -> Option<String> {
    let (_, text) = gate.get("/api/refusals").ok()?;
    let refusals: Value = serde_json::from_str(&text).ok()?;
    let mut refusals = refusals.as_array()?.iter();
    let refusal = refusals.find(|refusal| refusal["source"] == source)?;
    Some(refusal["not_kept_out"].as_str()?.to_owned())
}

#[test]
fn neither_a_client_behind_a_front_nor_a_front_itself_gets_a_verdict() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (pin_path, filter) = scene.filter();
    let _pinned = Pinned(pin_path);
    let tables = format!("{filter}{BL}{}", policy("drop_for = \"1h\""));
    let listener = format!("address = \"{GATE4}:25\"");
    let fronts = format!("{listener}\nproxy_protocol_from = [\"{HONEST4}\", \"{LISTED6}\"]");
    let text = scene.configuration(&tables).replace(&listener, &fronts);
    let gate = Process::start_in(&scene.inside, &text)?;

    // The listed client, by the front.
    let mut stream = scene.connect(HONEST4)?;
    write!(stream, "PROXY TCP4 {LISTED4} {GATE4} 50000 25\r\n")?;
    let mut session = Dialogue::greeted(stream)?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@client.example>", "250")?;
    let expected = format!("554 5.7.1 Your address {LISTED4} is listed by bl.test");
    let reply = session.say("RCPT TO:<user@isp.example>")?;
    ensure!(reply.text() == expected, "{}", reply.text());
    let why = wait::until("the refusal", 3 * SOON, || not_kept_out(&gate, LISTED4))?;
    assert_eq!(why, "it comes by a trusted front");

    // A front that is listed, at a listener that does not know it as one.
    let reply = scene.first_recipient(LISTED6)?;
    ensure!(reply.starts_with("554 5.7.1"), "{reply}");
    let source = "2001:db8:bad:1::/64";
    let why = wait::until("the refusal", 3 * SOON, || not_kept_out(&gate, source))?;
    assert_eq!(why, "a trusted front has its address");

    let verdicts = verdicts(&scene, &configuration(&gate))?;
    ensure!(verdicts.is_empty(), "{verdicts:?}");
    for source in [HONEST4, LISTED4, LISTED6] {
        scene.connect(source).context("dropped")?;
    }
    Ok(())
}
