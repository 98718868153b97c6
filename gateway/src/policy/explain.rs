//! What would happen to a client, stage by stage, and which rule decides: the live session without
//! its sockets.
//!
//! The commands go through the same [`Session`] and the same [`Policy`](super::Policy) as those of
//! a client, so that an explanation cannot say anything else than what the gate does, syntax errors
//! included. What it leaves out is what depends on the moment: how many sessions there are, and
//! what the next hop says.

use core::net::IpAddr;

use portcullis_smtp::server::{Event, Session, Settings};
use serde::Serialize;

use super::dnsbl::{self, Finding, Meaning};
use super::{Client, Decision, Rule, Standing, Verdict};
use crate::config::{Config, FilterMode, NextHop, Unlisted};
use crate::lists::ListAction;

/// A client, and what it would say.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it connects from.
    pub client: IpAddr,
    /// The name it gives with EHLO; `None`: its address as a literal.
    pub hello: Option<String>,
    /// The sender, with or without the angle brackets; `None`: the null sender.
    pub sender: Option<String>,
    /// The recipients, with or without the angle brackets.
    pub recipients: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The client's address, as it is seen.
    pub client: IpAddr,
    /// Whether the client may relay: `local` or `stranger`.
    pub standing: &'static str,
    /// What happens, up to the stage where it ends.
    pub stages: Vec<Stage>,
}

/// One stage of a session.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// `packet`, `connect`, `hello`, `mail`, `dnsbl`, `rcpt` or `route`.
    pub stage: &'static str,
    /// What is looked at: an address, a command, a zone, a domain.
    pub subject: String,
    /// What comes of it.
    pub outcome: Outcome,
    /// The name of the rule that decides; for `route` which `[[route]]` of the file it is:
    /// `route:2`.
    pub rule: String,
    /// The code of the reply, where there is one.
    pub code: Option<u16>,
    /// For `dnsbl` what the zone adds to the client's score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i32>,
    /// The whole reply, with its lines; for `dnsbl` what the zone says; for `route` the next hops.
    pub answer: String,
}

/// What comes of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes on.
    Accept,
    /// The client is told no.
    Refuse,
    /// The client is told nothing.
    Drop,
}

impl Outcome {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Accept => "accept",
            Outcome::Refuse => "refuse",
            Outcome::Drop => "drop",
        }
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

/// Explains what `config` does with a client that no DNS list is asked about.
///
/// # Errors
/// [`LineBreak`].
pub fn explain(config: &Config, question: &Question) -> Result<Explanation, LineBreak> {
    explain_with(config, question, None)
}

/// Whether DNS lists have a say about this client.
pub fn depends_on_listings(config: &Config, question: &Question) -> bool {
    let policy = &config.policy;
    let client = policy.client(question.client);
    policy.asks_about(&client) && policy.connect(&client).is_accept()
}

/// Explains what `config` does with a client about whom DNS lists have said this; `None`: they were
/// not asked.
///
/// # Errors
/// [`LineBreak`].
pub fn explain_with(
    config: &Config,
    question: &Question,
    findings: Option<&[Finding]>,
) -> Result<Explanation, LineBreak> {
    let said = [&question.hello, &question.sender]
        .into_iter()
        .flatten()
        .chain(&question.recipients);
    if said.into_iter().any(|text| text.contains(['\r', '\n'])) {
        return Err(LineBreak);
    }
    let client = config.policy.client(question.client);
    let mut rehearsal = Rehearsal::new(config, client, findings);
    rehearsal.run(question);
    Ok(Explanation {
        client: client.address,
        standing: match client.standing {
            Standing::Local => "local",
            Standing::Stranger => "stranger",
        },
        stages: rehearsal.stages,
    })
}

/// A session with nobody.
struct Rehearsal<'c> {
    config: &'c Config,
    settings: Settings,
    client: Client,
    session: Session,
    findings: Option<&'c [Finding]>,
    /// The route of the first recipient, which is that of the transaction.
    route: Option<usize>,
    stages: Vec<Stage>,
}

