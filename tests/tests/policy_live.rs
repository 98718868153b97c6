//! The policy cases against a live gate: each client connects from its own address, and the gate's
//! replies and its log say what `portcullis explain` says (`policy.rs` holds explain against the
//! same table).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::{Family, Namespace};
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::policy_cases::{self, Case};
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};
use serde_json::Value;

const GATE_V4: &str = "198.51.100.25:25";
const GATE_V6: &str = "[2001:db8:100::25]:25";

#[test]
fn a_live_session_gets_the_code_and_the_rule_of_every_case() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let cases = policy_cases::load()?;
    ensure!(cases.len() >= 40, "only {} cases", cases.len());
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("clients")?);
    set_up(&inside, &outside, &cases)?;
    let gate = Process::start_in(&inside, &configuration()?)?;
    let mut wrong = Vec::new();
    for case in &cases {
        let live = play(&outside, &gate, case).with_context(|| case.place.clone())?;
        if live != (case.code, case.rule.clone()) {
            wrong.push(format!(
                "{}: expected {} {}, but live {live:?}",
                case.place, case.code, case.rule
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// A link on which everybody is a neighbour, and the clients' addresses at its far end.
fn set_up(inside: &Namespace, outside: &Namespace, cases: &[Case]) -> Result<()> {
    inside.veth("edge", outside, "far")?;
    inside.addresses("edge", ["198.51.100.25/32", "2001:db8:100::25/128"])?;
    let clients: BTreeSet<IpAddr> = cases.iter().map(|case| case.client).collect();
    let prefix = |client: &IpAddr| format!("{client}/{}", if client.is_ipv4() { 32 } else { 128 });
    // Loopback clients cannot come over a link; the namespace has its own loopback for them.
    let clients = clients.iter().filter(|client| !client.is_loopback());
    outside.addresses("far", clients.map(prefix))?;
    for (family, gate) in [
        (Family::V4, "198.51.100.25/32"),
        (Family::V6, "2001:db8:100::25/128"),
    ] {
        inside.neighbours("default", "edge", family)?;
        outside.neighbours(gate, "far", family)?;
    }
    Ok(())
}

/// The cases' own configuration, from another directory and with a log for programs.
fn configuration() -> Result<String> {
    let directory = policy_cases::directory();
    let text = std::fs::read_to_string(directory.join("gate.toml"))?;
    let lists = format!("\"{}/lists/", directory.display());
    let text = text.replace("\"lists/", &lists);
    Ok(format!(
        "state_dir = \"@DIR@\"\n{text}\n[log]\nformat = \"json\"\n"
    ))
}

/// Plays a case; the code that it ends with, and the rule that the gate's log names for it.
fn play(outside: &Namespace, gate: &Process<'_>, case: &Case) -> Result<(u16, String)> {
    let before = gate.log_lines().len();
    let to = if case.client.is_ipv4() {
        GATE_V4
    } else {
        GATE_V6
    };
    let mut session = Dialogue::new(connect_from(outside, case.client, to.parse()?)?)?;
    let mut reply = session.reply()?;
    for command in case.commands() {
        if reply.code >= 400 {
            break;
        }
        reply = session.say(&command)?;
    }
    if reply.code < 400 {
        // A message, so that there is a transaction to speak of.
        session.expect("DATA", "354")?;
        session.expect(".", "250")?;
    }
    let _ = session.say("QUIT");
    drop(session);
    let client = case.client.to_string();
    let what = "the session's line in the log";
    let lines = wait::until(what, Duration::from_secs(5), || {
        let mut lines = gate.log_lines().split_off(before);
        lines.retain(|line| line["client"] == client.as_str());
        let ended = lines.iter().any(|line| line["target"] == "session");
        ended.then_some(lines)
    })?;
    Ok((reply.code, rule(&lines)))
}

/// The rule of the transaction, if there was one, else that of a session that was refused. What the
/// SMTP session answers by itself is no decision of the policy's: the transaction, if one was
/// begun, then ends by the client's leaving.
fn rule(lines: &[Value]) -> String {
    let of = |target: &str| lines.iter().find(|line| line["target"] == target);
    let refused = || of("session").filter(|line| line["decision"] == "refused");
    let line = of("transaction").or_else(refused);
    match line.and_then(|line| line["rule"].as_str()) {
        None | Some("client") => "protocol".to_owned(),
        Some(rule) => rule.to_owned(),
    }
}
