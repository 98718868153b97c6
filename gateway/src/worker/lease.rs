//! Finding a connection to a next hop for a transaction, keeping it, replacing it when it breaks,
//! and letting it go.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};

use super::Gate;
use super::connection::Role;
use super::next_hop::{Loss, Renew};
use super::passage::Target;
use crate::driver::Conn;
use crate::relay::pool::{Lease, Wish};
use crate::relay::transaction::{Lost, unavailable};

/// Fewer octets than this waiting for the next hop let the client's receive go on.
const CONGESTION_LOW: usize = 64 << 10;

/// How long a transaction that has other next hops waits for one to take its connection. The
/// attempt goes on without it.
const PATIENCE: Duration = Duration::from_secs(1);

const NO_SLOT: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 3, 2),
    "Too many connections, please try again later",
);

impl Gate {
    /// Tells the next hop what is new, finding a connection first if there is none.
    pub(super) fn pass_on(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        if !matches!(passage.target, Target::NextHops(_))
            || passage.waits_in_queue()
            || passage.relay.is_settled()
        {
            return;
        }
        match passage.hop {
            None => self.lease(conn),
            Some(hop) => self.advance(conn, hop),
        }
    }

    /// Finds a connection for the client's transaction, or settles it.
    pub(super) fn lease(&mut self, conn: Conn) {
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let Target::NextHops(addresses) = &passage.target else {
            return;
        };
        let has_others = addresses.len() > 1;
        let addresses = addresses.iter().copied();
        let wish = Wish {
            fresh: passage.fresh,
            hurried: passage.hurried,
        };
        let lease = self
            .pool
            .lease(conn, addresses, &passage.tried, wish, self.now);
        match lease {
            Lease::Pooled(hop) => self.attach(conn, hop),
            Lease::Connect(address) => {
                let opened = self.open_next_hop(address, Some(conn));
                let Some(passage) = self.passage(conn) else {
                    return;
                };
                match opened {
                    Some(hop) => {
                        passage.hop = Some(hop);
                        // If this one is lost too, it is not for having been idle too long.
                        passage.fresh = true;
                        if has_others {
                            self.patience.push_back((self.now + PATIENCE, hop));
                        }
                    }
                    None => passage.relay.settle(&NO_SLOT),
                }
            }
            Lease::Wait(address) | Lease::Stranded(address) => {
                passage.queued = Some(address);
                // Asking again does not make it longer.
                let due = self.now + self.config.relay.connect_timeout;
                passage.queue_due.get_or_insert(due);
                self.expect_answer(conn);
            }
            Lease::Unavailable => self.settle_unavailable(conn),
        }
        for address in self.pool.take_probes() {
            self.open_next_hop(address, None);
        }
    }

    /// Lets transactions go on to other next hops whose attempts have taken too long.
    pub(super) fn lose_patience(&mut self) {
        while let Some(&(due, hop)) = self.patience.front()
            && due <= self.now
        {
            self.patience.pop_front();
            if let Some((address, client)) = self.leave_in_background(hop) {
                let again = self.pool.overdue(address);
                self.waiting_again
                    .extend(again.into_iter().map(|client| (client, address)));
                if let Some(client) = client {
                    self.move_on(client);
                }
            }
        }
    }

    fn move_on(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.hop = None;
        passage.fresh = false;
        passage.hurried = true;
        self.lease(conn);
        self.resume.push(conn);
    }

    /// There is no next hop for the transaction: its client hears why, as far as that is known.
    fn settle_unavailable(&mut self, conn: Conn) {
        let Role::Client(session) = &mut self.table[conn].role else {
            return;
        };
        let Some(passage) = session.passage.as_deref_mut() else {
            return;
        };
        let addresses = match &passage.target {
            Target::NextHops(addresses) => addresses.as_slice(),
            _ => &[],
        };
        let reply = passage.deferral.take().unwrap_or_else(|| {
            let said = passage.said.as_ref();
            unavailable(said.or_else(|| self.pool.refusal(addresses)))
        });
        passage.relay.settle(&reply);
    }

    /// Gives a connection that is ready to a client's transaction.
    pub(super) fn attach(&mut self, conn: Conn, hop: Conn) {
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        next_hop.client = Some(conn);
        next_hop.idle = false;
        if let Some(passage) = self.passage(conn) {
            passage.hop = Some(hop);
            passage.queued = None;
            passage.queue_due = None;
            self.advance(conn, hop);
        }
    }

