//! The worker's side of a session with a next hop: opening it, its replies to the transaction it works for, and back to the pool.

use std::net::SocketAddr;

use portcullis_smtp::client::{Client, ClientEvent, Sent};
use portcullis_smtp::reply::Reply;

use super::Gate;
use super::connection::{Connection, Ending, Role};
use crate::driver::Conn;

/// How far a session with a next hop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connecting, the greeting, EHLO: to be over within `connect_timeout`.
    Opening,
    /// Transactions can begin.
    Ready,
    /// QUIT is said.
    Quitting,
}

/// Our session with a next hop.
pub(super) struct NextHopConnection {
    pub(super) address: SocketAddr,
    pub(super) smtp: Client,
    /// The client whose transaction it carries, or is being opened for.
    pub(super) client: Option<Conn>,
    /// A transaction was begun on it that has not been completed.
    pub(super) needs_reset: bool,
    state: State,
    /// It lies in the pool.
    pub(super) idle: bool,
    /// The final reply to a message is awaited, which may take longer than others (RFC 5321 section 4.5.3.2.6).
    pub(super) awaits_final: bool,
}

impl NextHopConnection {
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }
}

/// How a connection to a next hop was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It broke, or was closed. That may have been long ago, and says nothing about the next hop.
    Broken,
    /// The next hop did not take it, or does not answer on it.
    NoAnswer,
}

/// What became of the session with a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Goes,
    Lost,
}

impl Gate {
    /// Begins a connection to a next hop on behalf of a client; `None` if every slot is taken.
    pub(super) fn open_next_hop(&mut self, address: SocketAddr, client: Conn) -> Option<Conn> {
        let next_hop = NextHopConnection {
            address,
            smtp: Client::new(),
            client: Some(client),
            needs_reset: false,
            state: State::Opening,
            idle: false,
            awaits_final: false,
        };
        let Some(hop) = self.table.open(Role::NextHop(Box::new(next_hop))) else {
            // The count that the lease has taken.
            let again = self.pool.closed(address, client, self.now);
            self.waiting_again.extend(again);
            return None;
        };
        self.connects.push((hop, address));
        self.wheel
            .set(hop.slot, self.now + self.config.relay.connect_timeout);
        Some(hop)
    }

    /// Octets from a next hop.
    pub(super) fn next_hop_input(&mut self, hop: Conn, received: &[u8]) {
        let connection = &mut self.table[hop];
        let mut kept = std::mem::take(&mut connection.input);
        kept.extend_from_slice(received);
        let Role::NextHop(mut next_hop) = std::mem::replace(&mut connection.role, Role::None)
        else {
            return;
        };
        let (mut taken, mut after) = (0, After::Goes);
        while after == After::Goes {
            let (consumed, event) = next_hop.smtp.handle(&kept[taken..]);
            taken += consumed;
            after = match event {
                ClientEvent::NeedInput => break,
                ClientEvent::Reply { to, reply } => {
                    let reply = reply.into_owned();
                    self.next_hop_reply(hop, &mut next_hop, to, &reply)
                }
                ClientEvent::Unsolicited(_) | ClientEvent::Malformed => After::Lost,
            };
        }
        let client = next_hop.client;
        let connection = &mut self.table[hop];
        connection.role = Role::NextHop(next_hop);
        if after == After::Lost {
            self.drop_next_hop(hop);
            return;
        }
        if taken < kept.len() {
            kept.drain(..taken);
            connection.input = kept;
        }
        match client {
            Some(client) => {
                self.advance(client, hop);
                self.resume.push(client);
            }
            None => self.release(hop),
        }
        self.next_hop_deadline(hop);
        self.touch(hop);
    }

    fn next_hop_reply(
        &mut self,
        hop: Conn,
        next_hop: &mut NextHopConnection,
        to: Sent,
        reply: &Reply<'_>,
    ) -> After {
        if reply.code == 421 {
            return After::Lost;
        }
        let output = &mut self.table[hop].output;
        match to {
            Sent::Greeting if reply.is_positive() => {
                next_hop.smtp.ehlo(&self.config.hostname, output);
            }
            Sent::Ehlo if reply.is_permanent() => next_hop.smtp.helo(&self.config.hostname, output),
            Sent::Ehlo | Sent::Helo if reply.is_positive() => {
                next_hop.state = State::Ready;
                self.pool.reached(next_hop.address);
            }
            Sent::Greeting | Sent::Ehlo | Sent::Helo | Sent::Quit => return After::Lost,
            // Whoever refuses to forget a transaction is not to get another.
            Sent::Rset if !reply.is_positive() => return After::Lost,
            Sent::Rset => {}
            Sent::Mail | Sent::Rcpt | Sent::Data | Sent::Chunk | Sent::Message => {
                if to == Sent::Message {
                    next_hop.needs_reset = false;
                    next_hop.awaits_final = false;
                }
                if let Some(passage) = next_hop.client.and_then(|client| self.passage(client)) {
                    passage.relay.reply(to, reply);
                }
            }
        }
        After::Goes
    }

    /// A connection attempt has ended.
    pub(super) fn next_hop_connected(&mut self, hop: Conn, result: std::io::Result<()>) {
        if let Err(error) = result {
            if let Role::NextHop(next_hop) = &self.table[hop].role {
                tracing::debug!(next_hop = %next_hop.address, %error, "cannot connect");
            }
            self.drop_next_hop(hop);
        }
    }

