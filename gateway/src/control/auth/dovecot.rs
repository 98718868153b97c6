//! A connection to Dovecot's auth socket, over which all exchanges of the gate go.
//!
//! One task holds it, connects again when it breaks, and tells each caller apart by the number of
//! its request. Whatever goes wrong, each caller gets one reply: when the connection breaks, all
//! that is in flight is [`Reply::Unavailable`], and so is what comes while there is none. It is
//! never sent twice: a guess must not count twice, and a password not be asked for again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::{Zeroize as _, Zeroizing};

use crate::auth::dovecot::{self, Attempt, Failure, Secret, ServerLine};
use crate::auth::exchange::Mechanism;

/// Exchanges at a time. Dovecot has a bound of its own behind it (`client_limit` of auth).
const IN_FLIGHT_MAX: usize = 1_024;
/// For Dovecot to say what it has, once a connection is made.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// The pause before another attempt to connect, doubled with each that fails.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// What may wait to be written. It never grows, because growing leaves copies of passwords behind.
const OUT_MAX: usize = 256 << 10;
/// A line of the server, and what is read at once.
const IN_MAX: usize = 64 << 10;

/// What comes of a step of an exchange.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A challenge for the client; the exchange goes on.
    Continue(Vec<u8>),
    /// It is this user, as Dovecot calls it.
    Accepted(String),
    /// It is not. The name that was given, where Dovecot has told it.
    Refused(Option<String>),
    /// There was no answer: `454 4.7.0`, never 535.
    Unavailable,
}

/// A handle for those who have something to ask. The connection ends with the last.
#[derive(Clone, Debug)]
pub struct Client {
    to: mpsc::UnboundedSender<Command>,
    tokens: Arc<AtomicU64>,
    in_flight: Arc<AtomicUsize>,
    mechanisms: watch::Receiver<Vec<Mechanism>>,
}

/// An exchange that has begun. Dropped before its end, it is given up.
#[derive(Debug)]
pub struct Exchange {
    client: Client,
    token: u64,
    is_over: bool,
}

#[derive(Debug)]
struct Command {
    token: u64,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Begin(Attempt, oneshot::Sender<Reply>),
    Proceed(Secret, oneshot::Sender<Reply>),
    Cancel,
}

/// Makes the connection's task and a handle for it. The task has to be run; it ends when the last
/// handle is gone.
pub fn client(path: PathBuf) -> (Client, impl Future<Output = ()> + Send + 'static) {
    let (to, commands) = mpsc::unbounded_channel();
    let (announced, mechanisms) = watch::channel(Vec::new());
    let client = Client {
        to,
        tokens: Arc::default(),
        in_flight: Arc::default(),
        mechanisms,
    };
    (client, run(path, commands, announced))
}

impl Client {
    /// The mechanisms that Dovecot has and that are known here; none while it is away.
    pub fn mechanisms(&self) -> Vec<Mechanism> {
        self.mechanisms.borrow().clone()
    }

    /// The same for a task that is to hear of changes, and does not keep the connection.
    pub fn announcements(&self) -> watch::Receiver<Vec<Mechanism>> {
        self.mechanisms.clone()
    }

    /// Waits until that has changed.
    ///
    /// # Errors
    /// The task has ended.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.mechanisms.changed().await
    }

    /// Begins an exchange. The reply comes within this time; if it is
    /// [`Continue`](Reply::Continue), the exchange is still there.
    pub async fn begin(&self, attempt: Attempt, within: Duration) -> (Reply, Option<Exchange>) {
        let is_one_too_many = self.in_flight.fetch_add(1, Ordering::Relaxed) >= IN_FLIGHT_MAX;
        let mut exchange = Exchange {
            client: self.clone(),
            token: self.tokens.fetch_add(1, Ordering::Relaxed),
            is_over: is_one_too_many,
        };
        if is_one_too_many {
            return (Reply::Unavailable, None);
        }
        let reply = exchange.ask(|to| Action::Begin(attempt, to), within).await;
        let goes_on = matches!(reply, Reply::Continue(_));
        (reply, goes_on.then_some(exchange))
    }
}

impl Exchange {
    /// Passes on what the client said to the challenge. After any reply but
    /// [`Continue`](Reply::Continue) the exchange is over.
    pub async fn proceed(&mut self, response: Secret, within: Duration) -> Reply {
        if self.is_over {
            return Reply::Unavailable;
        }
        self.ask(|to| Action::Proceed(response, to), within).await
    }

