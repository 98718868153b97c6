//! What lies between the octets of the driver and those of a session, in both directions.
//!
//! A session reads and writes plain SMTP, whatever its connection does to it. Without TLS what was
//! received is read in place. Under TLS each read is opened when it comes, before the task is
//! polled: the plain octets go to [`Connection::input`], and what TLS itself has to say (flights of
//! the handshake, tickets, alerts, key updates) to [`Connection::unsent`], without a task that
//! writes. What a task writes is sealed when it is sent, so that a burst of replies is one record.
//!
//! A step of a handshake can take milliseconds (an RSA signature). So the octets of a handshake
//! only join a queue of the reactor when they come, and the worker takes few of that in a batch:
//! the other sessions wait for one signature at most.
//!
//! Rejected: a task per handshake, which would need a second writer to the connection.

use std::collections::VecDeque;
use std::task::Poll;

use zeroize::Zeroize as _;

use super::connection::{Connection, Ending, Receive};
use super::reactor::Reactor;
use crate::driver::Conn;
use crate::tls::{Fault, Step, Tls};

/// How the octets of a connection are carried.
#[derive(Debug, Default)]
pub(super) enum Transport {
    /// As they are.
    #[default]
    Plain,
    /// Under TLS, from the first octet of the handshake on.
    Tls(Box<Tls>),
}

impl Transport {
    /// The TLS of the connection; its handshake may still go on.
    pub(super) fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) => Some(tls),
        }
    }

    /// Whether the peer has said by TLS that it will send nothing more.
    pub(super) fn is_ended(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::Tls(tls) => tls.is_closed_by_peer(),
        }
    }
}

impl Connection {
    /// From here on the connection is under TLS, and what lies in its input is the beginning of the
    /// peer's handshake. Nothing may be left to be sent in the clear but what is with the driver.
    pub(super) fn start_tls(&mut self, mut tls: Tls) {
        debug_assert!(self.output.is_empty(), "it would be sent under TLS");
        tls.feed(&std::mem::take(&mut self.input));
        self.transport = Transport::Tls(Box::new(tls));
    }

    /// Takes octets that came under TLS, and opens the records in them. Returns whether they are
    /// of a handshake, which waits for its [turn](Self::step_tls).
    pub(super) fn take_records(&mut self, received: &[u8]) -> bool {
        let Transport::Tls(tls) = &mut self.transport else {
            debug_assert!(false, "plain octets are read in place");
            return false;
        };
        tls.feed(received);
        if !tls.is_ready() {
            return true;
        }
        self.step_tls();
        false
    }

    /// Goes on with what was received under TLS as far as possible.
    pub(super) fn step_tls(&mut self) {
        let Transport::Tls(tls) = &mut self.transport else {
            return;
        };
        loop {
            match tls.step(&mut self.input, &mut self.unsent) {
                Ok(Step::Again | Step::Ready | Step::Opened | Step::Closed) => {}
                Ok(Step::Blocked) => return,
                Err(_) => return self.tls_failed(),
            }
        }
    }

    /// TLS has failed: nothing of what came is read, nothing can be said but the alert, which is
    /// sent before the connection ends.
    fn tls_failed(&mut self) {
        self.input = Vec::new();
        self.output = Vec::new();
        self.finish(Ending::Linger);
    }

    /// Makes what the driver sends next of what was written. `is_last`: nothing more will be.
    pub(super) fn seal(&mut self, is_last: bool) {
        let Transport::Tls(tls) = &mut self.transport else {
            // Sent as it is. Nothing is left over: what was is sent before.
            std::mem::swap(&mut self.unsent, &mut self.output);
            return;
        };
        let mut written = std::mem::take(&mut self.output);
        // Within the handshake nothing can be said: our last words are lost.
        let can_seal = !written.is_empty() && tls.is_ready();
        let has_failed = can_seal && tls.seal(&written, &mut self.unsent).is_err();
        if std::mem::take(&mut self.has_secret) {
            written.zeroize();
        }
        if has_failed {
            return self.tls_failed();
        }
        if is_last {
            tls.close(&mut self.unsent);
        }
    }

    /// How TLS has failed, if it has.
    pub(super) fn tls_fault(&self) -> Option<&Fault> {
        self.transport.tls().and_then(Tls::fault)
    }
}

impl Reactor {
    /// The connection of the task being polled is under TLS from here on: what it has received and
    /// not read is the beginning of the peer's handshake. The end of the handshake wakes the task.
    pub(super) fn start_tls(&self, conn: Conn, tls: Tls) {
        self.with(conn, |connection| connection.start_tls(tls));
        self.note_input(false);
        self.queue_handshake(conn);
    }

    /// Whether the handshake of the connection of the task being polled is complete, or how it has
    /// failed. `Err(None)`: the peer has gone away.
    pub(super) fn poll_handshake(&self, conn: Conn) -> Poll<Result<(), Option<Fault>>> {
        let looked = self.with(conn, |connection| {
            let tls = connection.transport.tls()?;
            if let Some(fault) = tls.fault() {
                return Some(Poll::Ready(Err(Some(fault.clone()))));
            }
            if tls.is_ready() && connection.is_open() {
                return Some(Poll::Ready(Ok(())));
            }
            // What has come before the end is looked at first.
            let is_over = connection.receive == Receive::Ended && !connection.in_handshakes;
            if is_over || !connection.is_open() {
                return None;
            }
            Some(Poll::Pending)
        });
        looked.flatten().unwrap_or(Poll::Ready(Err(None)))
    }

