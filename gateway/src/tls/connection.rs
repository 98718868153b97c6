//! One TLS connection as a state machine: received octets in, plain octets and octets to send out.
//!
//! The caller [feeds](Tls::feed) what it received and calls [`step`](Tls::step) until that says
//! [`Step::Blocked`]; each step opens one record at most, so the caller bounds the work of one
//! connection. What is to be sent is appended to the caller's buffer. The connection keeps octets
//! only while a record is incomplete, so an idle connection has no buffer.
//!
//! Plain octets from before the handshake never get here: the caller makes the connection with
//! nothing in it, so a client that pipelines commands after STARTTLS gets them refused (they are no
//! TLS record) or has to be refused before.

use std::fmt;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CipherSuite, HandshakeKind, ProtocolVersion};
use zeroize::Zeroize as _;

use super::fault::{Fault, FaultKind};
use super::{Fingerprint, fingerprint};
use crate::printable::printable;

/// The longest record: its header, 2^14 octets, and what ciphers of TLS 1.2 may add
/// (RFC 5246 section 6.2.3).
const RECORD_MAX: usize = 5 + (1 << 14) + 2048;
/// The longest flight of a handshake that is taken: a chain of certificates is the longest part.
const HANDSHAKE_MAX: usize = 1 << 15;
/// Octets that are wiped once they were read: a command has not more.
const WIPED_MAX: usize = 2_048;
/// What a record adds to 2^14 octets of plain text, at most, under the ciphers that are spoken.
const OVERHEAD_MAX: usize = 5 + 8 + 16 + 1;
/// Plain octets of one record (RFC 8446 section 5.1).
const PLAIN_MAX: usize = 1 << 14;

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is something to send, or a part of the handshake is done: step again.
    Again,
    /// The handshake is complete, said once; step again.
    Ready,
    /// One record was opened: its octets were appended to the plain ones. Step again.
    Opened,
    /// The peer sent close_notify, said once. Nothing that comes after it is read.
    Closed,
    /// Nothing more can be done until more is received.
    Blocked,
}

/// Version and cipher suite of a connection, in the words of RFC 8446 and IANA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cipher {
    /// `TLS1.2` or `TLS1.3`.
    pub version: &'static str,
    /// For instance `TLS_AES_128_GCM_SHA256`.
    pub suite: &'static str,
}

/// The certificate that the peer proved to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Of its certificate.
    pub fingerprint: Fingerprint,
    /// Its subject (RFC 4514), without control characters; empty where it cannot be read.
    pub subject: String,
}

/// One TLS connection.
#[derive(Debug)]
pub struct Tls {
    side: Side,
    /// What was received and not processed yet. Without allocation while it is empty.
    received: Vec<u8>,
    /// What of `received` is done with.
    done: usize,
    /// Plain octets that were opened while something was sealed.
    opened: Vec<u8>,
    state: State,
    /// The close was read; `Step::Closed` is still to be said.
    owes_closed: bool,
    is_ready: bool,
    /// Our close_notify is written.
    has_closed: bool,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Client(_) => "Client",
        })
    }
}

#[derive(Debug)]
enum State {
    Open,
    /// The peer sent close_notify.
    PeerClosed,
    Failed(Box<Fault>),
}

/// What one call into rustls led to.
enum Progress {
    Sent,
    Opened,
    PeerClosed,
    Writable,
    Blocked,
}

/// What is wanted of a connection that may be written to.
enum Writing<'p> {
    Nothing,
    Plain(&'p [u8]),
    Close,
}

impl Tls {
    pub(super) fn server(connection: UnbufferedServerConnection) -> Tls {
        Tls::new(Side::Server(Box::new(connection)))
    }

    pub(super) fn client(connection: UnbufferedClientConnection) -> Tls {
        Tls::new(Side::Client(Box::new(connection)))
    }

    fn new(side: Side) -> Tls {
        Tls {
            side,
            received: Vec::new(),
            done: 0,
            opened: Vec::new(),
            state: State::Open,
            owes_closed: false,
            is_ready: false,
            has_closed: false,
        }
    }

    /// Takes octets that were received; [`step`](Tls::step) processes them. Octets after the
    /// peer's close_notify, and after a fault, are dropped.
    pub fn feed(&mut self, received: &[u8]) {
        if !matches!(self.state, State::Open) {
            return;
        }
        self.wipe();
        self.received.drain(..self.done);
        self.done = 0;
        self.received.extend_from_slice(received);
        // The caller may not step over a handshake at once.
        if !self.is_ready && self.received.len() > 2 * HANDSHAKE_MAX {
            let detail = format!("more than {HANDSHAKE_MAX} octets without an end");
            self.fail(Fault::new(FaultKind::TooLarge, detail));
        }
    }

