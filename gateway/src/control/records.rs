//! The stream of records: from the workers' queues to all readers.
//!
//! Each reader has a bound in bytes of its own. One that is slow loses records, which are counted
//! by reader, and holds up neither the workers nor the other readers. There are two today: the log
//! (`records/lines.rs`, a thread, because writing it may block) and the memory of refusals. A
//! further one calls [`Records::subscribe`].
//!
//! A batch is shared by its readers and not copied. It is collected a moment after the first record
//! of it, so that a busy gate wakes this thread fifty times a second and not for every session.

mod lines;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::user;
use crate::worker::records::{Record, RecordQueue};

/// Records of one worker that were not collected, in bytes: 25,000 or more of them.
const WORKER_BYTES_MAX: usize = 8 << 20;
/// The same for the log: it has to outlast a log daemon that is restarted.
const LOG_BYTES_MAX: usize = 32 << 20;
/// Records are collected so long after the first of them.
const COLLECT_AFTER: Duration = Duration::from_millis(20);
/// For the log to be written when the gate stops.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// The name of the readers that lose what is lost in the queue of a worker.
const ALL_READERS: &str = "all";

/// The stream.
#[derive(Debug, Default)]
pub(super) struct Records {
    queues: Mutex<Vec<Arc<RecordQueue>>>,
    woken: Arc<Notify>,
    readers: Mutex<Vec<Subscription>>,
    /// By reader.
    lost: Mutex<BTreeMap<&'static str, u64>>,
}

/// Records of one worker, in its order.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    bytes: usize,
}

#[derive(Debug)]
struct Subscription {
    name: &'static str,
    to: UnboundedSender<Arc<Batch>>,
    /// Bytes that were sent to the reader and not received yet.
    waiting: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// A reader of the stream.
#[derive(Debug)]
pub(super) struct Reader {
    batches: UnboundedReceiver<Arc<Batch>>,
    waiting: Arc<AtomicUsize>,
}

impl Reader {
    /// The next records; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.recv().await;
        self.received(batch)
    }

    /// The same for a thread that may block.
    fn blocking_next(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.blocking_recv();
        self.received(batch)
    }

    fn received(&self, batch: Option<Arc<Batch>>) -> Option<Arc<Batch>> {
        let bytes = batch.as_ref().map_or(0, |batch| batch.bytes);
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        batch
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Records {
    /// The queue of a further worker.
    pub(super) fn queue(&self) -> Arc<RecordQueue> {
        let woken = Arc::clone(&self.woken);
        let queue = RecordQueue::new(WORKER_BYTES_MAX, move || woken.notify_one());
        let queue = Arc::new(queue);
        lock(&self.queues).push(Arc::clone(&queue));
        queue
    }

    /// A reader of all records from now on, for which at most so many bytes of them wait. `name`
    /// stands beside what it loses in the metrics.
    pub(super) fn subscribe(&self, name: &'static str, bytes_max: usize) -> Reader {
        let (to, batches) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        lock(&self.lost).entry(name).or_default();
        lock(&self.readers).push(Subscription {
            name,
            to,
            waiting: Arc::clone(&waiting),
            bytes_max,
        });
        Reader { batches, waiting }
    }

    /// Records that were lost so far, by reader.
    pub(super) fn lost(&self) -> BTreeMap<&'static str, u64> {
        let mut lost = lock(&self.lost).clone();
        let of_queues = lock(&self.queues).iter().map(|queue| queue.lost()).sum();
        lost.insert(ALL_READERS, of_queues);
        lost
    }

    /// Hands records out, for as long as the gate lives.
    pub(super) async fn serve(&self) {
        loop {
            self.woken.notified().await;
            sleep(COLLECT_AFTER).await;
            self.collect();
        }
    }

    /// Hands out what the workers have recorded.
    fn collect(&self) {
        let queues = lock(&self.queues);
        // Held over all of it, or two that collect could change the order.
        let mut readers = lock(&self.readers);
        for records in queues.iter().map(|queue| queue.take()) {
            if records.is_empty() {
                continue;
            }
            let bytes = records.iter().map(Record::size).sum();
            let batch = Arc::new(Batch { records, bytes });
            readers.retain(|reader| self.send(reader, &batch));
        }
    }

    /// Sends a batch to a reader that has room for it. Returns whether the reader is still there.
    fn send(&self, reader: &Subscription, batch: &Arc<Batch>) -> bool {
        let waiting = reader.waiting.load(Ordering::Relaxed);
        if waiting.saturating_add(batch.bytes) > reader.bytes_max {
            let number = batch.records.len() as u64;
            *lock(&self.lost).entry(reader.name).or_default() += number;
            return !reader.to.is_closed();
        }
        reader.waiting.fetch_add(batch.bytes, Ordering::Relaxed);
        reader.to.send(Arc::clone(batch)).is_ok()
    }

    /// Ends the stream once the workers have ended: what they have recorded still goes out.
    fn end(&self) {
        self.collect();
        lock(&self.readers).clear();
    }
}

/// The thread that writes the log's lines.
pub(super) struct LogWriter(thread::JoinHandle<()>);

impl LogWriter {
    /// Starts it; `is_user` says that the gate has become another user, and what it keeps of its
    /// capabilities is not for this thread.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn start(records: &Arc<Records>, is_user: bool) -> io::Result<Self> {
        let mut reader = records.subscribe("log", LOG_BYTES_MAX);
        let records = Arc::clone(records);
        let work = move || {
            if is_user && let Err(error) = user::give_up_capabilities() {
                tracing::warn!(%error, "the thread that writes the log keeps its capabilities");
            }
            let mut losses = lines::Losses::default();
            while let Some(batch) = reader.blocking_next() {
                batch.records.iter().for_each(lines::write);
                losses.log(&records.lost());
            }
            losses.log_all(&records.lost());
        };
        let thread = thread::Builder::new().name("log".to_owned()).spawn(work)?;
        Ok(Self(thread))
    }

