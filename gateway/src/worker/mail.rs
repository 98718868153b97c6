//! The commands and the content of a mail transaction: what the policy says of them, what goes to
//! the relay, and the answers.

use std::borrow::Cow;
use std::sync::Arc;

use portcullis_smtp::data::Fault;
use portcullis_smtp::envelope::{Mail, Rcpt};
use portcullis_smtp::reply::Reply;
use portcullis_smtp::server::Blame;

use super::Gate;
use super::connection::Role;
use super::next_hop::Renew;
use super::passage::{Passage, Told, rule_name};
use super::session::Flow;
use crate::driver::Conn;
use crate::policy::{self, Verdict};
use crate::relay::received::Received;
use crate::relay::transaction::Answer;

/// More octets than this waiting for the next hop stop the client's receive.
const CONGESTION_HIGH: usize = 256 << 10;

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
        let decision = policy.mail(&session.client, mail);
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
        if let Verdict::Refuse(reply) = &decision.verdict {
            passage.refuse(rule_name(&config, decision.rule), "", reply.clone());
        }
        session.passage = Some(passage);
        if !self.answer_decision(conn, decision) {
            self.end_passage(conn);
        }
    }

    pub(super) fn rcpt(&mut self, conn: Conn, rcpt: &Rcpt<'_>) -> Flow {
        let config = Arc::clone(&self.config);
        let Role::Client(session) = &mut self.table[conn].role else {
            return Flow::Wait;
        };
        let client = session.client;
        let mut decision = config.policy.recipient(&client, rcpt);
        let mut route = None;
        if decision.is_accept() {
            match config.route(&rcpt.path.mailbox) {
                Ok(number) => route = Some(number),
                Err(no_route) => decision = no_route,
            }
        }
        let mut newly_listed = None;
        if decision.is_accept() && config.policy.depends_on_listings(&client, decision.rule) {
            if session.hold_recipient(rcpt) {
                return Flow::Wait;
            }
            if let Some(refusal) = config.policy.listings(&client, session.findings()) {
                newly_listed = session.refuse_as_listed(rule_name(&config, refusal.rule));
                decision = refusal;
            }
        }
        let Some(passage) = session.passage.as_deref_mut() else {
            return Flow::Wait;
        };
        if let (true, Some(route)) = (decision.is_accept(), route) {
            let rule = rule_name(&config, decision.rule);
            if !passage.direct(&config.routes[route].next_hops, rule) {
                decision = policy::other_next_hop();
            }
        }
        match decision.verdict {
            Verdict::Refuse(reply) => {
                let blame = self.blame(conn, decision.rule);
                let rule = rule_name(&config, decision.rule);
                if blame == Blame::Client
                    && let Some(passage) = self.passage(conn)
                {
                    passage.recipient_refused_by = Some(rule.clone());
                }
                let flow = self.refuse_recipient(conn, rule, rcpt.path.raw, reply, blame);
                if let Some(rule) = newly_listed {
                    self.report_refusal(client.address, rule);
                }
                flow
            }
            Verdict::Accept => {
                passage.relay.recipient(rcpt);
                self.pass_on(conn);
                self.deliver_answers(conn);
                Flow::Next
            }
        }
    }

    /// Refuses a recipient, once those before it have their answers.
    fn refuse_recipient(
        &mut self,
        conn: Conn,
        rule: Cow<'static, str>,
        recipient: &str,
        reply: Reply<'static>,
        blame: Blame,
    ) -> Flow {
        self.counters.recipient_refused(rule.clone());
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

    pub(super) fn message(&mut self, conn: Conn) {
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
        if let Err((rule, reply)) = result {
            passage.congested = false;
            passage.verdict = Some(Told::of_message(rule.into(), reply));
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
            let (rule, reply) = (fault.rule().into(), fault.reply().clone());
            passage.verdict = Some(Told::of_message(rule, reply));
            self.end_passage(conn);
        }
    }

    pub(super) fn message_end(&mut self, conn: Conn) {
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
                    let exempt = self
                        .session(conn)
                        .is_some_and(|session| session.client.is_exempt());
                    let blame = if exempt {
                        Blame::Nobody
                    } else {
                        Blame::UnknownRecipient
                    };
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
        passage.refuse(rule.clone(), path, reply);
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
                passage.rule.clone()
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
