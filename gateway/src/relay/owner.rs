//! Who a connection to a next hop works for.
//!
//! A connection outlives what it carries: it is opened, kept, cleaned up and closed by a task of
//! its own. While it carries something it has an owner: the transaction of a client today, a
//! delivery from a queue next. The owner says what is to be told, and hears what the next hop says.

use std::net::SocketAddr;

use portcullis_smtp::client::{Client, Sent};
use portcullis_smtp::reply::Reply;

use super::destination::Loss;
use crate::driver::Conn;

/// What a connection has to know of its owner before it does anything to the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Content, or DATA, may have reached the next hop: it can only be left by closing.
    pub past_envelope: bool,
    /// Only the final reply is still to come.
    pub awaits_final: bool,
    /// There is something for its own task to do: an answer to give, or the connection to let go
    /// because the next hop has nothing more to do with it.
    pub has_news: bool,
}

/// What a connection to a next hop carries.
///
/// No method may wait, or call back into the connection: an owner notes what it is told, and its
/// own task, which is woken, goes on with it.
pub trait Owner {
    /// The task to wake when there is news: that of the connection with this name.
    fn task(&self) -> Conn;
    /// Tells the next hop what it can be told now. Called when the connection is ready, when the
    /// owner woke it, and after replies. Returns whether that began a transaction with it.
    fn advance(&self, address: SocketAddr, hop: &mut Client, out: &mut Vec<u8>) -> bool;
    /// A reply to a command of this transaction.
    fn reply(&self, to: Sent, reply: &Reply<'_>);
    /// The next hop has spoken out of turn, and is about to be left.
    fn interrupted(&self, reply: &Reply<'_>);
    /// How far it has come.
    fn standing(&self) -> Standing;
    /// Whether a deferred MAIL may be about the connection, which had carried others, and not about
    /// the sender.
    fn may_be_the_connection(&self) -> bool;
    /// Whether something was asked for that only a next hop with DSN can do (RFC 3461).
    fn asks_for_dsn(&self) -> bool;
    /// The next hop has taken some of its output; `waiting` octets are left. Returns whether the
    /// owner waits for that.
    fn relieved(&self, waiting: usize) -> bool;
    /// The next hop takes long over the connection, and the owner has lost it to the background.
    fn overtaken(&self);
    /// The connection is gone; `said` is what the next hop said when it went.
    fn lost(&self, address: SocketAddr, loss: Loss, said: Option<Reply<'static>>);
}
