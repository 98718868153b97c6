//! TLS of a client's session: STARTTLS, TLS from the first octet, and what a handshake may cost.
//!
//! Handshakes are bounded where they begin: at a time, and in a minute from one source, because
//! each costs a signature. Beyond the bounds STARTTLS is refused for now, and a connection that
//! would begin with a handshake is closed. How long one may take is bounded for all of it, so that
//! single octets do not hold it open.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::server::{Abuse, Blame, Event, TLS_UNAVAILABLE, Verb};

use super::counters::HandshakeResult;
use super::deadline::Deadline;
use super::end::End;
use super::reactor::{Reactor, Service};
use super::records::{ClientCertificate, TlsRecord};
use super::session::{Began, Heard, LastHeard, Session};
use super::sources::ClientSource;
use crate::config::Auth;
use crate::policy::{Identity, Proof, Rule};
use crate::tls::Tls;

static IN_THE_CLEAR: Reply<'static> = Reply::fixed(
    554,
    EnhancedCode(5, 5, 0),
    "Improper pipelining: what follows STARTTLS is a TLS handshake",
);

/// The first octet of a handshake: the type of its record (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// A handshake that is counted, for as long as this lives.
struct Place(Rc<Reactor>);

impl Place {
    fn take(reactor: &Rc<Reactor>) -> Self {
        reactor.handshaking.set(reactor.handshaking.get() + 1);
        reactor.counters.handshake_begun();
        Self(Rc::clone(reactor))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.handshaking.set(self.0.handshaking.get() - 1);
        self.0.counters.handshake_over();
    }
}

impl Session {
    /// Answers STARTTLS. If it is accepted, the [handshake](Self::upgrade) is next.
    pub(super) fn starttls(&mut self, out: &mut Vec<u8>) -> Option<Began> {
        self.heard = LastHeard::Other;
        let listener = self.listener();
        let settings = listener.settings(self.channel);
        let refused_by = if listener.tls().is_some() {
            self.handshake_refused_by()
        } else {
            // A reload has taken the certificates away.
            Some(Rule::TLS_HANDSHAKES)
        };
        if let Some(rule) = refused_by {
            let verb = Verb::Other;
            self.note_refused_command(None, verb, rule, &TLS_UNAVAILABLE);
            self.smtp
                .refuse(settings, &TLS_UNAVAILABLE, Blame::None, out);
            return None;
        }
        self.smtp.accept(settings, out);
        Some(Began::Handshake)
    }

    /// A connection on which TLS begins with the first octet.
    pub(super) async fn begin_secured(&mut self) -> Result<(), End> {
        if let Some(rule) = self.handshake_refused_by() {
            return Err(End::Tls(rule));
        }
        let place = Place::take(&self.reactor);
        let due = self.handshake_due();
        self.secure(due).await?;
        drop(place);
        Ok(())
    }

    /// The handshake after STARTTLS was accepted.
    pub(super) async fn upgrade(&mut self) -> Result<(), End> {
        let place = Place::take(&self.reactor);
        let due = self.handshake_due();
        poll_fn(|_| self.poll_hello(due)).await?;
        self.secure(due).await?;
        drop(place);
        // Nothing of what was said before holds (RFC 3207 section 4.2).
        self.forget_helo();
        self.heard = LastHeard::Other;
        self.expect_command();
        Ok(())
    }

    fn handshake_due(&self) -> Duration {
        let listener = self.listener();
        let timeout = listener.tls().map_or(Duration::ZERO, |terms| terms.timeout);
        self.reactor.now.get() + timeout
    }

    /// The rule by which this client cannot have a handshake now. Otherwise it is counted.
    fn handshake_refused_by(&self) -> Option<Rule> {
        let listener = self.listener();
        let terms = listener.tls()?;
        let reactor = &self.reactor;
        if reactor.handshaking.get() >= terms.handshakes_max {
            return Some(Rule::TLS_HANDSHAKES);
        }
        if self.client.is_exempt() || self.is_with_front() {
            return None;
        }
        let source = ClientSource::from(self.client.address);
        let is_in_time =
            reactor
                .shared
                .handshake_rates
                .take(source, terms.per_source_max, reactor.unix_time());
        (!is_in_time).then_some(Rule::TLS_HANDSHAKES_PER_SOURCE)
    }