    /// Opens one record at most. Plain octets are appended to `plain`, octets to send to `out`.
    ///
    /// # Errors
    /// The connection failed, for good; `out` then has the alert for the peer, if there is one to
    /// send. The same fault comes again at every later call.
    pub fn step(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Step, Fault> {
        if !self.opened.is_empty() {
            plain.append(&mut self.opened);
            self.opened = Vec::new();
            return Ok(Step::Opened);
        }
        self.check()?;
        if self.owes_closed {
            self.owes_closed = false;
            return Ok(Step::Closed);
        }
        if matches!(self.state, State::PeerClosed) {
            return Ok(Step::Blocked);
        }
        match self.advance(&Writing::Nothing, plain, out)? {
            Progress::Sent => Ok(Step::Again),
            Progress::Opened => Ok(Step::Opened),
            Progress::PeerClosed => {
                self.peer_closed();
                self.owes_closed = false;
                Ok(Step::Closed)
            }
            Progress::Writable if !self.is_ready => {
                self.is_ready = true;
                Ok(Step::Ready)
            }
            Progress::Writable | Progress::Blocked => {
                self.check_size()?;
                self.release();
                Ok(Step::Blocked)
            }
        }
    }

    /// Seals plain octets into records, appended to `out`. Records that were fed and not stepped
    /// over yet may be opened on the way; the next steps give what was in them.
    ///
    /// # Errors
    /// As [`step`](Tls::step); and the handshake is not complete.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        if plain.is_empty() {
            return self.check();
        }
        self.write(&Writing::Plain(plain), out)
    }

    /// Says that nothing more will be sealed: close_notify is appended to `out`, without which the
    /// peer has to take what it got for cut off. It is said once; before the handshake is complete
    /// there is nothing to say.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.is_ready && !std::mem::replace(&mut self.has_closed, true) {
            // One that failed has said so with an alert.
            let _ = self.write(&Writing::Close, out);
        }
    }

    /// What the end of the peer's octets means.
    ///
    /// # Errors
    /// The peer did not send close_notify: what it sent may have been cut off, by anyone. No
    /// message may come of it.
    pub fn end(&mut self) -> Result<(), Fault> {
        match &self.state {
            State::PeerClosed => Ok(()),
            State::Failed(fault) => Err((**fault).clone()),
            State::Open => Err(self.fail(Fault::truncated())),
        }
    }

    /// Whether the handshake is complete.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Whether the peer has said that it will send nothing more.
    #[must_use]
    pub fn is_closed_by_peer(&self) -> bool {
        matches!(self.state, State::PeerClosed)
    }

    /// How the connection has failed, if it has.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match &self.state {
            State::Failed(fault) => Some(fault),
            State::Open | State::PeerClosed => None,
        }
    }

    /// Octets that are kept until the rest of their record comes.
    #[must_use]
    pub fn octets_kept(&self) -> usize {
        self.received.len() - self.done + self.opened.len()
    }

    /// Version and cipher suite; none before the handshake is complete.
    #[must_use]
    pub fn cipher(&self) -> Option<Cipher> {
        let (version, suite) = match &self.side {
            Side::Server(server) => (
                server.protocol_version()?,
                server.negotiated_cipher_suite()?,
            ),
            Side::Client(client) => (
                client.protocol_version()?,
                client.negotiated_cipher_suite()?,
            ),
        };
        self.is_ready.then(|| Cipher {
            version: match version {
                ProtocolVersion::TLSv1_3 => "TLS1.3",
                _ => "TLS1.2",
            },
            suite: suite_name(suite.suite()),
        })
    }

    /// Whether a session of before was resumed, so that nothing was signed or verified anew.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        let kind = match &self.side {
            Side::Server(server) => server.handshake_kind(),
            Side::Client(client) => client.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// The certificate of the peer, if it has shown one; none before the handshake is complete.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        let chain = match &self.side {
            Side::Server(server) => server.peer_certificates(),
            Side::Client(client) => client.peer_certificates(),
        };
        let certificate = chain.filter(|_| self.is_ready)?.first()?;
        let subject = super::identity::subject(certificate).unwrap_or_default();
        Some(Peer {
            fingerprint: fingerprint(certificate),
            subject: printable(&subject).into_owned(),
        })
    }

    fn check(&self) -> Result<(), Fault> {
        match &self.state {
            State::Failed(fault) => Err((**fault).clone()),
            State::Open | State::PeerClosed => Ok(()),
        }
    }

    fn peer_closed(&mut self) {
        self.state = State::PeerClosed;
        self.owes_closed = true;
        self.received = Vec::new();
        self.done = 0;
    }

    fn fail(&mut self, fault: Fault) -> Fault {
        self.state = State::Failed(Box::new(fault.clone()));
        self.received = Vec::new();
        self.opened = Vec::new();
        self.done = 0;
        fault
    }

    /// What is incomplete is bounded: rustls bounds a record, and this what a handshake has of
    /// them.
    fn check_size(&mut self) -> Result<(), Fault> {
        let octets_max = if self.is_ready {
            RECORD_MAX
        } else {
            HANDSHAKE_MAX
        };
        if self.received.len() - self.done <= octets_max {
            return Ok(());
        }
        let detail = format!("more than {octets_max} octets without an end");
        Err(self.fail(Fault::new(FaultKind::TooLarge, detail)))
    }

    /// rustls opens records in place: a line of AUTH would stay where it was. A message does, which
    /// is no secret, and wiping it would cost every message.
    fn wipe(&mut self) {
        if self.done <= WIPED_MAX {
            self.received[..self.done].zeroize();
        }
    }

    /// Gives the buffer up when there is nothing in it.
    fn release(&mut self) {
        if self.done == self.received.len() {
            self.wipe();
            self.received = Vec::new();
            self.done = 0;
        }
    }

    fn write(&mut self, writing: &Writing<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.check()?;
        if !self.is_ready {
            let early = "nothing can be sealed before the handshake is complete";
            return Err(Fault::new(FaultKind::Internal, early));
        }
        loop {
            let mut opened = std::mem::take(&mut self.opened);
            let progress = self.advance(writing, &mut opened, out);
            if !matches!(self.state, State::Failed(_)) {
                self.opened = opened;
            }
            match progress? {
                Progress::Sent | Progress::Opened => {}
                Progress::PeerClosed => self.peer_closed(),
                Progress::Writable => return Ok(()),
                Progress::Blocked => {
                    let detail = "the connection cannot be written to";
                    return Err(self.fail(Fault::new(FaultKind::Internal, detail)));
                }
            }
        }
    }

    /// One call into rustls. A fault takes the alerts along that are to be sent for it.
    fn advance(
        &mut self,
        writing: &Writing<'_>,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Fault> {
        match self.call(writing, plain, out) {
            Ok(progress) => Ok(progress),
            Err(fault) => {
                // The alert is what waits to be sent, and comes before anything is read. Once it is
                // taken, rustls must not be called again: it would read on, and fail again.
                let _ = self.call(&Writing::Nothing, &mut Vec::new(), out);
                Err(self.fail(fault))
            }
        }
    }

    fn call(
        &mut self,
        writing: &Writing<'_>,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Fault> {
        let received = &mut self.received[self.done..];
        let (discard, progress) = match &mut self.side {
            Side::Server(server) => {
                settle(server.process_tls_records(received), writing, plain, out)
            }
            Side::Client(client) => {
                settle(client.process_tls_records(received), writing, plain, out)
            }
        };
        self.done += discard;
        progress
    }
}

