//! The simulated driver under the same contract as the ring, with a calm network and with a hostile
//! one. What the worker's simulations prove is worth as much as this.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use portcullis::driver::Listener;
use portcullis_tests::simulation::driver::{Fate, Faults, Network, Peer, SimDriver, simulation};

use super::{Shape, World};

thread_local! {
    /// Every test has a thread of its own, so every run of it has the same seeds.
    static SEED: Cell<u64> = const { Cell::new(1) };
}

/// How often a peer looks at what it is to say.
const LOOK: Duration = Duration::from_millis(1);

/// Octets a second of a peer that reads slowly: seconds for what fits into a connection.
const SLOW_PACE: u32 = 20_000;

/// What a case and a peer share.
#[derive(Default)]
struct Wire {
    to_say: Vec<u8>,
    finish: bool,
    finished: bool,
    heard: Vec<u8>,
    ended: bool,
    reset: bool,
    pace: Option<u32>,
}

type Shared = Rc<RefCell<Wire>>;

/// A peer that says what the test wants said.
struct Puppet(Shared);

impl Puppet {
    fn go_on(&self, send: &mut Vec<u8>) -> Fate {
        let mut wire = self.0.borrow_mut();
        send.append(&mut wire.to_say);
        if wire.finished {
            Fate::Stay
        } else if wire.finish {
            wire.finished = true;
            Fate::Close
        } else {
            Fate::Wake(LOOK)
        }
    }
}

impl Peer for Puppet {
    fn octets(&mut self, _: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        self.0.borrow_mut().heard.extend_from_slice(octets);
        self.go_on(send)
    }

    fn ended(&mut self, _: Duration, send: &mut Vec<u8>) -> Fate {
        self.0.borrow_mut().ended = true;
        self.go_on(send)
    }

    fn reset(&mut self, _: Duration) {
        self.0.borrow_mut().reset = true;
    }

    fn pace(&self) -> Option<u32> {
        self.0.borrow().pace
    }
}

struct Simulated<const HOSTILE: bool> {
    driver: SimDriver,
    network: Network,
    called: Rc<RefCell<VecDeque<Shared>>>,
    callers: u16,
}

fn next_hop() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 25], 25))
}

impl<const HOSTILE: bool> World for Simulated<HOSTILE> {
    type Driver = SimDriver;
    type Peer = Shared;

    fn new(shape: Shape) -> Self {
        let seed = SEED.with(|seed| seed.replace(seed.get() + 1));
        let often = if HOSTILE { 30 } else { 0 };
        let faults = Faults {
            cut: often,
            rearm: often,
            // No case expects a late completion or a reset.
            stale: 0,
            reset: 0,
            batch: often,
            buffers: shape.buffers,
            buffer_size: shape.buffer_size,
            delay_max: Duration::from_millis(if HOSTILE { 5 } else { 0 }),
            room: 64 << 10,
        };
        let called = Rc::new(RefCell::new(VecDeque::new()));
        let calls = Rc::clone(&called);
        let dial = move |to| -> Option<Box<dyn Peer>> {
            if to != next_hop() {
                return None;
            }
            let wire = Shared::default();
            calls.borrow_mut().push_back(Rc::clone(&wire));
            Some(Box::new(Puppet(wire)))
        };
        let (driver, network) = simulation(seed, faults, Box::new(dial));
        Self {
            driver,
            network,
            called,
            callers: 0,
        }
    }

    fn driver(&mut self) -> &mut SimDriver {
        &mut self.driver
    }

    fn call(&mut self) -> (Shared, SocketAddr) {
        self.callers += 1;
        let from = SocketAddr::from(([198, 51, 100, 1], self.callers));
        let wire = Shared::default();
        let peer = Box::new(Puppet(Rc::clone(&wire)));
        self.network.arrive(Duration::ZERO, Listener(0), from, peer);
        (wire, from)
    }

    fn next_hop(&mut self) -> SocketAddr {
        next_hop()
    }

    fn unbound(&mut self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 26], 25))
    }

    fn called(&mut self) -> Shared {
        self.called.borrow_mut().pop_front().unwrap()
    }

    fn say(&mut self, peer: &mut Shared, bytes: &[u8]) -> usize {
        peer.borrow_mut().to_say.extend_from_slice(bytes);
        bytes.len()
    }

    fn hear(&mut self, peer: &mut Shared, heard: &mut Vec<u8>) -> bool {
        let mut wire = peer.borrow_mut();
        assert!(!wire.reset, "the connection was reset");
        heard.append(&mut wire.heard);
        wire.ended
    }

    fn read_slowly(&mut self, peer: &mut Shared) {
        peer.borrow_mut().pace = Some(SLOW_PACE);
    }

    fn finish(&mut self, peer: &mut Shared) {
        peer.borrow_mut().finish = true;
    }
}

mod calm {
    crate::conformance!(super::Simulated<false>);
}

mod hostile {
    crate::conformance!(super::Simulated<true>);
}
