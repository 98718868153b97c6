//! What the tasks of a worker share, and what they may do with it.
//!
//! A task is a session with a client or with a next hop. It never waits in here and never calls
//! another task: it reads what has arrived, writes to outputs, notes something for another task and
//! wakes it, and returns. Everything is behind methods that borrow one thing for as long as they
//! run and hand no borrow out, so that no order of events can find a thing borrowed twice.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use zeroize::Zeroize as _;

use super::buffers::Buffers;
use super::connection::{Connection, Ending, Receive, Role, Table};
use super::counters::Counters;
use super::listener::Listener;
use super::local::Local;
use super::port::{LookupAnswer, Notice, Port, Question, QuestionId};
use super::progress::{Look, Progress};
use super::records::{RecordQueue, TraceId};
use super::secret;
use super::transport::Transport;
use super::wheel::Wheel;
use super::{Shared, Size};
use crate::config::Config;
use crate::driver::{self, Buffer, Conn, Driver};
use crate::relay::hop::HopId;
use crate::relay::pool::Pool;
use crate::relay::received;

/// A task, as the executor keeps it.
pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Whether a worker takes and keeps sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    /// It takes new ones.
    Open,
    /// A session ends when it is between transactions.
    Draining,
    /// The time to finish is over: all end.
    Over,
}

/// The time of day, and its form in a message, which is made at most once a second.
#[derive(Default)]
struct Clock {
    unix_time: u64,
    date: String,
    dated: u64,
}

/// A received buffer that its connection's task has not read yet.
struct Arrived {
    conn: Conn,
    buffer: Buffer,
}

/// What has become of a connection since its task was polled last.
#[derive(Clone, Copy, Default)]
pub(super) struct Polled {
    /// More can be said on it.
    pub(super) is_open: bool,
    /// There is something to read. A read says anew whether there is.
    pub(super) has_input: bool,
    /// The peer will send nothing more.
    pub(super) is_at_end: bool,
    /// Another task has woken this one.
    pub(super) was_woken: bool,
    /// The kernel has taken something of what was sent.
    pub(super) has_sent: bool,
    /// Octets that the kernel is still to take, if it is known how many.
    pub(super) waiting: Option<usize>,
    /// What the kernel says of what the peer has taken, and whether that is not everything.
    pub(super) look: Option<(Look, bool)>,
}

/// See the [module](self).
pub(super) struct Reactor {
    pub(super) driver: Local<Box<dyn Driver>>,
    pub(super) table: Local<Table>,
    pub(super) wheel: Local<Wheel>,
    pub(super) pool: Local<Pool>,
    pub(super) port: Local<Port>,
    /// For what connections send.
    pub(super) buffers: Local<Buffers>,
    /// Answers of the port that the sessions they are for have not taken yet.
    answers: Local<FxHashMap<QuestionId, LookupAnswer>>,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) records: Arc<RecordQueue>,
    config: Local<Arc<Config>>,
    /// Counts the configurations, so that a session notices that there is a new one.
    generation: Cell<u32>,
    /// By the driver's number.
    listeners: Local<Vec<Rc<Listener>>>,
    /// The moment of the present batch.
    pub(super) now: Cell<Duration>,
    clock: Local<Clock>,
    index: u8,
    ids: Cell<u64>,
    pub(super) sessions: Cell<u32>,
    /// Clients within a TLS handshake.
    pub(super) handshaking: Cell<u32>,
    pub(super) sessions_max: u32,
    pub(super) service: Cell<Service>,
    pub(super) drain_until: Cell<Duration>,
    /// The earliest deadline that the task being polled waits for.
    due: Cell<Duration>,
    /// What the task being polled finds.
    polled: Cell<Polled>,
    arrived: Local<Option<Arrived>>,
    /// What the task being polled reads now is part of AUTH, and is wiped.
    pub(super) reads_secret: Cell<bool>,
    /// Slots whose connection may want something of the driver.
    touched: Local<Vec<u32>>,
    /// Tasks to be polled before the batch ends.
    ready: Local<VecDeque<Conn>>,
    /// Tasks to be begun.
    spawned: Local<Vec<(Conn, Task)>>,
    /// Connections whose handshake can go on, in the order in which it could.
    pub(super) handshakes: Local<VecDeque<Conn>>,
    /// Clients that waited for a connection and are to ask again.
    pub(super) waiting_again: Local<Vec<(Conn, HopId)>>,
    /// Connections to be opened.
    pub(super) connects: Local<Vec<(Conn, SocketAddr)>>,
    /// Connections that are being opened, and until when the transactions they are for wait for
    /// them; the earliest first.
    pub(super) patience: Local<VecDeque<(Duration, Conn)>>,
}

