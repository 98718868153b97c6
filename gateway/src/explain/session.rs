//! The commands of a client, taken through the gate's own SMTP session and policy.

use core::net::{IpAddr, SocketAddr};

use portcullis_smtp::server::{Event, Session, Settings};

use super::{Question, Step, StepOutcome, zones};
use crate::config::{self, Config};
use crate::policy::pipeline::{Answers, Counts, Recipient};
use crate::policy::{
    Client, Decision, Facts, Listener, Lookup, Rule, Senders, Service, Stage, decide,
};

/// What happens from the connection on.
pub(super) fn steps(config: &Config, question: &Question, client: Client) -> Vec<Step> {
    let mut rehearsal = Rehearsal::new(config, question, client);
    rehearsal.run();
    rehearsal.steps
}

/// A session without a client.
struct Rehearsal<'a> {
    config: &'a Config,
    question: &'a Question,
    settings: Settings,
    listener: Listener,
    client: Client,
    session: Session,
    /// With the recipients that were accepted.
    counts: Counts,
    /// The client has authenticated.
    is_identified: bool,
    helo: String,
    sender: String,
    /// The next hops of the first recipient, which are those of the transaction.
    next_hops: Option<&'a str>,
    steps: Vec<Step>,
}

/// What was decided about a command, and what was not waited for.
struct Decided {
    decision: Decision,
    waits_for: Vec<&'static str>,
}

