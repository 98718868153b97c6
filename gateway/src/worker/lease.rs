//! Finding a connection to a next hop for a transaction, and letting it go.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::connection::Role;
use super::next_hop::{self, NextHop};
use super::reactor::{Reactor, Service};
use super::transaction::OpenTransaction;
use crate::driver::Conn;
use crate::relay::hop::{Hop, HopId};
use crate::relay::owner::Owner;
use crate::relay::pool::{Lease, Pool};
use crate::relay::replies::NO_CONNECTION;
use crate::relay::transaction::Lost;

/// How long a transaction that has other next hops waits for one to take its connection. The
/// attempt goes on without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds a connection for the transaction, or settles it, or has it wait.
pub(super) fn lease(reactor: &Rc<Reactor>, transaction: &Rc<OpenTransaction>) {
    transaction.wants_hop.set(false);
    let found = transaction.with(|state| {
        let next_hops = state.next_hops()?;
        let (ids, tried, wish) = (next_hops.ids(), next_hops.tried(), next_hops.wish());
        let (client, now) = (transaction.client, reactor.now.get());
        let lease = reactor
            .pool
            .with(|pool| pool.lease(client, ids, tried, wish, now));
        Some(lease)
    });
    match found {
        None => return,
        Some(Lease::Pooled(hop)) => attach(reactor, transaction, hop),
        Some(Lease::Connect(address)) => connect(reactor, transaction, address),
        Some(Lease::Wait(address) | Lease::Stranded(address)) => {
            transaction.queued.set(Some(address));
            // Asking again does not make it longer.
            let due = reactor.now.get() + reactor.config().relay.connect_timeout;
            let due = transaction.queue_due.get().unwrap_or(due);
            transaction.queue_due.set(Some(due));
        }
        Some(Lease::Unavailable) => settle_unavailable(reactor, transaction),
    }
    let probes = reactor.pool.with(Pool::take_probes);
    for id in probes {
        // It is one of those that were just asked for.
        match hop_of(transaction, id) {
            Some(hop) => drop(open(reactor, hop, None)),
            None => not_begun(reactor, id, true),
        }
    }
}

/// One of the next hops of a transaction.
fn hop_of(transaction: &OpenTransaction, id: HopId) -> Option<Hop> {
    transaction.with(|state| state.next_hops()?.hop(id).cloned())
}

fn connect(reactor: &Rc<Reactor>, transaction: &Rc<OpenTransaction>, id: HopId) {
    let owner: Rc<dyn Owner> = Rc::clone(transaction) as Rc<dyn Owner>;
    let hop = hop_of(transaction, id);
    let can_keep = hop.as_ref().is_some_and(|hop| can_keep(reactor, hop));
    let opened = match hop {
        Some(hop) => open(reactor, hop, Some(owner)),
        None => {
            not_begun(reactor, id, false);
            None
        }
    };
    let Some(hop) = opened else {
        transaction.with(|state| state.settle(&NO_CONNECTION));
        return;
    };
    transaction.hop.set(Some(hop));
    let may_go_on = transaction.with(|state| {
        let next_hops = state.next_hops()?;
        next_hops.connecting();
        // An attempt that goes on without its transaction is lost to it where its connection
        // cannot be kept. Once is enough: it would be overtaken every second.
        Some(next_hops.has_others() && (can_keep || !next_hops.wish().hurried))
    });
    if may_go_on == Some(true) {
        let due = reactor.now.get() + PATIENCE;
        reactor
            .patience
            .with(|patience| patience.push_back((due, hop)));
    }
}

/// Whether a connection that is opened now stays for other transactions than its own.
fn can_keep(reactor: &Reactor, hop: &Hop) -> bool {
    let can_change_client = hop.demands().send_client.can_change_client();
    can_change_client && reactor.service.get() == Service::Open
}

/// Begins a connection to a next hop for an owner, or in the background; `None` if every slot is
/// taken.
pub(super) fn open(reactor: &Rc<Reactor>, hop: Hop, owner: Option<Rc<dyn Owner>>) -> Option<Conn> {
    let (id, in_background) = (hop.id(), owner.is_none());
    let shared = Rc::new(NextHop::new(hop, owner));
    let role = Role::NextHop(Rc::clone(&shared));
    let opened = reactor.table.with(|table| table.open(role));
    let Some(hop) = opened else {
        not_begun(reactor, id, in_background);
        return None;
    };
    reactor
        .connects
        .with(|connects| connects.push((hop, id.address)));
    let task = next_hop::session(Rc::clone(reactor), hop, shared);
    reactor.spawn(hop, Box::pin(task));
    Some(hop)
}

/// A connection was not even begun: gives the counts back that the lease has taken.
fn not_begun(reactor: &Reactor, id: HopId, in_background: bool) {
    if in_background {
        let now = reactor.now.get();
        reactor.pool.with(|pool| pool.postpone(id, now));
    }
    closed_in_pool(reactor, id, None, false);
}

/// Gives a connection that is ready to a transaction.
fn attach(reactor: &Reactor, transaction: &Rc<OpenTransaction>, hop: Conn) {
    let Some(next_hop) = next_hop(reactor, hop) else {
        return;
    };
    next_hop.give(Rc::clone(transaction) as Rc<dyn Owner>);
    transaction.hop.set(Some(hop));
    transaction.queued.set(None);
    transaction.queue_due.set(None);
    reactor.wake(hop);
}

