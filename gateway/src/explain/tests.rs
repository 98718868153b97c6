//! The closed relay against random addresses: whatever a stranger is let through with must be
//! plainly local. The cases that people wrote are data, in `tests/policy`.

use std::path::Path;

use proptest::prelude::*;

use super::{PacketFacts, Question, RecentVerdict, ScoreSum, StepOutcome, explain};
use crate::config::Listener;
use crate::config::{self, Config};
use crate::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use crate::policy::pipeline::{Count, Counts};
use crate::policy::{Identity, Proof, Service};

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
        let mut at_rcpt = stages.iter().filter(|stage| stage.stage == "rcpt");
        let reached = at_rcpt.any(|stage| stage.outcome == StepOutcome::Accept);
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

/// A gate with a filter on both sides, DNS lists, and these settings of `[filter]` besides.
fn filtering(more: &str) -> Config {
    let text = GATE.replace(
        "[relay]",
        &format!(
            "[filter]\ninterfaces = [{{ name = \"out\", role = \"edge\" }}, \
             {{ name = \"in\", role = \"customer\" }}]\n{more}\n\
             [[dnsbl]]\nzone = \"bl.example\"\nreplies = [\"127.0.0.2\"]\nscore = 1\n\
             [dnsbl_policy]\nservers = [\"127.0.0.1:53\"]\nreject_at = 1\n[relay]"
        ),
    );
    config::parse(Path::new("gate"), &text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn stranger() -> Question {
    Question {
        recipients: vec!["user@isp.example".to_owned()],
        ..Question::new([203, 0, 113, 7].into())
    }
}

/// The outcome and the rule of the step at this stage.
fn at(config: &Config, question: &Question, stage: &str) -> (StepOutcome, String) {
    let stages = explain(config, question).expect("no line ends").stages;
    let step = stages.into_iter().find(|step| step.stage == stage);
    step.map(|step| (step.outcome, step.rule))
        .unwrap_or_else(|| panic!("no {stage}"))
}

#[test]
fn the_packet_is_judged_by_what_is_known_of_the_filter() {
    use super::RecentVerdict::{Absent, Present};
    let facts = |interface: &str, recent: Option<RecentVerdict>, over_budget| PacketFacts {
        interface: Some(interface.to_owned()),
        recent,
        over_budget,
    };
    let unlisted_drop = "unlisted = \"drop\"";
    let monitor = "mode = \"monitor\"";
    let other_port = "ports = [2525]";
    let recent = || Some(Present("dnsbl bl.example".to_owned()));
    let cases = [
        (
            "",
            facts("out", Some(Absent), None),
            StepOutcome::Accept,
            "unlisted",
        ),
        ("", facts("out", None, None), StepOutcome::Wait, "unlisted"),
        (
            "",
            facts("out", recent(), None),
            StepOutcome::Drop,
            "recent-verdict",
        ),
        (
            "",
            facts("out", Some(Absent), Some(true)),
            StepOutcome::Accept,
            "syn-budget",
        ),
        (
            "",
            facts("in", Some(Absent), None),
            StepOutcome::Drop,
            "customer",
        ),
        (
            unlisted_drop,
            facts("out", Some(Absent), None),
            StepOutcome::Drop,
            "unlisted-drop",
        ),
        (
            unlisted_drop,
            facts("out", recent(), None),
            StepOutcome::Drop,
            "recent-verdict",
        ),
        (
            unlisted_drop,
            facts("out", None, None),
            StepOutcome::Drop,
            "unlisted-drop",
        ),
        (
            monitor,
            facts("out", recent(), None),
            StepOutcome::Accept,
            "recent-verdict",
        ),
        (
            monitor,
            facts("in", None, None),
            StepOutcome::Accept,
            "customer",
        ),
        (
            other_port,
            facts("in", None, None),
            StepOutcome::Accept,
            "not-filtered",
        ),
    ];
    for (more, packet, outcome, rule) in cases {
        let question = Question {
            packet: packet.clone(),
            ..stranger()
        };
        let found = at(&filtering(more), &question, "packet");
        assert_eq!(found, (outcome, rule.to_owned()), "{more} {packet:?}");
    }
}

#[test]
fn a_local_source_is_not_dropped_for_a_verdict() {
    let question = Question {
        packet: PacketFacts {
            recent: Some(RecentVerdict::Present(String::new())),
            ..PacketFacts::default()
        },
        ..Question::new([192, 0, 2, 10].into())
    };
    let found = at(&filtering(""), &question, "packet");
    assert_eq!(found, (StepOutcome::Accept, "unlisted".to_owned()));
}

#[test]
fn an_ipv6_syn_is_judged_as_well() {
    let config = filtering("unlisted = \"drop\"");
    let question = Question {
        listener: Some(Listener::new(
            "[2001:db8:100::25]:25".parse().expect("an address"),
            Service::Relay,
        )),
        ..Question::new("2001:db8::7".parse().expect("an address"))
    };
    let found = at(&config, &question, "packet");
    assert_eq!(found, (StepOutcome::Drop, "unlisted-drop".to_owned()));
}

#[test]
fn what_is_not_looked_up_is_named_and_what_follows_is_told_as_if_it_came_to_nothing() {
    let config = filtering("");
    let explanation = explain(&config, &stranger()).expect("no line ends");
    assert_eq!(explanation.waits_for, ["dnsbl", "recent-verdict"]);
    assert_eq!(
        at(&config, &stranger(), "rcpt"),
        (StepOutcome::Wait, "local-domain".to_owned())
    );
    let listed = |answer: &str| Question {
        dnsbl: Some(vec![ZoneAnswer {
            zone: "bl.example".into(),
            answer: DnsblAnswer::Addresses(vec![answer.parse().expect("an address")]),
        }]),
        ..stranger()
    };
    assert_eq!(
        at(&config, &listed("127.0.0.2"), "rcpt"),
        (StepOutcome::Refuse, "dnsbl:bl.example".to_owned())
    );
    let other = listed("127.0.0.3");
    let explanation = explain(&config, &other).expect("no line ends");
    assert_eq!(explanation.waits_for, ["recent-verdict"]);
    assert_eq!(
        at(&config, &other, "rcpt"),
        (StepOutcome::Accept, "local-domain".to_owned())
    );
    // One that is refused anyway does not wait.
    let relaying = Question {
        recipients: vec!["user@elsewhere.example".to_owned()],
        ..stranger()
    };
    assert_eq!(
        at(&config, &relaying, "rcpt"),
        (StepOutcome::Refuse, "closed-relay".to_owned())
    );
}

#[test]
fn a_session_that_ends_for_its_errors_says_so_and_goes_no_further() {
    let config = format!("{GATE}\n[limits]\nerrors_per_session = 2\n");
    let config = config::parse(Path::new("gate"), &config).expect("a good configuration");
    let recipients = [
        "a@isp.example",
        "b@far.example",
        "c@far.example",
        "d@far.example",
    ];
    let question = Question {
        recipients: recipients.map(str::to_owned).to_vec(),
        ..stranger()
    };
    let stages = explain(&config, &question).expect("no line ends").stages;
    let last: Vec<_> = stages.iter().rev().take(2).rev().collect();
    let said: Vec<_> = last.iter().map(|step| (step.code, &*step.rule)).collect();
    assert_eq!(said, [(Some(550), "closed-relay"), (Some(421), "errors")]);
    assert_eq!(last[0].subject, "RCPT TO:<c@far.example>");
    assert!(last[1].answer.starts_with("421 "), "{}", last[1].answer);
    assert_eq!(last[0].answer.lines().count(), 1, "{}", last[0].answer);
}

#[test]
fn a_message_that_is_accepted_is_explained_to_its_end_and_the_reply_is_the_next_hops() {
    let question = Question {
        recipients: vec!["user@isp.example".to_owned()],
        ..Question::new([203, 0, 113, 7].into())
    };
    let stages = explain(&gate(), &question).expect("no line ends").stages;
    let last: Vec<_> = stages.iter().rev().take(2).rev().collect();
    assert_eq!((last[0].stage, last[0].code), ("data", Some(354)));
    assert_eq!((last[1].stage, last[1].code), ("message", None));
    assert_eq!(last[1].rule, "any-content");
}

#[test]
fn the_points_of_dns_lists_are_told_together_where_they_are_asked() {
    let text = format!(
        "{GATE}\n[[dnsbl]]\nzone = \"a.example\"\nscore = 3\n[[dnsbl]]\nzone = \"w.example\"\n\
         score = -1\n[dnsbl_policy]\nservers = [\"127.0.0.1:53\"]\nreject_at = 2\n"
    );
    let gate = config::parse(Path::new("gate"), &text).expect("a good configuration");
    let listed = |zone: &str| ZoneAnswer {
        zone: zone.into(),
        answer: DnsblAnswer::Addresses(vec![[127, 0, 0, 2].into()]),
    };
    let question = Question {
        dnsbl: Some(vec![listed("a.example"), listed("w.example")]),
        ..Question::new([203, 0, 113, 7].into())
    };
    let score = |question: &Question| explain(&gate, question).expect("no line ends").score;
    let (sum, reject_at) = (2, 2);
    assert_eq!(score(&question), Some(ScoreSum { sum, reject_at }));
    let unknown = Question {
        dnsbl: None,
        ..question.clone()
    };
    assert_eq!(score(&unknown), None);
    let local = Question {
        client: [192, 0, 2, 10].into(),
        ..question
    };
    assert_eq!(score(&local), None);
}

#[test]
fn in_submission_a_user_is_asked_for_and_its_recipients_are_counted() {
    let users = tempfile::NamedTempFile::new().expect("a file");
    let hash = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
                U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM";
    std::fs::write(users.path(), format!("alice password={hash}\n")).expect("users");
    let text = format!(
        "{GATE}\n[auth]\nusers = {:?}\n[[listener]]\naddress = \"198.51.100.25:587\"\n\
         service = \"submission\"\nauth_without_tls = true\n",
        users.path()
    );
    let gate = config::parse(Path::new("gate"), &text).expect("a good configuration");
    let question = Question {
        listener: gate.listeners.last().cloned(),
        sender: Some("alice@isp.example".to_owned()),
        recipients: ["a@far.example", "b@far.example"]
            .map(str::to_owned)
            .to_vec(),
        ..Question::new([192, 0, 2, 10].into())
    };
    assert_eq!(
        at(&gate, &question, "mail"),
        (StepOutcome::Refuse, "auth-required".to_owned())
    );
    let user = Question {
        identity: Some(Identity {
            user: "alice".into(),
            proof: Proof::Password,
            senders: None,
        }),
        counts: Counts {
            user_recipients: Count { now: 8, max: 8 },
            ..Counts::default()
        },
        ..question
    };
    let explanation = explain(&gate, &user).expect("no line ends");
    assert_eq!(explanation.user.as_deref(), Some("alice"));
    let steps = explanation.stages.iter();
    let steps: Vec<_> = steps
        .filter(|step| ["auth", "rcpt"].contains(&step.stage))
        .map(|step| (step.stage, &*step.rule))
        .collect();
    let expected = [
        ("auth", "authenticated"),
        ("rcpt", "authenticated"),
        ("rcpt", "recipients-per-user"),
    ];
    assert_eq!(steps, expected);
    // On port 25 AUTH is not offered.
    let elsewhere = Question {
        listener: None,
        ..user
    };
    let found = at(&gate, &elsewhere, "auth");
    assert_eq!(found, (StepOutcome::Refuse, "not-implemented".to_owned()));
}