    async fn ask(
        &mut self,
        action: impl FnOnce(oneshot::Sender<Reply>) -> Action,
        within: Duration,
    ) -> Reply {
        let (to, reply) = oneshot::channel();
        let (token, action) = (self.token, action(to));
        if self.client.to.send(Command { token, action }).is_err() {
            self.is_over = true;
            return Reply::Unavailable;
        }
        // After the deadline it is still in flight: dropping this gives it up.
        let reply = match timeout(within, reply).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => {
                self.is_over = true;
                Reply::Unavailable
            }
            Err(_) => return Reply::Unavailable,
        };
        self.is_over |= !matches!(reply, Reply::Continue(_));
        reply
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            let (token, action) = (self.token, Action::Cancel);
            let _ = self.client.to.send(Command { token, action });
        }
        self.client.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

type Commands = mpsc::UnboundedReceiver<Command>;

/// Connects, serves, and connects again.
async fn run(path: PathBuf, mut commands: Commands, announced: watch::Sender<Vec<Mechanism>>) {
    let mut pause = PAUSE_MIN;
    loop {
        // What is asked meanwhile waits in the channel: this is short.
        let connected = timeout(HANDSHAKE_MAX, connect(&path)).await;
        let connected = connected.unwrap_or_else(|_| {
            let late = "it did not say what it has within 5 s";
            Err(io::Error::new(io::ErrorKind::TimedOut, late))
        });
        let broken = match connected {
            Ok(mut connection) => {
                tracing::info!(path = %path.display(), "connected to Dovecot's auth socket");
                pause = PAUSE_MIN;
                if connection.mechanisms.is_empty() {
                    tracing::warn!(
                        path = %path.display(),
                        "Dovecot has none of PLAIN, LOGIN and SCRAM-SHA-256 (`auth_mechanisms`): \
                         clients that authenticate hear 454"
                    );
                }
                announced.send_replace(connection.mechanisms.clone());
                let broken = connection.serve(&mut commands).await;
                announced.send_replace(Vec::new());
                match broken {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::warn!(
            path = %path.display(), error = %broken, again_in = ?pause,
            "Dovecot's auth socket is away: clients that authenticate hear 454"
        );
        if answer_unavailable(&mut commands, pause).await.is_err() {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Answers what is asked for so long that there is no connection. An error: no handle is left.
async fn answer_unavailable(commands: &mut Commands, pause: Duration) -> Result<(), ()> {
    let until = Instant::now() + pause;
    loop {
        match timeout_at(until, commands.recv()).await {
            // Dropping the sender is the answer.
            Ok(Some(_)) => {}
            Ok(None) => return Err(()),
            Err(_) => return Ok(()),
        }
    }
}

/// A connection on which Dovecot has said what it has.
struct Connection {
    stream: UnixStream,
    mechanisms: Vec<Mechanism>,
    input: Zeroizing<Vec<u8>>,
    output: Zeroizing<Vec<u8>>,
    requests: u32,
    /// By the number of the request.
    exchanges: HashMap<u32, InFlight>,
    numbers: HashMap<u64, u32>,
}

struct InFlight {
    token: u64,
    /// `None`: a response of the client is to come.
    waiting: Option<oneshot::Sender<Reply>>,
}

async fn connect(path: &Path) -> io::Result<Connection> {
    let stream = UnixStream::connect(path).await?;
    let mut connection = Connection {
        stream,
        mechanisms: Vec::new(),
        input: Zeroizing::new(Vec::with_capacity(IN_MAX)),
        output: Zeroizing::new(Vec::with_capacity(OUT_MAX)),
        requests: 0,
        exchanges: HashMap::new(),
        numbers: HashMap::new(),
    };
    let hello = dovecot::hello(std::process::id());
    connection.stream.write_all(hello.as_bytes()).await?;
    let mut has_version = false;
    loop {
        while let Some(line) = next_line(&mut connection.input)? {
            match line {
                ServerLine::Version(1) => has_version = true,
                ServerLine::Version(_) => return Err(other("another version of the protocol")),
                ServerLine::Mechanism(name) => {
                    connection
                        .mechanisms
                        .extend(Mechanism::from_name(name.as_bytes()));
                }
                ServerLine::Done if has_version => return Ok(connection),
                ServerLine::Done => return Err(other("no version of the protocol")),
                _ => {}
            }
        }
        if connection.stream.read_buf(&mut *connection.input).await? == 0 {
            return Err(other("it closed the connection"));
        }
    }
}

/// Takes a whole line out of what was read.
fn next_line(input: &mut Vec<u8>) -> io::Result<Option<ServerLine>> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        if input.len() >= IN_MAX {
            return Err(other("a line over 64 KiB"));
        }
        return Ok(None);
    };
    let line = ServerLine::parse(&input[..end]);
    input.drain(..=end);
    line.map(Some)
        .ok_or_else(|| other("a line that is not of the protocol"))
}

fn other(what: &'static str) -> io::Error {
    io::Error::other(what)
}

impl Connection {
    /// Serves until no handle is left, or with an error until the connection breaks. What is in
    /// flight then is answered by the end of its sender.
    async fn serve(&mut self, commands: &mut Commands) -> io::Result<()> {
        loop {
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                read = reader.read_buf(&mut *self.input) => {
                    if read? == 0 {
                        return Err(other("it closed the connection"));
                    }
                    while let Some(line) = next_line(&mut self.input)? {
                        self.hear(line);
                    }
                }
                written = writer.write(&self.output), if !self.output.is_empty() => {
                    let written = written?;
                    self.output.copy_within(written.., 0);
                    let left = self.output.len() - written;
                    self.output[left..].zeroize();
                    self.output.truncate(left);
                }
            }
        }
    }

    fn obey(&mut self, Command { token, action }: Command) {
        match action {
            Action::Begin(attempt, to) => {
                // One that was not announced closes the connection.
                if !self.mechanisms.contains(&attempt.mechanism) {
                    return;
                }
                let number = self.next_number();
                let line = dovecot::begin(number, &attempt);
                self.send(number, token, line, to);
            }
            Action::Proceed(response, to) => {
                if let Some(&number) = self.numbers.get(&token) {
                    let line = dovecot::proceed(number, &response);
                    let is_sent = self.send(number, token, line, to);
                    if !is_sent {
                        self.give_up(token);
                    }
                }
            }
            Action::Cancel => self.give_up(token),
        }
    }

    /// Numbers are used once: an answer that comes late must not find another exchange. They come
    /// round after 4 billion, when what had one before is long over.
    fn next_number(&mut self) -> u32 {
        loop {
            self.requests = self.requests.wrapping_add(1);
            if self.requests != 0 && !self.exchanges.contains_key(&self.requests) {
                return self.requests;
            }
        }
    }

    /// Sends a line, and notes who waits for the answer. A line that is too long is refused here.
    fn send(
        &mut self,
        number: u32,
        token: u64,
        line: Option<Zeroizing<String>>,
        to: oneshot::Sender<Reply>,
    ) -> bool {
        let Some(line) = line else {
            let _ = to.send(Reply::Refused(None));
            return false;
        };
        // Dovecot does not read: no answer is the answer.
        if self.output.len() + line.len() > OUT_MAX {
            return false;
        }
        self.output.extend_from_slice(line.as_bytes());
        let waiting = Some(to);
        self.exchanges.insert(number, InFlight { token, waiting });
        self.numbers.insert(token, number);
        true
    }

    fn give_up(&mut self, token: u64) {
        let Some(number) = self.numbers.remove(&token) else {
            return;
        };
        self.exchanges.remove(&number);
        let line = dovecot::cancel(number);
        // Without room for it Dovecot ends the exchange by its own deadline.
        if self.output.len() + line.len() <= OUT_MAX {
            self.output.extend_from_slice(line.as_bytes());
        }
    }

    /// Passes a line on to who waits for it. Answers to what was given up find none.
    fn hear(&mut self, line: ServerLine) {
        let (number, reply) = match line {
            ServerLine::Ok(number, user) => (number, Reply::Accepted(user)),
            ServerLine::Fail(number, Failure::Refused(name)) => (number, Reply::Refused(name)),
            ServerLine::Fail(number, Failure::Temporary) => (number, Reply::Unavailable),
            ServerLine::Continue(number, challenge) => (number, Reply::Continue(challenge)),
            _ => return,
        };
        let Some(in_flight) = self.exchanges.get_mut(&number) else {
            return;
        };
        let to = in_flight.waiting.take();
        if !matches!(reply, Reply::Continue(_)) {
            self.numbers.remove(&in_flight.token);
            self.exchanges.remove(&number);
        }
        if let Some(to) = to {
            let _ = to.send(reply);
        }
    }
}

#[cfg(test)]
mod tests;
