//! What a worker may rely on, whatever driver it runs on: the contract of [`Driver`] as test cases.
//!
//! A driver's module says how its world is made and names it to [`conformance!`]; every case of
//! [`cases`] then is a test of that driver. The ring runs them against sockets on the loopback,
//! where time passes by itself; the simulation runs them on its own time.

mod cases;
mod ring;
mod simulated;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis::driver::{Buffer, Completion, Conn, Driver, Listener, OperationResult, ReceiveEnd};

/// The sizes of the driver under test.
struct Shape {
    slots: u32,
    buffers: u16,
    buffer_size: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            slots: 8,
            buffers: 16,
            buffer_size: 1024,
        }
    }
}

/// A driver with one listener, and the peers at the other ends of its connections. Peers never
/// block.
trait World {
    type Driver: Driver;
    type Peer;

    fn new(shape: Shape) -> Self;
    fn driver(&mut self) -> &mut Self::Driver;
    /// A client connects to the listener: it, and its address.
    fn call(&mut self) -> (Self::Peer, SocketAddr);
    /// An address where a next hop listens.
    fn next_hop(&mut self) -> SocketAddr;
    /// An address where nothing listens.
    fn unbound(&mut self) -> SocketAddr;
    /// The next hop's end of a connection that was made to it.
    fn called(&mut self) -> Self::Peer;
    /// The peer sends; how many octets were taken.
    fn say(&mut self, peer: &mut Self::Peer, bytes: &[u8]) -> usize;
    /// Appends what has reached the peer. True at the end of the stream.
    fn hear(&mut self, peer: &mut Self::Peer, heard: &mut Vec<u8>) -> bool;
    /// From now on what is sent to the peer stays on its way for a while, unless that is so anyway
    /// until it [hears](Self::hear).
    fn read_slowly(&mut self, peer: &mut Self::Peer);
    /// The peer has nothing more to send.
    fn finish(&mut self, peer: &mut Self::Peer);
}

/// Makes every case a test of one driver.
macro_rules! conformance {
    ($world:ty) => {
        crate::conformance!($world:
            accepted_connection_has_its_peers_address
            full_table_leaves_callers_waiting
            accepts_that_are_stopped_all_complete
            connected_next_hop_talks_and_listens
            refused_connect_leaves_a_slot_to_be_closed
            octets_come_in_order_and_then_the_end
            receive_without_a_buffer_is_starved_and_goes_on_after_a_recycle
            pauses_lose_nothing
            buffer_of_an_old_connection_can_still_be_recycled
            sent_buffer_comes_back_and_every_octet_arrives
            stuck_send_ends_when_both_directions_are_shut_down
            unacknowledged_octets_become_fewer_as_the_peer_takes_them
            close_after_shutdown_ends_the_stream_of_the_peer
            half_close_leaves_the_other_direction_open
            slot_can_be_used_again_and_again
            time_stands_still_between_waits_and_passes_in_them
        );
    };
    ($world:ty: $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                crate::cases::$case::<$world>();
            }
        )+
    };
}
pub(crate) use conformance;

const FIRST: Conn = Conn {
    slot: 0,
    generation: 1,
};
/// Waits after which a case is given up; in real time, some seconds.
const WAITS_MAX: u32 = 500;
const WAIT: Duration = Duration::from_millis(10);
/// Waits after which nothing more is expected.
const WAITS_QUIET: u32 = 5;

/// A case in its world, with the completions that it has not looked at yet.
struct Case<W> {
    world: W,
    completions: VecDeque<Completion>,
}

impl<W: World> Case<W> {
    fn new(shape: Shape) -> Self {
        Self {
            world: W::new(shape),
            completions: VecDeque::new(),
        }
    }

    fn driver(&mut self) -> &mut W::Driver {
        self.world.driver()
    }

    fn wait(&mut self) {
        let mut completions = Vec::new();
        self.driver().wait(WAIT, &mut completions).unwrap();
        self.completions.extend(completions);
    }

