//! The deadlines of sessions, by name.
//!
//! A task that waits asks of each deadline that holds at the moment whether it has passed, and goes
//! on with what that one means; the earliest of them is when the task is polled again. So there is
//! no timer to be cleared or moved, and never a question which of several has fired.

use std::time::Duration;

use super::reactor::Reactor;

/// What a task waits for no longer than to a certain moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The PROXY header of a trusted front.
    ProxyHeader,
    /// `greeting_delay`: a client that talks before it is an early talker.
    Greeting,
    /// `handshake_timeout`: the whole TLS handshake.
    Handshake,
    /// `command_timeout`: the client's next whole command.
    Command,
    /// A client that takes longer than this over its next command does so without a connection to
    /// the next hop.
    Hold,
    /// `data_timeout` and `data_rate_min`: more of the message.
    Content,
    /// `connect_timeout`: a connection that another client has, or that is being tried.
    Queue,
    /// `connect_timeout`: the connect, the greeting and EHLO of a next hop.
    Open,
    /// `reply_timeout`: a reply of the next hop.
    Reply,
    /// `message_timeout`: its reply to the whole message.
    FinalReply,
    /// `send_timeout`: that the next hop takes some of what it is sent.
    Send,
    /// `idle_timeout`: another transaction.
    Idle,
}

impl Deadline {
    /// Whether this deadline of the task being polled has passed. If not, the task is polled again
    /// when it has.
    pub(super) fn is_past(self, reactor: &Reactor, due: Duration) -> bool {
        let is_past = reactor.is_past(due);
        if is_past {
            tracing::trace!(deadline = ?self, "deadline");
        }
        is_past
    }
}
