//! The content of a client's message: our `Received:` line, the octets on their way to the
//! destination, and the wait for what that says.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::envelope::Mail;
use portcullis_smtp::server::Event;

use super::deadline::Deadline;
use super::end::End;
use super::lease;
use super::mail::Withheld;
use super::session::{Heard, Session};
use super::transaction::{CONGESTION_HIGH, OpenTransaction};
use crate::policy::{Rule, Stage};
use crate::relay::owner::Owner;
use crate::relay::received::{Protocol, Received};
use crate::relay::submission::Submission;
use crate::relay::transaction::ContentRefusal;

impl Session {
    /// The destination waits for the message: our own line goes first.
    pub(super) fn begin_content(&mut self, transaction: &OpenTransaction) {
        if let Some(submission) = self.submission(transaction) {
            transaction.with(|state| state.submit(submission));
        }
        let Some(hop) = transaction.hop.get() else {
            return;
        };
        transaction.with(|state| {
            let mut recipients = state.envelope.recipients();
            let recipient = recipients.next().filter(|_| recipients.len() == 0);
            self.with_received(
                transaction,
                state.envelope.is_utf8(),
                recipient,
                |received| {
                    self.reactor.with(hop, |connection| {
                        let output = std::mem::take(&mut connection.output);
                        connection.output = self.reactor.with_room(output);
                        received.write(&mut connection.output);
                    });
                },
            );
        });
        self.reactor.touch(hop);
        self.reactor.wake(hop);
    }

    /// MAIL may have declared a size, which our own line adds to.
    pub(super) fn set_trace_length(&self, mail: &Mail<'_>, transaction: &OpenTransaction) {
        if mail.size.is_none() {
            return;
        }
        let mut length = 0;
        self.with_received(transaction, mail.smtputf8, None, |received| {
            length = received.length_max();
        });
        if let Some(submission) = self.submission(transaction) {
            length += submission.length_max();
        }
        transaction.with(|state| state.envelope.set_trace_length(length));
    }

    /// What may have to be added to the message, if it is submitted.
    fn submission(&self, transaction: &OpenTransaction) -> Option<Box<Submission>> {
        if !self.service().is_submission() {
            return None;
        }
        let (id, config) = (transaction.id.to_text(), self.reactor.config());
        let submission = |date: &str| Submission::new(date, &id, &config.hostname);
        Some(Box::new(self.reactor.with_date(submission)))
    }

