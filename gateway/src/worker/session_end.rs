//! The end of a session: it is taken out of what it is counted in, recorded, and its connection
//! ends.

use std::rc::Rc;

use super::end::End;
use super::records::{Record, SessionRecord};
use super::session::Session;
use crate::policy::Rule;

impl Session {
    /// Takes part of the session out of everything, and ends the connection once its last reply is
    /// out.
    pub(super) fn end(mut self, end: &End) {
        let reactor = Rc::clone(&self.reactor);
        if let Some(words) = end.last_words() {
            reactor.write(self.conn, |out| words.write(out));
        }
        self.leave_source();
        self.listings.forget(&reactor);
        self.break_off_auth();
        reactor.sessions.set(reactor.sessions.get() - 1);
        if !self.is_check() {
            reactor.counters.session_closed();
            if let Some(rule) = end.rule() {
                reactor.counters.session_ended(rule);
            }
        }
        if !self.is_with_unknown() {
            self.record_session(end.rule());
        }
        reactor.finish(self.conn, end.ending());
    }

    /// Takes the session out of those of its source.
    pub(super) fn leave_source(&mut self) {
        if let Some(source) = self.source.take() {
            self.reactor.shared.sources.leave(source);
        }
    }

    /// Records the session with its client, which has ended. `rule` has ended it; `None`: the
    /// client has.
    pub(super) fn record_session(&mut self, rule: Option<Rule>) {
        let tls = self.tls_record();
        let record = SessionRecord {
            id: self.id,
            client: self.client.address,
            user: self.user(),
            helo: std::mem::take(&mut self.helo).into_boxed_str(),
            is_refused: rule.is_some() || self.listed.is_some(),
            rule: rule.or(self.listed).unwrap_or(self.admitted),
            accepted: self.accepted,
            refused: self.refused,
            errors: self.smtp.errors(),
            octets: self.octets,
            time: self.reactor.now.get().saturating_sub(self.since),
            tls,
        };
        self.reactor.records.push(Record::Session(record));
    }
}
