//! The policy cases and sessions of `tests/policy` against `explain`: the policy and the SMTP
//! parser, without a connection.

use std::path::Path;

use anyhow::Result;
use portcullis::config::{self, Config};
use portcullis::explain::{Question, Step, StepOutcome, explain};
use portcullis::policy::pipeline::{Count, Counts};
use portcullis_tests::policy_cases::{self, Case};
use portcullis_tests::policy_sessions::{self, PolicySession, PolicyStep};

fn gate() -> Result<Config> {
    Ok(config::load(&policy_cases::directory().join("gate.toml"))?)
}

/// The steps of the commands up to RCPT.
fn stages(config: &Config, case: &Case) -> Result<Vec<Step>> {
    let question = Question {
        hello: Some(case.hello.clone()),
        sender: Some(case.sender.clone()),
        recipients: vec![case.recipient.clone()],
        ..Question::new(case.client)
    };
    let mut stages = explain(config, &question)?.stages;
    stages.retain(|step| !matches!(step.stage, "route" | "data" | "message"));
    Ok(stages)
}

#[test]
fn explain_answers_each_policy_case_with_its_code_and_rule() -> Result<()> {
    let config = gate()?;
    let cases = policy_cases::load()?;
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    let mut faults = Vec::new();
    for case in &cases {
        let stages = stages(&config, case)?;
        let last = stages.last().map(|stage| (stage.code, stage.rule.as_str()));
        if last != Some((Some(case.code), case.rule.as_str())) {
            faults.push(format!("{}: {} gets {last:?}", case.place, case.recipient));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn what_is_explained_is_what_the_commands_of_the_case_say() -> Result<()> {
    let config = gate()?;
    for case in policy_cases::load()? {
        let said: Vec<_> = stages(&config, &case)?
            .into_iter()
            .skip(1)
            .map(|stage| stage.subject)
            .collect();
        assert_eq!(said, case.commands()[..said.len()], "{}", case.place);
    }
    Ok(())
}

/// A session as a question, if it is a connection, EHLO, MAIL, RCPTs and perhaps DATA.
fn question(config: &Config, session: &PolicySession) -> Option<Question> {
    let argument = |number: usize, command: &str| {
        let step = session.steps.get(number)?;
        step.command.strip_prefix(command).map(str::to_owned)
    };
    let is_usual = |(number, step): (usize, &PolicyStep)| match number {
        0 => step.command == "connect",
        1 => step.command.starts_with("EHLO "),
        2 => step.command.starts_with("MAIL FROM:"),
        _ => ["RCPT TO:", "DATA", "."]
            .iter()
            .any(|usual| step.command.starts_with(usual)),
    };
    if !session.steps.iter().enumerate().all(is_usual) {
        return None;
    }
    let count = |now, max| Count { now: now + 1, max };
    let recipients = session.steps.iter();
    Some(Question {
        hello: argument(1, "EHLO "),
        sender: argument(2, "MAIL FROM:"),
        recipients: recipients
            .filter_map(|step| step.command.strip_prefix("RCPT TO:").map(str::to_owned))
            .collect(),
        dnsbl: Some(session.answers()),
        counts: Counts {
            stopping: session.stopping,
            sessions: count(session.others, config.limits.sessions),
            source_sessions: count(session.of_source, config.limits.sessions_per_source),
            user_messages: count(session.sent.0, config.limits.messages_per_user),
            user_recipients: count(session.sent.1, config.limits.recipients_per_user),
        },
        granted: session.granted,
        identity: session.identity(config),
        listener: Some(session.listener(config)),
        ..Question::new(session.client)
    })
}

#[test]
fn explain_answers_each_step_of_the_sessions_as_it_is_written() -> Result<()> {
    let (mut faults, mut explained) = (Vec::new(), 0);
    for session in policy_sessions::load()? {
        let config = config::load(&session.configuration)?;
        let Some(question) = question(&config, &session) else {
            continue;
        };
        explained += 1;
        let mut stages = explain(&config, &question)?.stages;
        stages.retain(|step| !matches!(step.stage, "route" | "dnsbl" | "auth"));
        for (number, step) in session.steps.iter().enumerate() {
            let found = stages.get(number);
            let found = found.map(|found| (found.code, found.rule.as_str()));
            // The last reply is the next hop's.
            let code = (step.command != "." || step.code >= 300).then_some(step.code);
            if found != Some((code, step.rule.as_str())) {
                faults.push(format!(
                    "{}: {} gets {found:?}",
                    session.place, step.command
                ));
            }
        }
    }
    assert!(explained >= 25, "only {explained} sessions");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn next_hops_are_compared_by_name_and_in_their_order() -> Result<()> {
    let text = r#"
[[listener]]
address = "127.0.0.1:2525"
service = "relay"
[relay]
networks = ["127.0.0.0/8"]
[[route]]
domains = ["a.example", "also-a.example"]
next_hop = ["mx1.isp.example:25", "mx2.isp.example:25"]
[[route]]
domains = ["same.example"]
next_hop = ["mx1.isp.example:25", "mx2.isp.example:25"]
[[route]]
domains = ["reversed.example"]
next_hop = ["mx2.isp.example:25", "mx1.isp.example:25"]
[[route]]
domains = ["*"]
next_hop = ["192.0.2.2:25"]
"#;
    let config = config::parse(Path::new("gate.toml"), text)?;
    let recipients = [
        "u@a.example",
        "u@also-a.example",
        "u@other.example",
        "u@reversed.example",
        "u@same.example",
    ];
    let question = Question {
        recipients: recipients.map(str::to_owned).to_vec(),
        ..Question::new("127.0.0.1".parse()?)
    };
    let stages = explain(&config, &question)?.stages;
    let answers = stages.iter().filter(|stage| stage.stage == "rcpt");
    let answers: Vec<_> = answers
        .map(|stage| (stage.code, stage.rule.as_str()))
        .collect();
    let (taken, deferred) = ((Some(250), "local-network"), (Some(451), "other-next-hop"));
    assert_eq!(answers, [taken, taken, deferred, deferred, taken]);
    Ok(())
}

#[test]
fn no_stranger_reaches_anything_but_a_local_domain_whatever_it_says() -> Result<()> {
    let config = gate()?;
    for mut case in policy_cases::load()?
        .into_iter()
        .filter(|case| case.code == 250)
    {
        if !matches!(case.rule.as_str(), "local-network") {
            continue;
        }
        case.client = "203.0.113.7".parse()?;
        let is_local = case.recipient.ends_with("@isp.example");
        let reached = stages(&config, &case)?
            .iter()
            .any(|s| s.stage == "rcpt" && s.outcome == StepOutcome::Accept);
        assert_eq!(reached, is_local, "{}", case.place);
    }
    Ok(())
}
