//! The worker's table of connections, and what one wants from the driver.
//!
//! Tasks do not call the driver: they put octets into [`Connection::output`], set
//! [`Connection::held`] or call [`Connection::finish`], and the worker brings the driver in line
//! with that once per batch. So a burst of pipelined commands is answered with one send, and the
//! order of shutdown, last completion and close is written down once.

use std::rc::Rc;
use std::time::Duration;

use zeroize::Zeroize as _;

use super::next_hop::NextHop;
use super::progress::Progress;
use super::transaction::OpenTransaction;
use super::transport::Transport;
use crate::driver::{Conn, Driver, Listener};

/// What a slot is for, and what other tasks may know of it.
pub(super) enum Role {
    /// Nothing: the slot is closing, or free.
    None,
    /// Waits for the next connection of a listener.
    Accepting(Listener),
    /// A client's session, with its transaction if it is in one.
    Client(Option<Rc<OpenTransaction>>),
    /// Our session with a next hop.
    NextHop(Rc<NextHop>),
}

/// Where a connection is between being opened and its slot being free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    /// An accept is outstanding, or a connect that an owner waits for.
    Opening,
    Open,
    /// Closes once its output is out.
    Finishing(Ending),
    /// Shut down; waits for the armed receive to end, and with [`Ending::Linger`] for the peer to
    /// close first.
    Draining(Ending),
    /// The driver closes it.
    Closing,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The dialogue is over, and nothing more is to be expected: closed as soon as our last words
    /// are out. The receive is cancelled in the batch that sends them. What the peer sent until
    /// then was read, so the close makes a FIN and not a RST, which could take our last words with
    /// it.
    Quiet,
    /// Our last words ask for an answer (QUIT, or a refusal for a greeting): the peer gets a moment
    /// to give it and to hang up.
    HangUp,
    /// The peer may still be talking: what it says is read and thrown away for a moment, because
    /// closing with unread octets makes the kernel send a RST, which can take our last reply with
    /// it.
    Linger,
    /// It is broken, or has taken too long: output that was not sent is lost.
    Now,
}

/// The state of a connection's receive, as the driver has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Off,
    Armed,
    Pausing,
    /// Ended for want of a buffer; the worker arms it when there are some.
    Starved,
    /// The peer will send nothing more.
    Ended,
}

/// One slot of the table.
pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) receive: Receive,
    /// A send is in flight.
    pub(super) sending: bool,
    /// One has ended since the task looked.
    pub(super) sent: bool,
    /// An accept or a connect is in flight.
    opening: bool,
    /// The port that the other end connects from, of a client.
    pub(super) peer_port: u16,
    /// Back-pressure: nothing more is to be received for now.
    pub(super) held: bool,
    /// What was received goes to a next hop that takes it more slowly than it comes.
    pub(super) congested: bool,
    /// What the peer takes, once a deadline has passed that depends on it.
    pub(super) progress: Option<Box<Progress>>,
    /// The driver is to be asked about that.
    pub(super) asks_progress: bool,
    /// It is in the worker's list of connections to be brought in line.
    pub(super) touched: bool,
    /// Its task is to be polled before the batch ends.
    pub(super) woken: bool,
    /// Its task wants to know when the kernel has taken what is sent.
    pub(super) wants_sent: bool,
    /// There is a password in the output, which is wiped when it was sealed.
    pub(super) has_secret: bool,
    /// Its handshake waits for its turn.
    pub(super) in_handshakes: bool,
    /// What is to be sent before the output, as it goes over the network: what a send has left
    /// over, and what TLS has to say by itself.
    pub(super) unsent: Vec<u8>,
    /// What is to be sent next, before it is sealed; empty and without memory while idle.
    pub(super) output: Vec<u8>,
    /// What was received, and opened, but could not be taken yet.
    pub(super) input: Vec<u8>,
    pub(super) transport: Transport,
    pub(super) role: Role,
}

/// Unanswered input beyond this stops the receive.
const INPUT_MAX: usize = 64 << 10;
/// Replies that the peer does not read, beyond this, stop the receive.
pub(super) const OUTPUT_MAX: usize = 64 << 10;

/// How long a peer may take to hang up when that is up to it.
const HANG_UP_MAX: Duration = Duration::from_secs(1);
/// How long a peer may take nothing of our last output, and then one that may still be talking to
/// hang up.
const CLOSING_MAX: Duration = Duration::from_secs(3);

