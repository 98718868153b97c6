//! The kernel and the network of a simulation: what happens when, and what becomes of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis::driver::{Conn, Listener, OperationResult, ReceiveEnd};

use super::{Dial, Fate, Faults, Peer};

pub(super) enum Event {
    Arrive(Listener, SocketAddr, Box<dyn Peer>),
    Connected(Conn, SocketAddr),
    Sent(Conn, Vec<u8>, usize),
    Paused(Conn),
    Closed(Conn),
    Stale(Conn),
    ToPeer(Conn, Vec<u8>),
    PeerWake(Conn, u64),
    EndToPeer(Conn),
    ToWorker(Conn, Vec<u8>),
    EndToWorker(Conn),
    ResetToWorker(Conn),
    /// Another thread does something and wakes the worker.
    Outside(Box<dyn FnOnce(Duration)>),
}

#[derive(Default)]
pub(super) struct Link {
    pub(super) peer: Option<Box<dyn Peer>>,
    pub(super) inbound: VecDeque<u8>,
    pub(super) inbound_end: bool,
    pub(super) broken: bool,
    pub(super) opening: bool,
    pub(super) armed: bool,
    pub(super) pausing: bool,
    pub(super) sending: bool,
    /// A send that has found no room: its buffer, and how much of that it is for.
    pub(super) stuck: Option<(Vec<u8>, usize)>,
    /// Octets on their way to the peer that it has not read.
    pub(super) unread: usize,
    pub(super) closing: bool,
    pub(super) shut_read: bool,
    pub(super) shut_write: bool,
    /// Nothing overtakes in either direction.
    pub(super) to_peer: Duration,
    pub(super) to_worker: Duration,
    /// Which of its wake-ups a peer still wants.
    pub(super) wake: u64,
}

/// The network and the kernel of a simulation.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: fastrand::Rng,
    pub(super) faults: Faults,
    pub(super) events: BinaryHeap<Reverse<(Duration, u64)>>,
    pub(super) bodies: BTreeMap<u64, Event>,
    pub(super) sequence: u64,
    pub(super) links: BTreeMap<Conn, Link>,
    pub(super) accepts: BTreeMap<Listener, VecDeque<Conn>>,
    pub(super) backlog: BTreeMap<Listener, VecDeque<Arrival>>,
    pub(super) listening: bool,
    pub(super) dial: Dial,
    pub(super) ready: VecDeque<(Conn, Ready)>,
    pub(super) buffers_free: Vec<u16>,
}

/// A client that is about to be accepted, and where it comes from.
type Arrival = (SocketAddr, Box<dyn Peer>);

pub(super) enum Ready {
    Octets(u16, Vec<u8>),
    Other(OperationResult),
}

