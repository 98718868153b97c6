//! What the checks of a stage come to together, over small tables made for it; and what every table
//! must keep.

use portcullis_smtp::reply::Reply;

use super::*;
use crate::policy::Terms;
use crate::policy::dnsbl::{Dnsbl, DnsblAnswer, Zone, ZoneAnswer};

const ACCEPTS: Check = Check {
    name: "accepts",
    does: "",
    effect: Effect::Admits,
    counts: false,
    rules: &[],
    waits_for: None,
    decide: |_, _| Opinion::Accept(Rule::LOCAL_DOMAIN),
};
const REFUSES: Check = Check {
    name: "refuses",
    effect: Effect::Restricts,
    decide: |_, _| Opinion::Refuse(Rule::NO_ROUTE, Reply::fixed(550, NONE, "")),
    ..ACCEPTS
};
const ONE: Check = Check {
    name: "one",
    effect: Effect::Scores,
    decide: |_, _| points(1, Rule::SYNTAX),
    ..ACCEPTS
};
const TWO: Check = Check {
    name: "two",
    counts: true,
    decide: |_, _| points(2, Rule::SEQUENCE),
    ..ONE
};
const WELCOME: Check = Check {
    name: "welcome",
    decide: |_, _| points(-3, Rule::PARAMETER),
    ..ONE
};
const WAITS: Check = Check {
    name: "waits",
    waits_for: Some(Lookup::Dnsbl),
    decide: |_, facts| match facts.answers.dnsbl {
        None => Opinion::Wait(Lookup::Dnsbl),
        Some(_) => Opinion::Silent,
    },
    ..ONE
};
const NONE: EnhancedCode = EnhancedCode(5, 0, 0);

fn points(points: i64, rule: Rule) -> Opinion {
    Opinion::Score(Score {
        points,
        rule,
        reply: |_, _| Reply::fixed(554, NONE, ""),
    })
}

fn policy(reject_at: i32) -> Policy {
    Policy::new(Terms {
        dnsbl: Dnsbl {
            reject_at,
            ..Dnsbl::default()
        },
        ..Terms::default()
    })
}

#[test]
fn every_stage_finds_its_own_checks() {
    for (stage, own) in CHECKS {
        assert!(std::ptr::eq(checks(*stage), *own), "{}", stage.name());
    }
}

#[test]
fn scores_of_neighbours_add_up_and_the_highest_refuses_for_all() {
    let (accepted, refused) = (Rule::LOCAL_DOMAIN, Rule::SEQUENCE);
    let cases: [(&[&Check], i32, Rule); 10] = [
        (&[&ACCEPTS, &ONE], 2, accepted),
        (&[&ACCEPTS, &TWO], 2, refused),
        (&[&ACCEPTS, &ONE, &TWO], 3, refused),
        (&[&ACCEPTS, &TWO, &ONE], 3, refused),
        // What counts for a client counts also after what counts against it.
        (&[&ACCEPTS, &TWO, &WELCOME], 2, accepted),
        (&[&ACCEPTS, &WELCOME], 1, accepted),
        // Before the next check of another kind the sum is compared.
        (&[&ACCEPTS, &TWO, &REFUSES], 2, refused),
        (&[&ACCEPTS, &TWO, &REFUSES], 3, Rule::NO_ROUTE),
        (&[&ACCEPTS, &REFUSES, &TWO], 2, Rule::NO_ROUTE),
        // A score admits nothing.
        (&[&WELCOME], 2, Rule::CLOSED_RELAY),
    ];
    let client = policy(1).client([203, 0, 113, 9].into());
    let listener = Listener {
        address: ([127, 0, 0, 1], 25).into(),
        service: Service::Relay,
    };
    let facts = Facts::new(listener, &client);
    for (checks, reject_at, rule) in cases {
        let names: Vec<_> = checks.iter().map(|check| check.name).collect();
        let decision = decide_by(checks.iter().copied(), &policy(reject_at), &facts);
        assert_eq!(decision.rule(), Some(rule), "{names:?} at {reject_at}");
        if let Decision::Refuse { blame, .. } = decision {
            let counts = rule == Rule::SEQUENCE;
            assert_eq!(blame == Blame::Client, counts, "{names:?}");
        }
    }
    // A look-up that is missing could still lower the sum: it is waited for.
    let decision = decide_by([&ACCEPTS, &TWO, &WAITS], &policy(2), &facts);
    assert_eq!(decision, Decision::Wait(Lookup::Dnsbl));
}

#[test]
fn no_check_waits_where_a_session_cannot_hold_a_command() {
    for (stage, checks) in CHECKS {
        let mut checks = checks.iter();
        let waits = checks.find(|check| check.waits_for.is_some());
        let name = waits.map(|check| check.name);
        assert!(stage.can_wait() || name.is_none(), "{stage:?}: {name:?}");
    }
}

#[test]
fn a_listed_client_gives_its_score_only_where_lists_are_asked() {
    let zone = Zone {
        name: "bl.example".into(),
        replies: vec![[127, 0, 0, 2].into()..=[127, 0, 0, 2].into()],
        score: 2,
        test_entries: true,
    };
    let policy = Policy::new(Terms {
        dnsbl: Dnsbl {
            zones: vec![zone],
            reject_at: 2,
        },
        networks: vec!["192.0.2.0/24".parse().expect("a network")],
        ..Terms::default()
    });
    let answers = [ZoneAnswer {
        zone: "bl.example".into(),
        answer: DnsblAnswer::Addresses(vec![[127, 0, 0, 2].into()]),
    }];
    let check = checks(Stage::Rcpt)
        .iter()
        .find(|check| check.name == "dnsbl")
        .expect("a check for DNS lists");
    let listener = Listener {
        address: ([127, 0, 0, 1], 25).into(),
        service: Service::Relay,
    };
    for (client, points) in [([203, 0, 113, 9], Some(2)), ([192, 0, 2, 9], None)] {
        let client = policy.client(client.into());
        let facts = Facts {
            answers: Answers {
                dnsbl: Some(&answers),
            },
            ..Facts::new(listener, &client)
        };
        let given = match (check.decide)(&policy, &facts) {
            Opinion::Score(score) => Some(score.points),
            _ => None,
        };
        assert_eq!(given, points, "{client:?}");
    }
}
