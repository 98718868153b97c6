//! The driver on io_uring: names of one side for names of the other, and a clock that is read once
//! per wait.
//!
//! What there is to know about rings is in `portcullis-uring`. A ring is prepared on the main
//! thread, while there are the privileges to listen, and started on the thread of its worker, which
//! it never leaves:
//!
//! ```no_run
//! use portcullis::driver::ring::{PreparedRing, RingDriver, RingSettings, listen};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = listen("127.0.0.1:2525".parse()?, 1024)?;
//! let settings = RingSettings { listeners: vec![listener], ..RingSettings::default() };
//! let prepared = PreparedRing::new(settings)?;
//! let waker = prepared.waker();
//! std::thread::spawn(move || RingDriver::start(prepared).map(|driver| { /* the worker */ }));
//! waker.wake();
//! # Ok(())
//! # }
//! ```

use super::{Buffer, Completion, Conn, Driver, Listener, Outcome, ReceiveEnd};
use portcullis_uring::{Event, Ring};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use portcullis_uring::{
    Batch, ListenError, PreparedRing, Settings as RingSettings, SetupError, Waker, listen,
};

/// A ring as a [`Driver`].
#[derive(Debug)]
pub struct RingDriver {
    ring: Ring,
    began: Instant,
    now: Duration,
    unix_time: u64,
}

impl RingDriver {
    /// Makes a prepared ring the calling thread's own.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn start(prepared: PreparedRing) -> io::Result<Self> {
        let mut driver = Self {
            ring: prepared.start()?,
            began: Instant::now(),
            now: Duration::ZERO,
            unix_time: 0,
        };
        driver.read_clock();
        Ok(driver)
    }

    /// A handle that ends the driver's wait with [`Outcome::Wake`], from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.ring.waker()
    }

    fn read_clock(&mut self) {
        self.now = self.began.elapsed();
        self.unix_time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
    }
}

impl Driver for RingDriver {
    fn now(&self) -> Duration {
        self.now
    }

    fn unix_time(&self) -> u64 {
        self.unix_time
    }

    fn accept(&mut self, listener: Listener, conn: Conn) {
        self.ring.accept(usize::from(listener.0), conn.into());
    }

    fn stop_accepting(&mut self) {
        self.ring.stop_accepting();
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr) {
        self.ring.connect(conn.into(), to);
    }

    fn receive(&mut self, conn: Conn) {
        self.ring.receive(conn.into());
    }

    fn pause(&mut self, conn: Conn) {
        self.ring.pause(conn.into());
    }

    fn send(&mut self, conn: Conn, buffer: Vec<u8>) {
        self.ring.send(conn.into(), buffer);
    }

    fn unacknowledged(&mut self, conn: Conn) {
        self.ring.unacknowledged(conn.into());
    }

    fn shutdown(&mut self, conn: Conn, both: bool) {
        self.ring.shutdown(conn.into(), both);
    }

    fn close(&mut self, conn: Conn) {
        self.ring.close(conn.into());
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.ring.bytes(buffer.id, buffer.offset, buffer.len)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.ring.recycle(buffer.id);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let waited = self
            .ring
            .wait(timeout, |event| completions.push(event.into()));
        self.read_clock();
        waited
    }
}

impl From<Conn> for portcullis_uring::Conn {
    fn from(Conn { slot, generation }: Conn) -> Self {
        Self { slot, generation }
    }
}

impl From<Event> for Completion {
    fn from(event: Event) -> Self {
        let portcullis_uring::Conn { slot, generation } = event.conn;
        Self {
            conn: Conn { slot, generation },
            outcome: event.outcome.into(),
        }
    }
}

impl From<portcullis_uring::Outcome> for Outcome {
    fn from(outcome: portcullis_uring::Outcome) -> Self {
        use portcullis_uring::Outcome as Ring;
        match outcome {
            Ring::Accepted(result) => Self::Accepted(result),
            Ring::Connected(result) => Self::Connected(result),
            Ring::Received { buffer, length } => Self::Received(Buffer {
                id: buffer,
                offset: 0,
                len: length,
            }),
            Ring::ReceiveEnded(end) => Self::ReceiveEnded(end.into()),
            Ring::Sent(buffer, result) => Self::Sent { buffer, result },
            Ring::Unacknowledged(result) => Self::Unacknowledged(result),
            Ring::Closed => Self::Closed,
            Ring::Wake => Self::Wake,
        }
    }
}

impl From<portcullis_uring::ReceiveEnd> for ReceiveEnd {
    fn from(end: portcullis_uring::ReceiveEnd) -> Self {
        use portcullis_uring::ReceiveEnd as Ring;
        match end {
            Ring::EndOfStream => Self::EndOfStream,
            Ring::Starved => Self::Starved,
            Ring::Paused => Self::Paused,
            Ring::Rearm => Self::Rearm,
            Ring::Failed(error) => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Shape, World, conformance};
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    /// A ring, and peers that are plain sockets on the loopback.
    struct Loopback {
        driver: RingDriver,
        address: SocketAddr,
        next_hop: TcpListener,
    }

    fn peer(stream: TcpStream) -> TcpStream {
        stream.set_nonblocking(true).unwrap();
        stream
    }

    impl World for Loopback {
        type Driver = RingDriver;
        type Peer = TcpStream;

        fn new(shape: Shape) -> Self {
            let listener = listen("127.0.0.1:0".parse().unwrap(), 128).unwrap();
            let twin = TcpListener::from(listener.try_clone().unwrap());
            let settings = RingSettings {
                slots: shape.slots,
                listeners: vec![listener],
                buffers: shape.buffers,
                buffer_size: shape.buffer_size,
                ..RingSettings::default()
            };
            Self {
                driver: RingDriver::start(PreparedRing::new(settings).unwrap()).unwrap(),
                address: twin.local_addr().unwrap(),
                next_hop: TcpListener::bind("127.0.0.1:0").unwrap(),
            }
        }

        fn driver(&mut self) -> &mut RingDriver {
            &mut self.driver
        }

        fn call(&mut self) -> (TcpStream, SocketAddr) {
            let stream = TcpStream::connect(self.address).unwrap();
            let address = stream.local_addr().unwrap();
            (peer(stream), address)
        }

        fn next_hop(&mut self) -> SocketAddr {
            self.next_hop.local_addr().unwrap()
        }

        fn nobody(&mut self) -> SocketAddr {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        }

        fn called(&mut self) -> TcpStream {
            peer(self.next_hop.accept().unwrap().0)
        }

        fn say(&mut self, peer: &mut TcpStream, bytes: &[u8]) -> usize {
            match peer.write(bytes) {
                Ok(taken) => taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => panic!("{error}"),
            }
        }

        fn hear(&mut self, peer: &mut TcpStream, heard: &mut Vec<u8>) -> bool {
            let mut buffer = [0; 65536];
            loop {
                match peer.read(&mut buffer) {
                    Ok(0) => return true,
                    Ok(length) => heard.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) => panic!("{error}"),
                }
            }
        }

        fn read_slowly(&mut self, _peer: &mut TcpStream) {}

        fn finish(&mut self, peer: &mut TcpStream) {
            peer.shutdown(Shutdown::Write).unwrap();
        }
    }

    conformance!(Loopback);
}
