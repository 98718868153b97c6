//! The worker's side of a client's session: octets to the SMTP engine, its events to the policy and
//! the relay, answers back.
//!
//! Nothing here waits. What an event needs from a next hop is asked for, the session takes no
//! further command meanwhile (further RCPTs of a pipelined group excepted), and [`Gate::resume`]
//! goes on when the answer is there.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::server::{Blame, Event, Session, Step};

use super::Gate;
use super::connection::{Ending, Receive, Role};
use super::dnsbl::{HeldRecipient, Listings};
use super::log::SessionRecord;
use super::passage::{Id, Passage, Told};
use super::progress::{Look, next_look};
use super::sources::Source;
use crate::driver::Conn;
use crate::policy::pipeline::{Answers, Count, Counts};
use crate::policy::{self, Decision, Facts, Listener, Rule, Stage, decide};

/// One client's session.
pub(super) struct ClientSession {
    pub(super) smtp: Session,
    pub(super) listener: Listener,
    pub(super) client: policy::Client,
    pub(super) id: Id,
    pub(super) helo: String,
    /// When it began.
    pub(super) since: Duration,
    /// When its next command has to be there.
    command_due: Duration,
    /// The greeting is still to come.
    pub(super) awaits_greeting: bool,
    /// The rule that let it in.
    admitted: Rule,
    /// Counted in the sessions of this source.
    source: Option<Source>,
    pub(super) passage: Option<Box<Passage>>,
    /// A refusal of ours for a recipient, kept until the next hop has answered for those before it.
    pub(super) withheld: Option<(Reply<'static>, Blame)>,
    /// What DNS lists say about the client.
    pub(super) listings: Listings,
    /// A recipient that waits for it.
    pub(super) held: Option<Box<HeldRecipient>>,
    /// The rule by which recipients were refused for it.
    pub(super) listed: Option<Rule>,
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) octets: u64,
}

/// What comes after an event.
#[derive(PartialEq, Eq)]
pub(super) enum Flow {
    /// The next event.
    Next,
    /// More octets, or an answer.
    Wait,
}

/// Unanswered input beyond this stops the receive.
const INPUT_MAX: usize = 64 << 10;
/// Replies that the client does not read, beyond this, stop the receive.
const OUTPUT_MAX: usize = 64 << 10;

/// A client that takes longer over its next command than this does so without a connection to the
/// next hop: there are fewer of those than of clients.
const HOLD_MAX: Duration = Duration::from_secs(10);

const TIMEOUT: Reply<'static> = Reply::fixed(
    421,
    EnhancedCode(4, 4, 2),
    "Timeout, closing the connection",
);
impl ClientSession {
    /// What is known of the client at this moment.
    pub(super) fn facts(&self, now: Duration) -> Facts<'_> {
        let passage = self.passage.as_deref();
        Facts {
            helo: &self.helo,
            sender: passage.map_or("", |passage| &passage.relay.envelope.sender),
            next_hops: passage.and_then(|passage| passage.next_hops.as_deref()),
            answers: Answers {
                dnsbl: self.findings(now),
            },
            ..Facts::new(self.listener, &self.client)
        }
    }
}

impl Gate {
    /// A connection was taken.
    pub(super) fn client_connected(&mut self, conn: Conn, listener: Listener, peer: SocketAddr) {
        self.counters.session_opened();
        self.sessions += 1;
        let address = peer.ip().to_canonical();
        let client = self.config.policy.client(address);
        let session = ClientSession {
            smtp: Session::new(),
            id: self.next_id(),
            helo: String::new(),
            since: self.now,
            command_due: Duration::ZERO,
            awaits_greeting: true,
            admitted: Rule::CLIENT,
            source: None,
            passage: None,
            withheld: None,
            listings: Listings::Known(None),
            held: None,
            listed: None,
            accepted: 0,
            refused: 0,
            octets: 0,
            listener,
            client,
        };
        self.table[conn].role = Role::Client(Box::new(session));
        if let Some((rule, reply)) = self.admit(conn) {
            reply.write(&mut self.table[conn].output);
            // Whoever was told to come later has said nothing yet, and is not to hold a slot for
            // long.
            self.end_session(conn, Ending::HangUp, Some(rule));
            return;
        }
        self.ask_zones(conn);
        let delay = self.config.limits.greeting_delay;
        if delay.is_zero() || client.is_exempt() {
            self.greet(conn);
        } else {
            self.wheel.set(conn.slot, self.now + delay);
        }
    }

