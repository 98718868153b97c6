//! DNS lists with a real rbldnsd, from outside: which clients are refused, which are served, for
//! which there is no query, and what happens when a list is slow, silent or wrong. `filter.rs` has
//! the verdicts that follow, `fronts.rs` those that must not follow, `servers.rs` bad name servers,
//! and `world.rs` zones that list every address.

mod filter;
mod fronts;
mod scene;
mod servers;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::name_server::LATENESS;
use portcullis_tests::{process, root, wait};
use serde_json::Value;

use scene::{
    GATE4, HONEST4, HONEST6, LISTED4, LISTED6, LOCAL4, LOCAL6, PERMITTED4, PERMITTED6, SOON, Scene,
    WEAK4, WELCOME4, policy,
};

const BL: &str = "[[dnsbl]]\nzone = \"bl.test\"\nreplies = [\"127.0.0.2-127.0.0.3\"]\n";

#[test]
fn a_listed_source_is_refused_its_recipients_with_the_name_of_the_list() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate(&format!("{BL}{}", policy("")))?;
    for listed in [LISTED4, LISTED6] {
        let expected = format!("554 5.7.1 Your address {listed} is listed by bl.test");
        let mut session = scene.session(listed)?;
        session.expect("EHLO client.example", "250")?;
        session.expect("MAIL FROM:<a@client.example>", "250")?;
        for recipient in ["one@isp.example", "two@isp.example"] {
            let reply = session.say(&format!("RCPT TO:<{recipient}>"))?;
            ensure!(reply.text() == expected, "{}", reply.text());
        }
        // A client on no list.
        session.expect(
            "RCPT TO:<user@elsewhere.example>",
            "550 5.7.1 Relaying denied",
        )?;
        session.expect("RCPT TO:<postmaster>", "250")?;
        session.expect("DATA", "354")?;
        session.expect(".", "250")?;
        session.expect("MAIL FROM:<a@client.example>", "250")?;
        session.expect("RCPT TO:<user@isp.example>", &expected)?;
        session.expect("QUIT", "221")?;
        let logged = |line: &Value| {
            let is = |key: &str, value: &str| line[key] == value;
            is("target", "session")
                && is("client", listed)
                && is("rule", "dnsbl:bl.test")
                && is("decision", "refused")
        };
        wait::until("the session in the log", Duration::from_secs(5), || {
            gate.log_lines().iter().any(logged).then_some(())
        })?;
    }
    for honest in [HONEST4, HONEST6] {
        scene.is_served(honest)?;
        ensure!(scene.was_asked_about(honest)?, "{honest}");
    }
    // An answer that is not among those that count.
    scene.is_served(WEAK4)?;
    let refused = gate.metric("portcullis_recipients_refused_total", "dnsbl:bl.test")?;
    ensure!(refused == 6.0, "{refused}");
    for (result, count) in [("listed", 2.0), ("not-listed", 3.0), ("silent", 0.0)] {
        let label = format!("result=\"{result}\"");
        let counted = gate.metric("portcullis_dnsbl_answers_total", &label)?;
        ensure!(counted == count, "{result}: {counted}");
    }
    // Both kinds of answers are remembered.
    let asked = scene.tap.asked().len();
    ensure!(scene.first_recipient(LISTED4)?.starts_with("554"));
    scene.is_served(HONEST6)?;
    ensure!(scene.tap.asked().len() == asked, "asked again");
    let hits = gate.metric("portcullis_dnsbl_cache_hits_total", "")?;
    ensure!(hits == 2.0, "{hits}");
    Ok(())
}

#[test]
fn permitted_and_local_sources_are_served_without_a_query() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate(&format!("{BL}{}", policy("")))?;
    for exempt in [PERMITTED4, PERMITTED6, LOCAL4, LOCAL6] {
        scene.is_served(exempt)?;
        ensure!(!scene.was_asked_about(exempt)?, "{exempt}");
    }
    ensure!(scene.first_recipient(LISTED6)?.starts_with("554"));
    drop(gate);
    Ok(())
}