    /// The next completion, which must be this connection's.
    fn next(&mut self, conn: Conn) -> OperationResult {
        for _ in 0..WAITS_MAX {
            if let Some(completion) = self.completions.pop_front() {
                assert_eq!(completion.conn, conn, "{:?}", completion.outcome);
                return completion.outcome;
            }
            self.wait();
        }
        panic!("nothing happened to {conn:?}");
    }

    fn quiet(&mut self) {
        for _ in 0..WAITS_QUIET {
            self.wait();
        }
        assert!(self.completions.is_empty(), "{:?}", self.completions);
    }

    fn accepted(&mut self, conn: Conn) -> W::Peer {
        self.driver().accept(Listener(0), conn);
        let (peer, address) = self.world.call();
        self.expect_accepted(conn, address);
        peer
    }

    fn expect_accepted(&mut self, conn: Conn, from: SocketAddr) {
        match self.next(conn) {
            OperationResult::Accepted(Ok(address)) => assert_eq!(address, from),
            other => panic!("{other:?}"),
        }
    }

    /// The buffer that comes next; a receive that ended for no reason is armed again.
    fn buffer(&mut self, conn: Conn) -> Buffer {
        loop {
            match self.next(conn) {
                OperationResult::Received(buffer) => return buffer,
                OperationResult::ReceiveEnded(ReceiveEnd::Rearm) => self.driver().receive(conn),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The bytes that come next.
    fn received(&mut self, conn: Conn) -> Vec<u8> {
        let buffer = self.buffer(conn);
        let bytes = self.driver().bytes(&buffer).to_vec();
        assert_eq!(bytes.len(), buffer.len as usize);
        self.driver().recycle(buffer);
        bytes
    }

    fn receive_exactly(&mut self, conn: Conn, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend(self.received(conn));
        }
        bytes
    }

    fn receive_end(&mut self, conn: Conn) -> ReceiveEnd {
        match self.next(conn) {
            OperationResult::ReceiveEnded(end) => end,
            other => panic!("{other:?}"),
        }
    }

    fn sent(&mut self, conn: Conn) -> (Vec<u8>, io::Result<usize>) {
        match self.next(conn) {
            OperationResult::Sent { buffer, result } => (buffer, result),
            other => panic!("{other:?}"),
        }
    }

    /// Sends all of it, in as many pieces as the driver wants.
    fn send_all(&mut self, conn: Conn, mut buffer: Vec<u8>) {
        while !buffer.is_empty() {
            let length = buffer.len();
            self.driver().send(conn, buffer);
            let (rest, result) = self.sent(conn);
            assert_eq!(rest.len(), length, "not the buffer that was given");
            buffer = rest;
            let taken = result.unwrap();
            assert!(taken > 0);
            buffer.drain(..taken);
        }
    }

    /// Sends until there is no room; gives the length of the buffer whose send is then in flight.
    fn send_until_stuck(&mut self, conn: Conn) -> usize {
        let mut buffer = vec![0; 32 << 20];
        loop {
            let length = buffer.len();
            self.driver().send(conn, buffer);
            for _ in 0..WAITS_QUIET {
                self.wait();
            }
            if self.completions.is_empty() {
                return length;
            }
            let (rest, result) = self.sent(conn);
            buffer = rest;
            buffer.truncate(length - result.unwrap());
        }
    }

    fn unacknowledged(&mut self, conn: Conn) -> u32 {
        self.driver().unacknowledged(conn);
        match self.next(conn) {
            OperationResult::Unacknowledged(result) => result.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, conn: Conn) {
        self.driver().close(conn);
        match self.next(conn) {
            OperationResult::Closed => {}
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, peer: &mut W::Peer, bytes: &[u8]) {
        assert_eq!(self.world.say(peer, bytes), bytes.len());
    }

    /// All that reaches the peer until the end of the stream. Nothing may complete meanwhile.
    fn hear_to_the_end(&mut self, peer: &mut W::Peer) -> Vec<u8> {
        let mut heard = Vec::new();
        for _ in 0..WAITS_MAX {
            if self.world.hear(peer, &mut heard) {
                return heard;
            }
            self.wait();
            assert!(self.completions.is_empty(), "{:?}", self.completions);
        }
        panic!("the stream did not end");
    }
}
