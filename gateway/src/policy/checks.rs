//! The checks, stage by stage and in their order: [`CHECKS`] is the table that
//! [`decide`](super::pipeline::decide) runs and that the documentation shows.

use portcullis_smtp::path::Domain;
use portcullis_smtp::reply::{EnhancedCode, Reply};

use super::pipeline::{Check, Effect, Facts, Lookup, Opinion, Score, Stage};
use super::{Policy, Rule, RuleKind, Standing, address};

/// The answer to what cannot be begun, or finished, before the gate stops.
pub const STOPPING: Reply<'static> = Reply::fixed(
    421,
    EnhancedCode(4, 3, 2),
    "The service is stopping, please try again later",
);
const TOO_MANY_SESSIONS: Reply<'static> = Reply::fixed(
    421,
    EnhancedCode(4, 3, 2),
    "Too many sessions, please try again later",
);
const TOO_MANY_FROM_SOURCE: Reply<'static> = Reply::fixed(
    421,
    EnhancedCode(4, 7, 0),
    "Too many sessions from your address, please try again later",
);
const NO_ROUTE: Reply<'static> =
    Reply::fixed(550, EnhancedCode(5, 4, 4), "No route to this domain");
const OTHER_NEXT_HOP: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 5, 3),
    "This recipient needs a transaction of its own, please send it again",
);

const FOREIGN_SENDER: Reply<'static> = Reply::fixed(
    550,
    EnhancedCode(5, 7, 1),
    "You may not send with this sender address",
);
const TOO_MANY_MESSAGES: Reply<'static> = Reply::fixed(
    450,
    EnhancedCode(4, 7, 1),
    "Too many messages of this user in an hour, please try again later",
);
const TOO_MANY_RECIPIENTS: Reply<'static> = Reply::fixed(
    450,
    EnhancedCode(4, 7, 1),
    "Too many recipients of this user in an hour, please try again later",
);

/// All checks, by stage. The first that refuses decides; see [`pipeline`](super::pipeline).
pub static CHECKS: &[(Stage, &[Check])] = &[
    (Stage::Connect, CONNECT),
    (Stage::Hello, HELLO),
    (Stage::Mail, MAIL),
    (Stage::Rcpt, RCPT),
    (Stage::Data, CONTENT),
    (Stage::Message, CONTENT),
];

const CONNECT: &[Check] = &[
    Check {
        name: "grant",
        does: "accepts a stranger with a grant, whatever drop and reject lists say, unless it is \
               on a hard drop list; not asked in submission",
        effect: Effect::Admits,
        counts: false,
        rules: &[Rule::GRANTED],
        waits_for: None,
        decide: granted_connection,
    },
    Check {
        name: "lists",
        does: "a permit list accepts the client, whatever other lists say; a drop list (unless \
               the filter only monitors) and a reject list refuse it, local networks included, but \
               not in submission",
        effect: Effect::Admits,
        counts: false,
        rules: &[Rule::PERMIT_LIST, Rule::DROP_LIST, Rule::REJECT_LIST],
        waits_for: None,
        decide: lists,
    },
    Check {
        name: "standing",
        does: "accepts every other client",
        effect: Effect::Admits,
        counts: false,
        rules: &[Rule::LOCAL_NETWORK, Rule::UNLISTED],
        waits_for: None,
        decide: standing,
    },
    Check {
        name: "stopping",
        does: "refuses every client while the gate stops",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::STOPPING],
        waits_for: None,
        decide: stopping,
    },
    Check {
        name: "sessions",
        does: "refuses a client beyond `limits.sessions`",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::SESSIONS],
        waits_for: None,
        decide: sessions,
    },
    Check {
        name: "sessions of the source",
        does: "refuses a client beyond `limits.sessions_per_source`, unless it is in a local \
               network or on a permit list",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::SESSIONS_PER_SOURCE],
        waits_for: None,
        decide: source_sessions,
    },
];

const HELLO: &[Check] = &[Check {
    name: "hello",
    does: "accepts every name, and no name makes a client local",
    effect: Effect::Admits,
    counts: true,
    rules: &[Rule::ANY_HELLO],
    waits_for: None,
    decide: |_, _| Opinion::Accept(Rule::ANY_HELLO),
}];

const MAIL: &[Check] = &[
    Check {
        name: "sender",
        does: "accepts every sender, and no sender makes a client local",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::ANY_SENDER],
        waits_for: None,
        decide: |_, _| Opinion::Accept(Rule::ANY_SENDER),
    },
    Check {
        name: "senders of the user",
        does: "refuses a sender that is not one of the user's `senders`, if the user has any; \
               the null sender is open to every user",
        effect: Effect::Restricts,
        counts: true,
        rules: &[Rule::FOREIGN_SENDER],
        waits_for: None,
        decide: senders_of_user,
    },
    Check {
        name: "messages of the user",
        does: "defers a message of a user beyond `limits.messages_per_user`",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::MESSAGES_PER_USER],
        waits_for: None,
        decide: messages_of_user,
    },
];

