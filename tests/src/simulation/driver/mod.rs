//! The simulated driver: a worker's kernel and network, from a seed, on virtual time.
//!
//! It runs the very code that the ring runs, and is hostile to it within the contract of
//! [`Driver`]: reads and writes are cut anywhere, completions come late and together, buffers run
//! out, receives end for no reason, connections are refused and reset, and completions of a slot's
//! former use turn up after it was taken again. A breach of the contract by the worker panics. The
//! same seed gives the same run, so a failure is one number. Peers are written by the tests
//! ([`Peer`]).

mod world;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use portcullis::driver::{Buffer, Completion, Conn, Driver, Listener, OperationResult};

use self::world::{Event, Link, Ready, World};

/// Linux's number for it; the simulation knows no operating system.
const ECANCELED: i32 = 125;

/// Completions after which a wait always returns.
const BATCH_MAX: usize = 32;

/// What a peer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It waits for octets.
    Stay,
    /// It wants to be called again after this time, if no octets come first.
    Wake(Duration),
    /// It has sent all it will send.
    Close,
    /// It breaks the connection.
    Reset,
}

/// The other end of a connection.
pub trait Peer {
    /// Octets came in: none at the very beginning and after [`Fate::Wake`]. What is put into `send`
    /// is sent.
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate;
    /// The worker will send nothing more.
    fn ended(&mut self, now: Duration, send: &mut Vec<u8>) -> Fate;
    /// The worker broke the connection, or closed it with octets unread.
    fn reset(&mut self, now: Duration);
    /// Octets a second that it reads; `None` for as many as come. With 0 it has stopped reading for
    /// good.
    fn pace(&self) -> Option<u32> {
        None
    }
}

/// What answers at an address: a peer, or nothing.
pub type Dial = Box<dyn FnMut(SocketAddr) -> Option<Box<dyn Peer>>>;

/// How hostile a run is. Probabilities are in percent.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A receive or send is cut short.
    pub cut: u8,
    /// A receive ends though nothing is wrong.
    pub rearm: u8,
    /// A completion of a former use of the slot turns up after it was closed.
    pub stale: u8,
    /// The network breaks a connection, per piece of data delivered.
    pub reset: u8,
    /// A wait goes on although something has completed, so that completions come together.
    pub batch: u8,
    /// Receive buffers there are.
    pub buffers: u16,
    /// Octets in each.
    pub buffer_size: u32,
    /// The longest that anything takes.
    pub delay_max: Duration,
    /// Octets that fit into a connection on their way to a peer that has not read them; a send that
    /// finds no room waits.
    pub room: usize,
}

/// The network of a simulated worker, for the test to act on.
#[derive(Clone)]
pub struct Network(Rc<RefCell<World>>);

/// The driver of a simulated worker.
pub struct SimDriver {
    world: Rc<RefCell<World>>,
    now: Duration,
    buffers: Vec<Vec<u8>>,
}

/// Makes a world from a seed; `dial` answers the worker's connects.
pub fn simulation(seed: u64, faults: Faults, dial: Dial) -> (SimDriver, Network) {
    let world = World {
        now: Duration::ZERO,
        rng: fastrand::Rng::with_seed(seed),
        faults,
        events: BinaryHeap::new(),
        bodies: BTreeMap::new(),
        sequence: 0,
        links: BTreeMap::new(),
        accepts: BTreeMap::new(),
        backlog: BTreeMap::new(),
        listening: true,
        dial,
        ready: VecDeque::new(),
        buffers_free: (0..faults.buffers).collect(),
    };
    let world = Rc::new(RefCell::new(world));
    let buffers = vec![Vec::new(); usize::from(faults.buffers)];
    (
        SimDriver {
            world: Rc::clone(&world),
            now: Duration::ZERO,
            buffers,
        },
        Network(world),
    )
}

impl Network {
    /// Lets a peer connect to a listener after some time.
    pub fn arrive(
        &self,
        after: Duration,
        listener: Listener,
        from: SocketAddr,
        peer: Box<dyn Peer>,
    ) {
        let mut world = self.0.borrow_mut();
        let at = world.now + after;
        world.schedule(at, Event::Arrive(listener, from, peer));
    }

    /// Does what another thread of the gate would do, after some time (it gets the time), and wakes
    /// the worker.
    pub fn act(&self, after: Duration, act: impl FnOnce(Duration) + 'static) {
        let mut world = self.0.borrow_mut();
        let at = world.now + after;
        world.schedule(at, Event::Outside(Box::new(act)));
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }

    /// Connections that exist on the worker's side, except those that it is closing.
    pub fn connections(&self) -> usize {
        let world = self.0.borrow();
        world.links.values().filter(|link| !link.closing).count()
    }