impl Reactor {
    pub(super) fn new(
        driver: Box<dyn Driver>,
        index: u8,
        size: Size,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        port: Port,
        records: Arc<RecordQueue>,
    ) -> Self {
        let config = shared.config.load_full();
        Self {
            driver: Local::new(driver),
            table: Local::new(Table::new(size.slots())),
            wheel: Local::default(),
            pool: Local::new(Pool::new(
                config.relay.connections,
                config.relay.retry_after,
            )),
            port: Local::new(port),
            buffers: Local::default(),
            answers: Local::default(),
            listeners: Local::new(Listener::all(&config)),
            config: Local::new(config),
            generation: Cell::new(0),
            shared,
            counters,
            records,
            now: Cell::default(),
            clock: Local::default(),
            index,
            ids: Cell::new(0),
            sessions: Cell::new(0),
            handshaking: Cell::new(0),
            sessions_max: size.sessions_max,
            service: Cell::new(Service::Open),
            drain_until: Cell::new(Duration::MAX),
            due: Cell::new(Duration::MAX),
            polled: Cell::default(),
            arrived: Local::default(),
            reads_secret: Cell::new(false),
            touched: Local::default(),
            ready: Local::default(),
            spawned: Local::default(),
            handshakes: Local::default(),
            waiting_again: Local::default(),
            connects: Local::default(),
            patience: Local::default(),
        }
    }

    /// A batch begins at this moment.
    pub(super) fn begin_batch(&self, now: Duration, unix_time: u64) {
        self.now.set(now);
        self.clock.with(|clock| clock.unix_time = unix_time);
        let newest = self.shared.config.load();
        if !self.config.with(|config| Arc::ptr_eq(&newest, config)) {
            let config = Arc::clone(&newest);
            let relay = &config.relay;
            self.pool.with(|pool| {
                pool.configure(relay.connections, relay.retry_after);
                pool.retire(|demands| config.has_demands(demands));
            });
            self.listeners.replace(Listener::all(&config));
            self.config.replace(config);
            self.generation.set(self.generation.get().wrapping_add(1));
        }
    }

    /// The configuration in force, and its place among those that there were.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.with(|config| Arc::clone(config))
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// What holds for the sessions of a listener; `None` if the configuration has it no more.
    pub(super) fn listener(&self, number: driver::Listener) -> Option<Rc<Listener>> {
        self.listeners
            .with(|listeners| listeners.get(usize::from(number.0)).cloned())
    }

    pub(super) fn next_id(&self) -> TraceId {
        self.ids.set(self.ids.get() + 1);
        TraceId(self.unix_time() << 32 | (self.ids.get() & 0xff_ffff) << 8 | u64::from(self.index))
    }

    /// Seconds since 1970.
    pub(super) fn unix_time(&self) -> u64 {
        self.clock.with(|clock| clock.unix_time)
    }

    /// Shows `show` the date as a message has it.
    pub(super) fn with_date<T>(&self, show: impl FnOnce(&str) -> T) -> T {
        self.clock.with(|clock| {
            if clock.dated != clock.unix_time {
                clock.dated = clock.unix_time;
                clock.date = received::date(clock.unix_time);
            }
            show(&clock.date)
        })
    }

    /// Looks at a connection or changes it; `None` if its slot was taken again since.
    pub(super) fn with<T>(&self, conn: Conn, look: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.table.with(|table| table.current(conn).map(look))
    }

    /// Has the connection brought in line with the driver at the end of the batch.
    pub(super) fn touch(&self, conn: Conn) {
        let is_new = self.with(conn, |connection| {
            !std::mem::replace(&mut connection.touched, true)
        });
        if is_new == Some(true) {
            self.touched.with(|touched| touched.push(conn.slot));
        }
    }

    /// The connection's task was polled, and may have written.
    pub(super) fn touch_polled(&self, conn: Conn) {
        let is_new = self.with(conn, |connection| {
            if matches!(connection.role, Role::Client(_)) {
                connection.hold_if_full();
            }
            !std::mem::replace(&mut connection.touched, true)
        });
        if is_new == Some(true) {
            self.touched.with(|touched| touched.push(conn.slot));
        }
    }

    /// Exchanges the list of slots that were touched since the last call for an empty one.
    pub(super) fn swap_touched(&self, empty: &mut Vec<u32>) {
        self.touched.with(|touched| std::mem::swap(touched, empty));
    }

    /// Has the connection's task polled before the batch ends.
    pub(super) fn wake(&self, conn: Conn) {
        let is_new = self.with(conn, |connection| {
            !std::mem::replace(&mut connection.woken, true)
        });
        if is_new == Some(true) {
            self.ready.with(|ready| ready.push_back(conn));
        }
    }