#[test]
fn a_silent_list_delays_the_first_recipient_and_costs_no_mail() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones =
        format!("{BL}[[dnsbl]]\nzone = \"silent.test\"\n[[dnsbl]]\nzone = \"not-served.test\"\n");
    let gate = scene.gate(&format!("{zones}{}", policy("timeout = \"3s\"")))?;
    let begun = Instant::now();
    let mut session = scene.session(HONEST4)?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@client.example>", "250")?;
    // Refused anyway, so there is nothing to wait for.
    session.expect("RCPT TO:<user@elsewhere.example>", "550")?;
    session.expect("RCPT TO:<postmaster>", "250")?;
    let before = begun.elapsed();
    ensure!(before < SOON, "{before:?} up to the first recipient");
    // A pipelined group: nothing overtakes the recipient that waits.
    session.raw(
        b"RCPT TO:<one@isp.example>\r\nRCPT TO:<user@elsewhere.example>\r\n\
          RCPT TO:<two@isp.example>\r\nDATA\r\n",
    )?;
    for beginning in ["250", "550", "250", "354"] {
        session.expect_reply(beginning)?;
    }
    let waited = begun.elapsed();
    let bounds = Duration::from_millis(2_900)..Duration::from_millis(4_500);
    ensure!(
        bounds.contains(&waited),
        "{waited:?} for the first recipient"
    );
    session.expect("Subject: x\r\n\r\nx\r\n.", "250")?;
    session.expect("QUIT", "221")?;
    // The other lists still count.
    let reply = scene.first_recipient(LISTED4)?;
    ensure!(reply.ends_with("is listed by bl.test"), "{reply}");
    let silent = gate.metric(
        "portcullis_dnsbl_answers_total",
        "silent.test\",result=\"silent",
    )?;
    ensure!(silent == 2.0, "{silent}");
    let complaints = gate.log().matches("a DNS list gives no answer").count();
    ensure!(
        complaints == 2,
        "one line a minute for each zone, not {complaints}"
    );
    Ok(())
}

#[test]
fn more_queries_than_possible_cost_no_mail() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones: String = (0..32)
        .map(|number| format!("[[dnsbl]]\nzone = \"n{number}.silent.test\"\n"))
        .collect();
    let gate = scene.gate(&format!("{zones}{}", policy("timeout = \"3s\"")))?;
    let mut sessions = Vec::new();
    for source in scene.crowd(150)? {
        let mut session = scene.session(&source)?;
        session.raw(b"EHLO client.example\r\n")?;
        session.expect_reply("250")?;
        session.raw(b"MAIL FROM:<a@client.example>\r\nRCPT TO:<user@isp.example>\r\n")?;
        sessions.push(session);
    }
    for session in &mut sessions {
        session.expect_reply("250")?;
        session.expect_reply("250")?;
    }
    let unasked = gate.metric("portcullis_dnsbl_unasked_total", "")?;
    ensure!(unasked > 0.0, "the bound was not reached");
    // Afterwards all works again.
    wait::until("the questions to end", Duration::from_secs(10), || {
        let outstanding = gate.metric("portcullis_dnsbl_sources_outstanding", "");
        outstanding.is_ok_and(|number| number == 0.0).then_some(())
    })?;
    gate.rewrite(&scene.configuration(&format!("{BL}{}", policy(""))))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("\"reloaded\"", Duration::from_secs(5))?;
    ensure!(scene.first_recipient(LISTED4)?.starts_with("554"));
    Ok(())
}

#[test]
fn a_name_server_that_is_down_costs_no_mail() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let policy = "[dnsbl_policy]\nservers = [\"127.0.0.1:9\"]\ntimeout = \"1s\"\n";
    let gate = scene.gate(&format!("{BL}{policy}"))?;
    for client in [LISTED4, HONEST6] {
        scene.is_served(client)?;
    }
    drop(gate);
    Ok(())
}

