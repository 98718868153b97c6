//! How long a next hop may be silent, and what it is waited for.
//!
//! A wait that has passed is not the end: the kernel is asked what the next hop has taken of what
//! it was sent. One that takes something, however slowly, is not silent.

use std::task::Poll;
use std::time::Duration;

use super::{End, Renew, Session};
use crate::config::Relay;
use crate::relay::destination::Loss;
use crate::worker::deadline::Deadline;
use crate::worker::progress::{Look, next_look};

impl Session {
    /// What the next hop is waited for, and how long it may be silent. `unsent`: it has not taken
    /// everything, so that it is only to take some of it.
    fn awaited(&self, unsent: bool, limits: &Relay) -> Option<(Deadline, Duration)> {
        let reply = (self.smtp.replies_owed() > 0).then_some(limits.reply_timeout);
        if unsent && self.state.awaits_final {
            Some((Deadline::Send, limits.send_timeout))
        } else if unsent {
            // A command that is not even acknowledged is not waited for longer than its reply would
            // be.
            let most = reply.unwrap_or(limits.send_timeout);
            Some((Deadline::Send, limits.send_timeout.min(most)))
        } else if self.state.awaits_final {
            Some((Deadline::FinalReply, limits.message_timeout))
        } else {
            reply.map(|timeout| (Deadline::Reply, timeout))
        }
    }

    /// Waits for what the state of the session asks for. A wait that goes on already is not begun
    /// again unless it is renewed: a reply that drips in, or recipients added one by one, are no
    /// reason to wait longer.
    pub(super) fn expect(&mut self, renew: Renew) {
        // With replies owed it is those that are waited for.
        let wants_sent = self.smtp.replies_owed() == 0;
        let has_output = self.reactor.with(self.conn, |connection| {
            connection.wants_sent = wants_sent;
            connection.has_output()
        });
        let has_output = has_output.unwrap_or(false);
        let config = self.reactor.config();
        let Some((deadline, timeout)) = self.awaited(has_output, &config.relay) else {
            self.waits = None;
            self.look_at = None;
            self.reactor.forget_progress(self.conn);
            return;
        };
        if renew == Renew::No && self.waits.is_some() {
            return;
        }
        let now = self.reactor.now.get();
        self.waits = Some((deadline, now));
        self.reactor.forget_progress(self.conn);
        let after = if has_output {
            // What is sent now is as a rule taken at once, and then it is for the reply.
            let reply = self.awaited(false, &config.relay);
            next_look(timeout).min(reply.map_or(timeout, |(_, timeout)| timeout))
        } else {
            timeout
        };
        self.look_at = Some(now + after);
    }

    /// Ready when the next hop has been silent for too long.
    pub(super) fn poll_silence(&mut self) -> Poll<Result<(), End>> {
        if let Some((look, unsent)) = self.reactor.polled().look
            && self.is_silent(look, unsent)
        {
            return Poll::Ready(Err(End::Lost(Loss::NoAnswer)));
        }
        if let (Some((deadline, _)), Some(at)) = (self.waits, self.look_at)
            && deadline.is_past(&self.reactor, at)
        {
            self.look_at = None;
            self.reactor.ask_progress(self.conn);
        }
        Poll::Pending
    }

    /// What the next hop has taken is known: `look`; whether it has not taken everything: `unsent`.
    fn is_silent(&mut self, look: Look, unsent: bool) -> bool {
        let now = self.reactor.now.get();
        let Some((_, since)) = self.waits.as_mut() else {
            return false;
        };
        if look == Look::Moved {
            *since = now;
        }
        let since = *since;
        let config = self.reactor.config();
        let Some((deadline, timeout)) = self.awaited(unsent, &config.relay) else {
            // It has taken everything, and owes nothing.
            self.expect(Renew::No);
            return false;
        };
        self.waits = Some((deadline, since));
        let due = since + timeout;
        if now < due {
            let look = if unsent {
                now + next_look(timeout)
            } else {
                due
            };
            self.look_at = Some(due.min(look));
            return false;
        }
        self.warn_of_silence(match deadline {
            Deadline::Send => "next hop takes nothing of what it is sent",
            _ => "no answer in time",
        });
        if !self.state.awaits_final {
            // The next transaction need not wait for it as long.
            let address = self.shared.id();
            self.reactor.pool.with(|pool| pool.stalled(address, now));
        }
        true
    }
}