impl Connection {
    fn new() -> Self {
        Self {
            generation: 0,
            phase: Phase::Free,
            receive: Receive::Off,
            sending: false,
            sent: false,
            opening: false,
            peer_port: 0,
            held: false,
            congested: false,
            progress: None,
            asks_progress: false,
            touched: false,
            woken: false,
            wants_sent: false,
            has_secret: false,
            in_handshakes: false,
            unsent: Vec::new(),
            output: Vec::new(),
            input: Vec::new(),
            transport: Transport::default(),
            role: Role::None,
        }
    }

    /// Ends the connection once all output is out. The first ending asked for holds.
    pub(super) fn finish(&mut self, ending: Ending) {
        if self.phase == Phase::Open {
            let ending = match (ending, &self.transport) {
                // The peer answers our close_notify with its own, which would be unread.
                (Ending::Quiet, Transport::Tls(_)) => Ending::HangUp,
                (ending, _) => ending,
            };
            self.phase = Phase::Finishing(ending);
            self.held = ending == Ending::Quiet;
        }
    }

    /// Octets came from a peer that has nothing more to say: it may go on, and is let down gently.
    pub(super) fn talks_on(&mut self) {
        if self.phase == Phase::Finishing(Ending::Quiet) {
            self.phase = Phase::Finishing(Ending::Linger);
        }
    }

    /// Ends the connection now; output that was not sent is dropped.
    pub(super) fn abort(&mut self) {
        if self.has_secret {
            self.output.zeroize();
        }
        self.unsent = Vec::new();
        self.output = Vec::new();
        if !matches!(self.phase, Phase::Free | Phase::Closing) {
            self.phase = Phase::Finishing(Ending::Now);
        }
    }

    /// The accept or the connect is over.
    pub(super) fn opened(&mut self) {
        self.opening = false;
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
        }
    }

    /// Whether something of ours has not been taken by the kernel.
    pub(super) fn has_output(&self) -> bool {
        self.sending || !self.unsent.is_empty() || !self.output.is_empty()
    }

    /// Stops or continues the receive of a client: too much is waiting to be answered, to be read
    /// by the client, or to be taken by the next hop.
    pub(super) fn hold_if_full(&mut self) {
        self.held =
            self.congested || self.input.len() > INPUT_MAX || self.output.len() > OUTPUT_MAX;
    }

    /// Octets that the kernel is still to take, if it is known how many: not while it is about some
    /// of them.
    pub(super) fn waiting(&self) -> Option<usize> {
        (!self.sending).then_some(self.unsent.len() + self.output.len())
    }

    /// Whether the dialogue goes on.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether it closes once the kernel has taken our last octets.
    pub(super) fn is_sending_last(&self) -> bool {
        matches!(self.phase, Phase::Finishing(ending) if ending != Ending::Now) && self.has_output()
    }

    /// Whether nothing more can be said.
    pub(super) fn is_ending(&self) -> bool {
        matches!(
            self.phase,
            Phase::Finishing(Ending::Now) | Phase::Draining(_) | Phase::Closing
        )
    }

    /// Gives the driver what the connection wants done. Returns how long it may stay in its phase,
    /// when that is bounded here.
    pub(super) fn settle(&mut self, conn: Conn, driver: &mut dyn Driver) -> Option<Duration> {
        match self.phase {
            Phase::Free | Phase::Opening | Phase::Closing => None,
            Phase::Open => {
                self.settle_send(conn, driver);
                self.settle_receive(conn, driver);
                self.settle_question(conn, driver);
                None
            }
            Phase::Finishing(ending) => {
                self.settle_send(conn, driver);
                if ending == Ending::Quiet {
                    self.settle_receive(conn, driver);
                }
                if self.sending && ending != Ending::Now {
                    self.settle_question(conn, driver);
                    return Some(CLOSING_MAX);
                }
                match ending {
                    Ending::Quiet | Ending::HangUp => {}
                    Ending::Linger => driver.shutdown(conn, false),
                    Ending::Now if self.has_in_flight() => driver.shutdown(conn, true),
                    Ending::Now => {}
                }
                self.phase = Phase::Draining(ending);
                self.held = ending == Ending::Quiet;
                self.settle_drain(ending, conn, driver);
                Some(if ending == Ending::HangUp {
                    HANG_UP_MAX
                } else {
                    CLOSING_MAX
                })
            }
            Phase::Draining(ending) => {
                self.settle_drain(ending, conn, driver);
                None
            }
        }
    }

    fn settle_send(&mut self, conn: Conn, driver: &mut dyn Driver) {
        if self.sending {
            return;
        }
        if self.unsent.is_empty() {
            let is_last = matches!(self.phase, Phase::Finishing(ending) if ending != Ending::Now);
            self.seal(is_last);
        }
        if !self.unsent.is_empty() {
            self.sending = true;
            driver.send(conn, std::mem::take(&mut self.unsent));
        }
    }

    fn settle_receive(&mut self, conn: Conn, driver: &mut dyn Driver) {
        match (self.receive, self.held) {
            (Receive::Off, false) => {
                self.receive = Receive::Armed;
                driver.receive(conn);
            }
            (Receive::Armed, true) => {
                self.receive = Receive::Pausing;
                driver.pause(conn);
            }
            _ => {}
        }
    }

    fn settle_question(&mut self, conn: Conn, driver: &mut dyn Driver) {
        if std::mem::take(&mut self.asks_progress) {
            driver.unacknowledged(conn);
        }
    }

    /// Whether a completion of it is still to come.
    fn has_in_flight(&self) -> bool {
        let receiving = matches!(self.receive, Receive::Armed | Receive::Pausing);
        receiving || self.sending || self.opening
    }

    /// Closes a connection that was shut down, as soon as no completion of it is to come any more.
    fn settle_drain(&mut self, ending: Ending, conn: Conn, driver: &mut dyn Driver) {
        if ending == Ending::Linger {
            self.settle_receive(conn, driver);
        }
        let peer_may_talk = ending == Ending::Linger && self.receive != Receive::Ended;
        if !peer_may_talk && !self.has_in_flight() {
            self.phase = Phase::Closing;
            driver.close(conn);
        }
    }
}