    /// Checks a new session against the policy and the limits; returns the refusal and its rule.
    fn admit(&mut self, conn: Conn) -> Option<(Rule, Reply<'static>)> {
        let limits = &self.config.limits;
        let Role::Client(session) = &mut self.table[conn].role else {
            return None;
        };
        let mut source_sessions = Count::default();
        if !session.client.is_exempt() {
            let source = Source::from(session.client.address);
            session.source = Some(source);
            source_sessions = Count {
                now: self.shared.sources.enter(source),
                max: limits.sessions_per_source,
            };
        }
        let counts = Counts {
            stopping: self.draining,
            sessions: Count {
                now: self.sessions,
                max: self.sessions_max,
            },
            source_sessions,
        };
        let facts = Facts {
            counts,
            ..session.facts(self.now)
        };
        match decide(Stage::Connect, &self.config.policy, &facts) {
            Decision::Accept(rule) => {
                session.admitted = rule;
                None
            }
            Decision::Refuse { rule, reply, .. } => Some((rule, reply)),
            Decision::Wait(_) => None,
        }
    }

    fn greet(&mut self, conn: Conn) {
        let connection = &mut self.table[conn];
        if let Role::Client(session) = &mut connection.role {
            session.awaits_greeting = false;
            session.smtp.greet(&self.settings, &mut connection.output);
        }
        self.expect_command(conn);
        self.touch(conn);
    }

    /// The client has `command_timeout` for its next whole command, however it spreads its octets.
    /// A next hop waits less long for it.
    fn expect_command(&mut self, conn: Conn) {
        let due = self.now + self.config.limits.command_timeout;
        let Some(session) = self.session(conn) else {
            return;
        };
        session.command_due = due;
        let holds_next_hop = session
            .passage
            .as_ref()
            .is_some_and(|passage| passage.hop.is_some());
        let next = if holds_next_hop {
            due.min(self.now + HOLD_MAX)
        } else {
            due
        };
        self.wheel.set(conn.slot, next);
    }

    /// Octets came in, or (with none) an answer did.
    pub(super) fn client_input(&mut self, conn: Conn, received: &[u8]) {
        let connection = &mut self.table[conn];
        let mut kept = std::mem::take(&mut connection.input);
        let input = if kept.is_empty() {
            received
        } else {
            kept.extend_from_slice(received);
            &kept
        };
        // Answers that are there come before those to what was just received.
        let mut progress = self.deliver_answers(conn);
        progress |= self.decide_held(conn);
        let mut taken = 0;
        let mut exhausted = false;
        let written = self.table[conn].output.len();
        while let Some(step) = self.client_step(conn, &input[taken..]) {
            taken += step.consumed;
            exhausted = matches!(step.event, Event::NeedInput);
            progress |= !matches!(step.event, Event::NeedInput | Event::AwaitingAnswer);
            if self.client_event(conn, step.event) == Flow::Wait {
                break;
            }
        }
        // A command that the session answers by itself makes no event.
        progress |= self.table[conn].output.len() > written;
        let connection = &mut self.table[conn];
        let Role::Client(session) = &connection.role else {
            return;
        };
        let waits_for_input = session.held.is_none()
            && session
                .passage
                .as_ref()
                .is_none_or(|passage| !passage.owes_answer());
        if taken == 0 && !kept.is_empty() {
            connection.input = kept;
        } else if taken < input.len() {
            connection.input = input[taken..].to_vec();
        }
        if exhausted && waits_for_input && connection.receive == Receive::Ended {
            self.end_session(conn, Ending::Quiet, None);
            return;
        }
        self.client_deadline(conn, progress, waits_for_input);
        self.client_hold(conn);
        self.touch(conn);
    }