const RCPT: &[Check] = &[
    Check {
        name: "postmaster",
        does: "accepts `<postmaster>`, and the postmaster at the name or an address of this gate",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::POSTMASTER],
        waits_for: None,
        decide: postmaster,
    },
    Check {
        name: "authenticated",
        does: "accepts every recipient of a client that has authenticated",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::AUTHENTICATED],
        waits_for: None,
        decide: authenticated,
    },
    Check {
        name: "local network",
        does: "accepts every recipient of a client in a local network",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::LOCAL_NETWORK],
        waits_for: None,
        decide: local_network,
    },
    Check {
        name: "granted",
        does: "accepts every recipient of a client with a grant",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::GRANTED],
        waits_for: None,
        decide: granted,
    },
    Check {
        name: "form",
        does: "refuses a recipient that asks to be sent on elsewhere, in local domains too",
        effect: Effect::Admits,
        counts: true,
        rules: &[
            Rule::SOURCE_ROUTE,
            Rule::QUOTED_LOCAL_PART,
            Rule::ENCAPSULATED_ADDRESS,
            Rule::SECOND_AT,
            Rule::PERCENT_HACK,
            Rule::BANG_PATH,
        ],
        waits_for: None,
        decide: form,
    },
    Check {
        name: "literal",
        does: "accepts an address literal of this gate, and refuses any other",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::OWN_LITERAL, Rule::FOREIGN_LITERAL],
        waits_for: None,
        decide: literal,
    },
    Check {
        name: "local domain",
        does: "accepts a recipient in a local domain",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::LOCAL_DOMAIN],
        waits_for: None,
        decide: local_domain,
    },
    Check {
        name: "closed relay",
        does: "refuses every other recipient",
        effect: Effect::Admits,
        counts: true,
        rules: &[Rule::CLOSED_RELAY],
        waits_for: None,
        decide: |_, _| relaying_denied(Rule::CLOSED_RELAY),
    },
    Check {
        name: "route",
        does: "refuses a recipient that no route covers",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::NO_ROUTE],
        waits_for: None,
        decide: route,
    },
    Check {
        name: "dnsbl",
        does: "gives a stranger the scores of the DNS lists that list it, unless a permit list \
               names it, it has authenticated, it has a grant or the recipient is the postmaster; \
               waits for what they say; not asked in submission",
        effect: Effect::Scores,
        counts: true,
        rules: &[Rule::DNSBL],
        waits_for: Some(Lookup::Dnsbl),
        decide: dnsbl,
    },
    Check {
        name: "recipients of the user",
        does: "defers a recipient of a user beyond `limits.recipients_per_user`",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::RECIPIENTS_PER_USER],
        waits_for: None,
        decide: recipients_of_user,
    },
    Check {
        name: "next hop",
        does: "defers a recipient that has another next hop than those before it in the \
               transaction",
        effect: Effect::Restricts,
        counts: false,
        rules: &[Rule::OTHER_NEXT_HOP],
        waits_for: None,
        decide: next_hop,
    },
];

const CONTENT: &[Check] = &[Check {
    name: "content",
    does: "accepts every message",
    effect: Effect::Admits,
    counts: true,
    rules: &[Rule::ANY_CONTENT],
    waits_for: None,
    decide: |_, _| Opinion::Accept(Rule::ANY_CONTENT),
}];

fn granted_connection(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let client = facts.client;
    if facts.listener.service.is_submission() {
        return Opinion::Silent;
    }
    let permitted = client
        .listing
        .is_some_and(|rule| rule.kind() == RuleKind::PermitList);
    let stranger = client.standing == Standing::Stranger && !permitted;
    if facts.is_granted && stranger && !client.is_hard {
        Opinion::Accept(Rule::GRANTED)
    } else {
        Opinion::Silent
    }
}

fn granted(_: &Policy, facts: &Facts<'_>) -> Opinion {
    if facts.is_granted {
        Opinion::Accept(Rule::GRANTED)
    } else {
        Opinion::Silent
    }
}

fn lists(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let Some(rule) = facts.client.listing else {
        return Opinion::Silent;
    };
    if rule.kind() == RuleKind::PermitList {
        return Opinion::Accept(rule);
    }
    if facts.listener.service.is_submission() {
        // Users travel: who they are is what counts, not the address that they come from.
        return Opinion::Silent;
    }
    let (address, list) = (facts.client.address, rule.subject());
    let text = format!("Your address {address} is on our list \"{list}\"");
    Opinion::Refuse(rule, Reply::new(554, Some(EnhancedCode(5, 7, 1)), text))
}

fn standing(_: &Policy, facts: &Facts<'_>) -> Opinion {
    Opinion::Accept(match facts.client.standing {
        Standing::Local => Rule::LOCAL_NETWORK,
        Standing::Stranger => Rule::UNLISTED,
    })
}

fn stopping(_: &Policy, facts: &Facts<'_>) -> Opinion {
    refuse_if(facts.counts.stopping, Rule::STOPPING, STOPPING)
}

fn sessions(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let exceeded = facts.counts.sessions.is_exceeded();
    refuse_if(exceeded, Rule::SESSIONS, TOO_MANY_SESSIONS)
}