impl<'a> Rehearsal<'a> {
    fn new(config: &'a Config, question: &'a Question, client: Client) -> Rehearsal<'a> {
        let listener = listener(config, question);
        Rehearsal {
            config,
            question,
            settings: config.session_settings(&listener),
            listener: listener.facts(),
            client,
            session: Session::new(),
            counts: question.counts,
            is_identified: false,
            helo: String::new(),
            sender: String::new(),
            next_hops: None,
            steps: Vec::new(),
        }
    }

    fn run(&mut self) {
        let question = self.question;
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
        let goes_on = self.connect()
            && self.command(&format!(
                "EHLO {}",
                question.hello.as_deref().unwrap_or(&literal)
            ))
            && self.authenticate()
            && self.command(&format!("MAIL FROM:{sender}{parameters}"));
        if !goes_on {
            return;
        }
        let zones = zones::steps(
            self.config,
            self.listener.service,
            &self.client,
            question.dnsbl.as_deref(),
        );
        self.steps.extend(zones);
        for recipient in recipients {
            self.command(&format!("RCPT TO:{recipient}"));
        }
        if self.session.recipients() > 0 && self.command("DATA") {
            self.command(".");
        }
    }

    /// As if the client had authenticated, where AUTH is offered. By which mechanism, and whether
    /// under TLS, makes no difference to decisions.
    fn authenticate(&mut self) -> bool {
        let Some(identity) = &self.question.identity else {
            return true;
        };
        if self.settings.mechanisms.is_empty() {
            return self.command("AUTH PLAIN");
        }
        self.session.set_authenticated();
        self.is_identified = true;
        let senders = identity.senders.as_deref().map(Senders::entries);
        let senders = senders.map_or("anyone".to_owned(), |entries| entries.join(" "));
        self.steps.push(Step {
            rule: Rule::AUTHENTICATED.name().to_owned(),
            answer: format!("may send as {senders}"),
            ..Step::new("auth", &*identity.user, StepOutcome::Accept)
        });
        true
    }

    fn connect(&mut self) -> bool {
        let mut out = Vec::new();
        let mut decided = self.decide(Stage::Connect, None);
        match &decided.decision {
            Decision::Refuse { reply, .. } => self.session.answer(&self.settings, reply, &mut out),
            Decision::Accept(_) | Decision::Wait(_) => {
                self.session.greet(&self.settings, &mut out);
            }
        }
        self.session.flushed();
        let subject = self.client.address.to_string();
        self.record(Stage::Connect.name(), subject, &mut decided, &out)
    }

    /// One command, and whether it was accepted. A session that is over takes none.
    fn command(&mut self, line: &str) -> bool {
        if self.session.is_ended() {
            return false;
        }
        let accepted = self.answer(line);
        self.record_end();
        accepted
    }

    fn answer(&mut self, line: &str) -> bool {
        let input = format!("{line}\r\n");
        let mut out = Vec::new();
        let event = self
            .session
            .handle(&self.settings, input.as_bytes(), &mut out)
            .event;
        let mut route = None;
        let (stage, mut decided) = match &event {
            Event::Hello { name, .. } => {
                (*name).clone_into(&mut self.helo);
                (Stage::Hello, self.decide(Stage::Hello, None))
            }
            Event::Mail(mail) => {
                self.sender = mail.path.map_or("", |path| path.raw).to_owned();
                (Stage::Mail, self.decide(Stage::Mail, None))
            }
            Event::Rcpt(rcpt) => {
                route = self.config.route(&rcpt.path.mailbox);
                let target = route.and_then(|number| self.config.routes.get(number));
                let recipient = Recipient {
                    rcpt,
                    next_hops: target.map(|route| &*route.target),
                };
                (Stage::Rcpt, self.decide(Stage::Rcpt, Some(recipient)))
            }
            Event::Message => (Stage::Data, self.decide(Stage::Data, None)),
            Event::MessageEnd { .. } => (Stage::Message, self.decide(Stage::Message, None)),
            Event::Refused { error, .. } => {
                let rule = Rule::from(*error);
                return self.record_refused(line, rule, &out);
            }
            Event::Abort(abuse) => return self.record_refused(line, Rule::from(*abuse), &out),
            _ => return false,
        };
        match &decided.decision {
            // What became of the message only the next hop can say.
            Decision::Accept(_) if stage == Stage::Message => {}
            Decision::Accept(_) | Decision::Wait(_) => {
                self.session.accept(&self.settings, &mut out);
            }
            Decision::Refuse { reply, blame, .. } => {
                self.session.refuse(&self.settings, reply, *blame, &mut out);
            }
        }
        self.session.flushed();
        let accepted = self.record(stage.name(), line.to_owned(), &mut decided, &out);
        if let (true, Event::Rcpt(rcpt), Some(number)) = (accepted, event, route) {
            let domain = self.config.policy.routed_domain(&rcpt.path.mailbox);
            self.record_route(domain.to_owned(), number);
            self.counts.user_recipients.now += 1;
        }
        accepted
    }

    /// Decides; what is not known is taken to come to nothing, and named.
    fn decide(&self, stage: Stage, recipient: Option<Recipient<'_>>) -> Decided {
        let mut waits_for = Vec::new();
        let mut answers = Answers {
            dnsbl: self.question.dnsbl.as_deref(),
        };
        loop {
            let facts = Facts {
                helo: &self.helo,
                sender: &self.sender,
                recipient,
                next_hops: self.next_hops,
                answers,
                counts: self.counts,
                is_granted: self.question.granted,
                identity: self
                    .question
                    .identity
                    .as_ref()
                    .filter(|_| self.is_identified),
                ..Facts::new(self.listener, &self.client)
            };
            let decision = decide(stage, &self.config.policy, &facts);
            match decision {
                Decision::Wait(Lookup::Dnsbl) if answers.dnsbl.is_none() => {
                    answers.dnsbl = Some(&[]);
                    waits_for.push(Lookup::Dnsbl.name());
                }
                _ => {
                    return Decided {
                        decision,
                        waits_for,
                    };
                }
            }
        }
    }

    /// What the session has refused by itself.
    fn record_refused(&mut self, line: &str, rule: Rule, out: &[u8]) -> bool {
        let stage = match line.split_once(' ').map_or(line, |(verb, _)| verb) {
            "EHLO" => Stage::Hello.name(),
            "AUTH" => "auth",
            "MAIL" => Stage::Mail.name(),
            "RCPT" => Stage::Rcpt.name(),
            _ => Stage::Data.name(),
        };
        let answer = text_of(out);
        self.steps.push(Step {
            rule: rule.name().to_owned(),
            code: code_of(&answer),
            answer,
            ..Step::new(stage, line, StepOutcome::Refuse)
        });
        false
    }

    /// Notes that the session ends itself, as after too many errors. The reply that says so comes
    /// after the one to the command.
    fn record_end(&mut self) {
        if !self.session.is_ended() {
            return;
        }
        let event = self.session.handle(&self.settings, b"", &mut Vec::new());
        let (Event::Abort(abuse), Some(last)) = (event.event, self.steps.last_mut()) else {
            return;
        };
        let Some((answer, end)) = last.answer.rsplit_once('\n') else {
            return;
        };
        let end = Step {
            rule: Rule::from(abuse).name().to_owned(),
            code: code_of(end),
            answer: end.to_owned(),
            ..Step::new(
                last.stage,
                self.client.address.to_string(),
                StepOutcome::Refuse,
            )
        };
        last.answer = answer.to_owned();
        self.steps.push(end);
    }

    fn record_route(&mut self, domain: String, number: usize) {
        let config = self.config;
        let Some(route) = config.routes.get(number) else {
            return;
        };
        self.next_hops.get_or_insert(&*route.target);
        self.steps.push(Step {
            rule: format!("route:{}", number + 1),
            answer: route.target.to_string(),
            ..Step::new("route", domain, StepOutcome::Accept)
        });
    }

    /// Notes what was decided; returns whether it was accepted.
    fn record(
        &mut self,
        stage: &'static str,
        subject: String,
        decided: &mut Decided,
        out: &[u8],
    ) -> bool {
        let accepted = decided.decision.is_accept();
        let waits_for = std::mem::take(&mut decided.waits_for);
        let outcome = match accepted {
            _ if !waits_for.is_empty() => StepOutcome::Wait,
            true => StepOutcome::Accept,
            false => StepOutcome::Refuse,
        };
        let answer = text_of(out);
        let rule = decided.decision.rule();
        self.steps.push(Step {
            rule: rule.map_or("", Rule::name).to_owned(),
            code: code_of(&answer),
            waits_for,
            answer,
            ..Step::new(stage, subject, outcome)
        });
        accepted
    }
}

/// Where the client connects to.
pub(super) fn listener(config: &Config, question: &Question) -> config::Listener {
    let listener = question.listener.as_ref().or(config.listeners.first());
    let on_port_25 = || config::Listener::new(SocketAddr::from(([0; 4], 25)), Service::Relay);
    listener.cloned().unwrap_or_else(on_port_25)
}

fn code_of(answer: &str) -> Option<u16> {
    answer.get(..3).and_then(|code| code.parse().ok())
}

/// What the session wrote, without the last line end.
fn text_of(out: &[u8]) -> String {
    String::from_utf8_lossy(out)
        .replace("\r\n", "\n")
        .trim_end()
        .to_owned()
}

/// An address as it stands in a command. What has brackets already is taken as it is, to show what
/// a malformed one does.
fn enclosed(address: &str) -> String {
    if address.starts_with('<') {
        address.to_owned()
    } else {
        format!("<{address}>")
    }
}
