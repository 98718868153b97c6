//! From a configuration to running workers.
//!
//! All that needs privileges or can fail for reasons outside is done first, on the main thread and in an order in which an error
//! leaves nothing half done: limits, listening sockets, rings. Only then do threads start.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use portcullis_uring::{allowed_cores, pin_to_core, raise_descriptor_limit};

use crate::config::Config;
use crate::driver::ring::{
    ListenError, PreparedRing, RingDriver, RingSettings, SetupError, Waker, listen,
};
use crate::worker::counters::Counters;
use crate::worker::{Shared, Size, Worker};

/// Connections that may wait to be accepted, per listening socket; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why the gate cannot start.
#[derive(Debug)]
pub enum StartError {
    /// A listening socket.
    Listen(ListenError),
    /// A ring.
    Ring(SetupError),
    /// Something else, and what was being done.
    Io(&'static str, io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Io(step, error) => write!(f, "cannot {step}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A worker that is ready to run on a thread of its own.
pub struct PreparedWorker {
    ring: PreparedRing,
    size: Size,
}

/// A worker that runs.
pub struct RunningWorker {
    /// Ends its wait, so that it looks at what is shared.
    pub waker: Waker,
    /// What it counts.
    pub counters: Arc<Counters>,
    thread: JoinHandle<io::Result<()>>,
}

impl RunningWorker {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What made it end before it was asked to.
    pub fn join(self) -> io::Result<()> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the worker panicked")))
    }
}

/// Opens the listening sockets and the rings.
///
/// # Errors
/// An address that is in use, a kernel without io_uring, limits that are too low.
pub fn prepare(config: &Config) -> Result<Vec<PreparedWorker>, StartError> {
    let descriptors = raise_descriptor_limit()
        .map_err(|error| StartError::Io("read the limit of open files", error))?;
    let size = size(config, descriptors);
    let workers = config.workers as u32;
    if size.sessions_max * workers < config.limits.sessions {
        tracing::info!(
            sessions = size.sessions_max * workers,
            wanted = config.limits.sessions,
            "fewer sessions than configured: the limit of open files bounds the table of each worker (ulimit -n, LimitNOFILE=)"
        );
    }
    (0..workers).map(|_| prepare_worker(config, size)).collect()
}

fn prepare_worker(config: &Config, size: Size) -> Result<PreparedWorker, StartError> {
    let listeners = config
        .listeners
        .iter()
        .map(|listener| listen(listener.address, BACKLOG));
    let listeners = listeners
        .collect::<Result<_, _>>()
        .map_err(StartError::Listen)?;
    let settings = RingSettings {
        slots: size.slots(),
        listeners,
        ..RingSettings::default()
    };
    let ring = PreparedRing::new(settings).map_err(StartError::Ring)?;
    Ok(PreparedWorker { ring, size })
}

/// Shares the sessions out over the workers, as far as each one's table may go.
fn size(config: &Config, descriptors: u64) -> Size {
    let addresses: usize = config
        .routes
        .iter()
        .flat_map(|route| &route.next_hops)
        .count();
    let slots_max = u32::try_from(descriptors).unwrap_or(u32::MAX);
    let next_hops_max =
        (config.relay.connections.saturating_mul(addresses as u32)).clamp(1, slots_max / 4);
    let mut size = Size {
        listeners: config.listeners.len() as u16,
        sessions_max: config.limits.sessions.div_ceil(config.workers as u32),
        next_hops_max,
    };
    let excess = size.slots().saturating_sub(slots_max);
    size.sessions_max = size.sessions_max.saturating_sub(excess).max(1);
    size
}

/// Starts the threads, each on a core of its own as far as there are enough.
///
/// # Errors
/// When a thread cannot be started.
pub fn run(
    prepared: Vec<PreparedWorker>,
    shared: &Arc<Shared>,
) -> Result<Vec<RunningWorker>, StartError> {
    let cores = allowed_cores().unwrap_or_default();
    let start = |(index, worker): (usize, PreparedWorker)| {
        let core = cores.get(index % cores.len().max(1)).copied();
        run_worker(worker, index as u8, core, Arc::clone(shared))
    };
    prepared.into_iter().enumerate().map(start).collect()
}

fn run_worker(
    prepared: PreparedWorker,
    index: u8,
    core: Option<usize>,
    shared: Arc<Shared>,
) -> Result<RunningWorker, StartError> {
    let waker = prepared.ring.waker();
    let counters = Arc::new(Counters::default());
    let worker_counters = Arc::clone(&counters);
    let thread = thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            if let Some(Err(error)) = core.map(pin_to_core) {
                tracing::debug!(%error, "the worker is not pinned to a core");
            }
            let driver = RingDriver::start(prepared.ring)?;
            Worker::new(driver, index, prepared.size, shared, worker_counters).run()
        })
        .map_err(|error| StartError::Io("start a worker", error))?;
    Ok(RunningWorker {
        waker,
        counters,
        thread,
    })
}
