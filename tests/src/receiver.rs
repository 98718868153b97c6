//! A next hop whose every reply a test can script: it can be slow, talk rubbish, hang up, or lose
//! the final reply. What it accepted it keeps, exactly as it came after the dots were taken out.
//!
//! `smtp-sink` is the peer for volume; this one is for the cases that it cannot play.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait;

/// A message that arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// What stood between the angle brackets of MAIL.
    pub sender: String,
    /// What stood between the angle brackets of each accepted RCPT.
    pub recipients: Vec<String>,
    /// Header and body with CRLF, dots unstuffed; empty if the receiver does not
    /// [keep](Receiver::start) it.
    pub content: Vec<u8>,
    /// Octets of the content, kept or not.
    pub size: usize,
}

/// What the receiver does at one point of a session instead of the usual.
#[derive(Clone, Debug)]
pub enum Act {
    /// The usual positive reply.
    Usual,
    /// This reply (CRLF is added), whatever it is. Only a 2xx or 3xx counts as acceptance.
    Say(&'static str),
    /// These octets as they are, and then the connection is closed.
    Rubbish(&'static [u8]),
    /// Nothing, and the connection is closed.
    HangUp,
    /// Nothing for this long, then the usual.
    Wait(Duration),
    /// The usual, and then nothing is read for this long.
    Stall(Duration),
}

/// The point at which an [`Act`] is asked for: `CONNECT`, a command line as received, or `.` for
/// the end of a message.
pub type Script = dyn Fn(&str) -> Act + Send + Sync;

/// A scripted next hop on the loopback; it ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    keep: bool,
    arrived: Mutex<Vec<Arrived>>,
    sessions: AtomicUsize,
    over: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Receiver {
    /// A next hop that accepts everything; `keep`: and remembers the contents.
    ///
    /// # Errors
    /// When there are no free ports.
    pub fn start(keep: bool) -> Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?, keep, |_| Act::Usual)
    }

    /// A next hop that follows a script, and keeps what it accepts.
    ///
    /// # Errors
    /// When there are no free ports.
    pub fn scripted(script: impl Fn(&str) -> Act + Send + Sync + 'static) -> Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?, true, script)
    }

    /// A next hop on a listening socket, which may have been made in a namespace or on a given
    /// port.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start_on(
        listener: TcpListener,
        keep: bool,
        script: impl Fn(&str) -> Act + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            keep,
            arrived: Mutex::default(),
            sessions: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Follows another script from the next command on.
    pub fn script(&self, script: impl Fn(&str) -> Act + Send + Sync + 'static) {
        *lock(&self.shared.script) = Arc::new(script);
    }

    /// What has arrived so far, in order.
    #[must_use]
    pub fn arrived(&self) -> Vec<Arrived> {
        lock(&self.shared.arrived).clone()
    }

    /// Connections so far.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::Relaxed)
    }

    /// Closes every connection at once, as a next hop does that lets idle ones go.
    pub fn hang_up(&self) {
        for stream in lock(&self.shared.streams).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits for this many messages, and gives all that arrived.
    ///
    /// # Errors
    /// When they do not come in time.
    pub fn wait_for(&self, messages: usize, limit: Duration) -> Result<Vec<Arrived>> {
        let enough = || (lock(&self.shared.arrived).len() >= messages).then_some(());
        wait::until("messages to arrive", limit, enough)
            .with_context(|| format!("{} of {messages} arrived", self.arrived().len()))?;
        Ok(self.arrived())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.hang_up();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        shared.sessions.fetch_add(1, Ordering::Relaxed);
        let ready = stream
            .set_nonblocking(false)
            .and_then(|()| stream.try_clone());
        let Ok(copy) = ready else { continue };
        lock(&shared.streams).push(copy);
        let shared = Arc::clone(shared);
        // The thread ends when its connection does; an error there is the end of that session and
        // no more.
        thread::spawn(move || {
            Session {
                shared: &shared,
                stream: BufReader::new(stream),
            }
            .run()
        });
    }
}

struct Session<'a> {
    shared: &'a Shared,
    stream: BufReader<TcpStream>,
}

impl Session<'_> {
    /// One session; `None` when the connection is over.
    fn run(mut self) -> Option<()> {
        self.act("CONNECT", "220 receiver.example ESMTP")?;
        let mut envelope = Arrived::default();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            let verb = line
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => drop(self.act(line, EXTENSIONS)?),
                "MAIL" => {
                    if self.act(line, "250 2.1.0 OK")? {
                        envelope = Arrived {
                            sender: bracketed(line),
                            ..Arrived::default()
                        };
                    }
                }
                "RCPT" => {
                    if self.act(line, "250 2.1.5 OK")? {
                        envelope.recipients.push(bracketed(line));
                    }
                }
                "DATA" => {
                    if self.act(line, "354 Go on")? {
                        self.data(&mut envelope)?;
                        self.end_of_data(&mut envelope)?;
                    }
                }
                "QUIT" => {
                    self.act(line, "221 2.0.0 Bye")?;
                    return None;
                }
                _ => drop(self.act(line, "250 2.0.0 OK")?),
            }
        }
    }

    /// Does what the script says at this point. Whether it was an acceptance; `None` to end the
    /// session.
    fn act(&mut self, point: &str, usual: &'static str) -> Option<bool> {
        let script = Arc::clone(&lock(&self.shared.script));
        let said = match script(point) {
            Act::Usual => usual,
            Act::Say(reply) => reply,
            Act::Wait(time) => {
                thread::sleep(time);
                usual
            }
            Act::Stall(time) => {
                self.write(usual)?;
                thread::sleep(time);
                return Some(true);
            }
            Act::Rubbish(octets) => {
                let _ = self.stream.get_mut().write_all(octets);
                return self.hang_up();
            }
            Act::HangUp => return self.hang_up(),
        };
        self.write(said)?;
        Some(said.starts_with(['2', '3']))
    }

    fn write(&mut self, reply: &str) -> Option<()> {
        self.stream
            .get_mut()
            .write_all(format!("{reply}\r\n").as_bytes())
            .ok()
    }

    fn hang_up(&self) -> Option<bool> {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
        None
    }

    fn data(&mut self, envelope: &mut Arrived) -> Option<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.stream.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            if line == b".\r\n" {
                return Some(());
            }
            let line = line.strip_prefix(b".").unwrap_or(&line);
            envelope.size += line.len();
            if self.shared.keep {
                envelope.content.extend_from_slice(line);
            }
        }
    }

    /// A message counts as arrived even when the reply to it is lost: that is the case that makes
    /// duplicates.
    fn end_of_data(&mut self, envelope: &mut Arrived) -> Option<()> {
        let script = Arc::clone(&lock(&self.shared.script));
        let refused = matches!(script("."), Act::Say(reply) if !reply.starts_with('2'));
        if !refused {
            lock(&self.shared.arrived).push(std::mem::take(envelope));
        }
        self.act(".", "250 2.0.0 OK").map(drop)
    }
}

const EXTENSIONS: &str = "250-receiver.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n\
     250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES";

/// What stands between the angle brackets.
fn bracketed(line: &str) -> String {
    let inside = line
        .split_once('<')
        .and_then(|(_, rest)| rest.split_once('>'));
    inside.map_or_else(String::new, |(path, _)| path.to_owned())
}
