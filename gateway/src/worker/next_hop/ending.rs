//! The end of a session with a next hop: what the pool and the owner hear of it.

use portcullis_smtp::reply::Reply;

use super::{End, Session};
use crate::relay::destination::Loss;
use crate::relay::replies::Refusal;
use crate::worker::connection::{Connection, Ending};
use crate::worker::lease::closed_in_pool;

impl Session {
    /// The session is over: the pool hears of it, and then the owner.
    pub(super) fn end(mut self, end: End) {
        let (address, conn) = (self.shared.id(), self.conn);
        let owner = self.shared.owner.take();
        let said = self.state.refusal.take();
        let ready = self.shared.ready.get();
        let (in_order, loss) = match end {
            End::Quit => (true, Loss::Broken),
            End::Replaced => (self.smtp.may_send(), Loss::Deferred),
            End::Lost(Loss::Unfit) => (true, self.is_unfit(said.as_ref(), ready)),
            End::Lost(Loss::Unencrypted) => (false, Loss::Unencrypted),
            End::Lost(_) if !ready => (false, self.not_opened(said.as_ref())),
            End::Lost(loss) => (false, loss),
            End::Abandoned => (false, Loss::Broken),
        };
        if in_order {
            let smtp = &mut self.smtp;
            self.reactor.write(conn, |out| smtp.quit(out));
            self.reactor.finish(conn, Ending::HangUp);
        } else {
            self.reactor.with(conn, Connection::abort);
            self.reactor.finish(conn, Ending::Quiet);
        }
        if self.shared.background.get() {
            self.reactor
                .pool
                .with(|pool| pool.background_ended(address));
        }
        closed_in_pool(&self.reactor, address, Some(conn), ready);
        if let Some(owner) = owner {
            owner.lost(address, loss, said);
            self.reactor.wake(owner.task());
        }
    }

    /// The next hop does not meet what its route demands. It is left alone for a while, and `words`
    /// are what clients hear meanwhile.
    fn is_unfit(&self, words: Option<&Reply<'static>>, ready: bool) -> Loss {
        let (address, now) = (self.shared.id(), self.reactor.now.get());
        let refusal = words.cloned().map(Refusal::Unfit);
        self.reactor.pool.with(|pool| {
            if ready {
                pool.stalled(address, now);
            } else {
                pool.refused(address, now);
            }
            pool.note_refusal(address, refusal);
        });
        Loss::Unfit
    }

    /// A session with a next hop did not come about. What the next hop said to that is for the log,
    /// and for all clients that cannot have a connection to it meanwhile.
    fn not_opened(&self, said: Option<&Reply<'static>>) -> Loss {
        let (address, now) = (self.shared.id(), self.reactor.now.get());
        let reply = said.map(ToString::to_string);
        if self.reactor.pool.with(|pool| pool.refused(address, now)) {
            if let Some(reply) = reply {
                tracing::info!(
                    next_hop = %address,
                    reply,
                    "next hop takes no more connections for now"
                );
            }
            return Loss::Crowded;
        }
        match reply {
            Some(reply) => tracing::warn!(
                next_hop = %address,
                reply,
                "next hop refuses this server: its own log, or who runs it, can say why"
            ),
            None => tracing::warn!(next_hop = %address, "next hop cannot be reached"),
        }
        let said = said.cloned().map(Refusal::Said);
        self.reactor
            .pool
            .with(|pool| pool.note_refusal(address, said));
        Loss::NoAnswer
    }
}