    /// Writes all that the workers have recorded; they must have ended.
    pub(super) async fn finish(self, records: &Records) {
        records.end();
        let written = spawn_blocking(move || self.0.join());
        match timeout(WRITE_MAX, written).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!("writing the log ended in a panic"),
            Err(_) => tracing::error!("the log is written too slowly: its last lines are lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::records::{SessionRecord, TraceId};

    fn record(id: u64) -> Record {
        Record::Session(SessionRecord {
            id: TraceId(id),
            client: [192, 0, 2, 1].into(),
            helo: "client.example".into(),
            user: None,
            is_refused: false,
            rule: crate::policy::Rule::UNLISTED,
            accepted: 0,
            refused: 0,
            errors: 0,
            octets: 0,
            time: Duration::ZERO,
            tls: None,
        })
    }

    /// The ids of all that a reader gets until the end of the stream.
    fn ids(mut reader: Reader) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(batch) = reader.blocking_next() {
            ids.extend(batch.records.iter().map(|record| match record {
                Record::Session(session) => session.id.0,
                Record::Transaction(transaction) => transaction.id.0,
            }));
        }
        ids
    }

    #[test]
    fn every_reader_gets_all_records_of_a_worker_in_their_order_and_what_comes_last() {
        let records = Records::default();
        let queue = records.queue();
        let readers = ["log", "other"].map(|name| records.subscribe(name, 1 << 20));
        for id in 0..100 {
            queue.push(record(id));
            if id % 7 == 0 {
                records.collect();
            }
        }
        records.end();
        for reader in readers {
            assert_eq!(ids(reader), (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_slow_reader_loses_records_beyond_its_bound_and_the_others_lose_none() {
        let records = Records::default();
        let queue = records.queue();
        let room = 3 * record(0).size();
        let (mut slow, quick) = (
            records.subscribe("slow", room),
            records.subscribe("quick", usize::MAX),
        );
        for id in 0..5 {
            queue.push(record(id));
            records.collect();
        }
        assert_eq!(records.lost()["slow"], 2);
        // There is room again once it has taken one.
        assert!(slow.blocking_next().is_some());
        queue.push(record(5));
        records.end();
        assert_eq!(ids(slow), [1, 2, 5]);
        assert_eq!(ids(quick), [0, 1, 2, 3, 4, 5]);
        assert_eq!(records.lost()["quick"], 0);
    }

    #[test]
    fn a_reader_that_has_gone_is_forgotten_and_what_it_lost_stays_counted() {
        let records = Records::default();
        let queue = records.queue();
        let reader = records.subscribe("dashboard", 0);
        queue.push(record(0));
        records.collect();
        drop(reader);
        queue.push(record(1));
        records.collect();
        assert!(lock(&records.readers).is_empty());
        assert!(records.lost()["dashboard"] >= 1);
    }
}
