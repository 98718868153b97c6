//! From a configuration to running workers.
//!
//! All that needs privileges or can fail for reasons outside is done first, on the main thread:
//! limits, listening sockets, rings. Only then do threads start.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use portcullis_uring::{allowed_cores, pin_to_core, raise_descriptor_limit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::port::Ports;
use super::records::Records;
use super::{Error, user};
use crate::config::Config;
use crate::driver::ring::{PreparedRing, RingDriver, RingSettings, Waker, listen};
use crate::worker::counters::Counters;
use crate::worker::port::Port;
use crate::worker::records::RecordQueue;
use crate::worker::{Shared, Size, Worker};

/// Connections that may wait to be accepted, per listening socket; the kernel caps it at
/// `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// A worker that is ready to run on a thread of its own.
pub(crate) struct PreparedWorker {
    ring: PreparedRing,
    size: Size,
}

/// A worker that runs.
pub(super) struct RunningWorker {
    /// Ends its wait, so that it looks at what is shared.
    pub(super) waker: Waker,
    /// What it counts.
    pub(super) counters: Arc<Counters>,
}

/// That a worker has ended.
pub(super) struct WorkerEnd {
    /// Which.
    pub(super) index: usize,
    /// Whether it was broken.
    pub(super) result: io::Result<()>,
}

/// Sends notice of the end of the thread that it lives on, however that comes about.
struct EndNotice {
    index: usize,
    result: Option<io::Result<()>>,
    to: UnboundedSender<WorkerEnd>,
}

impl EndNotice {
    fn give(mut self, result: io::Result<()>) {
        self.result = Some(result);
    }
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        let panicked = || Err(io::Error::other("it panicked; the log has the place"));
        let end = WorkerEnd {
            index: self.index,
            result: self.result.take().unwrap_or_else(panicked),
        };
        // With the control plane gone there is no receiver.
        let _ = self.to.send(end);
    }
}

/// Opens the listening sockets and the rings. Without a listener there are no workers.
///
/// # Errors
/// An address that is in use, a kernel without io_uring, limits that are too low.
pub(super) fn prepare(config: &Config) -> Result<Vec<PreparedWorker>, Error> {
    prepare_with(config, |address| {
        listen(address, BACKLOG).map_err(Error::Listen)
    })
}

/// The same on sockets that listen nowhere, for `doctor`: what a start takes is taken, and all at
/// once.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn rehearse(config: &Config) -> Result<Vec<PreparedWorker>, Error> {
    prepare_with(config, |address| {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
        let socket = socket.map_err(|error| Error::Io("make a socket", error))?;
        Ok(socket.into())
    })
}

fn prepare_with(
    config: &Config,
    open: impl Fn(SocketAddr) -> Result<OwnedFd, Error>,
) -> Result<Vec<PreparedWorker>, Error> {
    if config.listeners.is_empty() {
        return Ok(Vec::new());
    }
    let descriptors = raise_descriptor_limit()
        .map_err(|error| Error::Io("read the limit of open files", error))?;
    let size = size(config, descriptors);
    let workers = config.workers as u32;
    let sessions = sessions_max(config, descriptors);
    if sessions < config.limits.sessions {
        tracing::info!(
            sessions,
            wanted = config.limits.sessions,
            "fewer sessions than configured: the limit of open files bounds the table of each \
             worker (ulimit -n, LimitNOFILE=)"
        );
    }
    (0..workers)
        .map(|_| prepare_worker(config, size, &open))
        .collect()
}

fn prepare_worker(
    config: &Config,
    size: Size,
    open: impl Fn(SocketAddr) -> Result<OwnedFd, Error>,
) -> Result<PreparedWorker, Error> {
    let addresses = config.listeners.iter().map(|listener| listener.address);
    let listeners = addresses.map(open).collect::<Result<_, _>>()?;
    let settings = RingSettings {
        slots: size.slots(),
        listeners,
        ..RingSettings::default()
    };
    let ring = PreparedRing::new(settings).map_err(Error::Ring)?;
    Ok(PreparedWorker { ring, size })
}

/// How many sessions the whole gate can have with this limit of open files.
pub(crate) fn sessions_max(config: &Config, descriptors: u64) -> u32 {
    let all = size(config, descriptors).sessions_max * config.workers as u32;
    all.min(config.limits.sessions)
}

/// The entries of each worker's table, if they do not fit under this limit of open files.
pub(crate) fn slots_beyond(config: &Config, descriptors: u64) -> Option<u32> {
    let slots = size(config, descriptors).slots();
    (u64::from(slots) > descriptors).then_some(slots)
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

/// Whether this process may have one more thread. The control plane's runtime starts its own when
/// it needs them, and where it gets none it panics.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn try_thread() -> Result<(), Error> {
    let thread = thread::Builder::new().spawn(|| ());
    // It does nothing that could fail.
    let _ = thread
        .map_err(|error| Error::Io("start a thread", error))?
        .join();
    Ok(())
}