    fn client_step<'a>(&mut self, conn: Conn, input: &'a [u8]) -> Option<Step<'a>> {
        let connection = &mut self.table[conn];
        let Role::Client(session) = &mut connection.role else {
            return None;
        };
        if session.withheld.is_some()
            || session.held.is_some()
            || connection.output.len() > OUTPUT_MAX
        {
            return None;
        }
        Some(
            session
                .smtp
                .handle(&self.settings, input, &mut connection.output),
        )
    }

    fn client_event(&mut self, conn: Conn, event: Event<'_>) -> Flow {
        match event {
            Event::NeedInput | Event::AwaitingAnswer => return Flow::Wait,
            Event::Hello { name, .. } => self.hello(conn, name),
            Event::Mail(mail) => self.mail(conn, &mail),
            Event::Rcpt(rcpt) => return self.rcpt(conn, &rcpt),
            Event::Message => self.message(conn),
            Event::Body(piece) => self.content(conn, piece),
            Event::MessageFault(fault) => self.fault(conn, fault),
            Event::MessageEnd { .. } => self.message_end(conn),
            Event::Reset => self.end_passage(conn),
            Event::Refused { verb, error, reply } => {
                self.refused_by_smtp(conn, verb, error.into(), reply);
            }
            Event::Quit => {
                let session = self.session(conn);
                let talks_on = session.is_some_and(|session| session.smtp.talks_on());
                let ending = if talks_on {
                    Ending::Linger
                } else {
                    Ending::Quiet
                };
                self.end_session(conn, ending, None);
            }
            Event::Abort(abuse) => {
                self.end_session(conn, Ending::Linger, Some(abuse.into()));
            }
        }
        Flow::Next
    }

    fn hello(&mut self, conn: Conn, name: &str) {
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        name.clone_into(&mut session.helo);
        let decision = decide(Stage::Hello, &self.config.policy, &session.facts(self.now));
        self.answer_decision(conn, decision);
    }

    /// Answers what the policy alone decides; returns whether it was accepted.
    pub(super) fn answer_decision(&mut self, conn: Conn, decision: Decision) -> bool {
        match decision {
            Decision::Accept(_) | Decision::Wait(_) => {
                self.accept(conn);
                true
            }
            Decision::Refuse { reply, blame, .. } => {
                self.refuse(conn, &reply, blame);
                false
            }
        }
    }

    /// Gives the usual positive answer to what the client waits for.
    pub(super) fn accept(&mut self, conn: Conn) {
        let connection = &mut self.table[conn];
        if let Role::Client(session) = &mut connection.role {
            session.smtp.accept(&self.settings, &mut connection.output);
        }
    }

    /// Answers what the client waits for. A refusal does not count against it.
    pub(super) fn answer(&mut self, conn: Conn, reply: &Reply<'_>) {
        self.refuse(conn, reply, Blame::Nobody);
    }

    /// Answers what the client waits for; what a refusal counts against, `blame` says.
    pub(super) fn refuse(&mut self, conn: Conn, reply: &Reply<'_>, blame: Blame) {
        let connection = &mut self.table[conn];
        if let Role::Client(session) = &mut connection.role {
            session
                .smtp
                .refuse(&self.settings, reply, blame, &mut connection.output);
        }
    }

    /// An answer for this client may be there, or room for what it sends: goes on with it.
    pub(super) fn resume(&mut self, conn: Conn) {
        if self
            .table
            .current(conn)
            .is_some_and(|connection| connection.is_open())
        {
            self.client_input(conn, &[]);
        }
    }

    /// Stops or continues the receive: too much is waiting to be answered, to be read by the
    /// client, or to be taken by the next hop.
    pub(super) fn client_hold(&mut self, conn: Conn) {
        let connection = &self.table[conn];
        let Role::Client(session) = &connection.role else {
            return;
        };
        let congested = session
            .passage
            .as_ref()
            .is_some_and(|passage| passage.congested);
        let held =
            congested || connection.input.len() > INPUT_MAX || connection.output.len() > OUTPUT_MAX;
        self.table[conn].held = held;
    }

    fn client_deadline(&mut self, conn: Conn, progress: bool, waits_for_input: bool) {
        let Role::Client(session) = &self.table[conn].role else {
            return;
        };
        if session.awaits_greeting {
            return;
        }
        match &session.passage {
            _ if session.held.is_some() => self.expect_answer(conn),
            Some(passage) if passage.waits_in_queue() => {}
            _ if !waits_for_input => self.wheel.clear(conn.slot),
            Some(passage) if passage.in_content() => {
                let deadline = passage.content_deadline();
                self.wheel.set(conn.slot, deadline);
            }
            _ if progress => self.expect_command(conn),
            _ => return,
        }
        // What was asked about the deadline before is settled.
        self.table[conn].progress = None;
    }

    /// The client's deadline has passed.
    pub(super) fn client_expired(&mut self, conn: Conn) {
        let now = self.now;
        let Role::Client(session) = &self.table[conn].role else {
            return;
        };
        let due = session.command_due;
        let passage = session.passage.as_deref();
        let holds_next_hop = passage.is_some_and(|passage| passage.hop.is_some());
        let queue_due = passage
            .filter(|passage| passage.waits_in_queue())
            .and_then(|passage| passage.queue_due);
        if session.awaits_greeting {
            self.greet(conn);
        } else if session.held.is_some() && queue_due.is_none_or(|due| now < due) {
            // Nobody says anything about it in time; decided there, and if it is too early, waited
            // on.
            self.resume.push(conn);
        } else if passage.is_some_and(Passage::waits_in_queue) {
            self.queue_expired(conn);
        } else if passage.is_some_and(|passage| passage.congested) {
            // It is the next hop that is slow, and its own deadline runs.
        } else if holds_next_hop && now < due && !passage.is_some_and(Passage::in_content) {
            self.park(conn);
            self.wheel.set(conn.slot, due);
        } else if passage.is_some_and(Passage::in_content) {
            self.dismiss(conn, &TIMEOUT, Rule::TIMEOUT);
        } else {
            // It may be busy with reading our replies.
            self.ask_progress(conn);
        }
    }

    /// A client whose time for a command is over has taken of our replies what `look` says;
    /// `unsent`: not all of them.
    pub(super) fn client_progress(&mut self, conn: Conn, look: Look, unsent: bool) {
        let (now, timeout) = (self.now, self.config.limits.command_timeout);
        let Some(session) = self.session(conn) else {
            return;
        };
        if look == Look::Moved {
            session.command_due = now + timeout;
        }
        let due = session.command_due;
        if unsent && (look == Look::First || now < due) {
            self.wheel.set(conn.slot, now + next_look(timeout));
        } else if now < due {
            self.wheel.set(conn.slot, due);
        } else {
            self.dismiss(conn, &TIMEOUT, Rule::TIMEOUT);
        }
    }

    /// Ends a session from our side, with a 421.
    pub(super) fn dismiss(&mut self, conn: Conn, reply: &Reply<'_>, rule: Rule) {
        if let Some(passage) = self.passage(conn) {
            passage
                .verdict
                .get_or_insert_with(|| Told::of_message(rule, reply.clone().into_owned()));
        }
        reply.write(&mut self.table[conn].output);
        self.end_session(conn, Ending::Linger, Some(rule));
    }

    /// The peer has closed its side. Answers still owed are given first, for clients that close
    /// early and read on.
    pub(super) fn client_at_end(&mut self, conn: Conn) {
        self.client_input(conn, &[]);
    }

    /// Ends the session's part in everything, and the connection once its last reply is out.
    pub(super) fn end_session(&mut self, conn: Conn, ending: Ending, rule: Option<Rule>) {
        if !matches!(self.table[conn].role, Role::Client(_)) {
            return;
        }
        self.end_passage(conn);
        let Role::Client(session) = std::mem::replace(&mut self.table[conn].role, Role::None)
        else {
            return;
        };
        if let Some(source) = session.source {
            self.shared.sources.leave(source);
        }
        self.sessions -= 1;
        self.counters.session_closed();
        if let Some(rule) = rule {
            self.counters.session_ended(rule);
        }
        let record = SessionRecord {
            id: session.id,
            client: session.client.address,
            helo: &session.helo,
            decision: if rule.is_some() || session.listed.is_some() {
                "refused"
            } else {
                "served"
            },
            rule: rule.or(session.listed).unwrap_or(session.admitted),
            accepted: session.accepted,
            refused: session.refused,
            errors: session.smtp.errors(),
            octets: session.octets,
            time: self.now.saturating_sub(session.since),
        };
        record.write();
        self.wheel.clear(conn.slot);
        let connection = &mut self.table[conn];
        connection.input = Vec::new();
        connection.progress = None;
        connection.finish(ending);
        self.touch(conn);
    }
}
