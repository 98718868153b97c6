//! A connection to a next hop until transactions can begin on it, within `connect_timeout`.

use std::task::Poll;

use super::replies::After;
use super::{End, Session};
use crate::relay::destination::Loss;
use crate::worker::connection::{Connection, Phase};
use crate::worker::deadline::Deadline;
use crate::worker::lease::ask_again;

impl Session {
    /// The connect, the greeting and EHLO, within `connect_timeout`.
    pub(super) fn poll_open(&mut self) -> Poll<Result<(), End>> {
        if self.is_connecting() {
            return self.poll_open_due();
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            self.write_header();
        }
        match self.poll_replies() {
            Poll::Ready(Ok(After::Ready)) => Poll::Ready(self.check_offer()),
            Poll::Ready(Ok(_)) | Poll::Pending => self.poll_open_due(),
            Poll::Ready(Err(end)) => Poll::Ready(Err(end)),
        }
    }

    fn is_connecting(&self) -> bool {
        let opening = |connection: &mut Connection| connection.phase == Phase::Opening;
        self.reactor.with(self.conn, opening).unwrap_or(false)
    }

    fn poll_open_due(&mut self) -> Poll<Result<(), End>> {
        if self.is_abandoned() {
            return Poll::Ready(Err(End::Abandoned));
        }
        if !Deadline::Open.is_past(&self.reactor, self.open_due) {
            return Poll::Pending;
        }
        self.warn_of_silence("no answer in time");
        Poll::Ready(Err(End::Lost(Loss::NoAnswer)))
    }

    /// Whether the next hop offers what the route demands.
    fn check_offer(&mut self) -> Result<(), End> {
        let demands = self.shared.hop.demands();
        if demands.send_client_required && !self.state.naming.offered.names_clients() {
            self.cannot_name()?;
        }
        Ok(())
    }

    /// The next hop is well: transactions can begin.
    pub(super) fn opened(&mut self) {
        let address = self.shared.id();
        self.shared.ready.set(true);
        self.state.refusal = None;
        let was_in_background = self.shared.background.replace(false);
        let again = self.reactor.pool.with(|pool| {
            if was_in_background {
                pool.background_ended(address);
            }
            pool.reached(address)
        });
        ask_again(&self.reactor, address, again);
    }
}