    /// A handshake can go on when it is its turn.
    pub(super) fn queue_handshake(&self, conn: Conn) {
        let is_new = self.with(conn, |connection| {
            !std::mem::replace(&mut connection.in_handshakes, true)
        });
        if is_new == Some(true) {
            self.handshakes.with(|queue| queue.push_back(conn));
        }
    }

    /// Whether a handshake waits for its turn.
    pub(super) fn has_handshakes(&self) -> bool {
        self.handshakes.with(|queue| !queue.is_empty())
    }

    /// Goes on with the handshake that has waited longest, and has its task see what came of it.
    /// Returns whether there was one.
    pub(super) fn take_handshake(&self) -> bool {
        let Some(conn) = self.handshakes.with(VecDeque::pop_front) else {
            return false;
        };
        self.with(conn, |connection| {
            connection.in_handshakes = false;
            if connection.is_open() {
                connection.step_tls();
            }
        });
        // With its first octets under TLS it may be over, and the task has to hear of that too.
        self.wake(conn);
        self.touch(conn);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::{Phase, Role, Table};
    use super::*;
    use crate::tls::test_pki::Authority;
    use crate::tls::{ClientSettings, ClientTls, MinVersion, ServerSettings, Trust, Verification};
    use std::time::SystemTime;

    /// A connection of a table of its own, that was opened.
    struct End(Table);

    impl End {
        fn new(tls: Tls, already_received: &[u8]) -> Self {
            let mut table = Table::new(1);
            let conn = table.open(Role::None).unwrap();
            table[conn].opened();
            table[conn].input.extend_from_slice(already_received);
            table[conn].start_tls(tls);
            Self(table)
        }

        fn connection(&mut self) -> &mut Connection {
            let conn = self.0.conn(0);
            &mut self.0[conn]
        }

        /// What it has to send, with this written before.
        fn sends(&mut self, written: &[u8]) -> Vec<u8> {
            let connection = self.connection();
            connection.output.extend_from_slice(written);
            if connection.unsent.is_empty() {
                connection.seal(false);
            }
            std::mem::take(&mut connection.unsent)
        }

        /// What it can read once this has come.
        fn reads(&mut self, received: &[u8]) -> Vec<u8> {
            if self.connection().take_records(received) {
                self.connection().step_tls();
            }
            std::mem::take(&mut self.connection().input)
        }
    }

    /// A client and a server before a handshake.
    fn pair() -> (End, End) {
        let authority = Authority::new();
        let settings = ClientSettings {
            min_version: MinVersion::Tls12,
            verification: Verification::Name(Trust::File(authority.file())),
            certificate: None,
        };
        let client = ClientTls::new(&settings, SystemTime::now()).unwrap();
        let mut client = End::new(client.connect("mx.example").unwrap(), b"");
        client.connection().step_tls();
        let hello = client.sends(b"");
        let listener = authority.listener(&ServerSettings::default());
        let mut server = End::new(listener.accept().unwrap(), &hello);
        server.connection().step_tls();
        (client, server)
    }

    /// The same after it.
    fn connected() -> (End, End) {
        let (mut client, mut server) = pair();
        let flight = server.sends(b"");
        assert_eq!(client.reads(&flight), b"");
        let finished = client.sends(b"");
        assert_eq!(server.reads(&finished), b"");
        let tickets = server.sends(b"");
        assert_eq!(client.reads(&tickets), b"");
        (client, server)
    }

    #[test]
    fn both_sides_shake_hands_and_read_what_the_other_wrote() {
        let (mut client, mut server) = connected();
        let is_ready = |end: &mut End| end.connection().transport.tls().unwrap().is_ready();
        assert!(is_ready(&mut client) && is_ready(&mut server));
        let sent = client.sends(b"EHLO client.example\r\n");
        assert!(!sent.windows(4).any(|octets| octets == b"EHLO"));
        assert_eq!(server.reads(&sent), b"EHLO client.example\r\n");
        let sent = server.sends(b"250 mx.example\r\n");
        assert_eq!(client.reads(&sent), b"250 mx.example\r\n");
    }

    #[test]
    fn nothing_written_within_the_handshake_goes_out_in_the_clear() {
        let (_, mut server) = pair();
        let flight = server.sends(b"421 4.4.2 Timeout\r\n");
        assert!(!flight.windows(3).any(|octets| octets == b"421"));
        server.connection().seal(true);
        assert!(server.sends(b"").is_empty());
    }

    #[test]
    fn a_fault_ends_the_connection_with_an_alert_and_without_what_came() {
        let (mut client, mut server) = connected();
        let mut sent = client.sends(b"DATA\r\n");
        *sent.last_mut().unwrap() ^= 1;
        assert_eq!(server.reads(&sent), b"");
        let connection = server.connection();
        assert!(connection.tls_fault().is_some());
        assert_eq!(connection.phase, Phase::Finishing(Ending::Linger));
        let alert = server.sends(b"250 2.0.0 Ok\r\n");
        assert_eq!(client.reads(&alert), b"");
        let fault = client.connection().tls_fault().unwrap();
        assert_eq!(fault.kind(), crate::tls::FaultKind::Alert);
    }

    #[test]
    fn the_last_words_end_with_close_notify_said_once() {
        let (mut client, mut server) = connected();
        let connection = server.connection();
        connection.output.extend_from_slice(b"221 2.0.0 Bye\r\n");
        connection.seal(true);
        let last = std::mem::take(&mut connection.unsent);
        assert_eq!(client.reads(&last), b"221 2.0.0 Bye\r\n");
        assert!(client.connection().transport.is_ended());
        let connection = server.connection();
        connection.seal(true);
        assert!(connection.unsent.is_empty());
        assert!(!connection.transport.is_ended(), "the peer has not closed");
    }
}