fn source_sessions(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let exceeded = facts.counts.source_sessions.is_exceeded() && !facts.client.is_exempt();
    refuse_if(exceeded, Rule::SESSIONS_PER_SOURCE, TOO_MANY_FROM_SOURCE)
}

fn senders_of_user(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let is_foreign = facts
        .identity
        .is_some_and(|identity| !identity.may_send_as(facts.sender));
    refuse_if(is_foreign, Rule::FOREIGN_SENDER, FOREIGN_SENDER)
}

fn messages_of_user(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let exceeded = facts.identity.is_some() && facts.counts.user_messages.is_exceeded();
    refuse_if(exceeded, Rule::MESSAGES_PER_USER, TOO_MANY_MESSAGES)
}

fn recipients_of_user(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let exceeded = facts.identity.is_some() && facts.counts.user_recipients.is_exceeded();
    refuse_if(exceeded, Rule::RECIPIENTS_PER_USER, TOO_MANY_RECIPIENTS)
}

fn authenticated(_: &Policy, facts: &Facts<'_>) -> Opinion {
    match facts.identity {
        Some(_) => Opinion::Accept(Rule::AUTHENTICATED),
        None => Opinion::Silent,
    }
}

fn postmaster(policy: &Policy, facts: &Facts<'_>) -> Opinion {
    if is_own_postmaster(policy, facts) {
        Opinion::Accept(Rule::POSTMASTER)
    } else {
        Opinion::Silent
    }
}

fn local_network(_: &Policy, facts: &Facts<'_>) -> Opinion {
    match facts.client.standing {
        Standing::Local => Opinion::Accept(Rule::LOCAL_NETWORK),
        Standing::Stranger => Opinion::Silent,
    }
}

fn form(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let form = facts
        .recipient
        .and_then(|recipient| address::form(&recipient.rcpt.path));
    form.map_or(Opinion::Silent, relaying_denied)
}

fn literal(policy: &Policy, facts: &Facts<'_>) -> Opinion {
    match domain(facts) {
        Domain::Literal(address) if policy.is_own_address(address) => {
            Opinion::Accept(Rule::OWN_LITERAL)
        }
        Domain::Literal(_) | Domain::GeneralLiteral(_) => relaying_denied(Rule::FOREIGN_LITERAL),
        Domain::Name(_) | Domain::None => Opinion::Silent,
    }
}

fn local_domain(policy: &Policy, facts: &Facts<'_>) -> Opinion {
    match domain(facts) {
        Domain::Name(domain) if policy.is_local_domain(domain) => {
            Opinion::Accept(Rule::LOCAL_DOMAIN)
        }
        _ => Opinion::Silent,
    }
}

fn route(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let next_hops = facts.recipient.and_then(|recipient| recipient.next_hops);
    refuse_if(next_hops.is_none(), Rule::NO_ROUTE, NO_ROUTE)
}

fn dnsbl(policy: &Policy, facts: &Facts<'_>) -> Opinion {
    if !policy.asks_about(facts.listener.service, facts.client)
        || facts.identity.is_some()
        || facts.is_granted
        || is_own_postmaster(policy, facts)
    {
        return Opinion::Silent;
    }
    let Some(answers) = facts.answers.dnsbl else {
        return Opinion::Wait(Lookup::Dnsbl);
    };
    let Some(score) = policy.dnsbl().score(answers) else {
        return Opinion::Silent;
    };
    Opinion::Score(Score {
        points: score.points,
        rule: policy.zone_rule(score.zone),
        reply: listed,
    })
}

/// The refusal of a client that DNS lists list.
fn listed(policy: &Policy, facts: &Facts<'_>) -> Reply<'static> {
    let answers = facts.answers.dnsbl.unwrap_or_default();
    policy.dnsbl().refusal(facts.client.address, answers)
}

fn next_hop(_: &Policy, facts: &Facts<'_>) -> Opinion {
    let next_hops = facts.recipient.and_then(|recipient| recipient.next_hops);
    let is_other = facts.next_hops.is_some() && facts.next_hops != next_hops;
    refuse_if(is_other, Rule::OTHER_NEXT_HOP, OTHER_NEXT_HOP)
}

fn is_own_postmaster(policy: &Policy, facts: &Facts<'_>) -> bool {
    facts.recipient.is_some_and(|recipient| {
        let path = &recipient.rcpt.path;
        path.source_route.is_none() && policy.is_own_postmaster(&path.mailbox)
    })
}

/// The domain of the recipient.
fn domain<'a>(facts: &Facts<'a>) -> Domain<'a> {
    facts
        .recipient
        .map_or(Domain::None, |recipient| recipient.rcpt.path.mailbox.domain)
}

fn refuse_if(condition: bool, rule: Rule, reply: Reply<'static>) -> Opinion {
    if condition {
        Opinion::Refuse(rule, reply)
    } else {
        Opinion::Silent
    }
}

fn relaying_denied(rule: Rule) -> Opinion {
    let text = address::refusal(rule);
    Opinion::Refuse(rule, Reply::fixed(550, EnhancedCode(5, 7, 1), text))
}
