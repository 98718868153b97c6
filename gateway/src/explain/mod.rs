//! What would happen to a client, stage by stage, and which rule decides.
//!
//! It begins with what the filter would do with the SYN (`packet`), by the function that the
//! program in the kernel runs. Then the commands go through the same [`Session`] as those of a
//! client, and its events with the same facts to the same [`decide`]: an explanation cannot say
//! anything else than what the gate does, syntax errors included.
//!
//! Facts in, an explanation out: nothing is looked up here. What would have to be is a value,
//! [`Explanation::waits_for`], and the caller may find out and ask again. Left out is what only
//! the next hop can say.
//!
//! [`Session`]: portcullis_smtp::server::Session
//! [`decide`]: crate::policy::decide

mod packet;
mod session;
#[cfg(test)]
mod tests;
mod zones;

use core::net::IpAddr;

use serde::Serialize;

use crate::config::{Config, Listener};
use crate::policy::dnsbl::ZoneAnswer;
use crate::policy::pipeline::Counts;
use crate::policy::{Identity, Standing};
pub use packet::{PacketFacts, RecentVerdict};

/// A client, what it would say, and what is known besides.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it connects from.
    pub client: IpAddr,
    /// Where it connects to; `None`: the first listener of the configuration.
    pub listener: Option<Listener>,
    /// The name it gives with EHLO; `None`: its address as a literal.
    pub hello: Option<String>,
    /// The sender, with or without the angle brackets; `None`: the null sender.
    pub sender: Option<String>,
    /// The recipients, with or without the angle brackets.
    pub recipients: Vec<String>,
    /// What the filter knows.
    pub packet: PacketFacts,
    /// Whether the client's address has a grant.
    pub granted: bool,
    /// Who it authenticates as, after EHLO; `None`: it does not.
    pub identity: Option<Identity>,
    /// What DNS lists say of the client; `None`: it is still to be looked up.
    pub dnsbl: Option<Vec<ZoneAnswer>>,
    /// How many sessions there are.
    pub counts: Counts,
}

impl Question {
    /// What happens to a client of which nothing else is known.
    pub fn new(client: IpAddr) -> Question {
        Question {
            client,
            listener: None,
            hello: None,
            sender: None,
            recipients: Vec::new(),
            packet: PacketFacts::default(),
            granted: false,
            identity: None,
            dnsbl: None,
            counts: Counts::default(),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The client's address, as it is seen.
    pub client: IpAddr,
    /// Whether the client may relay: `local` or `stranger`.
    pub standing: &'static str,
    /// The user that it authenticates as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What DNS lists come to together, where they are asked and the answers are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<ScoreSum>,
    /// What is still to be looked up and can change what is said here: `dnsbl` and
    /// `recent-verdict`. Each step has its own.
    pub waits_for: Vec<&'static str>,
    /// What happens, up to the stage where it ends.
    pub stages: Vec<Step>,
}

/// The scores of all zones that list a client, added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ScoreSum {
    /// The sum.
    pub sum: i64,
    /// From which sum on a client is refused.
    pub reject_at: i64,
}

/// What happens at one stage of a session.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `packet`, `connect`, `hello`, `auth`, `mail`, `dnsbl`, `rcpt`, `route`, `data` or
    /// `message`.
    pub stage: &'static str,
    /// What is looked at: an address, a command, a zone, a domain.
    pub subject: String,
    /// What comes of it.
    pub outcome: StepOutcome,
    /// The name of the rule that decides; where something is waited for, of the one that decides
    /// if that comes to nothing; for `route` which `[[route]]` of the file it is: `route:2`.
    pub rule: String,
    /// The code of the reply, where there is one.
    pub code: Option<u16>,
    /// For `dnsbl` what the zone adds to the client's score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i32>,
    /// What is still to be looked up; see [`Explanation::waits_for`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<&'static str>,
    /// The whole reply, with its lines; for `dnsbl` what the zone says; for `route` the next hops.
    pub answer: String,
}

impl Step {
    fn new(stage: &'static str, subject: impl Into<String>, outcome: StepOutcome) -> Step {
        Step {
            stage,
            subject: subject.into(),
            outcome,
            rule: String::new(),
            code: None,
            score: None,
            waits_for: Vec::new(),
            answer: String::new(),
        }
    }
}

/// What comes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// It goes on.
    Accept,
    /// The client is told no.
    Refuse,
    /// The client is told nothing.
    Drop,
    /// Something has to be looked up first. What follows is told as if that came to nothing.
    Wait,
}

impl StepOutcome {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            StepOutcome::Accept => "accept",
            StepOutcome::Refuse => "refuse",
            StepOutcome::Drop => "drop",
            StepOutcome::Wait => "wait",
        }
    }

    /// Whether the session goes on, as far as that is known.
    fn goes_on(self) -> bool {
        matches!(self, StepOutcome::Accept | StepOutcome::Wait)
    }
}

/// Why a question has no answer: a name or an address in it holds the end of a line, and would be
/// two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineBreak;

impl core::fmt::Display for LineBreak {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("names and addresses cannot hold the end of a line")
    }
}

impl core::error::Error for LineBreak {}

/// Explains what the gate with this configuration does.
///
/// # Errors
/// [`LineBreak`].
pub fn explain(config: &Config, question: &Question) -> Result<Explanation, LineBreak> {
    let said = [&question.hello, &question.sender]
        .into_iter()
        .flatten()
        .chain(&question.recipients);
    if said.into_iter().any(|text| text.contains(['\r', '\n'])) {
        return Err(LineBreak);
    }
    let client = config.policy.client(question.client);
    let mut stages = Vec::new();
    stages.extend(packet::step(config, question));
    if stages.iter().all(|step| step.outcome.goes_on()) {
        stages.extend(session::steps(config, question, client));
    }
    let is_asked = stages.iter().any(|step| step.stage == "dnsbl");
    let answers = question.dnsbl.as_deref().filter(|_| is_asked);
    let mut waits_for: Vec<_> = stages.iter().flat_map(|step| &step.waits_for).collect();
    waits_for.sort_unstable();
    waits_for.dedup();
    Ok(Explanation {
        client: client.address,
        standing: match client.standing {
            Standing::Local => "local",
            Standing::Stranger => "stranger",
        },
        user: question
            .identity
            .as_ref()
            .map(|identity| identity.user.to_string()),
        score: answers.map(|answers| zones::sum(config, answers)),
        waits_for: waits_for.into_iter().copied().collect(),
        stages,
    })
}
