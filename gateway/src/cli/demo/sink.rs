//! The demo's next hop: it accepts every message and counts them by the number in each message.
//!
//! It is not a gate with a `discard` route on purpose: the proof that messages arrived must not
//! come from the gate itself.

use std::collections::HashSet;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The header field that numbers the honest messages.
pub(super) const NUMBER_FIELD: &str = "X-Demo-Number: ";

/// The messages that have arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrived {
    /// The numbers of the messages that arrived.
    pub(super) numbers: HashSet<u32>,
    /// Messages that arrived a second time.
    pub(super) twice: u32,
    /// Messages without a number, and recipients outside of the demo's own domain: abuse that got
    /// through.
    pub(super) strays: u32,
}

/// A handle of the sink; its threads end with the process.
#[derive(Debug)]
pub(super) struct Sink {
    address: SocketAddr,
    arrived: Arc<Mutex<Arrived>>,
}

impl Sink {
    /// Serves on this socket, which may be of another network namespace.
    pub(super) fn start(listener: TcpListener, domain: &'static str) -> io::Result<Self> {
        let sink = Self {
            address: listener.local_addr()?,
            arrived: Arc::default(),
        };
        let arrived = Arc::clone(&sink.arrived);
        thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let arrived = Arc::clone(&arrived);
                    // If a session breaks, the gate notices it and answers its client.
                    thread::spawn(move || serve(stream, domain, &arrived));
                }
            })?;
        Ok(sink)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The messages that have arrived so far.
    pub(super) fn arrived(&self) -> Arrived {
        self.arrived
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn serve(stream: TcpStream, domain: &str, arrived: &Mutex<Arrived>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    output.write_all(b"220 sink.example ESMTP\r\n")?;
    let mut line = Vec::new();
    let mut replies = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply: &[u8] = match verb.as_slice() {
            b"EHLO" => b"250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            b"DATA" => b"354 Go on\r\n",
            b"QUIT" => b"221 Bye\r\n",
            b"RCPT" => {
                if !String::from_utf8_lossy(&line).contains(&format!("@{domain}>")) {
                    arrived
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .strays += 1;
                }
                b"250 OK\r\n"
            }
            _ => b"250 OK\r\n",
        };
        replies.extend_from_slice(reply);
        if verb == b"DATA" {
            output.write_all(&std::mem::take(&mut replies))?;
            let number = message(&mut input)?;
            count(number, arrived);
            replies.extend_from_slice(b"250 OK\r\n");
        }
        // Commands that came together are answered together.
        if input.buffer().is_empty() {
            output.write_all(&std::mem::take(&mut replies))?;
        }
        if verb == b"QUIT" {
            return Ok(());
        }
    }
}

/// Reads a message to its end and finds its number.
fn message(input: &mut impl io::BufRead) -> io::Result<Option<u32>> {
    let mut number = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            return Ok(number);
        }
        if let Some(value) = line.strip_prefix(NUMBER_FIELD.as_bytes()) {
            number = String::from_utf8_lossy(value).trim().parse().ok();
        }
    }
}

fn count(number: Option<u32>, arrived: &Mutex<Arrived>) {
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    match number {
        Some(number) if arrived.numbers.insert(number) => {}
        Some(_) => arrived.twice += 1,
        None => arrived.strays += 1,
    }
}
