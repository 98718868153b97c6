//! Several name servers, some of which do what name servers do: only an answer ends a question, and
//! the ones that answer are asked first from then on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::name_server::{Mood, Tap};
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};

use crate::BL;
use crate::scene::{HONEST4, HONEST6, LISTED4, LISTED6, RBLDNSD, SOON, Scene, WELCOME4};

const FIRST: &str = "127.0.0.1:5361";
const SECOND: &str = "127.0.0.1:5362";
const GOOD: &str = "127.0.0.1:5353";
/// Nothing listens there.
const CLOSED: &str = "127.0.0.1:9";
/// An address that cannot be used: it would have to say on which link.
const UNUSABLE: &str = "[fe80::1]:53";

fn policy(servers: &[&str], more: &str) -> String {
    let servers: Vec<String> = servers
        .iter()
        .map(|server| format!("\"{server}\""))
        .collect();
    let servers = servers.join(", ");
    format!("[dnsbl_policy]\nservers = [{servers}]\n{more}\n")
}

fn reload(scene: &Scene, gate: &Process<'_>, dnsbl: &str, number: usize) -> Result<()> {
    gate.rewrite(&scene.configuration(dnsbl))?;
    gate.signal(Signal::SIGHUP)?;
    wait::until("the reload", Duration::from_secs(5), || {
        let reloads = gate.log().matches("\"reloaded").count();
        (reloads >= number).then_some(())
    })
}

/// Two name servers in a mood.
fn bad_servers(scene: &Scene) -> Result<[Tap; 2]> {
    let tap = |address: &str| Tap::start_in(&scene.inside, address.parse()?, RBLDNSD.parse()?);
    Ok([tap(FIRST)?, tap(SECOND)?])
}

/// Those that the list names are refused, the others are served. Returns how long that took for the
/// slowest of them.
fn is_filtered(scene: &Scene) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for client in [LISTED4, HONEST6, LISTED6, HONEST4, WELCOME4] {
        let begun = Instant::now();
        let reply = scene.first_recipient(client)?;
        slowest = slowest.max(begun.elapsed());
        let is_refused = reply.starts_with("554 5.7.1");
        let is_listed = [LISTED4, LISTED6, WELCOME4].contains(&client);
        ensure!(is_refused == is_listed, "{client}: {reply}");
    }
    Ok(slowest)
}

#[test]
fn a_name_server_that_does_not_answer_the_question_does_not_decide_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let bad = bad_servers(&scene)?;
    let moods = [
        Mood::Code(2),
        Mood::Code(5),
        Mood::Code(1),
        Mood::BareCode(1),
        Mood::Code(4),
        Mood::Code(9),
        Mood::Garbage,
        Mood::Echo,
        Mood::Referral,
        Mood::TruncatesOnly,
        Mood::Forged,
    ];
    // Another timeout each time, so that what was learnt and remembered before is forgotten.
    let table = |number: usize, servers: &[&str]| {
        let timeout = format!("timeout = \"{}ms\"", 20_000 + number);
        format!("{BL}{}", policy(servers, &timeout))
    };
    let gate = scene.gate(&table(0, &[CLOSED, UNUSABLE, GOOD]))?;
    let slowest = is_filtered(&scene).context("closed ports")?;
    ensure!(slowest < 2 * SOON, "closed ports: {slowest:?}");
    for (number, mood) in (1..).zip(moods) {
        bad.iter().for_each(|tap| tap.turn("", mood));
        reload(
            &scene,
            &gate,
            &table(number, &[FIRST, SECOND, GOOD]),
            number,
        )?;
        let slowest = is_filtered(&scene).with_context(|| format!("{mood:?}"))?;
        ensure!(
            slowest < 2 * SOON,
            "{mood:?}: the next one was asked only after {slowest:?}"
        );
    }
    Ok(())
}

#[test]
fn silent_name_servers_leave_the_next_one_its_time_and_are_asked_last_from_then_on() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let bad = bad_servers(&scene)?;
    bad.iter().for_each(|tap| tap.turn("", Mood::Silent));
    let gate = scene.gate(&format!(
        "{BL}{}",
        policy(
            &[FIRST, SECOND, GOOD],
            "timeout = \"6s\"\ntest_every = \"1s\""
        )
    ))?;
    let slowest = is_filtered(&scene)?;
    ensure!(slowest < Duration::from_millis(5_900), "{slowest:?}");
    let up = |server: &str| gate.metric("portcullis_dnsbl_server_up", server);
    wait::until(
        "both to be known as failing",
        Duration::from_secs(20),
        || {
            let down = [FIRST, SECOND]
                .iter()
                .all(|server| up(server).is_ok_and(|up| up == 0.0));
            let told = gate
                .log()
                .matches("a name server fails for a DNS list")
                .count();
            (down && told == 2 && up(GOOD).ok()? == 1.0).then_some(())
        },
    )?;
    for honest in ["203.0.113.69", "203.0.113.10"] {
        let begun = Instant::now();
        scene.first_recipient(honest)?;
        ensure!(
            begun.elapsed() < SOON,
            "{honest} waits for those that are known to fail"
        );
    }
    let failures = gate.metric("portcullis_dnsbl_server_failures_total", FIRST)?;
    ensure!(failures > 0.0);
    bad[0].turn("", Mood::Well);
    gate.wait_for_log("answers again for a DNS list", Duration::from_secs(20))?;
    ensure!(up(FIRST)? == 1.0 && up(SECOND)? == 0.0);
    // Once for each, not for each question.
    let told = gate
        .log()
        .matches("a name server fails for a DNS list")
        .count();
    ensure!(told == 2, "{told} lines");
    Ok(())
}

#[test]
fn the_late_answer_of_a_server_counts_while_others_are_asked() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let bad = bad_servers(&scene)?;
    bad[0].turn("", Mood::Late);
    bad[1].turn("", Mood::Silent);
    // A third of this is over before the first one answers.
    let policy = policy(&[FIRST, SECOND], "timeout = \"1500ms\"");
    let gate = scene.gate(&format!("{BL}{policy}"))?;
    is_filtered(&scene)?;
    ensure!(
        bad[1]
            .asked()
            .iter()
            .any(|name| name.starts_with("66.113.0.203."))
    );
    drop(gate);
    Ok(())
}

#[test]
fn an_answer_that_does_not_fit_into_a_packet_is_fetched_over_tcp() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let bad = bad_servers(&scene)?;
    bad[0].turn("", Mood::Truncates);
    let gate = scene.gate(&format!("{BL}{}", policy(&[FIRST], "")))?;
    let slowest = is_filtered(&scene)?;
    ensure!(slowest < 2 * SOON, "{slowest:?}");
    let listed = gate.metric("portcullis_dnsbl_answers_total", "result=\"listed\"")?;
    ensure!(listed == 3.0, "{listed}");
    Ok(())
}
