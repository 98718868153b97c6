//! The load: sessions under STARTTLS on a few threads, and one in the clear that is watched.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde::Serialize;

use crate::idle::expect_reply;

/// Octets of a message's body.
pub(super) const MESSAGE_LEN: usize = 1024;
/// How long a reply may take.
const REPLY_TIME_MAX: Duration = Duration::from_secs(20);
/// The pause between two commands of the session that is watched.
const PAUSE: Duration = Duration::from_millis(2);

/// What a session does under TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Session {
    /// EHLO and QUIT.
    Handshake,
    /// One message that is relayed.
    Message,
}

impl Session {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Handshake => "STARTTLS, EHLO, QUIT",
            Self::Message => "STARTTLS, cut-through, one message per connection",
        }
    }

    /// CPU per session, as a part of the peer's, that is not to be exceeded.
    pub(super) fn bar(self) -> Option<f64> {
        match self {
            Self::Handshake => None,
            Self::Message => Some(0.6),
        }
    }
}

/// What all connections of the load have in common.
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// A connection under TLS.
pub(super) type Secured = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    /// A client that accepts this certificate for this name, and resumes nothing.
    pub(super) fn trusting(certificate: &Path, name: &'static str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from(name)?,
        })
    }

    /// Connects, and goes on to the reply to EHLO under TLS.
    pub(super) fn secure(&self, mut stream: TcpStream) -> Result<Secured> {
        expect(&mut stream, "", "220")?;
        expect(&mut stream, "EHLO load.bench.example\r\n", "250")?;
        expect(&mut stream, "STARTTLS\r\n", "220")?;
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        let mut secured = StreamOwned::new(connection, stream);
        expect(&mut secured, "EHLO load.bench.example\r\n", "250")?;
        Ok(secured)
    }

    fn session(&self, to: SocketAddrV4, session: Session, body: &str) -> Result<()> {
        let mut secured = self.secure(connect(to)?)?;
        if session == Session::Message {
            for (said, code) in [
                ("MAIL FROM:<sender@bench.example>\r\n", "250"),
                ("RCPT TO:<recipient@bench.example>\r\n", "250"),
                ("DATA\r\n", "354"),
                (body, "250"),
            ] {
                expect(&mut secured, said, code)?;
            }
        }
        expect(&mut secured, "QUIT\r\n", "221")
    }
}

pub(super) fn connect(to: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).context("cannot connect")?;
    stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says this, and reads one reply (RFC 5321 section 4.2), which has to have this code.
pub(super) fn expect(stream: &mut (impl Read + Write), said: &str, code: &str) -> Result<()> {
    stream.write_all(said.as_bytes())?;
    expect_reply(stream, code)
}

/// Carries on so many sessions, `at_a_time` of them at once, and returns how long that took.
pub(super) fn run(
    client: &Client,
    to: SocketAddrV4,
    session: Session,
    number: u32,
    at_a_time: u32,
) -> Result<Duration> {
    let body = format!("Subject: bench\r\n\r\n{}.\r\n", line_of_body());
    let (begun, start) = (AtomicU32::new(0), Instant::now());
    on_threads(at_a_time.min(number), || {
        while begun.fetch_add(1, Ordering::Relaxed) < number {
            client.session(to, session, &body)?;
        }
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// Handshakes, one after the other on each thread, until it is over; returns their number. One that
/// the server puts off (454, or a close) is no error: that is how a flood is borne.
pub(super) fn flood(
    client: &Client,
    to: SocketAddrV4,
    at_a_time: u32,
    over: &AtomicBool,
) -> Result<u64> {
    let done = AtomicU64::new(0);
    on_threads(at_a_time, || {
        while !over.load(Ordering::Relaxed) {
            if client.secure(connect(to)?).is_ok() {
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    })?;
    Ok(done.into_inner())
}

/// Runs it on so many threads; the first error of one of them.
fn on_threads(number: u32, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..number).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.map_err(|_| anyhow!("a thread of the load panicked"))?
        })
    })
}

fn line_of_body() -> String {
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n";
    line.repeat(MESSAGE_LEN / line.len())
}

/// How long commands took, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Waits {
    pub(super) median: f64,
    pub(super) p99: f64,
}

/// A session in the clear that says NOOP again and again for so long.
pub(super) fn watch(to: SocketAddrV4, time: Duration) -> Result<Waits> {
    let mut stream = connect(to)?;
    expect(&mut stream, "", "220")?;
    expect(&mut stream, "EHLO watch.bench.example\r\n", "250")?;
    let (start, mut waits) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let said = Instant::now();
        expect(&mut stream, "NOOP\r\n", "250")?;
        waits.push(said.elapsed().as_secs_f64() * 1e6);
        thread::sleep(PAUSE);
    }
    waits.sort_by(f64::total_cmp);
    let at = |part: usize| waits[(waits.len() - 1) * part / 100];
    Ok(Waits {
        median: at(50),
        p99: at(99),
    })
}
