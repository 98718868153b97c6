//! The policy's cases and sessions through the pipeline alone, without an SMTP session: the checks
//! over the facts. And the order of the checks itself: what would change if one came earlier.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use portcullis::config::{self, Config};
use portcullis::policy::pipeline::{
    Answers, CHECKS, Check, Count, Counts, Decision, Facts, Lookup, Recipient, Stage, checks,
    decide_by,
};
use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::path::Path;
use portcullis_smtp::server::CommandError;
use portcullis_tests::policy_cases;
use portcullis_tests::policy_sessions::{self, PolicySession};

/// Something to be decided, and the configuration that decides.
struct Script {
    config: Rc<Config>,
    session: PolicySession,
    /// It is a case: only its last answer is known.
    is_case: bool,
}

/// The checks of a stage, in an order to be tried.
type Order<'a> = &'a dyn Fn(Stage) -> Vec<&'static Check>;

fn in_order(stage: Stage) -> Vec<&'static Check> {
    checks(stage).iter().collect()
}

/// The cases, as sessions that end with their last command, and the sessions.
fn scripts() -> Result<Vec<Script>> {
    let file = policy_cases::directory().join("gate.toml");
    let config = Rc::new(config::load(&file)?);
    let cases = policy_cases::load()?.into_iter();
    let mut scripts: Vec<_> = cases
        .map(|case| Script {
            config: Rc::clone(&config),
            session: PolicySession::from(case),
            is_case: true,
        })
        .collect();
    let mut configs = BTreeMap::new();
    for session in policy_sessions::load()? {
        let file = session.configuration.clone();
        let config = match configs.entry(file) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(unread) => {
                let config = Rc::new(config::load(unread.key())?);
                Rc::clone(unread.insert(config))
            }
        };
        scripts.push(Script {
            config,
            session,
            is_case: false,
        });
    }
    Ok(scripts)
}

/// What the pipeline says of each step, by code and rule. What the SMTP session would refuse by
/// itself is `None`.
fn run(config: &Config, session: &PolicySession, order: Order<'_>) -> Vec<Option<(u16, String)>> {
    let client = config.policy.client(session.client);
    let answers = session.answers();
    let identity = session.identity(config);
    let mut is_known = false;
    let mut counts = counts(config, session);
    let (mut helo, mut sender, mut next_hops) = (String::new(), "", None);
    let mut said = Vec::new();
    for step in &session.steps {
        let stage = stage_of(&step.command);
        let arguments = step.command.split_once(' ').map_or("", |(_, rest)| rest);
        let mut facts = Facts {
            helo: &helo,
            sender,
            next_hops,
            counts,
            is_granted: session.granted,
            identity: identity.as_ref().filter(|_| is_known),
            ..Facts::new(session.listener(config).facts(), &client)
        };
        let rcpt = rcpt(arguments);
        let mut target = None;
        if stage == Stage::Rcpt
            && let Some(rcpt) = &rcpt
        {
            let route = config.route(&rcpt.path.mailbox);
            target = route.map(|number| &*config.routes[number].target);
            facts.recipient = Some(Recipient {
                rcpt,
                next_hops: target,
            });
        }
        if stage == Stage::Mail {
            facts.sender = mail(arguments);
        }
        if stage == Stage::Rcpt && rcpt.is_none() || is_of_smtp(&step.rule) {
            said.push(None);
            continue;
        }
        let decision = decided(config, &facts, &order(stage), &answers);
        if decision.is_accept() {
            match stage {
                Stage::Hello => {
                    arguments.clone_into(&mut helo);
                    is_known = true;
                }
                Stage::Mail => sender = mail(arguments),
                Stage::Rcpt => {
                    next_hops = next_hops.or(target);
                    counts.user_recipients.now += 1;
                }
                Stage::Connect | Stage::Data | Stage::Message => {}
            }
        }
        said.push(Some(heard(stage, &decision)));
    }
    said
}

/// The sender in `FROM:<path>`.
fn mail(arguments: &str) -> &str {
    let path = arguments.split(' ').next().unwrap_or_default();
    let path = path.strip_prefix("FROM:").unwrap_or_default();
    path.trim_start_matches('<').trim_end_matches('>')
}

/// The recipient in `TO:<path>`, if it is one.
fn rcpt(arguments: &str) -> Option<Rcpt<'_>> {
    let path = arguments.strip_prefix("TO:<")?.strip_suffix('>')?;
    Some(Rcpt {
        path: Path::parse(path).ok()?,
        notify: None,
        original_recipient: None,
    })
}

