//! The driver on io_uring: a ring, and a clock that is read once per wait.
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

use super::{Buffer, Completion, Conn, Driver, Listener};
use portcullis_uring::Ring;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use portcullis_uring::{
    ListenError, PreparedRing, Settings as RingSettings, SetupError, Waker, listen,
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
        self.ring.accept(listener, conn);
    }

    fn stop_accepting(&mut self) {
        self.ring.stop_accepting();
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr) {
        self.ring.connect(conn, to);
    }

    fn receive(&mut self, conn: Conn) {
        self.ring.receive(conn);
    }

    fn pause(&mut self, conn: Conn) {
        self.ring.pause(conn);
    }

    fn send(&mut self, conn: Conn, buffer: Vec<u8>) {
        self.ring.send(conn, buffer);
    }

    fn unacknowledged(&mut self, conn: Conn) {
        self.ring.unacknowledged(conn);
    }

    fn shutdown(&mut self, conn: Conn, both: bool) {
        self.ring.shutdown(conn, both);
    }

    fn close(&mut self, conn: Conn) {
        self.ring.close(conn);
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.ring.bytes(buffer)
    }

    fn wipe(&mut self, buffer: &Buffer) {
        self.ring.wipe(buffer);
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.ring.recycle(buffer);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let waited = self.ring.wait(timeout, completions);
        self.read_clock();
        waited
    }
}
