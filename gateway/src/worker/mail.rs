//! The commands and the content of a mail transaction: what the policy says of them, what goes to
//! the relay, and the answers.

use std::sync::Arc;

use portcullis_smtp::data::Fault;
use portcullis_smtp::envelope::{Mail, Rcpt};
use portcullis_smtp::reply::Reply;
use portcullis_smtp::server::{Blame, Verb};

use super::Gate;
use super::connection::Role;
use super::log::TransactionRecord;
use super::next_hop::Renew;
use super::passage::{Passage, Told};
use super::session::Flow;
use crate::driver::Conn;
use crate::policy::pipeline::Recipient;
use crate::policy::{Decision, Facts, Lookup, Rule, RuleKind, Stage, decide};
use crate::relay::received::Received;
use crate::relay::transaction::{Answer, Unfit};

/// More octets than this waiting for the next hop stop the client's receive.
const CONGESTION_HIGH: usize = 256 << 10;

/// The rule by which a message is not passed on.
const fn rule_of(unfit: Unfit) -> Rule {
    match unfit {
        Unfit::MailLoop => Rule::MAIL_LOOP,
        Unfit::EightBit => Rule::EIGHT_BIT,
        Unfit::Utf8Header => Rule::UTF8_HEADER,
    }
}

impl Gate {
    pub(super) fn mail(&mut self, conn: Conn, mail: &Mail<'_>) {
        self.end_passage(conn);
        let (id, now) = (self.next_id(), self.now);
        let config = Arc::clone(&self.config);
        let policy = &config.policy;
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        // A new configuration may see this client with other eyes.
        session.client = policy.client(session.client.address);
        let facts = Facts {
            sender: mail.path.map_or("", |path| path.raw),
            next_hops: None,
            ..session.facts(now)
        };
        let decision = decide(Stage::Mail, policy, &facts);
        let mut passage = Box::new(Passage::new(mail, id, now));
        if passage.relay.envelope.declares_size() {
            let received = Received {
                helo: &session.helo,
                client: session.client.address,
                hostname: &config.hostname,
                extended: session.smtp.is_extended(),
                utf8: mail.smtputf8,
                id: &id.to_string(),
                recipient: None,
                date: self.clock.date(),
            };
            let length = received.length_max();
            passage.relay.envelope.set_trace_length(length);
        }
        if let Decision::Refuse { rule, reply, .. } = &decision {
            passage.refuse(*rule, "", reply.clone());
        }
        session.passage = Some(passage);
        if !self.answer_decision(conn, decision) {
            self.end_passage(conn);
        }
    }

    pub(super) fn rcpt(&mut self, conn: Conn, rcpt: &Rcpt<'_>) -> Flow {
        let config = Arc::clone(&self.config);
        let now = self.now;
        let Role::Client(session) = &mut self.table[conn].role else {
            return Flow::Wait;
        };
        let route = config.route(&rcpt.path.mailbox);
        let route = route.and_then(|number| config.routes.get(number));
        let facts = Facts {
            recipient: Some(Recipient {
                rcpt,
                next_hops: route.map(|route| &*route.target),
            }),
            ..session.facts(now)
        };
        match decide(Stage::Rcpt, &config.policy, &facts) {
            Decision::Wait(Lookup::Dnsbl) => {
                session.hold_recipient(rcpt);
                Flow::Wait
            }
            Decision::Refuse { rule, reply, blame } => {
                let client = session.client.address;
                let newly_listed = (rule.kind() == RuleKind::Dnsbl)
                    .then(|| session.refuse_as_listed(rule))
                    .flatten();
                let flow = self.refuse_recipient(conn, rule, rcpt.path.raw, reply, blame);
                if let Some(rule) = newly_listed {
                    self.report_refusal(client, rule);
                }
                flow
            }
            Decision::Accept(rule) => {
                let Some(passage) = session.passage.as_deref_mut() else {
                    return Flow::Wait;
                };
                if let Some(route) = route {
                    passage.direct(route, rule);
                }
                passage.relay.recipient(rcpt);
                self.pass_on(conn);
                self.deliver_answers(conn);
                Flow::Next
            }
        }
    }

