//! A connection to a next hop until transactions can begin on it, within `connect_timeout`: the
//! greeting and EHLO, TLS and EHLO once more, AUTH, as the route demands.
//!
//! What the next hop says after the handshake is what counts: the engine forgets what it offered
//! before. A next hop without what its route demands gets no mail, and clients hear 451, because
//! what is wrong is for the operators of the two to put right.

use std::future::poll_fn;
use std::task::Poll;

use portcullis_smtp::reply::Reply;

use super::replies::After;
use super::{End, Session};
use crate::relay::destination::Loss;
use crate::relay::hop::{HopEvent, HopTls};
use crate::relay::pool::CLEAR_TIME;
use crate::relay::replies::{AUTH_FAILED, TLS_FAILED, TLS_NOT_OFFERED};
use crate::worker::connection::{Connection, Phase};
use crate::worker::deadline::Deadline;
use crate::worker::lease::ask_again;

impl Session {
    /// Opens the connection, as far as the route demands.
    pub(super) async fn open(&mut self) -> Result<(), End> {
        poll_fn(|_| self.poll_open(After::Ready)).await?;
        if self.begin_tls()? && self.is_tls_accepted().await? {
            self.begin_handshake()?;
            poll_fn(|_| self.poll_handshake()).await?;
            let opened = poll_fn(|_| self.poll_open(After::Ready)).await;
            opened.map_err(|end| self.end_by_tls(end))?;
        }
        if self.begin_login()? {
            poll_fn(|_| self.poll_open(After::LoggedIn)).await?;
            self.count(HopEvent::AuthAccepted);
        }
        self.check_offer()
    }

