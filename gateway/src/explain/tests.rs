//! The closed relay against random addresses: whatever a stranger is let through with must be
//! plainly local. The cases that people wrote are data, in `tests/policy`.

use std::path::Path;

use proptest::prelude::*;

use super::{Question, StepOutcome, explain};
use crate::config::{self, Config};

const GATE: &str = r#"
hostname = "mx1.isp.example"
[[listener]]
address = "198.51.100.25:25"
[relay]
networks = ["192.0.2.0/24"]
domains = ["isp.example"]
[[route]]
domains = ["*"]
next_hop = ["discard"]
"#;

fn gate() -> Config {
    config::parse(Path::new("gate"), GATE).expect("a good configuration")
}

/// What addresses are made of, and what relay testers make them of.
const PIECES: [&str; 20] = [
    "user",
    "postmaster",
    "isp.example",
    "ISP.EXAMPLE",
    "elsewhere.example",
    "mx1.isp.example",
    "[198.51.100.25]",
    "[192.0.2.10]",
    "[IPv6:::1]",
    "@",
    "@",
    "%",
    "!",
    "\"",
    "\\",
    ":",
    ",",
    ".",
    "IMCEASMTP-a+40b",
    "\u{ff20}",
];

/// The few forms that may be accepted from a stranger, written down a second time.
fn is_plainly_local(recipient: &str) -> bool {
    let recipient = recipient.to_ascii_lowercase();
    if recipient == "postmaster" || recipient == "postmaster@mx1.isp.example" {
        return true;
    }
    let Some((local_part, domain)) = recipient.split_once('@') else {
        return false;
    };
    let ours = domain == "isp.example" || domain == "[198.51.100.25]";
    ours && !local_part.contains(['@', '%', '!', '\u{ff20}']) && !local_part.starts_with("imcea")
}

proptest! {
    #[test]
    fn a_stranger_reaches_only_what_is_plainly_local(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 1..7),
        hello in prop::sample::select(vec!["mx1.isp.example", "[192.0.2.10]", "elsewhere.example"]),
        sender in prop::sample::select(vec!["<>", "user@isp.example", "user@elsewhere.example"]),
    ) {
        let recipient = pieces.concat();
        let question = Question {
            hello: Some(hello.to_owned()),
            sender: Some(sender.to_owned()),
            recipients: vec![recipient.clone()],
            ..Question::new([203, 0, 113, 7].into())
        };
        let stages = explain(&gate(), &question).expect("no line ends").stages;
        let reached = stages.iter().any(|stage| stage.stage == "rcpt" && stage.outcome == StepOutcome::Accept);
        prop_assert!(!reached || is_plainly_local(&recipient), "{recipient}: {stages:?}");
    }
}

#[test]
fn an_ipv4_client_that_comes_over_ipv6_has_the_standing_of_its_ipv4_address() {
    let policy = gate().policy;
    let mapped = policy.client("::ffff:192.0.2.10".parse().expect("an address"));
    assert_eq!(mapped, policy.client([192, 0, 2, 10].into()));
    assert!(mapped.is_exempt());
}

#[test]
fn a_line_end_in_a_question_is_not_taken_for_two_commands() {
    let question = Question {
        recipients: vec!["a@isp.example>\r\nRCPT TO:<b@isp.example".to_owned()],
        ..Question::new([203, 0, 113, 7].into())
    };
    assert!(explain(&gate(), &question).is_err());
}

#[test]
fn a_local_client_without_a_route_is_told_so_in_the_session() {
    let text = GATE.replace("\"*\"", "\"isp.example\"");
    let gate = config::parse(Path::new("gate"), &text).expect("a good configuration");
    let question = Question {
        recipients: vec!["user@elsewhere.example".to_owned()],
        ..Question::new([192, 0, 2, 10].into())
    };
    let stages = explain(&gate, &question).expect("no line ends").stages;
    let last = stages.last().map(|stage| (stage.code, stage.rule.as_str()));
    assert_eq!(last, Some((Some(550), "no-route")));
}
