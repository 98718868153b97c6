//! The policy cases of `tests/policy` against `explain`: the policy and the SMTP parser, without a
//! connection.

use std::path::Path;

use anyhow::Result;
use portcullis::config::{self, Config};
use portcullis::explain::{Question, Step, StepOutcome, explain};
use portcullis_tests::policy_cases::{self, Case};

fn gate() -> Result<Config> {
    Ok(config::load(&policy_cases::directory().join("gate.toml"))?)
}

/// The stages that a client sees, which the route is not.
fn stages(config: &Config, case: &Case) -> Result<Vec<Step>> {
    let question = Question {
        hello: Some(case.hello.clone()),
        sender: Some(case.sender.clone()),
        recipients: vec![case.recipient.clone()],
        ..Question::new(case.client)
    };
    let mut stages = explain(config, &question)?.stages;
    stages.retain(|stage| stage.stage != "route");
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

#[test]
fn recipients_that_need_another_next_hop_are_deferred_as_in_a_live_session() -> Result<()> {
    let text = r#"
[[listener]]
address = "127.0.0.1:2525"
service = "relay"
[relay]
networks = ["127.0.0.0/8"]
[[route]]
domains = ["a.example", "also-a.example"]
next_hop = ["192.0.2.1:25"]
[[route]]
domains = ["same.example"]
next_hop = ["192.0.2.1:25"]
[[route]]
domains = ["*"]
next_hop = ["192.0.2.2:25"]
"#;
    let config = config::parse(Path::new("gate.toml"), text)?;
    let recipients = [
        "u@a.example",
        "u@also-a.example",
        "u@other.example",
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
    assert_eq!(answers, [taken, taken, deferred, taken]);
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