    /// The SMTP session has refused a command by itself: counted, and named in the log if nothing
    /// better comes of the transaction.
    pub(super) fn refused_by_smtp(
        &mut self,
        conn: Conn,
        verb: Verb,
        rule: Rule,
        reply: &'static Reply<'static>,
    ) {
        let id = self.next_id();
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        match (verb, session.passage.as_deref_mut()) {
            (Verb::Mail, _) => {
                let told = Told::of_message(rule, reply.clone());
                let record = TransactionRecord::refused(id, session.client.address, &told);
                record.write(&self.counters);
            }
            (Verb::Rcpt, passage) => {
                session.refused += 1;
                self.counters.recipient_refused(rule);
                if let Some(passage) = passage {
                    passage.refused += 1;
                    passage.refuse(rule, "", reply.clone());
                }
            }
            (Verb::Content, Some(passage)) if passage.refusal.is_none() => {
                passage.refuse(rule, "", reply.clone());
                self.counters.command_refused(rule);
            }
            (Verb::Content | Verb::Other, _) => self.counters.command_refused(rule),
        }
    }

    /// Refuses a recipient, once those before it have their answers.
    fn refuse_recipient(
        &mut self,
        conn: Conn,
        rule: Rule,
        recipient: &str,
        reply: Reply<'static>,
        blame: Blame,
    ) -> Flow {
        self.counters.recipient_refused(rule);
        let Some(session) = self.session(conn) else {
            return Flow::Wait;
        };
        session.refused += 1;
        let Some(passage) = session.passage.as_deref_mut() else {
            return Flow::Wait;
        };
        passage.refuse(rule, recipient, reply.clone());
        if passage.relay.unanswered() > 0 {
            session.withheld = Some((reply, blame));
            return Flow::Wait;
        }
        self.refuse(conn, &reply, blame);
        Flow::Next
    }

    /// What the policy says of a message that is about to come, or is there: a refusal ends the
    /// transaction. Returns whether it goes on.
    fn admits_content(&mut self, conn: Conn, stage: Stage) -> bool {
        let now = self.now;
        let Role::Client(session) = &mut self.table[conn].role else {
            return false;
        };
        let decision = decide(stage, &self.config.policy, &session.facts(now));
        let Decision::Refuse { rule, reply, blame } = decision else {
            return true;
        };
        if let Some(passage) = session.passage.as_deref_mut() {
            passage.verdict = Some(Told::of_message(rule, reply.clone()));
        }
        self.end_passage(conn);
        self.refuse(conn, &reply, blame);
        false
    }

    pub(super) fn message(&mut self, conn: Conn) {
        if !self.admits_content(conn, Stage::Data) {
            return;
        }
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.asked = true;
        passage.relay.ask();
        if !passage.relay.is_settled() {
            self.pass_on(conn);
        }
        self.deliver_answers(conn);
    }

    pub(super) fn content(&mut self, conn: Conn, piece: &[u8]) {
        let Some(session) = self.session(conn) else {
            return;
        };
        session.octets += piece.len() as u64;
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.octets += piece.len() as u64;
        passage.earn_time(piece.len(), self.now, &self.config.limits);
        let mut nowhere = Vec::new();
        let output = match passage.hop {
            Some(hop) => &mut self.table[hop].output,
            None => &mut nowhere,
        };
        let result = passage.relay.content(piece, output);
        passage.congested = output.len() > CONGESTION_HIGH;
        let hop = passage.hop;
        if let Err((unfit, reply)) = result {
            passage.congested = false;
            passage.verdict = Some(Told::of_message(rule_of(unfit), reply));
        }
        let lost = passage
            .relay
            .is_settled()
            .then(|| passage.hop.take())
            .flatten();
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        if let Some(hop) = lost {
            self.drop_next_hop(hop);
        } else if let Some(hop) = hop {
            self.next_hop_deadline(hop, Renew::No);
            self.touch(hop);
        }
    }

    /// The session has given the message up, and answers for it at its end.
    pub(super) fn fault(&mut self, conn: Conn, fault: Fault) {
        if let Some(passage) = self.passage(conn) {
            let (rule, reply) = (fault.into(), fault.reply().clone());
            passage.verdict = Some(Told::of_message(rule, reply));
            self.end_passage(conn);
        }
    }

