//! The worker's side of a session with a next hop: opening it, its replies to the transaction it
//! works for, and back to the pool.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_smtp::client::{Client, ClientEvent, Sent};
use portcullis_smtp::reply::Reply;

use super::Gate;
use super::connection::{Ending, Role};
use super::progress::{Look, next_look};
use crate::config::Relay;
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
    /// It is being opened with no transaction to wait for it, and the pool counts it as such.
    background: bool,
    /// It lies in the pool.
    pub(super) idle: bool,
    /// The final reply to a message is awaited, which may take longer than others (RFC 5321 section
    /// 4.5.3.2.6).
    pub(super) awaits_final: bool,
    /// Since when it has been waited for, if a deadline is set for it.
    since: Option<Duration>,
    /// What it said when it took no session, or ended it.
    refusal: Option<Reply<'static>>,
}

impl NextHopConnection {
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// How long the next hop may be silent. `unsent`: it has not taken everything, so that it is
    /// only to take some of it.
    fn timeout(&self, unsent: bool, limits: &Relay) -> Option<Duration> {
        let reply = (self.smtp.replies_owed() > 0).then_some(limits.reply_timeout);
        if self.idle {
            Some(limits.idle_timeout)
        } else if unsent && self.awaits_final {
            Some(limits.send_timeout)
        } else if unsent {
            // A command that is not even acknowledged is not waited for longer than its reply would
            // be.
            Some(
                limits
                    .send_timeout
                    .min(reply.unwrap_or(limits.send_timeout)),
            )
        } else if self.awaits_final {
            Some(limits.message_timeout)
        } else {
            reply
        }
    }
}

/// How a connection to a next hop was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It broke, or was closed. That may have been long ago, and says nothing about the next hop.
    Broken,
    /// The next hop did not take it, or does not answer on it.
    NoAnswer,
    /// The next hop did not take it, but has others from us that work.
    Crowded,
    /// It had carried other transactions and takes no more, it seems.
    Deferred,
}

/// Whether what has just happened gives the next hop its whole time again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Renew {
    Yes,
    No,
}

/// What became of the session with a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Goes,
    Lost,
    /// It is to be replaced by a new one.
    Replaced,
}

