//! The policy cases and sessions against a live gate: each client connects from its own address,
//! and the gate's replies, its log and its metrics say what `portcullis explain` says (`policy.rs`
//! checks that against the same tables).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::{Family, Namespace};
use portcullis::policy::Service;
use portcullis_smtp::sasl;
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::name_server::Rbldnsd;
use portcullis_tests::policy_cases::{self, Case};
use portcullis_tests::policy_sessions::{self, PolicySession};
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};
use serde_json::Value;

const GATE_V4: &str = "198.51.100.25:25";
const SUBMISSION: &str = "198.51.100.25:587";
const GATE_V6: &str = "[2001:db8:100::25]:25";
/// Where the configurations of the sessions have their name server.
const NAME_SERVER: &str = "127.0.0.1:5354";
/// Where other sessions come from: each has its own source.
const OTHERS: [&str; 8] = [
    "203.0.113.20",
    "203.0.113.21",
    "203.0.113.22",
    "203.0.113.23",
    "203.0.113.24",
    "203.0.113.25",
    "203.0.113.26",
    "203.0.113.27",
];

#[test]
fn a_live_session_gets_the_code_and_the_rule_of_every_case() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let cases = policy_cases::load()?;
    ensure!(cases.len() >= 40, "only {} cases", cases.len());
    let (inside, outside) = (Namespace::create("gate")?, Namespace::create("clients")?);
    set_up(&inside, &outside, cases.iter().map(|case| case.client))?;
    let configuration = configuration(&policy_cases::directory().join("gate.toml"))?;
    let gate = Process::start_in(&inside, &configuration)?;
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