    pub(super) fn message_end(&mut self, conn: Conn) {
        if !self.admits_content(conn, Stage::Message) {
            return;
        }
        let Some(session) = self.session(conn) else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.asked = true;
        passage.congested = false;
        match passage.hop {
            Some(hop) => {
                let connection = &mut self.table[hop];
                if let Role::NextHop(next_hop) = &mut connection.role {
                    passage
                        .relay
                        .end(Some(&mut next_hop.smtp), &mut connection.output);
                    next_hop.awaits_final = passage.relay.is_ending();
                    self.next_hop_deadline(hop, Renew::Yes);
                    self.touch(hop);
                }
            }
            None => passage.relay.end(None, &mut Vec::new()),
        }
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        self.deliver_answers(conn);
    }

    /// Gives the client the answers that are there. Returns whether there was one.
    pub(super) fn deliver_answers(&mut self, conn: Conn) -> bool {
        let mut delivered = false;
        while let Some(answer) = self
            .passage(conn)
            .and_then(|passage| passage.relay.next_answer())
        {
            delivered = true;
            match answer {
                Answer::Recipient(reply) => self.answer(conn, &reply),
                Answer::RecipientRefused(path, reply) => {
                    self.answer(conn, &reply);
                    self.note_recipient(conn, &path, reply);
                }
                Answer::RecipientUnknown(path, reply) => {
                    let blame = self.session(conn).map_or(Blame::Nobody, |session| {
                        session.client.blame_for_unknown_recipient()
                    });
                    self.refuse(conn, &reply, blame);
                    self.note_recipient(conn, &path, reply);
                }
                Answer::Proceed => {
                    self.accept(conn);
                    self.begin_content(conn);
                }
                Answer::Refused(reply) => {
                    self.answer(conn, &reply);
                    self.note_final(conn, reply);
                    self.end_passage(conn);
                }
                Answer::Final(reply) => {
                    self.answer(conn, &reply);
                    self.note_final(conn, reply);
                    self.end_passage(conn);
                }
            }
        }
        let Some(session) = self.session(conn) else {
            return delivered;
        };
        let unanswered = session
            .passage
            .as_ref()
            .map_or(0, |passage| passage.relay.unanswered());
        if unanswered == 0
            && let Some((reply, blame)) = session.withheld.take()
        {
            self.refuse(conn, &reply, blame);
            delivered = true;
        }
        self.touch(conn);
        delivered
    }

    fn note_recipient(&mut self, conn: Conn, path: &str, reply: Reply<'static>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        session.refused += 1;
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let rule = passage.reached();
        passage.refuse(rule, path, reply);
        self.counters.recipient_refused(rule);
    }

    fn note_final(&mut self, conn: Conn, reply: Reply<'static>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        session.accepted += u32::from(reply.is_positive());
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        // What was refused because of its content has its verdict already.
        if passage.verdict.is_none() {
            let rule = if reply.is_positive() {
                passage.rule
            } else {
                passage.reached()
            };
            passage.verdict = Some(Told::of_message(rule, reply));
        }
    }

    /// The next hop waits for the message: our own line goes first.
    fn begin_content(&mut self, conn: Conn) {
        let (now, data_timeout) = (self.now, self.config.limits.data_timeout);
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        passage.asked = false;
        passage.content_due = Some(now + data_timeout);
        if let Some(hop) = passage.hop {
            let (id, helo) = (passage.id.to_string(), std::mem::take(&mut session.helo));
            let (client, extended) = (session.client.address, session.smtp.is_extended());
            let mut recipients = passage.relay.envelope.recipients();
            let received = Received {
                helo: &helo,
                client,
                hostname: &self.config.hostname,
                extended,
                utf8: passage.relay.envelope.is_utf8(),
                id: &id,
                recipient: if recipients.len() == 1 {
                    recipients.next()
                } else {
                    None
                },
                date: self.clock.date(),
            };
            received.write(&mut self.table[hop].output);
            self.touch(hop);
            if let Some(session) = self.session(conn) {
                session.helo = helo;
            }
        }
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
    }
}