/// Gives a connection to the transaction of this client, if that waits for one.
pub(super) fn attach_to_client(reactor: &Reactor, client: Conn, hop: Conn) -> bool {
    let waiting = transaction_of(reactor, client);
    let Some(transaction) = waiting.filter(|transaction| transaction.waits_in_queue()) else {
        return false;
    };
    attach(reactor, &transaction, hop);
    reactor.wake(client);
    true
}

/// The transaction of a client, if it is in one.
fn transaction_of(reactor: &Reactor, client: Conn) -> Option<Rc<OpenTransaction>> {
    let transaction = reactor.with(client, |connection| match &connection.role {
        Role::Client(transaction) => transaction.clone(),
        _ => None,
    });
    transaction.flatten()
}

pub(super) fn next_hop(reactor: &Reactor, hop: Conn) -> Option<Rc<NextHop>> {
    let next_hop = reactor.with(hop, |connection| match &connection.role {
        Role::NextHop(next_hop) => Some(Rc::clone(next_hop)),
        _ => None,
    });
    next_hop.flatten()
}

/// There is no next hop for the transaction: its client hears why, as far as that is known.
fn settle_unavailable(reactor: &Reactor, transaction: &OpenTransaction) {
    transaction.with(|state| {
        let Some(next_hops) = state.next_hops() else {
            return;
        };
        let reply = reactor.pool.with(|pool| {
            let refusal = pool.refusal(next_hops.ids()).cloned();
            next_hops.unavailable(refusal.as_ref())
        });
        state.settle(&reply);
    });
}

/// The time to wait for a connection is over.
pub(super) fn give_up_waiting(reactor: &Reactor, transaction: &OpenTransaction) {
    if let Some(address) = transaction.queued.take() {
        let client = transaction.client;
        reactor.pool.with(|pool| pool.gave_up(address, client));
    }
    settle_unavailable(reactor, transaction);
}

/// Lets the transaction's connection go, in the way that its state asks for. What becomes of the
/// connection is for its own task.
pub(super) fn let_go(reactor: &Reactor, transaction: &OpenTransaction) {
    if let Some(address) = transaction.queued.take() {
        let client = transaction.client;
        reactor.pool.with(|pool| pool.gave_up(address, client));
    }
    let Some(hop) = transaction.hop.take() else {
        return;
    };
    if let Some(next_hop) = next_hop(reactor, hop) {
        next_hop.leave(transaction.standing().past_envelope);
        reactor.wake(hop);
    }
}

/// Leaves the transaction's connection, which must not hear the end of the message.
pub(super) fn abandon(reactor: &Reactor, transaction: &OpenTransaction) {
    if let Some(hop) = transaction.hop.take()
        && let Some(next_hop) = next_hop(reactor, hop)
    {
        next_hop.leave(true);
        reactor.wake(hop);
    }
}

/// Lets the next hop go while the client takes its time. The envelope is told again when it goes
/// on.
pub(super) fn park(reactor: &Reactor, transaction: &OpenTransaction) {
    let lost = transaction.with(|state| {
        let lost = state.lost(None);
        if let (Lost::Again, Some(next_hops)) = (lost, state.next_hops()) {
            next_hops.parked();
        }
        lost
    });
    if lost == Lost::Again {
        let_go(reactor, transaction);
    }
}

/// Lets transactions go on to other next hops whose attempts have taken too long.
pub(super) fn lose_patience(reactor: &Reactor) {
    let now = reactor.now.get();
    let is_due = |patience: &mut VecDeque<(Duration, Conn)>| {
        let (due, _) = patience.front()?;
        if *due <= now {
            patience.pop_front()
        } else {
            None
        }
    };
    while let Some((_, hop)) = reactor.patience.with(is_due) {
        let Some(next_hop) = next_hop(reactor, hop) else {
            continue;
        };
        let Some(owner) = next_hop.leave_in_background() else {
            continue;
        };
        let id = next_hop.id();
        let again = reactor.pool.with(|pool| pool.overdue(id));
        ask_again(reactor, id, again);
        if let Some(owner) = owner {
            owner.overtaken();
            reactor.wake(owner.task());
        }
    }
}

/// These clients are to ask again for a connection.
pub(super) fn ask_again(
    reactor: &Reactor,
    address: HopId,
    clients: impl IntoIterator<Item = Conn>,
) {
    let clients = clients.into_iter().map(|client| (client, address));
    reactor
        .waiting_again
        .with(|waiting| waiting.extend(clients));
}

/// A place may have become free in the queue of a next hop.
pub(super) fn lease_again(reactor: &Rc<Reactor>, client: Conn, address: HopId) {
    let waiting = transaction_of(reactor, client);
    let waiting = waiting.filter(|transaction| transaction.queued.take().is_some());
    if let Some(transaction) = waiting {
        // It may have been queued once more since.
        reactor.pool.with(|pool| pool.gave_up(address, client));
        lease(reactor, &transaction);
        reactor.wake(client);
        return;
    }
    // It has gone meanwhile, and the place is for the next one.
    let next = reactor.pool.with(|pool| pool.next_waiting(address));
    ask_again(reactor, address, next);
}

/// A connection to a next hop is gone, or never came about; `ready`: it could carry transactions.
pub(super) fn closed_in_pool(reactor: &Reactor, address: HopId, hop: Option<Conn>, ready: bool) {
    let now = reactor.now.get();
    let again = reactor
        .pool
        .with(|pool| pool.closed(address, hop, ready, now));
    ask_again(reactor, address, again);
}