    /// The deadline of a next hop has passed.
    pub(super) fn next_hop_expired(&mut self, hop: Conn) {
        let Role::NextHop(next_hop) = &self.table[hop].role else {
            return;
        };
        if next_hop.idle {
            self.quit_next_hop(hop);
            return;
        }
        tracing::warn!(next_hop = %next_hop.address, "no answer in time");
        if next_hop.is_ready() && !next_hop.awaits_final {
            // The next transaction need not wait for it as long.
            self.pool.unreachable(next_hop.address, self.now);
        }
        self.fail_next_hop(hop, Loss::NoAnswer);
    }

    /// Ends an idle connection politely.
    pub(super) fn quit_next_hop(&mut self, hop: Conn) {
        let connection = &mut self.table[hop];
        let Role::NextHop(next_hop) = &mut connection.role else {
            return;
        };
        let address = next_hop.address;
        next_hop.smtp.quit(&mut connection.output);
        next_hop.state = State::Quitting;
        self.forget_next_hop(hop, address, Ending::Quiet);
    }

    /// Ends a connection to a next hop at once: it is broken, or what it was told cannot be taken back.
    pub(super) fn drop_next_hop(&mut self, hop: Conn) {
        self.fail_next_hop(hop, Loss::Broken);
    }

    fn fail_next_hop(&mut self, hop: Conn, loss: Loss) {
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        let (address, client) = (next_hop.address, next_hop.client.take());
        let opening = next_hop.state == State::Opening;
        if opening {
            tracing::warn!(next_hop = %address, "next hop cannot be reached");
            self.pool.unreachable(address, self.now);
        }
        self.table[hop].abort();
        self.forget_next_hop(hop, address, Ending::Quiet);
        if let Some(client) = client {
            let loss = if opening { Loss::NoAnswer } else { loss };
            self.lost_next_hop(client, address, loss);
        }
    }

    fn forget_next_hop(&mut self, hop: Conn, address: SocketAddr, ending: Ending) {
        let connection = &mut self.table[hop];
        connection.role = Role::None;
        connection.input = Vec::new();
        connection.finish(ending);
        self.wheel.clear(hop.slot);
        let again = self.pool.closed(address, hop, self.now);
        self.waiting_again.extend(again);
        self.touch(hop);
    }

    /// The transaction has no more use for the connection. What becomes of it is decided when the present completion is
    /// dealt with: the client that gets it next may be done with it at once, and so on through a long queue.
    pub(super) fn release(&mut self, hop: Conn) {
        self.released.push(hop);
    }

    /// Cleans a released connection up if need be, and gives it to the next client or to the pool.
    pub(super) fn pass_to_next(&mut self, hop: Conn) {
        let Some(connection) = self.table.current(hop) else {
            return;
        };
        let Role::NextHop(next_hop) = &mut connection.role else {
            return;
        };
        if !next_hop.is_ready()
            || next_hop.client.is_some()
            || next_hop.idle
            || next_hop.awaits_final
        {
            return;
        }
        if next_hop.needs_reset {
            if !next_hop.smtp.may_send() {
                // The replies still owed bring us back here.
                return;
            }
            next_hop.needs_reset = false;
            next_hop.smtp.rset(&mut connection.output);
            self.next_hop_deadline(hop);
            self.touch(hop);
            return;
        }
        if next_hop.smtp.owed() > 0 {
            return;
        }
        if self.draining {
            self.quit_next_hop(hop);
            return;
        }
        let address = next_hop.address;
        match self.pool.released(address, hop) {
            Some(client) => {
                self.wheel.clear(client.slot);
                self.attach(client, hop);
                self.resume.push(client);
            }
            None => {
                if let Role::NextHop(next_hop) = &mut self.table[hop].role {
                    next_hop.idle = true;
                }
                self.next_hop_deadline(hop);
            }
        }
    }

    /// Sets the deadline that the state of the connection asks for.
    pub(super) fn next_hop_deadline(&mut self, hop: Conn) {
        let connection = &self.table[hop];
        let Role::NextHop(next_hop) = &connection.role else {
            return;
        };
        if next_hop.state != State::Ready {
            return;
        }
        let limits = &self.config.relay;
        let after = if next_hop.idle {
            limits.idle_timeout
        } else if next_hop.awaits_final {
            limits.message_timeout
        } else if next_hop.smtp.owed() > 0 || has_output(connection) {
            limits.reply_timeout
        } else {
            self.wheel.clear(hop.slot);
            return;
        };
        self.wheel.set(hop.slot, self.now + after);
    }

    /// The next hop has taken octets.
    pub(super) fn next_hop_sent(&mut self, hop: Conn) {
        let connection = &self.table[hop];
        let Role::NextHop(next_hop) = &connection.role else {
            return;
        };
        let (client, waiting) = (next_hop.client, connection.output.len());
        if let Some(client) = client {
            self.relieved(client, waiting);
        }
        self.next_hop_deadline(hop);
    }

    /// Connections that lie idle, to be ended when the gate stops.
    pub(super) fn idle_next_hops(&self) -> Vec<Conn> {
        let conns = self.table.open_conns().into_iter();
        conns
            .filter(
                |conn| matches!(&self.table[*conn].role, Role::NextHop(next_hop) if next_hop.idle),
            )
            .collect()
    }
}

fn has_output(connection: &Connection) -> bool {
    connection.sending || !connection.output.is_empty()
}