#[test]
fn a_live_session_gets_the_codes_and_the_rules_of_every_step() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let mut by_configuration: BTreeMap<PathBuf, Vec<PolicySession>> = BTreeMap::new();
    for session in policy_sessions::load()? {
        let of_configuration = by_configuration.entry(session.configuration.clone());
        of_configuration.or_default().push(session);
    }
    let mut wrong = Vec::new();
    for (file, sessions) in &by_configuration {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("clients")?);
        let others = OTHERS.iter().filter_map(|other| other.parse().ok());
        let clients = sessions.iter().map(|session| session.client);
        set_up(&inside, &outside, clients.chain(others))?;
        let zones = zones(sessions);
        let zones: Vec<_> = zones
            .iter()
            .map(|(zone, lines)| (*zone, "ip4set", lines.as_str()))
            .collect();
        let _name_server = Rbldnsd::start_in(&inside, NAME_SERVER.parse()?, &zones)?;
        let gate = Process::start_in(&inside, &configuration(file)?)?;
        for session in sessions.iter().filter(|session| session.not_live.is_none()) {
            let faults = play_session(&outside, &gate, session);
            wrong.extend(faults.with_context(|| session.place.clone())?);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A link on which every address is a neighbour, and the clients' addresses at its far end.
fn set_up(
    inside: &Namespace,
    outside: &Namespace,
    clients: impl IntoIterator<Item = IpAddr>,
) -> Result<()> {
    inside.veth("edge", outside, "far")?;
    inside.addresses("edge", ["198.51.100.25/32", "2001:db8:100::25/128"])?;
    let clients: BTreeSet<IpAddr> = clients.into_iter().collect();
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

/// A configuration of the tables, from another directory and with a log for programs.
fn configuration(file: &Path) -> Result<String> {
    let directory = policy_cases::directory();
    let text = std::fs::read_to_string(file)?;
    let lists = format!("\"{}/lists/", directory.display());
    let text = text.replace("\"lists/", &lists);
    let users = format!("users = \"{}/users\"", directory.display());
    let text = text.replace("users = \"users\"", &users);
    Ok(format!(
        "state_dir = \"@DIR@\"\nadmin = \"127.0.0.1:9925\"\n{text}\n[log]\nformat = \"json\"\n"
    ))
}

/// What the zones hold: the lines of each one's file.
fn zones(sessions: &[PolicySession]) -> BTreeMap<&str, String> {
    let mut zones = BTreeMap::new();
    for session in sessions {
        for (zone, address) in &session.listed {
            let lines: &mut String = zones.entry(zone.as_str()).or_default();
            lines.push_str(&format!("{} :{address}:Listed\n", session.client));
        }
    }
    for zone in ["bl.test", "welcome.test"] {
        // One that lists none of the clients is asked all the same.
        zones
            .entry(zone)
            .or_insert_with(|| "192.0.2.250 :127.0.0.2:Listed\n".to_owned());
    }
    zones
}

fn connect(outside: &Namespace, client: IpAddr, service: Service) -> Result<Dialogue> {
    let to = match service {
        Service::Submission => SUBMISSION,
        _ if client.is_ipv4() => GATE_V4,
        _ => GATE_V6,
    };
    let to: SocketAddr = to.parse()?;
    Dialogue::new(connect_from(outside, client, to)?)
}

/// Plays a session; what was not as it is written.
fn play_session(
    outside: &Namespace,
    gate: &Process<'_>,
    session: &PolicySession,
) -> Result<Vec<String>> {
    let others = others(outside, session)?;
    let before = counted(gate)?;
    let mut wrong = Vec::new();
    let mut dialogue = connect(outside, session.client, session.service)?;
    for step in &session.steps {
        let reply = match step.command.as_str() {
            "connect" => dialogue.reply()?,
            command => dialogue.say(command)?,
        };
        if reply.code != step.code {
            let (place, command) = (&session.place, &step.command);
            wrong.push(format!("{place}: {command} hears {}", reply.text()));
        }
        if let Some(user) = session
            .user
            .as_ref()
            .filter(|_| step.command.starts_with("EHLO"))
        {
            dialogue.expect(&authenticate(user), "235")?;
        }
    }
    drop(dialogue);
    drop(others);
    let expected = expected_counts(session);
    let mut found = BTreeMap::new();
    let are_counted = wait::until("the refusals to be counted", Duration::from_secs(5), || {
        found = counted(gate).ok()?;
        for (key, count) in &before {
            *found.entry(key.clone()).or_default() -= count;
        }
        found.retain(|_, count| *count != 0);
        let is_over = gate.metric("portcullis_sessions_open", "").ok()? < 1.0;
        (found == expected && is_over).then_some(())
    });
    if are_counted.is_err() {
        let place = &session.place;
        wrong.push(format!("{place}: counted {found:?} and not {expected:?}"));
    }
    Ok(wrong)
}

/// AUTH with PLAIN (RFC 4616) as a user of the file.
fn authenticate(user: &str) -> String {
    let mut line = b"AUTH PLAIN ".to_vec();
    sasl::encode(format!("\0{user}\0of-{user}").as_bytes(), &mut line);
    String::from_utf8_lossy(&line).into_owned()
}

/// The sessions that there are besides.
fn others(outside: &Namespace, session: &PolicySession) -> Result<Vec<Dialogue>> {
    let mut others = Vec::new();
    let sources = OTHERS.iter().map(|other| other.parse());
    let elsewhere = sources.take((session.others - session.of_source) as usize);
    let own = (0..session.of_source).map(|_| Ok(session.client));
    for source in elsewhere.chain(own) {
        let mut other = connect(outside, source?, session.service)?;
        other.expect_reply("220")?;
        others.push(other);
    }
    Ok(others)
}

/// What a session counts as refused: the metric and the rule, and how often.
fn expected_counts(session: &PolicySession) -> BTreeMap<(String, String), i64> {
    let mut counts = BTreeMap::new();
    let refused = session.steps.iter().filter(|step| step.code >= 400);
    for step in refused {
        let metric = match step.command.split(' ').next() {
            Some("connect") => "sessions_ended",
            Some("RCPT") => "recipients_refused",
            Some("MAIL") if step.code != 503 => "transactions",
            _ => "commands_refused",
        };
        let key = (metric.to_owned(), step.rule.clone());
        *counts.entry(key).or_default() += 1;
    }
    // A transaction of which nothing came is refused by the rule of its last recipient.
    let recipients = session.steps.iter();
    let recipients = recipients.filter(|step| step.command.starts_with("RCPT"));
    if let Some(last) = recipients.clone().next_back()
        && recipients.clone().all(|step| step.code >= 500)
    {
        let key = ("transactions".to_owned(), last.rule.clone());
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// What the gate has counted as refused so far.
fn counted(gate: &Process<'_>) -> Result<BTreeMap<(String, String), i64>> {
    let (_, text) = gate.get("/metrics")?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let Some(name) = name.strip_prefix("portcullis_") else {
            continue;
        };
        let name = name.trim_end_matches("_total");
        let metrics = [
            "sessions_ended",
            "recipients_refused",
            "commands_refused",
            "transactions",
        ];
        // Of transactions only those that were refused: others end with the client, or well.
        let is_other = name == "transactions" && !rest.contains("outcome=\"refused\"");
        if !metrics.contains(&name) || is_other {
            continue;
        }
        let (_, rule) = rest.split_once("rule=\"").context("no rule")?;
        let (rule, count) = rule.split_once("\"} ").context("no count")?;
        let count = count.parse::<f64>()? as i64;
        counts.insert((name.to_owned(), rule.to_owned()), count);
    }
    Ok(counts)
}

/// Plays a case; the code that it ends with, and the rule that the gate's log names for it.
fn play(outside: &Namespace, gate: &Process<'_>, case: &Case) -> Result<(u16, String)> {
    let before = gate.log_lines().len();
    let mut session = connect(outside, case.client, Service::Relay)?;
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

/// The rule of the transaction, if there was one, else that of a session that was refused. An EHLO
/// that the SMTP session refuses is in the metrics alone.
fn rule(lines: &[Value]) -> String {
    let of = |target: &str| lines.iter().find(|line| line["target"] == target);
    let refused = || of("session").filter(|line| line["decision"] == "refused");
    let line = of("transaction").or_else(refused);
    match line.and_then(|line| line["rule"].as_str()) {
        None => "syntax".to_owned(),
        Some(rule) => rule.to_owned(),
    }
}