    /// The next task that was woken and not polled since.
    pub(super) fn next_ready(&self) -> Option<Conn> {
        loop {
            let conn = self.ready.with(VecDeque::pop_front)?;
            if self.with(conn, |connection| connection.woken) == Some(true) {
                return Some(conn);
            }
        }
    }

    /// Begins a task for a connection.
    pub(super) fn spawn(&self, conn: Conn, task: Task) {
        self.spawned.with(|spawned| spawned.push((conn, task)));
    }

    pub(super) fn has_spawned(&self) -> bool {
        self.spawned.with(|spawned| !spawned.is_empty())
    }

    pub(super) fn take_spawned(&self) -> Vec<(Conn, Task)> {
        self.spawned.take()
    }

    /// The task of a connection is about to be polled: notes what it will find.
    pub(super) fn begin_poll(&self, conn: Conn) {
        self.due.set(Duration::MAX);
        let has_arrived = self.arrived.with(|arrived| {
            let arrived = arrived.as_ref();
            arrived.is_some_and(|arrived| arrived.conn == conn)
        });
        let polled = self.with(conn, |connection| Polled {
            is_open: connection.is_open(),
            has_input: has_arrived || !connection.input.is_empty(),
            is_at_end: connection.receive == Receive::Ended || connection.transport.is_ended(),
            was_woken: std::mem::take(&mut connection.woken),
            has_sent: std::mem::take(&mut connection.sent),
            waiting: connection.waiting(),
            look: connection
                .progress
                .as_mut()
                .and_then(|progress| progress.answer.take()),
        });
        self.polled.set(polled.unwrap_or_default());
    }

    /// What the task being polled finds.
    pub(super) fn polled(&self) -> Polled {
        self.polled.get()
    }

    /// The earliest deadline of the task that was polled.
    pub(super) fn end_poll(&self) -> Option<Duration> {
        Some(self.due.get()).filter(|due| *due != Duration::MAX)
    }

    /// Whether a deadline of the task being polled has passed. If not, the task is polled again
    /// when it has.
    pub(super) fn is_past(&self, due: Duration) -> bool {
        if self.now.get() >= due {
            return true;
        }
        self.due.set(self.due.get().min(due));
        false
    }

    /// A buffer has come for this connection. Under TLS it is opened at once.
    pub(super) fn put_arrived(&self, conn: Conn, buffer: Buffer) {
        self.arrived.replace(Some(Arrived { conn, buffer }));
        let is_tls = self.with(conn, |connection| connection.transport.tls().is_some());
        if is_tls == Some(true) {
            self.keep_arrived();
        }
    }

    /// Takes the buffer back from a task that has not read it: what is in it is kept with the
    /// connection.
    pub(super) fn keep_arrived(&self) {
        let Some(Arrived { conn, buffer }) = self.arrived.take() else {
            return;
        };
        let is_handshake = self.driver.with(|driver| {
            let received = driver.bytes(&buffer);
            let is_handshake = self.with(conn, |connection| {
                if !connection.is_open() {
                    return false;
                }
                let is_handshake = match connection.transport {
                    Transport::Plain => {
                        secret::append(&mut connection.input, received);
                        false
                    }
                    Transport::Tls(_) => connection.take_records(received),
                };
                if matches!(connection.role, Role::Client(_)) {
                    connection.hold_if_full();
                }
                is_handshake
            });
            driver.recycle(buffer);
            is_handshake
        });
        if is_handshake == Some(true) {
            self.queue_handshake(conn);
        }
    }

    /// Shows `take` what has arrived at the connection of the task being polled, in place where
    /// that is possible, and its output. `take` returns how much it has used up; the rest is shown
    /// again. `None` if nothing more can be said on the connection.
    pub(super) fn read<T>(
        &self,
        conn: Conn,
        take: impl FnOnce(&[u8], &mut Vec<u8>) -> (usize, T),
    ) -> Option<T> {
        let is_its = |arrived: &mut Arrived| arrived.conn == conn;
        let arrived = self.arrived.with(|arrived| arrived.take_if(is_its));
        self.driver.with(|driver| {
            let opened = arrived
                .as_ref()
                .map_or(&[][..], |arrived| driver.bytes(&arrived.buffer));
            let mut is_secret = false;
            let taken = self.with(conn, |connection| {
                let is_open = connection.is_open();
                is_open.then(|| {
                    let input = std::mem::take(&mut connection.input);
                    (input, std::mem::take(&mut connection.output))
                })
            });
            // The table is not borrowed meanwhile: `take` may look at other connections.
            let read = taken.flatten().map(|(mut kept, output)| {
                let mut output = self.with_room(output);
                let value;
                if kept.is_empty() {
                    let used;
                    (used, value) = take(opened, &mut output);
                    kept = opened.get(used..).unwrap_or_default().to_vec();
                    is_secret = self.reads_secret.take() || secret::begins_auth(&kept);
                } else {
                    secret::append(&mut kept, opened);
                    let began_auth = secret::begins_auth(&kept);
                    let used;
                    (used, value) = take(&kept, &mut output);
                    is_secret = self.reads_secret.take()
                        || began_auth
                        || secret::begins_auth(&kept[used.min(kept.len())..]);
                    if is_secret {
                        secret::consume(&mut kept, used);
                    } else {
                        kept.drain(..used.min(kept.len()));
                    }
                    if kept.is_empty() {
                        kept = Vec::new();
                    }
                }
                self.note_input(!kept.is_empty());
                self.put_output(conn, output, Some(kept));
                value
            });
            if let Some(Arrived { buffer, .. }) = arrived {
                if is_secret {
                    driver.wipe(&buffer);
                }
                driver.recycle(buffer);
            }
            read
        })
    }