/// Does what a state of rustls asks for; how many received octets are done with, and what it was.
fn settle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    writing: &Writing<'_>,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> (usize, Result<Progress, Fault>) {
    let UnbufferedStatus { mut discard, state } = status;
    let progress = match state {
        Err(error) => Err(Fault::from(error)),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Progress::Opened),
                Some(Err(error)) => break Err(Fault::from(error)),
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            append(out, OVERHEAD_MAX, |room| match data.encode(room) {
                Ok(octets) => Ok(octets),
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                Err(EncodeError::AlreadyEncoded) => Err(None),
            })
            .map(|()| Progress::Sent)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Progress::Sent)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Progress::PeerClosed),
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            let sealed = |result| match result {
                Ok(octets) => Ok(octets),
                Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
                Err(EncryptError::EncryptExhausted) => Err(None),
            };
            match writing {
                Writing::Nothing => Ok(()),
                Writing::Plain(plain) => {
                    let records = plain.len().div_ceil(PLAIN_MAX);
                    let size = plain.len() + records * OVERHEAD_MAX;
                    append(out, size, |room| sealed(traffic.encrypt(plain, room)))
                }
                Writing::Close => append(out, 2 + OVERHEAD_MAX, |room| {
                    sealed(traffic.queue_close_notify(room))
                }),
            }
            .map(|()| Progress::Writable)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Progress::Blocked),
        // Early data is never offered, so none is given.
        Ok(_) => Err(Fault::new(FaultKind::Protocol, "unexpected early data")),
    };
    (discard, progress)
}

/// Appends what `write` puts into the room that it is given. It says how much room it needs if
/// that is too little, or nothing at all if more room does not help.
fn append(
    out: &mut Vec<u8>,
    size: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), Fault> {
    let before = out.len();
    let mut size = size;
    loop {
        out.resize(before + size, 0);
        match write(&mut out[before..]) {
            Ok(octets) => {
                out.truncate(before + octets);
                return Ok(());
            }
            Err(Some(required)) if required > size => size = required,
            Err(_) => {
                out.truncate(before);
                let detail = "a record could not be sealed";
                return Err(Fault::new(FaultKind::Internal, detail));
            }
        }
    }
}

/// The name that IANA has for a cipher suite; rustls writes `TLS13_` for those of TLS 1.3.
fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