    /// Lets the transaction tell its next hop what it can be told now.
    pub(super) fn advance(&mut self, conn: Conn, hop: Conn) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let Some(mut passage) = session.passage.take() else {
            return;
        };
        let connection = &mut self.table[hop];
        if let Role::NextHop(next_hop) = &mut connection.role
            && next_hop.is_ready()
        {
            passage.next_hop = Some(next_hop.address);
            // Should it have to wait for another one later, that is a wait of its own.
            passage.queue_due = None;
            if passage.relay.envelope.asks_for_dsn()
                && !next_hop.smtp.extensions().dsn
                && self.pool.lacks_dsn(next_hop.address)
            {
                tracing::warn!(
                    next_hop = %next_hop.address,
                    "next hop does not offer DSN although its route says so: what NOTIFY, ORCPT, RET and ENVID ask for is lost; \
                     set dsn = false in its [[route]]"
                );
            }
            next_hop.needs_reset |= passage
                .relay
                .advance(&mut next_hop.smtp, &mut connection.output);
            self.next_hop_deadline(hop, Renew::No);
            self.touch(hop);
        }
        let settled = passage.relay.is_settled();
        if let Some(session) = self.session(conn) {
            session.passage = Some(passage);
        }
        if settled {
            self.detach(conn);
        }
    }

    /// The connection to the next hop is gone; `said` is what it said when it went.
    pub(super) fn lost_next_hop(
        &mut self,
        conn: Conn,
        address: SocketAddr,
        loss: Loss,
        said: Option<Reply<'static>>,
    ) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        passage.hop = None;
        passage.congested = false;
        match loss {
            // There are other connections to it: one of those will do.
            Loss::Crowded => passage.fresh = false,
            Loss::Broken | Loss::Deferred if !passage.fresh => passage.fresh = true,
            Loss::Broken if !passage.replaced => passage.replaced = true,
            Loss::Broken | Loss::Deferred | Loss::NoAnswer => {
                passage.tried.push(address);
                passage.fresh = false;
            }
        }
        let again = passage.relay.lost(said.as_ref()) == Lost::Again;
        match loss {
            Loss::Deferred => passage.deferral = said,
            _ => passage.said = said.or(passage.said.take()),
        }
        if again {
            self.lease(conn);
        }
        self.resume.push(conn);
    }

    /// The time to wait for a connection is over.
    pub(super) fn queue_expired(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        let queued = passage.queued.take();
        if let Some(address) = queued {
            self.pool.gave_up(address, conn);
        }
        self.settle_unavailable(conn);
        self.resume.push(conn);
    }

    /// A place may have become free in the queue of a next hop.
    pub(super) fn lease_again(&mut self, conn: Conn, address: SocketAddr) {
        let waits = self.table.current(conn).is_some()
            && self
                .passage(conn)
                .is_some_and(|passage| passage.queued.take().is_some());
        if waits {
            self.wheel.clear(conn.slot);
            self.lease(conn);
            self.resume.push(conn);
        } else if let Some(next) = self.pool.next_waiting(address) {
            // It has gone meanwhile, and the place is somebody else's.
            self.waiting_again.push((next, address));
        }
    }

    /// Lets the next hop go while the client takes its time. The envelope is told again when it
    /// goes on.
    pub(super) fn park(&mut self, conn: Conn) {
        if let Some(passage) = self.passage(conn)
            && passage.relay.lost(None) == Lost::Again
        {
            passage.fresh = false;
            self.detach(conn);
        }
    }

    /// The next hop has taken some of what was waiting for it.
    pub(super) fn relieved(&mut self, conn: Conn, waiting: usize) {
        let (now, data_timeout) = (self.now, self.config.limits.data_timeout);
        if let Some(passage) = self.passage(conn)
            && passage.congested
            && waiting < CONGESTION_LOW
        {
            passage.congested = false;
            // It was not the client who was slow.
            passage.content_due = Some(now + data_timeout);
            self.resume.push(conn);
        }
    }

    /// Lets the client's next hop go, in the way that the state of the transaction asks for.
    pub(super) fn detach(&mut self, conn: Conn) {
        let Some(passage) = self.passage(conn) else {
            return;
        };
        let (past_envelope, ending) = (passage.relay.is_past_envelope(), passage.relay.is_ending());
        if let Some(address) = passage.queued.take() {
            self.pool.gave_up(address, conn);
        }
        let Some(hop) = self.passage(conn).and_then(|passage| passage.hop.take()) else {
            return;
        };
        if let Role::NextHop(next_hop) = &mut self.table[hop].role {
            next_hop.client = None;
        }
        if past_envelope {
            self.drop_next_hop(hop);
        } else if !ending {
            self.release(hop);
        }
    }
}