    pub(super) fn note_input(&self, has_input: bool) {
        let polled = self.polled.get();
        self.polled.set(Polled {
            has_input,
            ..polled
        });
    }

    /// Lets `write` append to what the connection of the task being polled sends next. Nothing is
    /// written to one on which nothing more can be said.
    pub(super) fn write<T: Default>(&self, conn: Conn, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let output = self.with(conn, |connection| {
            let is_open = connection.is_open();
            is_open.then(|| std::mem::take(&mut connection.output))
        });
        let Some(Some(output)) = output else {
            return T::default();
        };
        // The table is not borrowed meanwhile: `write` may look at other connections.
        let mut output = self.with_room(output);
        let written = write(&mut output);
        self.put_output(conn, output, None);
        written
    }

    /// An output that is about to be written to. One without memory gets a buffer.
    pub(super) fn with_room(&self, output: Vec<u8>) -> Vec<u8> {
        if output.capacity() > 0 {
            return output;
        }
        self.buffers.with(Buffers::take)
    }

    /// Gives a connection its output back after something was written, or nothing; and its input,
    /// if that was taken too.
    fn put_output(&self, conn: Conn, mut output: Vec<u8>, input: Option<Vec<u8>>) {
        if output.is_empty() {
            self.buffers.with(|buffers| buffers.give(output));
            output = Vec::new();
        }
        self.with(conn, |connection| {
            // Nothing else writes meanwhile; if it did, it would come behind.
            if !connection.output.is_empty() {
                output.append(&mut connection.output);
            }
            connection.output = output;
            if let Some(input) = input {
                connection.input = input;
            }
        });
    }

    /// Ends the connection once all output is out.
    pub(super) fn finish(&self, conn: Conn, ending: Ending) {
        self.with(conn, |connection| {
            connection.role = Role::None;
            // It may hold a part of a password.
            connection.input.zeroize();
            connection.input = Vec::new();
            connection.progress = None;
            connection.finish(ending);
        });
        self.touch(conn);
    }

    /// Asks the kernel what the peer has taken; the task is polled when the answer is there.
    pub(super) fn ask_progress(&self, conn: Conn) {
        let since = self.now.get();
        self.with(conn, |connection| {
            connection
                .progress
                .get_or_insert_with(|| Progress::new(since));
            connection.asks_progress = true;
        });
        self.touch(conn);
    }

    /// What the peer takes is of no interest any more.
    pub(super) fn forget_progress(&self, conn: Conn) {
        self.with(conn, |connection| connection.progress = None);
    }

    /// Asks the control plane on behalf of a client; `None` if that is not possible now.
    pub(super) fn ask(
        &self,
        conn: Conn,
        question: Question,
        within: Duration,
    ) -> Option<QuestionId> {
        let now = self.now.get();
        let asked = self
            .port
            .with(|port| port.ask(conn, question, now, now + within));
        asked.ok()
    }

    /// Hands out what the port has for clients.
    pub(super) fn take_lookups(&self) {
        let answered = self.port.with(|port| port.take(self.now.get()));
        for answer in answered {
            if self.with(answer.asker, |_| ()).is_some() {
                self.answers
                    .with(|answers| answers.insert(answer.id, answer.answer));
                self.wake(answer.asker);
            }
        }
    }

    /// The answer to a question, if it has come.
    pub(super) fn answer(&self, id: QuestionId) -> Option<LookupAnswer> {
        self.answers.with(|answers| answers.remove(&id))
    }

    /// The client that asked has gone.
    pub(super) fn forget(&self, id: QuestionId) {
        self.answers.with(|answers| answers.remove(&id));
        self.port.with(|port| port.forget(id));
    }

    pub(super) fn notify(&self, notice: Notice) {
        self.port.with(|port| port.notify(notice));
    }
}