#[test]
fn answers_that_are_no_listings_never_count() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones = "[[dnsbl]]\nzone = \"refuses.test\"\n[[dnsbl]]\nzone = \"parked.test\"\n";
    let gate = scene.gate(&format!("{zones}{}", policy("")))?;
    for client in [LISTED4, HONEST4] {
        scene.is_served(client)?;
    }
    let ignored = gate.metric("portcullis_dnsbl_answers_total", "result=\"ignored\"")?;
    ensure!(ignored == 4.0, "{ignored}");
    gate.wait_for_log("127.255.255.254", Duration::from_secs(1))?;
    gate.wait_for_log("192.0.2.80", Duration::from_secs(1))?;
    Ok(())
}

#[test]
fn scores_add_up_and_a_welcome_list_takes_them_away() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones = "[[dnsbl]]\nzone = \"bl.test\"\n[[dnsbl]]\nzone = \"late.test\"\nscore = 2\n\
        [[dnsbl]]\nzone = \"welcome.test\"\nscore = -1\n";
    let gate = scene.gate(&format!("{zones}{}", policy("reject_at = 1")))?;
    let begun = Instant::now();
    let reply = scene.first_recipient(LISTED4)?;
    ensure!(
        reply.ends_with("is listed by late.test, bl.test"),
        "{reply}"
    );
    let waited = begun.elapsed();
    ensure!(
        (LATENESS..LATENESS + 2 * SOON).contains(&waited),
        "{waited:?}: not when the last list had spoken"
    );
    scene.is_served(WELCOME4)?;
    // By default everything from 127.0.0.2 on is a listing.
    ensure!(scene.first_recipient(WEAK4)?.starts_with("554"));

    gate.rewrite(&scene.configuration(&format!("{zones}{}", policy("reject_at = 4"))))?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("dnsbl_policy.reject_at", Duration::from_secs(5))?;
    scene.is_served(LISTED4)
}

#[test]
fn a_reload_changes_who_is_asked_also_for_sessions_that_are_open() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate("")?;
    scene.is_served(LISTED4)?;
    ensure!(scene.tap.asked().is_empty());
    let reload = |dnsbl: &str, done: &str| -> Result<()> {
        gate.rewrite(&scene.configuration(dnsbl))?;
        gate.signal(Signal::SIGHUP)?;
        gate.wait_for_log(done, Duration::from_secs(5)).map(drop)
    };
    reload(&format!("{BL}{}", policy("")), "dnsbl[1].zone")?;
    ensure!(scene.first_recipient(LISTED4)?.starts_with("554"));
    scene.is_served(HONEST4)?;
    let mut open = scene.session(LISTED4)?;
    open.expect("EHLO client.example", "250")?;
    open.expect("MAIL FROM:<a@client.example>", "250")?;
    open.expect("RCPT TO:<user@isp.example>", "554")?;
    let other = "[limits]\nerrors_per_session = 19\n[[dnsbl]]\nzone = \"other.test\"\n";
    reload(
        &format!("{other}{}", policy("")),
        "limits.errors_per_session",
    )?;
    open.expect("RCPT TO:<user@isp.example>", "250")?;
    scene.is_served(LISTED4)?;
    ensure!(
        scene
            .first_recipient(HONEST4)?
            .ends_with("is listed by other.test")
    );
    Ok(())
}