impl<'c> Rehearsal<'c> {
    fn new(config: &'c Config, client: Client, findings: Option<&'c [Finding]>) -> Rehearsal<'c> {
        let settings = config.session_settings();
        Rehearsal {
            config,
            settings,
            client,
            session: Session::new(),
            findings,
            route: None,
            stages: Vec::new(),
        }
    }

    fn run(&mut self, question: &Question) {
        let literal = match self.client.address {
            IpAddr::V4(address) => format!("[{address}]"),
            IpAddr::V6(address) => format!("[IPv6:{address}]"),
        };
        let sender = enclosed(question.sender.as_deref().unwrap_or_default());
        let recipients: Vec<_> = question
            .recipients
            .iter()
            .map(|text| enclosed(text))
            .collect();
        // RFC 6531 section 3.4: announced with MAIL, whichever address needs it.
        let is_ascii = sender.is_ascii() && recipients.iter().all(|text| text.is_ascii());
        let parameters = if is_ascii { "" } else { " SMTPUTF8" };
        let goes_on = self.packet()
            && self.connect()
            && self.command(
                "hello",
                &format!("EHLO {}", question.hello.as_deref().unwrap_or(&literal)),
            )
            && self.command("mail", &format!("MAIL FROM:{sender}{parameters}"));
        if goes_on {
            self.zones();
            for recipient in recipients {
                self.command("rcpt", &format!("RCPT TO:{recipient}"));
            }
        }
    }

    /// What the filter does with the first packet. It does not see the loopback.
    fn packet(&mut self) -> bool {
        let Some(filter) = self
            .config
            .filter
            .as_ref()
            .filter(|filter| filter.mode != FilterMode::Off)
        else {
            return true;
        };
        if self.client.address.is_loopback() {
            return true;
        }
        let (rule, listed) = match self.config.policy.lists().filtered(self.client.address) {
            Some(listing) if listing.action == ListAction::Permit => {
                (Rule::PermitList(listing.list), false)
            }
            Some(listing) => (Rule::DropList(listing.list), true),
            None if filter.unlisted == Unlisted::Drop => (Rule::UnlistedDrop, true),
            None => (Rule::Unlisted, false),
        };
        let monitored = filter.mode == FilterMode::Monitor;
        let (outcome, answer) = match listed {
            true if monitored => (Outcome::Accept, "only counted: the filter monitors"),
            true => (Outcome::Drop, ""),
            false => (Outcome::Accept, ""),
        };
        let subject = self.client.address.to_string();
        self.record("packet", subject, outcome, rule, answer.to_owned())
    }

    fn connect(&mut self) -> bool {
        let mut out = Vec::new();
        let decision = self.config.policy.connect(&self.client);
        match &decision.verdict {
            Verdict::Accept => self.session.greet(&self.settings, &mut out),
            Verdict::Refuse(reply) => self.session.answer(&self.settings, reply, &mut out),
        }
        self.session.flushed();
        let subject = self.client.address.to_string();
        let outcome = outcome_of(&decision);
        self.record("connect", subject, outcome, decision.rule, text_of(&out))
    }

    /// What each zone says about the client, before its first recipient.
    fn zones(&mut self) {
        let policy = &self.config.policy;
        let Some(findings) = self.findings.filter(|_| policy.asks_about(&self.client)) else {
            return;
        };
        let refused = policy.listings(&self.client, findings).is_some();
        for (number, zone) in (0..).zip(&policy.dnsbl().zones) {
            let finding = findings.iter().find(|finding| finding.zone == zone.name);
            let answer = finding.map_or(&dnsbl::Answer::Silent, |finding| &finding.answer);
            let meaning = zone.meaning(answer);
            let listed = meaning == Meaning::Listed;
            let outcome = if refused && listed && zone.score > 0 {
                Outcome::Refuse
            } else {
                Outcome::Accept
            };
            let said = match answer {
                dnsbl::Answer::Addresses(addresses) => {
                    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                    texts.join(" ")
                }
                dnsbl::Answer::NotListed | dnsbl::Answer::Silent | dnsbl::Answer::SwitchedOff => {
                    String::new()
                }
            };
            let answer = match meaning {
                Meaning::Listed => format!("{said}: listed, score {}", zone.score),
                Meaning::NotListed if said.is_empty() => "not listed".to_owned(),
                Meaning::NotListed => format!("{said}: not among its replies, not listed"),
                Meaning::Ignored(_) => format!("{said}: never a listing"),
                Meaning::Silent => "silent: counts as not listed".to_owned(),
                Meaning::SwitchedOff => {
                    "switched off: it lists the loopback address, which no list may".to_owned()
                }
            };
            self.stages.push(Stage {
                stage: "dnsbl",
                subject: zone.name.to_string(),
                outcome,
                rule: policy.rule_name(Rule::Dnsbl(number)).to_owned(),
                code: None,
                score: Some(if listed { zone.score } else { 0 }),
                answer,
            });
        }
    }

    /// One command, and whether it was accepted.
    fn command(&mut self, stage: &'static str, line: &str) -> bool {
        let input = format!("{line}\r\n");
        let mut out = Vec::new();
        let event = self
            .session
            .handle(&self.settings, input.as_bytes(), &mut out)
            .event;
        let policy = &self.config.policy;
        let mut route = None;
        let decision = match &event {
            Event::Hello { name, .. } => Some(policy.hello(&self.client, name)),
            Event::Mail(mail) => Some(policy.mail(&self.client, mail)),
            Event::Rcpt(rcpt) => {
                let mut decision = policy.recipient(&self.client, rcpt);
                if decision.is_accept() {
                    match self.config.route(&rcpt.path.mailbox) {
                        Err(no_route) => decision = no_route,
                        Ok(number) if self.is_other_next_hop(number) => {
                            decision = super::other_next_hop();
                        }
                        Ok(number) => {
                            route = Some((policy.routed_domain(&rcpt.path.mailbox), number));
                        }
                    }
                }
                if decision.is_accept()
                    && policy.depends_on_listings(&self.client, decision.rule)
                    && let Some(refusal) =
                        policy.listings(&self.client, self.findings.unwrap_or_default())
                {
                    decision = refusal;
                }
                Some(decision)
            }
            _ => None,
        };
        match decision.as_ref().map(|decision| &decision.verdict) {
            Some(Verdict::Accept) => self.session.accept(&self.settings, &mut out),
            Some(Verdict::Refuse(reply)) => self.session.answer(&self.settings, reply, &mut out),
            None => {}
        }
        self.session.flushed();
        let rule = decision
            .as_ref()
            .map_or(Rule::Protocol, |decision| decision.rule);
        let outcome = decision.as_ref().map_or(Outcome::Refuse, outcome_of);
        let accepted = self.record(stage, line.to_owned(), outcome, rule, text_of(&out));
        if let (true, Some((domain, number))) = (accepted, route) {
            self.route.get_or_insert(number);
            self.record_route(domain.to_owned(), number);
        }
        accepted
    }

    /// Whether a route leads elsewhere than that of the recipients before.
    fn is_other_next_hop(&self, number: usize) -> bool {
        let next_hops =
            |number: usize| self.config.routes.get(number).map(|route| &route.next_hops);
        self.route
            .is_some_and(|chosen| next_hops(chosen) != next_hops(number))
    }

    fn record_route(&mut self, domain: String, number: usize) {
        let Some(route) = self.config.routes.get(number) else {
            return;
        };
        let hops: Vec<_> = route.next_hops.iter().map(NextHop::to_string).collect();
        self.stages.push(Stage {
            stage: "route",
            subject: domain,
            outcome: Outcome::Accept,
            rule: format!("route:{}", number + 1),
            code: None,
            score: None,
            answer: hops.join(", "),
        });
    }

    fn record(
        &mut self,
        stage: &'static str,
        subject: String,
        outcome: Outcome,
        rule: Rule,
        answer: String,
    ) -> bool {
        let rule = self.config.policy.rule_name(rule).to_owned();
        let code = answer.get(..3).and_then(|code| code.parse().ok());
        self.stages.push(Stage {
            stage,
            subject,
            outcome,
            rule,
            code,
            score: None,
            answer,
        });
        outcome == Outcome::Accept
    }
}

fn outcome_of(decision: &Decision) -> Outcome {
    if decision.is_accept() {
        Outcome::Accept
    } else {
        Outcome::Refuse
    }
}

/// What the session wrote, without the last line end.
fn text_of(out: &[u8]) -> String {
    String::from_utf8_lossy(out)
        .replace("\r\n", "\n")
        .trim_end()
        .to_owned()
}

/// An address as it stands in a command. What has brackets already is taken as it is, for those who
/// want to see what a malformed one does.
fn enclosed(address: &str) -> String {
    if address.starts_with('<') {
        address.to_owned()
    } else {
        format!("<{address}>")
    }
}
