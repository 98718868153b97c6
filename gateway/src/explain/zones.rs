//! What each DNS list says about a client.

use super::{ScoreSum, Step, StepOutcome};
use crate::config::Config;
use crate::policy::dnsbl::{DnsblAnswer, Meaning, ZoneAnswer};
use crate::policy::pipeline::Lookup;
use crate::policy::{Client, Rule, Service};

/// One step for each zone or, if it is still to be looked up, one for all of them.
pub(super) fn steps(
    config: &Config,
    service: Service,
    client: &Client,
    answers: Option<&[ZoneAnswer]>,
) -> Vec<Step> {
    let policy = &config.policy;
    if !policy.asks_about(service, client) {
        return Vec::new();
    }
    let Some(answers) = answers else {
        let step = Step::new("dnsbl", client.address.to_string(), StepOutcome::Wait);
        return vec![Step {
            rule: Rule::DNSBL.name().to_owned(),
            waits_for: vec![Lookup::Dnsbl.name()],
            ..step
        }];
    };
    let score = policy.dnsbl().score(answers);
    let refused = score.is_some_and(|score| score.points >= policy.reject_at());
    let zones = policy.dnsbl().zones.iter().enumerate();
    let step = |(place, zone): (usize, &crate::policy::dnsbl::Zone)| {
        let said = answers.iter().find(|answer| answer.zone == zone.name);
        let answer = said.map_or(&DnsblAnswer::Silent, |said| &said.answer);
        let meaning = zone.meaning(answer);
        let listed = meaning == Meaning::Listed;
        let outcome = if refused && listed && zone.score > 0 {
            StepOutcome::Refuse
        } else {
            StepOutcome::Accept
        };
        Step {
            rule: policy.zone_rule(place).name().to_owned(),
            score: Some(if listed { zone.score } else { 0 }),
            answer: text_of(answer, meaning, zone.score),
            ..Step::new("dnsbl", &*zone.name, outcome)
        }
    };
    zones.map(step).collect()
}

/// What the zones come to together.
pub(super) fn sum(config: &Config, answers: &[ZoneAnswer]) -> ScoreSum {
    let policy = &config.policy;
    let score = policy.dnsbl().score(answers);
    ScoreSum {
        sum: score.map_or(0, |score| score.points),
        reject_at: policy.reject_at(),
    }
}

/// What a zone has said, and what it counts for.
fn text_of(answer: &DnsblAnswer, meaning: Meaning, score: i32) -> String {
    let said = match answer {
        DnsblAnswer::Addresses(addresses) => {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            texts.join(" ")
        }
        DnsblAnswer::NotListed | DnsblAnswer::Silent | DnsblAnswer::SwitchedOff => String::new(),
    };
    match meaning {
        Meaning::Listed => format!("{said}: listed, score {score}"),
        Meaning::NotListed if said.is_empty() => "not listed".to_owned(),
        Meaning::NotListed => format!("{said}: not among its replies, not listed"),
        Meaning::Ignored(_) => format!("{said}: never a listing"),
        Meaning::Silent => "silent: counts as not listed".to_owned(),
        Meaning::SwitchedOff => {
            "switched off: it lists the loopback address, which no list may".to_owned()
        }
    }
}