#[test]
fn a_source_with_many_sessions_is_asked_about_once() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate(&format!(
        "[[dnsbl]]\nzone = \"late.test\"\n{}",
        policy("cache = 0")
    ))?;
    let mut sessions: Vec<Dialogue> = (0..20)
        .map(|_| scene.session(LISTED4))
        .collect::<Result<_>>()?;
    for session in &mut sessions {
        session.expect("EHLO client.example", "250")?;
        session.expect("MAIL FROM:<a@client.example>", "250")?;
        session.raw(b"RCPT TO:<user@isp.example>\r\n")?;
    }
    for session in &mut sessions {
        session.expect_reply("554 5.7.1")?;
    }
    // A query may be repeated when its answer is late.
    let answers = gate.metric("portcullis_dnsbl_answers_total", "")?;
    ensure!(
        answers <= 2.0,
        "{answers} answers for 20 sessions at a time"
    );
    ensure!(gate.metric("portcullis_dnsbl_sources_outstanding", "")? == 0.0);
    Ok(())
}

#[test]
fn explain_asks_the_lists_and_shows_what_each_says() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let zones = format!(
        "{BL}score = 2\n[[dnsbl]]\nzone = \"welcome.test\"\nscore = -1\n\
         [[dnsbl]]\nzone = \"silent.test\"\n"
    );
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("gate.toml");
    let text = scene.configuration(&format!(
        "{zones}{}",
        policy("timeout = \"500ms\"\nreject_at = 2")
    ));
    std::fs::write(&file, text)?;
    let explain = |client: &str, more: &[&str]| -> Result<Vec<Value>> {
        let mut command = scene.inside.command(process::binary()?);
        command
            .arg("explain")
            .arg("-c")
            .arg(&file)
            .args(["--client", client, "--json"]);
        let output = command
            .args(["--rcpt", "user@isp.example"])
            .args(more)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer: Value = serde_json::from_slice(&output.stdout).context(said)?;
        Ok(answer["stages"].as_array().context("stages")?.clone())
    };
    let of = |stages: &[Value], stage: &str| -> Vec<(String, String)> {
        let wanted = stages.iter().filter(|found| found["stage"] == stage);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        wanted
            .map(|found| (text(&found["rule"]), text(&found["answer"])))
            .collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(rule, answer)| ((*rule).to_owned(), (*answer).to_owned()))
            .collect()
    };
    let silent = ("dnsbl:silent.test", "silent: counts as not listed");
    let listed = ("dnsbl:bl.test", "127.0.0.2: listed, score 2");
    let stages = explain(LISTED4, &[])?;
    ensure!(
        of(&stages, "dnsbl") == pairs(&[listed, ("dnsbl:welcome.test", "not listed"), silent]),
        "{stages:?}"
    );
    ensure!(
        of(&stages, "rcpt")
            == pairs(&[(
                "dnsbl:bl.test",
                "554 5.7.1 Your address 203.0.113.66 is listed by bl.test",
            )]),
        "{stages:?}"
    );
    let stages = explain(WELCOME4, &[])?;
    let welcome = ("dnsbl:welcome.test", "127.0.0.5: listed, score -1");
    ensure!(
        of(&stages, "dnsbl") == pairs(&[listed, welcome, silent]),
        "{stages:?}"
    );
    ensure!(of(&stages, "rcpt")[0].0 == "local-domain", "{stages:?}");
    let before = scene.tap.asked().len();
    for client in [PERMITTED4, LOCAL6] {
        let stages = explain(client, &[])?;
        ensure!(
            of(&stages, "dnsbl").is_empty() && of(&stages, "rcpt")[0].1.starts_with("250"),
            "{stages:?}"
        );
    }
    let stages = explain(LISTED4, &["--offline"])?;
    let waits = |stage: &Value| stage["outcome"] == "wait" && stage["waits_for"][0] == "dnsbl";
    let waiting: Vec<_> = stages.iter().filter(|stage| waits(stage)).collect();
    ensure!(waiting.len() == 2, "{stages:?}");
    let stages = explain(HONEST4, &["--dnsbl", "bl.test=127.0.0.2"])?;
    ensure!(of(&stages, "rcpt")[0].0 == "dnsbl:bl.test", "{stages:?}");
    ensure!(
        scene.tap.asked().len() == before,
        "{GATE4} asked nevertheless"
    );
    Ok(())
}