impl Gate {
    /// Begins a connection to a next hop on behalf of a client, or in the background; `None` if
    /// every slot is taken.
    pub(super) fn open_next_hop(
        &mut self,
        address: SocketAddr,
        client: Option<Conn>,
    ) -> Option<Conn> {
        let next_hop = NextHopConnection {
            address,
            smtp: Client::new(),
            client,
            needs_reset: false,
            state: State::Opening,
            background: client.is_none(),
            idle: false,
            awaits_final: false,
            since: None,
            refusal: None,
        };
        let Some(hop) = self.table.open(Role::NextHop(Box::new(next_hop))) else {
            // The counts that the lease has taken.
            if client.is_none() {
                self.pool.postpone(address, self.now);
            }
            self.closed_in_pool(address, None, false);
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
        let (mut taken, mut after, mut renew) = (0, After::Goes, Renew::No);
        while after == After::Goes {
            let (consumed, event) = next_hop.smtp.handle(&kept[taken..]);
            taken += consumed;
            after = match event {
                ClientEvent::NeedInput => break,
                ClientEvent::Reply { to, reply } => {
                    let reply = reply.into_owned();
                    renew = Renew::Yes;
                    self.next_hop_reply(hop, &mut next_hop, to, &reply)
                }
                ClientEvent::Unsolicited(reply) => {
                    let client = next_hop.client.filter(|_| reply.code != 421);
                    if let Some(passage) = client.and_then(|client| self.passage(client)) {
                        passage.relay.interrupted(&reply);
                    }
                    next_hop.refusal = Some(reply.into_owned());
                    After::Lost
                }
                ClientEvent::Malformed => After::Lost,
            };
        }
        let client = next_hop.client;
        let connection = &mut self.table[hop];
        connection.role = Role::NextHop(next_hop);
        match after {
            After::Goes => {}
            After::Lost => return self.drop_next_hop(hop),
            After::Replaced => return self.replace_next_hop(hop),
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
        self.next_hop_deadline(hop, renew);
        self.touch(hop);
    }

    fn next_hop_reply(
        &mut self,
        hop: Conn,
        next_hop: &mut NextHopConnection,
        to: Sent,
        reply: &Reply<'_>,
    ) -> After {
        if reply.code == 421 || !fits(to, reply) {
            next_hop.refusal = (reply.code == 421).then(|| reply.clone().into_owned());
            return After::Lost;
        }
        if to == Sent::Mail && reply.is_transient() && self.may_be_the_connection(next_hop) {
            next_hop.refusal = Some(reply.clone().into_owned());
            return After::Replaced;
        }
        let output = &mut self.table[hop].output;
        match to {
            Sent::Greeting if reply.is_positive() => {
                next_hop.smtp.ehlo(&self.config.hostname, output);
            }
            Sent::Ehlo if reply.is_permanent() => {
                // Either it does not know EHLO, or it hangs up on HELO as well and this was the
                // reason.
                next_hop.refusal = Some(reply.clone().into_owned());
                next_hop.smtp.helo(&self.config.hostname, output);
            }
            Sent::Ehlo | Sent::Helo if reply.is_positive() => {
                next_hop.state = State::Ready;
                next_hop.refusal = None;
                let address = next_hop.address;
                if std::mem::take(&mut next_hop.background) {
                    self.pool.background_ended(address);
                }
                let again = self.pool.reached(address);
                self.waiting_again
                    .extend(again.into_iter().map(|client| (client, address)));
            }
            Sent::Greeting | Sent::Ehlo | Sent::Helo => {
                next_hop.refusal = Some(reply.clone().into_owned());
                return After::Lost;
            }
            Sent::Quit => return After::Lost,
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

    /// Whether a deferred sender may be about the connection, which had carried other transactions,
    /// and not about the sender. That is found out once a transaction.
    fn may_be_the_connection(&mut self, next_hop: &NextHopConnection) -> bool {
        let passage = next_hop.client.and_then(|client| self.passage(client));
        next_hop.smtp.transactions() > 1
            && passage.is_some_and(|passage| !passage.fresh && passage.deferral.is_none())
    }

    /// Ends a connection in order, and has its transaction go on with another one.
    fn replace_next_hop(&mut self, hop: Conn) {
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        let (address, client) = (next_hop.address, next_hop.client.take());
        let (said, in_order) = (next_hop.refusal.take(), next_hop.smtp.may_send());
        if in_order {
            self.quit_next_hop(hop);
        } else {
            self.drop_next_hop(hop);
        }
        if let Some(client) = client {
            self.lost_next_hop(client, address, Loss::Deferred, said);
        }
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
        } else if next_hop.is_ready() {
            self.ask_progress(hop);
        } else {
            self.silent_next_hop(hop, "no answer in time");
        }
    }

    /// What the next hop has taken is known: `look`; whether it has not taken everything: `unsent`.
    pub(super) fn next_hop_progress(&mut self, hop: Conn, look: Look, unsent: bool) {
        let now = self.now;
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        let Some(since) = next_hop.since.as_mut() else {
            return;
        };
        if look == Look::Moved {
            *since = now;
        }
        let since = *since;
        let Some(timeout) = next_hop.timeout(unsent, &self.config.relay) else {
            // It has taken everything, and owes nothing.
            self.next_hop_deadline(hop, Renew::No);
            return;
        };
        let due = since + timeout;
        if now < due {
            let look = if unsent {
                now + next_look(timeout)
            } else {
                due
            };
            self.wheel.set(hop.slot, due.min(look));
        } else if unsent {
            self.silent_next_hop(hop, "next hop takes nothing of what it is sent");
        } else {
            self.silent_next_hop(hop, "no answer in time");
        }
    }

    fn silent_next_hop(&mut self, hop: Conn, what: &'static str) {
        let Role::NextHop(next_hop) = &self.table[hop].role else {
            return;
        };
        tracing::warn!(next_hop = %next_hop.address, "{what}");
        if next_hop.is_ready() && !next_hop.awaits_final {
            // The next transaction need not wait for it as long.
            self.pool.stalled(next_hop.address, self.now);
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
        self.forget_next_hop(hop, address, Ending::HangUp);
    }

    /// Ends a connection to a next hop at once: it is broken, or what it was told cannot be taken
    /// back.
    pub(super) fn drop_next_hop(&mut self, hop: Conn) {
        self.fail_next_hop(hop, Loss::Broken);
    }

    fn fail_next_hop(&mut self, hop: Conn, loss: Loss) {
        let Role::NextHop(next_hop) = &mut self.table[hop].role else {
            return;
        };
        let (address, client) = (next_hop.address, next_hop.client.take());
        let opening = next_hop.state == State::Opening;
        let said = next_hop.refusal.take();
        let loss = if opening {
            self.not_opened(address, said.as_ref())
        } else {
            loss
        };
        self.table[hop].abort();
        self.forget_next_hop(hop, address, Ending::Quiet);
        if let Some(client) = client {
            self.lost_next_hop(client, address, loss, said);
        }
    }

    /// Leaves a connection that is still being opened to itself. Returns its next hop and the
    /// client that waited for it.
    pub(super) fn leave_in_background(&mut self, hop: Conn) -> Option<(SocketAddr, Option<Conn>)> {
        let Role::NextHop(next_hop) = &mut self.table.current(hop)?.role else {
            return None;
        };
        if next_hop.state != State::Opening || next_hop.background {
            return None;
        }
        next_hop.background = true;
        tracing::info!(
            next_hop = %next_hop.address,
            "next hop is slow to take a connection, going on to others meanwhile"
        );
        Some((next_hop.address, next_hop.client.take()))
    }

    /// Ends attempts that no session waits for, which would keep the gate from stopping.
    pub(super) fn abandon_attempts(&mut self) {
        for hop in self.table.open_conns() {
            let connection = &mut self.table[hop];
            if let Role::NextHop(next_hop) = &connection.role
                && next_hop.state == State::Opening
            {
                let address = next_hop.address;
                connection.abort();
                self.forget_next_hop(hop, address, Ending::Quiet);
            }
        }
    }

    /// A session with a next hop did not come about. What the next hop said to that is for the log,
    /// and for all clients that cannot have a connection to it meanwhile.
    fn not_opened(&mut self, address: SocketAddr, said: Option<&Reply<'static>>) -> Loss {
        if self.pool.refused(address, self.now) {
            if let Some(reply) = said {
                tracing::info!(next_hop = %address, reply = reply.to_string(), "next hop takes no more connections for now");
            }
            return Loss::Crowded;
        }
        match said {
            Some(reply) => {
                tracing::warn!(next_hop = %address, reply = reply.to_string(), "next hop refuses this server: its own log, or who runs it, can say why");
            }
            None => tracing::warn!(next_hop = %address, "next hop cannot be reached"),
        }
        self.pool.note_refusal(address, said.cloned());
        Loss::NoAnswer
    }

    fn forget_next_hop(&mut self, hop: Conn, address: SocketAddr, ending: Ending) {
        let connection = &mut self.table[hop];
        let role = std::mem::replace(&mut connection.role, Role::None);
        let (mut ready, mut background) = (false, false);
        if let Role::NextHop(next_hop) = role {
            ready = next_hop.state != State::Opening;
            background = next_hop.background;
        }
        if background {
            self.pool.background_ended(address);
        }
        connection.input = Vec::new();
        connection.progress = None;
        connection.finish(ending);
        self.wheel.clear(hop.slot);
        self.closed_in_pool(address, Some(hop), ready);
        self.touch(hop);
    }

    fn closed_in_pool(&mut self, address: SocketAddr, hop: Option<Conn>, ready: bool) {
        let again = self.pool.closed(address, hop, ready, self.now);
        self.waiting_again
            .extend(again.into_iter().map(|client| (client, address)));
    }

    /// The transaction has no more use for the connection. What becomes of it is decided when the
    /// present completion is dealt with: the client that gets it next may be done with it at once,
    /// and so on through a long queue.
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
            self.next_hop_deadline(hop, Renew::Yes);
            self.touch(hop);
            return;
        }
        if next_hop.smtp.replies_owed() > 0 {
            return;
        }
        if self.draining || !next_hop.smtp.takes_transaction() {
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
                self.next_hop_deadline(hop, Renew::Yes);
            }
        }
    }

    /// Sets the deadline that the state of the connection asks for. One that runs already goes on,
    /// unless it is renewed: a reply that drips in, or recipients added one by one, are no reason
    /// to wait longer.
    pub(super) fn next_hop_deadline(&mut self, hop: Conn, renew: Renew) {
        let connection = &mut self.table[hop];
        let has_output = connection.has_output();
        let Role::NextHop(next_hop) = &mut connection.role else {
            return;
        };
        if next_hop.state != State::Ready {
            return;
        }
        let limits = &self.config.relay;
        let Some(timeout) = next_hop.timeout(has_output, limits) else {
            next_hop.since = None;
            connection.progress = None;
            self.wheel.clear(hop.slot);
            return;
        };
        if renew == Renew::Yes || next_hop.since.is_none() {
            next_hop.since = Some(self.now);
            connection.progress = None;
            let after = if has_output {
                // What is sent now is as a rule taken at once, and then it is for the reply.
                let reply = next_hop.timeout(false, limits);
                next_look(timeout).min(reply.unwrap_or(timeout))
            } else {
                timeout
            };
            self.wheel.set(hop.slot, self.now + after);
        }
    }

    /// The next hop has taken octets.
    pub(super) fn next_hop_sent(&mut self, hop: Conn) {
        let connection = &self.table[hop];
        let Role::NextHop(next_hop) = &connection.role else {
            return;
        };
        let (client, waiting) = (next_hop.client, connection.output.len());
        // With replies owed it is those that are waited for.
        let renew = if next_hop.smtp.replies_owed() == 0 {
            Renew::Yes
        } else {
            Renew::No
        };
        if let Some(client) = client {
            self.relieved(client, waiting);
        }
        self.next_hop_deadline(hop, renew);
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

/// Whether a reply of this kind can be an answer to the command at all. Taking a 250 to DATA for a
/// success would lose the message.
fn fits(to: Sent, reply: &Reply<'_>) -> bool {
    match to {
        Sent::Data if reply.is_positive() => reply.code == 354,
        _ => matches!(reply.code, 200..=299 | 400..=599),
    }
}