    /// Receive buffers that the worker has not recycled.
    pub fn buffers_out(&self) -> usize {
        let world = self.0.borrow();
        usize::from(world.faults.buffers) - world.buffers_free.len()
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Duration {
        self.now
    }

    fn unix_time(&self) -> u64 {
        1_800_000_000 + self.now.as_secs()
    }

    fn accept(&mut self, listener: Listener, conn: Conn) {
        let mut world = self.world.borrow_mut();
        assert!(
            !world.links.contains_key(&conn),
            "accept into a slot in use"
        );
        world.accepts.entry(listener).or_default().push_back(conn);
        world.take_from_backlog(listener);
    }

    fn stop_accepting(&mut self) {
        let mut world = self.world.borrow_mut();
        world.listening = false;
        world.backlog.clear();
        for conn in std::mem::take(&mut world.accepts).into_values().flatten() {
            world.complete(
                conn,
                OperationResult::Accepted(Err(io::Error::from_raw_os_error(ECANCELED))),
            );
        }
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr) {
        let mut world = self.world.borrow_mut();
        let before = world.links.insert(
            conn,
            Link {
                opening: true,
                ..Link::default()
            },
        );
        assert!(before.is_none(), "connect of a slot in use");
        let at = world.now + world.delay();
        world.schedule(at, Event::Connected(conn, to));
    }

    fn receive(&mut self, conn: Conn) {
        let mut world = self.world.borrow_mut();
        let link = world
            .link(conn)
            .expect("receive on a connection that is not there");
        assert!(
            !link.armed && !link.closing && !link.opening,
            "receive out of turn"
        );
        link.armed = true;
        world.receive_some(conn);
    }

    fn pause(&mut self, conn: Conn) {
        let mut world = self.world.borrow_mut();
        let at = world.now + world.delay();
        // It may have ended meanwhile, which the worker cannot know yet.
        if let Some(link) = world.link(conn)
            && link.armed
        {
            link.pausing = true;
            world.schedule(at, Event::Paused(conn));
        }
    }

    fn send(&mut self, conn: Conn, buffer: Vec<u8>) {
        let mut world = self.world.borrow_mut();
        assert!(!buffer.is_empty(), "an empty send");
        let taken = world.cut(buffer.len());
        // Nothing is sent in no time.
        let at = world.now + world.delay().max(Duration::from_micros(1));
        let link = world
            .link(conn)
            .expect("send on a connection that is not there");
        assert!(
            !link.sending && !link.closing && !link.opening,
            "send out of turn"
        );
        link.sending = true;
        world.schedule(at, Event::Sent(conn, buffer, taken));
    }

    fn unacknowledged(&mut self, conn: Conn) {
        let mut world = self.world.borrow_mut();
        let unread = world.link(conn).map(|link| link.unread as u32);
        let result = unread.ok_or_else(|| io::ErrorKind::NotConnected.into());
        world.complete(conn, OperationResult::Unacknowledged(result));
    }

    fn shutdown(&mut self, conn: Conn, both: bool) {
        let mut world = self.world.borrow_mut();
        let Some(link) = world.link(conn) else { return };
        let first = !link.shut_write;
        link.shut_write = true;
        if link.opening {
            link.opening = false;
            world.complete(
                conn,
                OperationResult::Connected(Err(io::ErrorKind::ConnectionAborted.into())),
            );
            return;
        }
        if first {
            world.send_to_peer(conn, Event::EndToPeer(conn));
        }
        if both && let Some(link) = world.link(conn) {
            link.shut_read = true;
            world.receive_some(conn);
            world.send_again(conn);
        }
    }

    fn close(&mut self, conn: Conn) {
        let mut world = self.world.borrow_mut();
        let at = world.now + world.delay();
        let link = world
            .link(conn)
            .expect("close of a connection that is not there");
        assert!(
            !link.armed && !link.sending && !link.closing && !link.opening,
            "close with something in flight"
        );
        link.closing = true;
        if !link.shut_write && link.inbound.is_empty() {
            link.shut_write = true;
            world.send_to_peer(conn, Event::EndToPeer(conn));
        }
        let Some(link) = world.link(conn) else { return };
        // A peer that still waits for octets learns first that none will come.
        let at = at.max(link.to_peer);
        world.schedule(at, Event::Closed(conn));
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        &self.buffers[usize::from(buffer.id)]
    }

    fn wipe(&mut self, buffer: &Buffer) {
        self.buffers[usize::from(buffer.id)].fill(0);
    }

    fn recycle(&mut self, buffer: Buffer) {
        let mut world = self.world.borrow_mut();
        assert!(
            !world.buffers_free.contains(&buffer.id),
            "a buffer was given back twice"
        );
        world.buffers_free.push(buffer.id);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        let deadline = world.now + timeout;
        let batch = world.faults.batch;
        while world.ready.is_empty() || (world.ready.len() < BATCH_MAX && world.chance(batch)) {
            match world.events.peek() {
                Some(Reverse((at, _))) if *at <= deadline => {}
                _ => break,
            }
            let Some(Reverse((at, sequence))) = world.events.pop() else {
                break;
            };
            world.now = world.now.max(at);
            if let Some(event) = world.bodies.remove(&sequence) {
                world.happen(event);
            }
        }
        if world.ready.is_empty() {
            world.now = deadline;
        }
        self.now = world.now;
        while let Some((conn, ready)) = world.ready.pop_front() {
            let outcome = match ready {
                Ready::Other(outcome) => outcome,
                Ready::Octets(id, octets) => {
                    let len = octets.len() as u32;
                    self.buffers[usize::from(id)] = octets;
                    OperationResult::Received(Buffer { id, offset: 0, len })
                }
            };
            completions.push(Completion { conn, outcome });
        }
        Ok(())
    }
}