    fn with_received(
        &self,
        transaction: &OpenTransaction,
        utf8: bool,
        recipient: Option<&str>,
        mut take: impl FnMut(&Received<'_>),
    ) {
        let (id, config) = (transaction.id.to_text(), self.reactor.config());
        self.reactor.with_date(|date| {
            take(&Received {
                helo: &self.helo,
                client: self.client.address,
                hostname: &config.hostname,
                protocol: Protocol {
                    extended: self.is_extended(),
                    secured: self.smtp.is_secured(),
                    authenticated: self.smtp.is_authenticated(),
                    utf8,
                },
                id: &id,
                recipient,
                date,
            });
        });
    }

    /// Streams the message; ready when it is there (`true`) or given up (`false`).
    pub(super) fn poll_content(
        &mut self,
        transaction: &OpenTransaction,
        due: &mut Duration,
    ) -> Poll<Result<bool, End>> {
        self.go_on_if_relieved(transaction, due);
        let heard = self.poll_events(|session, event, out| match event {
            Event::Body(piece) => {
                session.content(transaction, piece, due);
                None
            }
            Event::MessageEnd { .. } => Some(Ok(!session.refuses_content(
                transaction,
                Stage::Message,
                out,
            ))),
            Event::MessageFault(fault) => {
                // The engine swallows the rest, and answers at its end.
                transaction.note_verdict(fault.into(), fault.reply());
                Some(Ok(false))
            }
            Event::Reset => Some(Ok(false)),
            event => session.common_event(Some(transaction), &event).map(Err),
        });
        match heard? {
            Heard::Some(is_complete) => {
                self.set_congested(transaction, false);
                return Poll::Ready(Ok(is_complete));
            }
            Heard::More { is_over: true } => return Poll::Ready(Err(End::Gone)),
            Heard::More { is_over: false } | Heard::Wait => {}
        }
        // If it is the next hop that is slow, its own deadline runs.
        if !transaction.congested.get() && Deadline::Content.is_past(&self.reactor, *due) {
            return Poll::Ready(Err(End::Timeout));
        }
        Poll::Pending
    }

    /// A piece of the message. It moves the deadline on by what arrived, at the least rate that is
    /// allowed: a timeout that each octet renewed would let a slow drip go on for ever.
    fn content(&mut self, transaction: &OpenTransaction, piece: &[u8], due: &mut Duration) {
        self.octets += piece.len() as u64;
        transaction.note(|notes| notes.octets += piece.len() as u64);
        let limits = self.limits();
        let earned = Duration::from_secs_f64(piece.len() as f64 / limits.data_rate_min as f64);
        *due = (*due + earned).min(self.reactor.now.get() + limits.data_timeout);
        let hop = transaction.hop.get();
        let written = hop.and_then(|hop| {
            self.reactor.touch(hop);
            self.reactor.with(hop, |connection| {
                let was_idle = !connection.has_output();
                let output = std::mem::take(&mut connection.output);
                connection.output = self.reactor.with_room(output);
                let output = &mut connection.output;
                let result = transaction.with(|state| state.content(piece, output));
                (result, output.len() > CONGESTION_HIGH, was_idle)
            })
        });
        let (result, is_congested, was_idle) = written.unwrap_or_else(|| {
            let nowhere = &mut Vec::new();
            let result = transaction.with(|state| state.content(piece, nowhere));
            (result, false, false)
        });
        if was_idle {
            // Its session waits for the next hop to take this.
            self.wake_next_hop(transaction);
        }
        if let Err(refusal) = result {
            transaction.note_verdict(content_rule(refusal), &refusal.reply());
            lease::abandon(&self.reactor, transaction);
        }
        self.set_congested(transaction, is_congested && result.is_ok());
    }

    fn set_congested(&self, transaction: &OpenTransaction, is_congested: bool) {
        if transaction.congested.replace(is_congested) != is_congested {
            self.reactor
                .with(self.conn, |connection| connection.congested = is_congested);
        }
    }

    /// Goes on with the message if the next hop has taken enough of it, or has gone. It was not the
    /// client who was slow.
    fn go_on_if_relieved(&self, transaction: &OpenTransaction, due: &mut Duration) {
        if !transaction.congested.get() {
            // A connection that is lost takes the congestion with it.
            self.reactor
                .with(self.conn, |connection| connection.congested = false);
            return;
        }
        let hop = transaction.hop.get();
        let waiting = hop.map(|hop| self.reactor.with(hop, |connection| connection.waiting()));
        let is_relieved = match waiting {
            Some(Some(waiting)) => waiting.is_some_and(|waiting| transaction.relieved(waiting)),
            Some(None) | None => true,
        };
        if is_relieved {
            self.set_congested(transaction, false);
            *due = self.reactor.now.get() + self.limits().data_timeout;
        }
    }

    /// Waits for what the destination says to the whole message.
    pub(super) fn poll_final(&mut self, transaction: &OpenTransaction) -> Poll<Result<(), End>> {
        if transaction.with(|state| state.has_answer()) {
            let reactor = Rc::clone(&self.reactor);
            let mut withheld = Withheld::default();
            let after = reactor.write(self.conn, |out| {
                self.give_answers(transaction, &mut withheld, out)
            });
            if after.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
        // Nothing is taken before the answer; what comes meanwhile is noticed.
        let heard = self.poll_events(|session, event, _| {
            session.common_event(Some(transaction), &event).map(Err)
        });
        match heard? {
            Heard::Some(()) | Heard::More { .. } | Heard::Wait => Poll::Pending,
        }
    }
}

fn content_rule(refusal: ContentRefusal) -> Rule {
    match refusal {
        ContentRefusal::Loop => Rule::MAIL_LOOP,
        ContentRefusal::EightBit => Rule::EIGHT_BIT,
        ContentRefusal::Utf8Header => Rule::UTF8_HEADER,
    }
}