    /// Waits for the first octets after our 220. Those that came before it could be read end the
    /// session, and so do those that are no handshake: they were sent in the clear.
    fn poll_hello(&mut self, due: Duration) -> Poll<Result<(), End>> {
        if self.reactor.service.get() != Service::Open {
            return Poll::Ready(Err(End::Stopping));
        }
        let heard = self.poll_events(|session, event, _| match event {
            Event::Handshake => Some(Ok(())),
            event => session.common_event(None, &event).map(Err),
        })?;
        match heard {
            Heard::Some(()) => {}
            Heard::More { is_over: true } => {
                self.reactor.counters.handshake(HandshakeResult::Gone);
                return Poll::Ready(Err(End::Gone));
            }
            Heard::More { is_over: false } | Heard::Wait => return self.poll_handshake_due(due),
        }
        let first = self
            .reactor
            .with(self.conn, |connection| connection.input.first().copied());
        match first.flatten() {
            None | Some(HANDSHAKE) => Poll::Ready(Ok(())),
            Some(_) => {
                self.reactor.counters.handshake(HandshakeResult::NotTls);
                self.reactor.write(self.conn, |out| IN_THE_CLEAR.write(out));
                Poll::Ready(Err(End::Abuse(Abuse::PipeliningViolation)))
            }
        }
    }

    fn poll_handshake_due(&self, due: Duration) -> Poll<Result<(), End>> {
        if Deadline::Handshake.is_past(&self.reactor, due) {
            self.reactor.counters.handshake(HandshakeResult::Timeout);
            return Poll::Ready(Err(End::Tls(Rule::TLS_HANDSHAKE)));
        }
        Poll::Pending
    }

    /// Puts the connection under TLS.
    async fn secure(&mut self, due: Duration) -> Result<(), End> {
        let listener = self.listener();
        let made = listener.tls().map(|terms| terms.server.accept());
        let Some(Ok(tls)) = made else {
            self.reactor.counters.handshake(HandshakeResult::Internal);
            return Err(End::Tls(Rule::TLS_HANDSHAKE));
        };
        drop(listener);
        self.reactor.start_tls(self.conn, tls);
        poll_fn(|_| self.poll_secured(due)).await?;
        self.smtp.secured();
        self.channel.is_encrypted = true;
        // Also of who the client was before nothing is left.
        self.identity = self.certificate_identity().map(Rc::new);
        self.channel.is_identified = self.identity.is_some();
        if self.identity.is_some() {
            self.smtp.set_authenticated();
        }
        Ok(())
    }

    /// Who the client is by the certificate that it has shown.
    pub(super) fn certificate_identity(&self) -> Option<Identity> {
        if self.is_named_by_xclient() {
            return None;
        }
        let peer = self.reactor.with(self.conn, |connection| {
            connection.transport.tls().and_then(Tls::peer)
        });
        let peer = peer.flatten()?;
        let config = self.reactor.config();
        let user = config.tls.as_ref()?.user(&peer)?;
        let users = config.auth.as_ref().and_then(Auth::users);
        let known = users.and_then(|users| users.get(user));
        Some(Identity {
            user: Arc::clone(user),
            proof: Proof::Certificate,
            senders: known.and_then(|user| user.senders.clone()),
        })
    }

    fn poll_secured(&mut self, due: Duration) -> Poll<Result<(), End>> {
        if self.reactor.service.get() != Service::Open {
            return Poll::Ready(Err(End::Stopping));
        }
        let counters = &self.reactor.counters;
        match self.reactor.poll_handshake(self.conn) {
            Poll::Pending => self.poll_handshake_due(due),
            Poll::Ready(Ok(())) => {
                let is_resumed = self.reactor.with(self.conn, |connection| {
                    connection.transport.tls().is_some_and(Tls::is_resumed)
                });
                counters.handshake(if is_resumed == Some(true) {
                    HandshakeResult::Resumed
                } else {
                    HandshakeResult::Complete
                });
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(fault)) => {
                let result = fault.map_or(HandshakeResult::Gone, |fault| fault.kind().into());
                counters.handshake(result);
                Poll::Ready(Err(End::Tls(Rule::TLS_HANDSHAKE)))
            }
        }
    }

    /// The end as the log names it: a client whose TLS broke has not just gone away.
    pub(super) fn named(&self, end: End) -> End {
        let has_fault = self
            .reactor
            .with(self.conn, |connection| connection.tls_fault().is_some());
        match end {
            End::Gone if has_fault == Some(true) => End::Tls(Rule::TLS),
            end => end,
        }
    }

    /// What the log says of the session's TLS; nothing if there was none.
    pub(super) fn tls_record(&self) -> Option<Box<TlsRecord>> {
        let record = self.reactor.with(self.conn, |connection| {
            let tls = connection.transport.tls()?;
            Some(Box::new(TlsRecord {
                cipher: tls.cipher(),
                is_resumed: tls.is_resumed(),
                client: tls.peer().map(|peer| ClientCertificate {
                    subject: peer.subject.into_boxed_str(),
                    fingerprint: peer.fingerprint,
                }),
                fault: connection.tls_fault().map(ToString::to_string),
            }))
        });
        record.flatten()
    }
}