/// All connections of a worker, by slot.
pub(super) struct Table {
    slots: Vec<Connection>,
    free: Vec<u32>,
    slots_max: u32,
}

impl Table {
    pub(super) fn new(slots_max: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            slots_max,
        }
    }

    /// Takes a free slot for a connection that is about to be opened; `None` when all are taken.
    pub(super) fn open(&mut self, role: Role) -> Option<Conn> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.slots_max as usize => {
                self.slots.push(Connection::new());
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let connection = &mut self.slots[slot as usize];
        connection.phase = Phase::Opening;
        connection.opening = true;
        connection.role = role;
        Some(Conn {
            slot,
            generation: connection.generation,
        })
    }

    /// Gives a slot back, and makes all completions still to come for it stale.
    pub(super) fn free(&mut self, conn: Conn) {
        let connection = &mut self.slots[conn.slot as usize];
        let generation = connection.generation.wrapping_add(1);
        let touched = connection.touched;
        *connection = Connection {
            generation,
            touched,
            ..Connection::new()
        };
        self.free.push(conn.slot);
    }

    /// The connection, unless the slot was taken again since.
    pub(super) fn current(&mut self, conn: Conn) -> Option<&mut Connection> {
        self.slots.get_mut(conn.slot as usize).filter(|connection| {
            connection.generation == conn.generation && connection.phase != Phase::Free
        })
    }

    /// The name of what is in a slot now.
    pub(super) fn conn(&self, slot: u32) -> Conn {
        Conn {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// All slots in use, for the rare walk over everything.
    pub(super) fn open_conns(&self) -> Vec<Conn> {
        let in_use = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.phase != Phase::Free);
        in_use
            .map(|(slot, connection)| Conn {
                slot: slot as u32,
                generation: connection.generation,
            })
            .collect()
    }

    /// Whether no slot is in use.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// How many slots are left.
    pub(super) fn room(&self) -> u32 {
        self.slots_max - (self.slots.len() - self.free.len()) as u32
    }
}

impl std::ops::Index<Conn> for Table {
    type Output = Connection;

    fn index(&self, conn: Conn) -> &Connection {
        &self.slots[conn.slot as usize]
    }
}

impl std::ops::IndexMut<Conn> for Table {
    fn index_mut(&mut self, conn: Conn) -> &mut Connection {
        &mut self.slots[conn.slot as usize]
    }
}
