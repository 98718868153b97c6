//! Accepts mail and forgets it: the least that can be done with a ring, to measure the ring alone.
//!
//! ```text
//! cargo run --release -p portcullis-uring --example sink 127.0.0.1:2526
//! smtp-source -s 50 -m 20000 -l 1024 127.0.0.1:2526
//! ```
//!
//! It speaks just enough SMTP for `smtp-source`, has no policy and holds no limits. Once a second
//! in which something happened it prints sessions, messages and its own CPU time.

use portcullis_uring::{
    Completion, Conn, Listener, OperationResult, PreparedRing, ReceiveEnd, Ring, Settings, listen,
    pin_to_core,
};
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SLOTS: u32 = 1024;
const ACCEPTS: u32 = 64;

/// What a connection is in the middle of.
#[derive(Default)]
struct Session {
    generation: u32,
    /// The line so far, if it came in pieces.
    line: Vec<u8>,
    data: bool,
    receiving: bool,
    /// The one send; more replies wait in `replies` until it is back.
    sending: bool,
    replies: Vec<u8>,
    spare: Vec<u8>,
}

struct Sink {
    ring: Ring,
    sessions: Vec<Session>,
    free: Vec<u32>,
    accepts: u32,
    ended: u64,
    messages: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments
        .next()
        .unwrap_or("127.0.0.1:2526".into())
        .parse()?;
    if let Some(core) = arguments.next() {
        pin_to_core(core.parse()?)?;
    }
    let ring = PreparedRing::new(Settings {
        slots: SLOTS,
        listeners: vec![listen(address, 4096)?],
        ..Settings::default()
    })?;
    let mut sink = Sink {
        ring: ring.start()?,
        sessions: (0..SLOTS).map(|_| Session::default()).collect(),
        free: (0..SLOTS).rev().collect(),
        accepts: 0,
        ended: 0,
        messages: 0,
    };
    let mut completions = Vec::new();
    let (mut reported, mut report) = ((0, 0), Instant::now());
    loop {
        sink.accept();
        sink.ring.wait(Duration::from_secs(1), &mut completions)?;
        for completion in completions.drain(..) {
            sink.handle(completion);
        }
        if report.elapsed() > Duration::from_secs(1) && reported != (sink.ended, sink.messages) {
            reported = (sink.ended, sink.messages);
            report = Instant::now();
            println!(
                "sessions {} messages {} cpu {} ticks",
                sink.ended,
                sink.messages,
                cpu_ticks()?
            );
        }
    }
}

impl Sink {
    fn accept(&mut self) {
        while self.accepts < ACCEPTS
            && let Some(slot) = self.free.pop()
        {
            let session = &mut self.sessions[slot as usize];
            session.generation = session.generation.wrapping_add(1);
            let generation = session.generation;
            self.ring.accept(Listener(0), Conn { slot, generation });
            self.accepts += 1;
        }
    }

    fn handle(&mut self, Completion { conn, outcome }: Completion) {
        let session = &mut self.sessions[conn.slot as usize];
        match outcome {
            OperationResult::Accepted(Ok(_)) => {
                self.accepts -= 1;
                session.receiving = true;
                self.ring.receive(conn);
                self.reply(conn, b"220 sink ESMTP\r\n");
            }
            OperationResult::Accepted(Err(error)) => {
                eprintln!("accept: {error}");
                self.accepts -= 1;
                self.free.push(conn.slot);
            }
            OperationResult::Received(buffer) => {
                let mut replies = Vec::new();
                let bytes = self.ring.bytes(&buffer);
                self.messages += session.take(bytes, &mut replies);
                self.ring.recycle(buffer);
                if !replies.is_empty() {
                    self.reply(conn, &replies);
                }
            }
            OperationResult::ReceiveEnded(ReceiveEnd::Starved | ReceiveEnd::Rearm) => {
                self.ring.receive(conn);
            }
            OperationResult::ReceiveEnded(_) => {
                session.receiving = false;
                self.close_if_over(conn);
            }
            OperationResult::Sent { mut buffer, result } => {
                session.sending = false;
                let taken = result.unwrap_or(buffer.len());
                buffer.drain(..taken);
                buffer.append(&mut session.replies);
                if !buffer.is_empty() {
                    session.sending = true;
                    self.ring.send(conn, buffer);
                } else {
                    session.spare = buffer;
                    self.close_if_over(conn);
                }
            }
            OperationResult::Closed => {
                self.ended += 1;
                self.free.push(conn.slot);
            }
            OperationResult::Connected(_)
            | OperationResult::Unacknowledged(_)
            | OperationResult::Wake => {}
        }
    }

    fn reply(&mut self, conn: Conn, text: &[u8]) {
        let session = &mut self.sessions[conn.slot as usize];
        if session.sending {
            session.replies.extend_from_slice(text);
            return;
        }
        let mut buffer = std::mem::take(&mut session.spare);
        buffer.extend_from_slice(text);
        session.sending = true;
        self.ring.send(conn, buffer);
    }

    fn close_if_over(&mut self, conn: Conn) {
        let session = &mut self.sessions[conn.slot as usize];
        if session.receiving || session.sending {
            return;
        }
        let generation = session.generation;
        *session = Session {
            generation,
            ..Session::default()
        };
        self.ring.close(conn);
    }
}

impl Session {
    /// Takes octets, gives replies and the number of messages that ended.
    fn take(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> u64 {
        let mut messages = 0;
        for line in bytes.split_inclusive(|octet| *octet == b'\n') {
            let whole = line.ends_with(b"\n");
            if whole && self.line.is_empty() {
                messages += self.line(line, replies);
            } else {
                self.line.extend_from_slice(line);
                if whole {
                    let line = std::mem::take(&mut self.line);
                    messages += self.line(&line, replies);
                }
            }
        }
        messages
    }

    fn line(&mut self, line: &[u8], replies: &mut Vec<u8>) -> u64 {
        if self.data {
            if line == b".\r\n" {
                self.data = false;
                replies.extend_from_slice(b"250 2.0.0 gone\r\n");
                return 1;
            }
            return 0;
        }
        let reply: &[u8] = match line.first().map(u8::to_ascii_uppercase) {
            Some(b'D') => {
                self.data = true;
                b"354 go\r\n"
            }
            // The client hangs up; to do it for the client would cost a cancellation.
            Some(b'Q') => b"221 2.0.0 bye\r\n",
            _ => b"250 2.0.0 ok\r\n",
        };
        replies.extend_from_slice(reply);
        0
    }
}

/// The process's CPU time, user and system, in ticks of 10 ms.
fn cpu_ticks() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    Ok(times.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}