/// Decides; what is waited for is looked up.
fn decided(
    config: &Config,
    facts: &Facts<'_>,
    checks: &[&'static Check],
    answers: &[portcullis::policy::dnsbl::ZoneAnswer],
) -> Decision {
    let decide = |facts: &Facts<'_>| decide_by(checks.iter().copied(), &config.policy, facts);
    match decide(facts) {
        Decision::Wait(Lookup::Dnsbl) => decide(&Facts {
            answers: Answers {
                dnsbl: Some(answers),
            },
            ..*facts
        }),
        decision => decision,
    }
}

fn heard(stage: Stage, decision: &Decision) -> (u16, String) {
    match decision {
        Decision::Accept(rule) => {
            let code = match stage {
                Stage::Connect => 220,
                Stage::Data => 354,
                _ => 250,
            };
            (code, rule.to_string())
        }
        Decision::Refuse { rule, reply, .. } => (reply.code, rule.to_string()),
        Decision::Wait(lookup) => (0, lookup.name().to_owned()),
    }
}

fn stage_of(command: &str) -> Stage {
    match command.split_once(' ').map_or(command, |(verb, _)| verb) {
        "connect" => Stage::Connect,
        "MAIL" => Stage::Mail,
        "RCPT" => Stage::Rcpt,
        "DATA" => Stage::Data,
        "." => Stage::Message,
        _ => Stage::Hello,
    }
}

/// Whether it is the SMTP session that decides by this rule, before the policy is asked.
fn is_of_smtp(rule: &str) -> bool {
    CommandError::ALL.iter().any(|error| error.rule() == rule)
}

fn counts(config: &Config, session: &PolicySession) -> Counts {
    let limits = &config.limits;
    Counts {
        stopping: session.stopping,
        sessions: Count {
            now: session.others + 1,
            max: limits.sessions,
        },
        source_sessions: Count {
            now: session.of_source + 1,
            max: limits.sessions_per_source,
        },
        user_messages: Count {
            now: session.sent.0 + 1,
            max: limits.messages_per_user,
        },
        user_recipients: Count {
            now: session.sent.1 + 1,
            max: limits.recipients_per_user,
        },
    }
}

#[test]
fn the_pipeline_decides_every_step_as_it_is_written() -> Result<()> {
    let mut faults = Vec::new();
    for Script {
        config,
        session,
        is_case,
    } in scripts()?
    {
        let said = run(&config, &session, &in_order);
        if is_case {
            // A case has one answer: that of the first step which refuses, or of the last.
            let refused = said.iter().find(|said| match said {
                Some((code, _)) => *code >= 400,
                None => true,
            });
            let step = session.steps.last().context("steps")?;
            let answer = refused.or(said.last()).context("steps")?;
            let expected = (step.code, step.rule.clone());
            if answer.as_ref().is_some_and(|answer| *answer != expected) {
                faults.push(format!("{}: {answer:?}", session.place));
            }
            continue;
        }
        for (step, said) in session.steps.iter().zip(said) {
            let expected = (step.code, step.rule.clone());
            if said.as_ref().is_some_and(|said| *said != expected) {
                faults.push(format!("{}: {} gets {said:?}", session.place, step.command));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What no line of a table can say: a command of more than 512 octets, a bare line feed, and what
/// takes TLS or AUTH, which no configuration offers. The transcripts have them.
const NO_LINE_SAYS: [&str; 6] = [
    "command-length",
    "bare-lf",
    "tls-required",
    "auth-mechanism",
    "auth-length",
    "auth-cancelled",
];

#[test]
fn every_rule_of_every_check_and_command_decides_in_some_case_or_session() -> Result<()> {
    let mut met = BTreeSet::new();
    for case in policy_cases::load()? {
        met.insert(case.rule);
    }
    for session in policy_sessions::load()? {
        met.extend(session.steps.into_iter().map(|step| step.rule));
    }
    let is_met = |name: &str| {
        let mut met = met.iter();
        met.any(|rule| rule == name || rule.split_once(':').is_some_and(|(kind, _)| kind == name))
    };
    let checks = CHECKS.iter().flat_map(|(_, checks)| *checks);
    let rules = checks.flat_map(|check| check.rules).map(|rule| rule.name());
    let of_smtp = CommandError::ALL.iter().map(|error| error.rule());
    let rules = rules.chain(of_smtp.filter(|name| !NO_LINE_SAYS.contains(name)));
    let missing: Vec<_> = rules.filter(|name| !is_met(name)).collect();
    assert_eq!(missing, [""; 0]);
    Ok(())
}

/// Pairs of checks of a stage whose order changes nothing, and why.
const INDIFFERENT: &[(Stage, &str, &str, &str)] = &[
    (
        Stage::Connect,
        "grant",
        "stopping",
        "the one admits, the other restricts",
    ),
    (
        Stage::Connect,
        "grant",
        "sessions",
        "the one admits, the other restricts",
    ),
    (
        Stage::Connect,
        "grant",
        "sessions of the source",
        "the one admits, the other restricts",
    ),
    (
        Stage::Connect,
        "standing",
        "stopping",
        "the one only names who is admitted",
    ),
    (
        Stage::Connect,
        "standing",
        "sessions",
        "the one only names who is admitted",
    ),
    (
        Stage::Connect,
        "standing",
        "sessions of the source",
        "the one only names who is admitted",
    ),
    (
        Stage::Rcpt,
        "postmaster",
        "form",
        "no postmaster has a form",
    ),
    (
        Stage::Rcpt,
        "postmaster",
        "route",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "postmaster",
        "dnsbl",
        "what DNS lists say is not asked for the postmaster",
    ),
    (
        Stage::Rcpt,
        "postmaster",
        "next hop",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "local network",
        "route",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "local network",
        "dnsbl",
        "what DNS lists say is not asked for local clients",
    ),
    (
        Stage::Rcpt,
        "local network",
        "next hop",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "granted",
        "route",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "granted",
        "dnsbl",
        "what DNS lists say is not asked for granted clients",
    ),
    (
        Stage::Rcpt,
        "granted",
        "next hop",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "authenticated",
        "route",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "authenticated",
        "dnsbl",
        "what DNS lists say is not asked for users",
    ),
    (
        Stage::Rcpt,
        "authenticated",
        "recipients of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "authenticated",
        "next hop",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "postmaster",
        "recipients of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "local network",
        "recipients of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "granted",
        "recipients of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "form",
        "recipients of the user",
        "a user is admitted before",
    ),
    (
        Stage::Rcpt,
        "literal",
        "recipients of the user",
        "a user is admitted before",
    ),
    (
        Stage::Rcpt,
        "local domain",
        "recipients of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "closed relay",
        "recipients of the user",
        "a user is admitted before",
    ),
    (
        Stage::Rcpt,
        "dnsbl",
        "recipients of the user",
        "what DNS lists say is not asked for users",
    ),
    (
        Stage::Mail,
        "sender",
        "senders of the user",
        "the one admits, the other restricts",
    ),
    (
        Stage::Mail,
        "sender",
        "messages of the user",
        "the one admits, the other restricts",
    ),
    (Stage::Rcpt, "literal", "local domain", "no domain is both"),
    (
        Stage::Rcpt,
        "local domain",
        "route",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "local domain",
        "dnsbl",
        "the one admits, the other restricts",
    ),
    (
        Stage::Rcpt,
        "local domain",
        "next hop",
        "the one admits, the other restricts",
    ),
];

/// The checks of a stage; of the one in question with this pair in this order, and with none of
/// those that stand between the two: it is they that are compared.
fn between(of: Stage, stage: Stage, pair: [&'static Check; 2]) -> Vec<&'static Check> {
    let mut checks = in_order(of);
    if of == stage {
        let is_of_pair = |check: &&Check| pair.iter().any(|of| of.name == check.name);
        let first = checks.iter().position(is_of_pair).unwrap_or_default();
        let last = checks.iter().rposition(is_of_pair).unwrap_or_default();
        checks.splice(first..=last, pair);
    }
    checks
}

#[test]
fn every_pair_of_checks_whose_order_matters_has_a_case_that_says_so() -> Result<()> {
    let scripts = scripts()?;
    let outcomes = |order: Order<'_>| -> Vec<_> {
        let of = |script: &Script| run(&script.config, &script.session, order);
        scripts.iter().map(of).collect()
    };
    let mut faults = Vec::new();
    for &(stage, in_stage) in CHECKS {
        let pairs = in_stage.iter().enumerate();
        let pairs = pairs.flat_map(|(number, second)| {
            in_stage[..number].iter().map(move |first| (first, second))
        });
        for (first, second) in pairs {
            let is_indifferent = INDIFFERENT
                .iter()
                .any(|(of, one, other, _)| (*of, *one, *other) == (stage, first.name, second.name));
            let matters = outcomes(&|of| between(of, stage, [first, second]))
                != outcomes(&|of| between(of, stage, [second, first]));
            if matters == is_indifferent {
                let says = if matters {
                    "changes a case"
                } else {
                    "changes no case"
                };
                faults.push(format!(
                    "{stage:?}: {} before {} {says}",
                    second.name, first.name
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
