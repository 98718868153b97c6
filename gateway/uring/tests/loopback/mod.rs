//! A ring with a listener on the loopback, and the completions it has given so far.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use portcullis_uring::{
    Buffer, Completion, Conn, Listener, OperationResult, PreparedRing, ReceiveEnd, Ring, Settings,
    listen,
};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Nothing on the loopback takes longer, unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to believe that something does not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(100);

pub(crate) struct Loopback {
    pub(crate) ring: Ring,
    pub(crate) address: SocketAddr,
    completions: VecDeque<Completion>,
}

pub(crate) fn conn(slot: u32, generation: u32) -> Conn {
    Conn { slot, generation }
}

impl Loopback {
    pub(crate) fn new(slots: u32) -> Self {
        Self::with(Settings {
            slots,
            ..Settings::default()
        })
    }

    /// A listener is added to the settings.
    pub(crate) fn with(mut settings: Settings) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
        let twin = TcpListener::from(listener.try_clone().unwrap());
        let address = twin.local_addr().unwrap();
        settings.listeners.push(listener);
        Self {
            ring: PreparedRing::new(settings).unwrap().start().unwrap(),
            address,
            completions: VecDeque::new(),
        }
    }

    pub(crate) fn dial(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    pub(crate) fn wait(&mut self, timeout: Duration) {
        let mut completions = Vec::new();
        self.ring.wait(timeout, &mut completions).unwrap();
        self.completions.extend(completions);
    }

    /// The next completion, in the order of their coming.
    pub(crate) fn next(&mut self) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(completion) = self.completions.pop_front() {
                return completion;
            }
            assert!(Instant::now() < deadline, "nothing happened");
            self.wait(A_WHILE);
        }
    }

    /// What happens in a while (which is not over early).
    pub(crate) fn meanwhile(&mut self) -> Vec<Completion> {
        let deadline = Instant::now() + A_WHILE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            self.wait(left);
        }
        self.completions.drain(..).collect()
    }

    /// A connection in the slot, and its client.
    pub(crate) fn accepted(&mut self, conn: Conn) -> TcpStream {
        self.ring.accept(Listener(0), conn);
        let client = self.dial();
        self.expect_accepted(conn, &client);
        client
    }

    pub(crate) fn expect_accepted(&mut self, conn: Conn, client: &TcpStream) {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::Accepted(Ok(peer)) => assert_eq!(peer, client.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn expect_received(&mut self, conn: Conn) -> Vec<u8> {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::Received(buffer) => self.taken(buffer),
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of a buffer, which goes back to the ring.
    pub(crate) fn taken(&mut self, buffer: Buffer) -> Vec<u8> {
        let bytes = self.ring.bytes(&buffer).to_vec();
        self.ring.recycle(buffer);
        bytes
    }

    pub(crate) fn expect_end(&mut self, conn: Conn) -> ReceiveEnd {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::ReceiveEnded(end) => end,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn expect_sent(&mut self, conn: Conn) -> (Vec<u8>, io::Result<usize>) {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::Sent { buffer, result } => (buffer, result),
            other => panic!("{other:?}"),
        }
    }

    /// Sends until the peer takes no more; gives the length of what is in flight then, and of what
    /// was taken before.
    pub(crate) fn send_until_stuck(&mut self, conn: Conn, mut buffer: Vec<u8>) -> (usize, usize) {
        let mut taken = 0;
        loop {
            let length = buffer.len();
            self.ring.send(conn, buffer);
            let Some(completion) = self.meanwhile().pop() else {
                return (length, taken);
            };
            let OperationResult::Sent {
                buffer: rest,
                result,
            } = completion.outcome
            else {
                panic!("{completion:?}");
            };
            let sent = result.unwrap();
            assert!(sent > 0 && sent < length);
            taken += sent;
            buffer = rest;
            buffer.drain(..sent);
        }
    }

    pub(crate) fn expect_unacknowledged(&mut self, conn: Conn) -> u32 {
        self.ring.unacknowledged(conn);
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::Unacknowledged(result) => result.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn expect_connected(&mut self, conn: Conn) -> io::Result<()> {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        match completion.outcome {
            OperationResult::Connected(result) => result,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn expect_closed(&mut self, conn: Conn) {
        let completion = self.next();
        assert_eq!(completion.conn, conn);
        assert!(
            matches!(completion.outcome, OperationResult::Closed),
            "{completion:?}"
        );
    }
}
