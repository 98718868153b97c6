//! Whether a client that has connected is let in: the policy, and the limits of the gate and of its
//! source.

use portcullis_smtp::reply::Reply;

use super::end::End;
use super::reactor::Service;
use super::session::Session;
use super::sources::ClientSource;
use crate::policy::pipeline::{Count, Counts};
use crate::policy::{Decision, Facts, Rule, Stage, decide};

impl Session {
    /// Holds a new session to the policy and the limits.
    pub(super) fn admit(&mut self) -> Result<(), End> {
        if self.is_check() {
            let is_open = self.reactor.service.get() == Service::Open;
            return if is_open { Ok(()) } else { Err(End::Stopping) };
        }
        self.decide_connect().map_err(|(rule, reply)| {
            // Before a handshake there is nothing that the client could read.
            if !self.listener().is_implicit() {
                self.reactor.write(self.conn, |out| reply.write(out));
            }
            End::Refused(rule)
        })
    }

    /// Counts the client in, and holds it to the policy and the limits.
    ///
    /// # Errors
    /// The rule that refuses it, and the reply.
    pub(super) fn decide_connect(&mut self) -> Result<(), (Rule, Reply<'static>)> {
        let config = self.reactor.config();
        let counts = self.count();
        let facts = Facts {
            counts,
            ..self.facts()
        };
        match decide(Stage::Connect, &config.policy, &facts) {
            Decision::Refuse { rule, reply, .. } => Err((rule, reply)),
            Decision::Accept(rule) => {
                self.admitted = rule;
                Ok(())
            }
            // No check at this stage looks anything up: a test of the table holds that.
            Decision::Wait(_) => {
                debug_assert!(Stage::Connect.can_wait());
                Ok(())
            }
        }
    }

    /// Counts the session in.
    fn count(&mut self) -> Counts {
        let reactor = &self.reactor;
        let mut source_sessions = Count::default();
        if !self.client.is_exempt() && !self.is_with_front() {
            let source = ClientSource::from(self.client.address);
            self.source = Some(source);
            source_sessions = Count {
                now: reactor.shared.sources.enter(source),
                max: self.listener.limits().sessions_per_source,
            };
        }
        Counts {
            stopping: reactor.service.get() != Service::Open,
            sessions: Count {
                now: reactor.sessions.get(),
                max: reactor.sessions_max,
            },
            source_sessions,
            ..Counts::default()
        }
    }
}