impl World {
    pub(super) fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence)));
        self.bodies.insert(self.sequence, event);
    }

    pub(super) fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    /// How much of a piece goes together: all of it, or by chance less.
    pub(super) fn cut(&mut self, length: usize) -> usize {
        if self.chance(self.faults.cut) {
            self.rng.usize(1..=length)
        } else {
            length
        }
    }

    /// Most things are quick, some are slow.
    pub(super) fn delay(&mut self) -> Duration {
        if self.rng.u8(..4) > 0 {
            return Duration::from_micros(self.rng.u64(..200));
        }
        self.faults.delay_max.mul_f64(self.rng.f64())
    }

    pub(super) fn link(&mut self, conn: Conn) -> Option<&mut Link> {
        self.links.get_mut(&conn)
    }

    /// Schedules in one of a link's directions, so that nothing overtakes.
    pub(super) fn send_to_peer(&mut self, conn: Conn, event: Event) {
        let at = self.now + self.delay();
        let Some(link) = self.link(conn) else { return };
        link.to_peer = link.to_peer.max(at);
        let at = link.to_peer;
        self.schedule(at, event);
    }

    fn send_to_worker(&mut self, conn: Conn, event: Event) {
        let at = self.now + self.delay();
        let Some(link) = self.link(conn) else { return };
        link.to_worker = link.to_worker.max(at);
        let at = link.to_worker;
        self.schedule(at, event);
    }

    pub(super) fn complete(&mut self, conn: Conn, outcome: OperationResult) {
        self.ready.push_back((conn, Ready::Other(outcome)));
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(listener, from, peer) => self.arrive(listener, from, peer),
            Event::Connected(conn, address) => self.connected(conn, address),
            Event::Sent(conn, buffer, taken) => self.sent(conn, buffer, taken),
            Event::Paused(conn) => self.paused(conn),
            Event::Closed(conn) => self.closed(conn),
            Event::Stale(conn) => {
                self.complete(conn, OperationResult::ReceiveEnded(ReceiveEnd::EndOfStream));
            }
            Event::ToPeer(conn, octets) => self.octets_to_peer(conn, &octets),
            Event::PeerWake(conn, wake) => {
                if self.link(conn).is_some_and(|link| link.wake == wake) {
                    self.call_peer(conn, |peer, now, send| peer.octets(now, &[], send));
                }
            }
            Event::EndToPeer(conn) => self.call_peer(conn, |peer, now, send| peer.ended(now, send)),
            Event::ToWorker(conn, octets) => self.octets_to_worker(conn, octets),
            Event::EndToWorker(conn) => {
                if let Some(link) = self.link(conn) {
                    link.inbound_end = true;
                    self.receive_some(conn);
                }
            }
            Event::Outside(act) => {
                act(self.now);
                self.complete(Conn::NONE, OperationResult::Wake);
            }
            Event::ResetToWorker(conn) => self.reset_to_worker(conn),
        }
    }

    fn arrive(&mut self, listener: Listener, from: SocketAddr, peer: Box<dyn Peer>) {
        if self.listening {
            let backlog = self.backlog.entry(listener).or_default();
            backlog.push_back((from, peer));
            self.take_from_backlog(listener);
        }
    }

    fn paused(&mut self, conn: Conn) {
        if let Some(link) = self.link(conn)
            && link.pausing
        {
            link.pausing = false;
            link.armed = false;
            self.complete(conn, OperationResult::ReceiveEnded(ReceiveEnd::Paused));
        }
    }

    fn octets_to_peer(&mut self, conn: Conn, octets: &[u8]) {
        if let Some(link) = self.link(conn) {
            link.unread -= octets.len();
            self.send_again(conn);
        }
        if !octets.is_empty() && self.chance(self.faults.reset) {
            self.cut_connection(conn);
        } else {
            self.call_peer(conn, |peer, now, send| peer.octets(now, octets, send));
        }
    }

    fn octets_to_worker(&mut self, conn: Conn, octets: Vec<u8>) {
        if self.link(conn).is_some_and(|link| link.shut_read) {
            // The worker will not read it: the kernel answers with a RST, which may overtake our
            // last octets.
            self.break_peer(conn);
        } else if let Some(link) = self.link(conn) {
            link.inbound.extend(octets);
            self.receive_some(conn);
        }
    }

    /// The worker's side of a connection is broken.
    fn reset_to_worker(&mut self, conn: Conn) {
        if let Some(link) = self.link(conn) {
            link.broken = true;
            link.inbound.clear();
            self.receive_some(conn);
            self.send_again(conn);
        }
    }

    pub(super) fn take_from_backlog(&mut self, listener: Listener) {
        let (Some(accepts), Some(backlog)) = (
            self.accepts.get_mut(&listener),
            self.backlog.get_mut(&listener),
        ) else {
            return;
        };
        if accepts.is_empty() || backlog.is_empty() {
            return;
        }
        if let (Some(conn), Some((from, peer))) = (accepts.pop_front(), backlog.pop_front()) {
            self.links.insert(
                conn,
                Link {
                    peer: Some(peer),
                    ..Link::default()
                },
            );
            self.complete(conn, OperationResult::Accepted(Ok(from)));
            self.send_to_peer(conn, Event::ToPeer(conn, Vec::new()));
        }
    }

    fn connected(&mut self, conn: Conn, address: SocketAddr) {
        let shut = self.link(conn).is_some_and(|link| link.shut_write);
        let peer = if shut { None } else { (self.dial)(address) };
        let Some(link) = self.link(conn) else { return };
        if !link.opening {
            return;
        }
        link.opening = false;
        link.peer = peer;
        if link.peer.is_none() {
            link.broken = true;
            self.complete(
                conn,
                OperationResult::Connected(Err(io::ErrorKind::ConnectionRefused.into())),
            );
            return;
        }
        self.complete(conn, OperationResult::Connected(Ok(())));
        self.send_to_peer(conn, Event::ToPeer(conn, Vec::new()));
    }

    fn sent(&mut self, conn: Conn, buffer: Vec<u8>, wanted: usize) {
        let room = self.faults.room;
        let Some(link) = self.link(conn) else { return };
        if link.broken || link.shut_write {
            link.sending = false;
            self.complete(
                conn,
                OperationResult::Sent {
                    buffer,
                    result: Err(io::ErrorKind::BrokenPipe.into()),
                },
            );
            return;
        }
        let taken = wanted.min(room - link.unread);
        if taken == 0 {
            link.stuck = Some((buffer, wanted));
            return;
        }
        link.sending = false;
        link.unread += taken;
        let pace = link.peer.as_ref().and_then(|peer| peer.pace());
        // With a pace of 0 it is on its way for ever.
        let mut rest = &buffer[..if pace == Some(0) { 0 } else { taken }];
        while !rest.is_empty() {
            let piece = self.cut(rest.len());
            let piece = pace.map_or(piece, |pace| piece.min(pace as usize));
            let (octets, more) = rest.split_at(piece);
            if let (Some(pace), Some(link)) = (pace, self.links.get_mut(&conn)) {
                let takes = Duration::from_secs_f64(piece as f64 / f64::from(pace));
                link.to_peer = link.to_peer.max(self.now) + takes;
            }
            self.send_to_peer(conn, Event::ToPeer(conn, octets.to_vec()));
            rest = more;
        }
        self.complete(
            conn,
            OperationResult::Sent {
                buffer,
                result: Ok(taken),
            },
        );
    }

    /// A send that found no room may find some now, or find that there will be none.
    pub(super) fn send_again(&mut self, conn: Conn) {
        if let Some((buffer, wanted)) = self.link(conn).and_then(|link| link.stuck.take()) {
            self.sent(conn, buffer, wanted);
        }
    }

    fn closed(&mut self, conn: Conn) {
        let unread = self.link(conn).is_some_and(|link| !link.inbound.is_empty());
        if unread {
            self.break_peer(conn);
        }
        if self.chance(self.faults.stale) {
            let at = self.now + self.delay() * 4;
            self.schedule(at, Event::Stale(conn));
        }
        self.complete(conn, OperationResult::Closed);
        // The peer may go on for a while; what it says then is lost.
        self.links.remove(&conn);
    }

    /// The connection breaks in the network: both sides notice.
    fn cut_connection(&mut self, conn: Conn) {
        self.break_peer(conn);
        self.reset_to_worker(conn);
    }

    fn break_peer(&mut self, conn: Conn) {
        let now = self.now;
        if let Some(mut peer) = self.link(conn).and_then(|link| link.peer.take()) {
            peer.reset(now);
        }
    }

    fn call_peer(
        &mut self,
        conn: Conn,
        call: impl FnOnce(&mut dyn Peer, Duration, &mut Vec<u8>) -> Fate,
    ) {
        let now = self.now;
        let Some(link) = self.link(conn) else { return };
        link.wake += 1;
        let wake = link.wake;
        let Some(mut peer) = link.peer.take() else {
            return;
        };
        let mut send = Vec::new();
        let fate = call(peer.as_mut(), now, &mut send);
        if let Some(link) = self.link(conn) {
            link.peer = Some(peer);
        }
        let mut rest = send.as_slice();
        while !rest.is_empty() {
            let (octets, more) = rest.split_at(self.cut(rest.len()));
            self.send_to_worker(conn, Event::ToWorker(conn, octets.to_vec()));
            rest = more;
        }
        match fate {
            Fate::Stay => {}
            Fate::Wake(after) => self.schedule(now + after, Event::PeerWake(conn, wake)),
            Fate::Close => self.send_to_worker(conn, Event::EndToWorker(conn)),
            Fate::Reset => {
                if let Some(link) = self.link(conn) {
                    link.peer = None;
                }
                self.send_to_worker(conn, Event::ResetToWorker(conn));
            }
        }
    }

    /// Gives an armed receive what there is for it.
    pub(super) fn receive_some(&mut self, conn: Conn) {
        loop {
            let (rearm, cut) = (self.chance(self.faults.rearm), self.chance(self.faults.cut));
            let Some(link) = self.links.get_mut(&conn) else {
                return;
            };
            if !link.armed {
                return;
            }
            let end = if !link.inbound.is_empty() && !link.shut_read {
                if rearm {
                    ReceiveEnd::Rearm
                } else if let Some(buffer) = self.buffers_free.pop() {
                    let most = link.inbound.len().min(self.faults.buffer_size as usize);
                    let length = if cut { self.rng.usize(1..=most) } else { most };
                    let octets = link.inbound.drain(..length).collect();
                    self.ready.push_back((conn, Ready::Octets(buffer, octets)));
                    continue;
                } else {
                    ReceiveEnd::Starved
                }
            } else if link.broken {
                ReceiveEnd::Failed(io::ErrorKind::ConnectionReset.into())
            } else if link.inbound_end || link.shut_read {
                ReceiveEnd::EndOfStream
            } else {
                return;
            };
            link.armed = false;
            link.pausing = false;
            self.complete(conn, OperationResult::ReceiveEnded(end));
            return;
        }
    }
}