    /// Ready when the next hop has said what this stands for.
    fn poll_open(&mut self, awaited: After) -> Poll<Result<(), End>> {
        if self.is_connecting() {
            return self.poll_open_due();
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            self.write_header();
        }
        match self.poll_replies() {
            Poll::Ready(Ok(After::LoginFailed)) => Poll::Ready(Err(self.login_failed())),
            Poll::Ready(Ok(after)) if after == awaited => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) | Poll::Pending => self.poll_open_due(),
            Poll::Ready(Err(end)) => Poll::Ready(Err(end)),
        }
    }

    /// With TLS 1.3 a server that does not take our certificate says so after the handshake.
    fn end_by_tls(&mut self, end: End) -> End {
        let fault = self
            .reactor
            .with(self.conn, |connection| connection.tls_fault().cloned());
        match fault.flatten() {
            Some(fault) => self.tls_failed(&fault.to_string()),
            None => end,
        }
    }

    fn is_connecting(&self) -> bool {
        let opening = |connection: &mut Connection| connection.phase == Phase::Opening;
        self.reactor.with(self.conn, opening).unwrap_or(false)
    }

    fn poll_open_due<T>(&mut self) -> Poll<Result<T, End>> {
        if self.is_abandoned() {
            return Poll::Ready(Err(End::Abandoned));
        }
        if !Deadline::Open.is_past(&self.reactor, self.open_due) {
            return Poll::Pending;
        }
        self.warn_of_silence("no answer in time");
        Poll::Ready(Err(End::Lost(Loss::NoAnswer)))
    }

    /// Asks for TLS if the connection is to have it.
    fn begin_tls(&mut self) -> Result<bool, End> {
        let (id, now) = (self.shared.id(), self.reactor.now.get());
        let is_required = match &self.shared.hop.demands().tls {
            HopTls::Off => return Ok(false),
            HopTls::Opportunistic { .. } => false,
            HopTls::Required(_) => true,
        };
        if !is_required {
            self.clear_until = self.reactor.pool.with(|pool| pool.clear_until(id, now));
            if self.clear_until.is_some() {
                return Ok(false);
            }
        }
        if self.smtp.extensions().starttls {
            let smtp = &mut self.smtp;
            self.reactor.write(self.conn, |out| smtp.starttls(out));
            return Ok(true);
        }
        self.count(HopEvent::TlsNotOffered);
        if !is_required {
            return Ok(false);
        }
        tracing::warn!(
            next_hop = %id,
            "next hop does not offer STARTTLS, which its [[route]] requires: no mail goes to it"
        );
        Err(self.unfit(TLS_NOT_OFFERED))
    }

    /// The reply to STARTTLS. Where that is refused and need not be, the session goes on.
    async fn is_tls_accepted(&mut self) -> Result<bool, End> {
        poll_fn(|_| match self.poll_replies() {
            Poll::Ready(Ok(After::StartTls)) => Poll::Ready(Ok(true)),
            Poll::Ready(Ok(After::StartTlsRefused)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) | Poll::Pending if self.is_abandoned() => {
                Poll::Ready(Err(End::Abandoned))
            }
            Poll::Ready(Ok(_)) | Poll::Pending => {
                if Deadline::Open.is_past(&self.reactor, self.open_due) {
                    return Poll::Ready(Err(self.tls_failed("no answer to STARTTLS in time")));
                }
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.tls_failed("the next hop hung up"))),
        })
        .await
        .and_then(|accepted| {
            if accepted {
                return Ok(true);
            }
            let reply = self.state.refusal.take();
            let reply = reply.map(|reply| reply.to_string()).unwrap_or_default();
            self.count(HopEvent::TlsRefused);
            let falls_back = self.falls_back();
            let id = self.shared.id();
            tracing::warn!(next_hop = %id, reply, falls_back, "next hop refuses STARTTLS");
            if falls_back {
                self.clear_until = Some(self.reactor.now.get() + CLEAR_TIME);
                return Ok(false);
            }
            Err(self.unfit(TLS_FAILED))
        })
    }

    fn begin_handshake(&mut self) -> Result<(), End> {
        let demands = self.shared.hop.demands();
        let tls = match &demands.tls {
            HopTls::Opportunistic { tls, .. } | HopTls::Required(tls) => tls,
            HopTls::Off => return Ok(()),
        };
        match tls.connect(&demands.tls_name) {
            Ok(tls) => {
                self.reactor.start_tls(self.conn, tls);
                Ok(())
            }
            Err(fault) => Err(self.tls_failed(&fault.to_string())),
        }
    }

    fn poll_handshake(&mut self) -> Poll<Result<(), End>> {
        match self.reactor.poll_handshake(self.conn) {
            Poll::Ready(Ok(())) => {
                self.secured();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Some(fault))) => Poll::Ready(Err(self.tls_failed(&fault.to_string()))),
            Poll::Ready(Err(None)) => Poll::Ready(Err(self.tls_failed("the next hop hung up"))),
            Poll::Pending if self.is_abandoned() => Poll::Ready(Err(End::Abandoned)),
            Poll::Pending if Deadline::Open.is_past(&self.reactor, self.open_due) => {
                Poll::Ready(Err(self.tls_failed("no answer in time")))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The connection is under TLS: EHLO is said once more.
    fn secured(&mut self) {
        let tls = self.reactor.with(self.conn, |connection| {
            let tls = connection.transport.tls()?;
            Some((tls.is_resumed(), tls.cipher()?))
        });
        if let Some((is_resumed, cipher)) = tls.flatten() {
            self.tls_version = cipher.version;
            self.count(if is_resumed {
                HopEvent::TlsResumed
            } else {
                HopEvent::TlsFull
            });
            tracing::debug!(
                next_hop = %self.shared.id(),
                version = cipher.version,
                suite = cipher.suite,
                is_resumed,
                "next hop is under TLS"
            );
        }
        let (smtp, config) = (&mut self.smtp, self.reactor.config());
        smtp.secured();
        self.reactor
            .write(self.conn, |out| smtp.ehlo(&config.hostname, out));
    }

    /// TLS could not be had. The connection is of no use any more, but another one in the clear may
    /// be.
    fn tls_failed(&mut self, error: &str) -> End {
        let (id, now) = (self.shared.id(), self.reactor.now.get());
        self.count(HopEvent::TlsFailed);
        if self.falls_back() {
            tracing::warn!(
                next_hop = %id,
                error,
                "TLS with next hop failed: mail goes to it in the clear for five minutes"
            );
            self.reactor.pool.with(|pool| pool.tls_failed(id, now));
            return End::Lost(Loss::Unencrypted);
        }
        tracing::warn!(next_hop = %id, error, "TLS with next hop failed: no mail goes to it");
        self.unfit(TLS_FAILED)
    }

    fn falls_back(&self) -> bool {
        let tls = &self.shared.hop.demands().tls;
        matches!(tls, HopTls::Opportunistic { falls_back, .. } if *falls_back)
    }

    /// Begins to authenticate if the route says as whom.
    fn begin_login(&mut self) -> Result<bool, End> {
        let Some(login) = &self.shared.hop.demands().login else {
            return Ok(false);
        };
        let offered = self.smtp.extensions().auth;
        let nonce = crate::auth::random_salt();
        let exchange = nonce.ok().and_then(|nonce| login.begin(offered, nonce));
        let Some(mut exchange) = exchange else {
            self.count(HopEvent::AuthNotOffered);
            tracing::error!(
                next_hop = %self.shared.id(),
                user = login.user(),
                "next hop offers no AUTH with SCRAM-SHA-256, PLAIN or LOGIN, and its [[route]] \
                 says `auth`: no mail goes to it"
            );
            return Err(self.unfit(AUTH_FAILED));
        };
        let (smtp, initial) = (&mut self.smtp, exchange.initial());
        let mechanism = exchange.mechanism();
        let is_sent = self.reactor.write(self.conn, |out| {
            smtp.auth(mechanism, initial.as_ref().map(|it| it.as_slice()), out)
        });
        if is_sent {
            exchange.sent_initial();
        }
        self.reactor
            .with(self.conn, |connection| connection.has_secret = true);
        self.state.login = Some(Box::new(exchange));
        Ok(true)
    }

    /// The next hop does not take the gate for the user of the route. It is not the mail's fault:
    /// clients are to try again, and the operator is to know.
    fn login_failed(&mut self) -> End {
        let reply = self.state.refusal.take();
        let is_refusal = reply.as_ref().is_some_and(Reply::is_permanent) && !self.state.cancelled;
        self.count(if is_refusal {
            HopEvent::AuthRefused
        } else {
            HopEvent::AuthFailed
        });
        let login = self.shared.hop.demands().login.as_ref();
        tracing::error!(
            next_hop = %self.shared.id(),
            user = login.map_or("", |login| login.user()),
            reply = reply.map(|reply| reply.to_string()).unwrap_or_default(),
            "next hop does not accept the user and password of its [[route]]: no mail goes to it; \
             see `auth` there, and reload"
        );
        self.unfit(AUTH_FAILED)
    }

    fn unfit(&mut self, words: Reply<'static>) -> End {
        self.state.refusal = Some(words);
        End::Lost(Loss::Unfit)
    }

    pub(super) fn count(&self, event: HopEvent) {
        let id = self.shared.id();
        self.reactor.pool.with(|pool| pool.count(id, event));
    }

    /// Whether the next hop offers what the route demands besides.
    fn check_offer(&mut self) -> Result<(), End> {
        let demands = self.shared.hop.demands();
        if demands.send_client_required && !self.state.naming.offered.names_clients() {
            self.cannot_name()?;
        }
        Ok(())
    }

    /// The next hop is well: transactions can begin.
    pub(super) fn opened(&mut self) {
        let (address, now) = (self.shared.id(), self.reactor.now.get());
        self.shared.ready.set(true);
        self.state.refusal = None;
        let was_in_background = self.shared.background.replace(false);
        let again = self.reactor.pool.with(|pool| {
            if was_in_background {
                pool.background_ended(address);
            }
            pool.reached(address, now)
        });
        ask_again(&self.reactor, address, again);
    }
}