/// Starts the threads with their rings, and ends them when all of them run, for `doctor`.
///
/// # Errors
/// The first that cannot be started.
pub(crate) fn rehearse_threads(prepared: Vec<PreparedWorker>) -> Result<(), Error> {
    let (started, results) = std::sync::mpsc::channel();
    let mut threads = Vec::new();
    for (number, worker) in prepared.into_iter().enumerate() {
        let started = started.clone();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let driver = RingDriver::start(worker.ring);
                let (driver, result) = match driver {
                    Ok(driver) => (Some(driver), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                // The receiver outlives it.
                let _ = started.send(result);
                // It ends when the other end is dropped: nothing is ever sent.
                let _ = released.recv();
                drop(driver);
            })
            .map_err(|error| Error::Io("start a worker", error))?;
        threads.push((thread, release));
    }
    drop(started);
    let first_failure = results.iter().take(threads.len()).find_map(Result::err);
    for (thread, release) in threads {
        drop(release);
        // One that panicked has sent nothing, and is seen by that.
        let _ = thread.join();
    }
    first_failure.map_or(Ok(()), |error| Err(Error::Io("start a ring", error)))
}

/// Starts the threads, each on a core of its own as far as there are enough, with their ports and
/// the queues of their records. Their ends come through the receiver.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn run(
    prepared: Vec<PreparedWorker>,
    shared: &Arc<Shared>,
    ports: &mut Ports,
    records: &Records,
) -> Result<(Vec<RunningWorker>, UnboundedReceiver<WorkerEnd>), Error> {
    let cores = allowed_cores().unwrap_or_default();
    let (to, ends) = mpsc::unbounded_channel();
    let start = |(index, worker): (usize, PreparedWorker)| {
        let core = cores.get(index % cores.len().max(1)).copied();
        let notice = EndNotice {
            index,
            result: None,
            to: to.clone(),
        };
        let port = ports.add(worker.ring.waker());
        run_worker(
            worker,
            core,
            Arc::clone(shared),
            port,
            records.queue(),
            notice,
        )
    };
    let workers: Result<_, _> = prepared.into_iter().enumerate().map(start).collect();
    Ok((workers?, ends))
}

fn run_worker(
    prepared: PreparedWorker,
    core: Option<usize>,
    shared: Arc<Shared>,
    port: Port,
    records: Arc<RecordQueue>,
    notice: EndNotice,
) -> Result<RunningWorker, Error> {
    let waker = prepared.ring.waker();
    let counters = Arc::new(Counters::default());
    let worker_counters = Arc::clone(&counters);
    // The configuration has at most 1,024 workers, of which the log tells 256 apart.
    let (name, index) = (format!("worker-{}", notice.index), notice.index as u8);
    let work = move || {
        if let Some(Err(error)) = core.map(pin_to_core) {
            tracing::debug!(%error, "the worker is not pinned to a core");
        }
        if shared.config.load().user.is_some() {
            user::give_up_capabilities()?;
        }
        let driver = RingDriver::start(prepared.ring)?;
        Worker::new(
            driver,
            index,
            prepared.size,
            shared,
            worker_counters,
            port,
            records,
        )
        .run()
    };
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            let result = work();
            notice.give(result);
        })
        .map_err(|error| Error::Io("start a worker", error))?;
    Ok(RunningWorker { waker, counters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_noticed() {
        let (to, mut ends) = mpsc::unbounded_channel();
        let notice = EndNotice {
            index: 3,
            result: None,
            to,
        };
        let thread = thread::spawn(move || {
            let _notice = notice;
            panic!("as a test");
        });
        assert!(thread.join().is_err());
        let end = ends.blocking_recv().expect("a notice");
        assert!(end.index == 3 && end.result.is_err());
    }

    #[test]
    fn without_a_listener_there_are_no_workers() {
        let mut config = Config::default_gate();
        config.listeners.clear();
        assert!(prepare(&config).is_ok_and(|workers| workers.is_empty()));
    }

    #[test]
    fn the_sessions_that_fit_are_never_more_than_configured() {
        let config = Config::default_gate();
        for descriptors in [64, 1_024, 20_000, 1 << 20] {
            let sessions = sessions_max(&config, descriptors);
            assert!(
                (1..=config.limits.sessions).contains(&sessions),
                "{descriptors}: {sessions}"
            );
        }
    }
}
