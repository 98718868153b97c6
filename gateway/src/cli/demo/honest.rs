//! Honest mail: sessions that pipeline as RFC 2920 allows. Each message has a number, and each
//! reply is checked.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::control::interrupt::Interrupt;

use super::scene::{DOMAIN, Scene};
use super::sink::NUMBER_FIELD;

/// Sessions at once; well under the gate's `sessions_per_source`.
pub(super) const SESSIONS: u32 = 8;

/// Size of each message's body in octets, about that of a short letter.
const BODY: usize = 2048;

/// The maximum time for a reply: the flood must not delay mail.
const PATIENCE: Duration = Duration::from_secs(10);

/// The results of the senders.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivered {
    /// Messages that got a 250.
    pub(super) accepted: u32,
    /// The time from the first connection to the last reply.
    pub(super) time: Duration,
    /// The first error of each session.
    pub(super) complaints: Vec<String>,
}

/// Sends `messages` over [`SESSIONS`] sessions, and waits for all replies.
pub(super) fn send(scene: &Scene, messages: u32, interrupt: &Interrupt) -> io::Result<Delivered> {
    let begun = Instant::now();
    let (next, accepted) = (AtomicU32::new(0), AtomicU32::new(0));
    let complaints = thread::scope(|scope| {
        let work = || session(scene, messages, &next, &accepted, interrupt);
        let sessions: Vec<_> = (0..SESSIONS).map(|_| scope.spawn(work)).collect();
        let ends = sessions.into_iter().map(thread::ScopedJoinHandle::join);
        let ends = ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.filter_map(|end| end.err().map(|error| error.to_string()))
            .collect()
    });
    Ok(Delivered {
        accepted: accepted.into_inner(),
        time: begun.elapsed(),
        complaints,
    })
}

/// One session: takes numbers until there are none left.
fn session(
    scene: &Scene,
    messages: u32,
    next: &AtomicU32,
    accepted: &AtomicU32,
    interrupt: &Interrupt,
) -> io::Result<()> {
    let mut client = Client::connect(scene)?;
    client.expect(220)?;
    client.say("EHLO honest.example\r\n")?;
    client.expect(250)?;
    let body = "All is well, and the line is long enough to look like one of a letter.\r\n";
    let body = body.repeat(BODY / body.len());
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= messages || interrupt.requested() {
            break;
        }
        client.say(&format!(
            "MAIL FROM:<friend@honest.example>\r\nRCPT TO:<user{number}@{DOMAIN}>\r\nDATA\r\n"
        ))?;
        for code in [250, 250, 354] {
            client.expect(code)?;
        }
        client.say(&format!(
            "Subject: honest\r\n{NUMBER_FIELD}{number}\r\n\r\n{body}.\r\n"
        ))?;
        client.expect(250)?;
        accepted.fetch_add(1, Ordering::Relaxed);
    }
    client.say("QUIT\r\n")?;
    client.expect(221)
}

/// A minimal SMTP client: it writes lines and reads codes.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects from the outer namespace to the gate. It reads nothing yet.
    pub(super) fn connect(scene: &Scene) -> io::Result<Self> {
        let stream = scene.connect()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends commands, with their line ends.
    pub(super) fn say(&mut self, commands: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(commands.as_bytes())
    }

    /// Reads one reply: its code, and its last line.
    pub(super) fn reply(&mut self) -> io::Result<(u16, String)> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the gate closed instead of a reply",
                ));
            }
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let Some(code) = code else {
                return Err(io::Error::other(format!("no reply: {}", line.trim_end())));
            };
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, line.trim_end().to_owned()));
            }
        }
    }

    /// Reads one reply that must have this code.
    pub(super) fn expect(&mut self, code: u16) -> io::Result<()> {
        match self.reply()? {
            (got, _) if got == code => Ok(()),
            (_, line) => Err(io::Error::other(format!("expected {code}, got {line}"))),
        }
    }
}
