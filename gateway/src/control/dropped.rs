//! What the control plane does for the filter while the gate runs: it removes recent verdicts whose
//! time is over, looks whether what the filter answers still arrives, and reads along with what is
//! dropped, so that the top sources are known.
//!
//! Reading costs the program something for every packet that it reports, so the gate reads only
//! with an admin endpoint. Other readers ask the gate (`/api/events`); if another process reads
//! (`portcullis filter events`), the gate waits for its turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Control, HeldFilter};
use crate::filter::{ANNOUNCE_EVERY, Error, Events, READ_EVERY, SlotNames, TimedEvent, Verdicts};

/// Expired verdicts do nothing, but they take up room.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The program at the other end of a veth can come and go at any time. A look costs two questions
/// to the kernel.
const ANSWERS_EVERY: Duration = Duration::from_secs(5);

/// Looks at the buffer of events that are kept for a slow client.
const LOOKS_KEPT: usize = 64;
/// Events of one look; what comes in faster waits for the next.
const EVENTS_OF_A_LOOK: usize = 4_096;

/// Removes recent verdicts that have expired, for as long as the gate runs.
pub(super) async fn sweep_verdicts(verdicts: Arc<Verdicts>) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let verdicts = Arc::clone(&verdicts);
        match spawn_blocking(move || verdicts.sweep()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(number)) => tracing::debug!(number, "recent verdicts have expired"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot remove expired verdicts"),
            Err(_) => tracing::warn!("removing expired verdicts ended in a panic"),
        }
    }
}

/// Looks whether what the filter answers arrives, for as long as the gate runs.
pub(super) async fn watch_answers(control: Arc<Control>) {
    let mut ticks = interval(ANSWERS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let control = Arc::clone(&control);
        let look = move || match &control.filter {
            Some(held) => held.lock().sync_answers(),
            None => Ok(()),
        };
        match spawn_blocking(look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot change where the filter answers"),
            Err(_) => tracing::warn!("looking whether answers arrive ended in a panic"),
        }
    }
}

/// Drops as they happen, for the clients of the gate: the buffer of events has one reader, and that
/// is the gate.
pub(super) struct Drops {
    /// Lines of JSON, as many as one look at the buffer gave.
    lines: broadcast::Sender<Bytes>,
    /// Why there are none: another process reads, or none does.
    silent: Mutex<Option<String>>,
}

impl Default for Drops {
    fn default() -> Self {
        let silent = "this gate reads no events: it has no filter".to_owned();
        Self {
            lines: broadcast::channel(LOOKS_KEPT).0,
            silent: Mutex::new(Some(silent)),
        }
    }
}

impl Drops {
    /// The lines from now on, until the receiver is dropped. One that takes them too slowly loses
    /// some.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) fn follow(&self) -> Result<mpsc::Receiver<Bytes>, String> {
        if let Some(silent) = &*self.silent() {
            return Err(silent.clone());
        }
        let mut lines = self.lines.subscribe();
        let (to, taken) = mpsc::channel(LOOKS_KEPT);
        tokio::spawn(async move {
            loop {
                let looked = tokio::select! {
                    looked = lines.recv() => looked,
                    () = to.closed() => return,
                };
                match looked {
                    Ok(looked) => {
                        if to.send(looked).await.is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(taken)
    }

    fn silent(&self) -> MutexGuard<'_, Option<String>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the buffer holds to the clients that follow, and counts it.
    fn send(&self, events: &mut Events, names: &SlotNames) {
        let mut lines = Vec::new();
        for _ in 0..EVENTS_OF_A_LOOK {
            let Some(event) = events.next(names) else {
                break;
            };
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut lines, &TimedEvent::from(event));
            lines.extend_from_slice(b"\n");
        }
        if !lines.is_empty() {
            // That no client follows any more is no failure.
            let _ = self.lines.send(lines.into());
        }
    }
}

/// Reads what is dropped, for as long as the gate runs: it is counted by source, and sent to the
/// clients that follow.
pub(super) async fn read_drops(control: Arc<Control>, mut events: Events) {
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut announced: Option<Instant> = None;
    let mut waiting = false;
    let mut names = SlotNames::default();
    let drops = &control.drops;
    loop {
        ticks.tick().await;
        if drops.lines.receiver_count() == 0 {
            events.count_all();
        } else {
            drops.send(&mut events, &names);
        }
        if announced.is_some_and(|then| then.elapsed() < ANNOUNCE_EVERY) {
            continue;
        }
        announced = Some(Instant::now());
        if let Some(current) = control.filter.as_ref().and_then(HeldFilter::names) {
            names = current;
        }
        let turn = events.become_reader().and_then(|()| events.announce());
        *drops.silent() = turn.as_ref().err().map(ToString::to_string);
        match turn {
            Ok(()) => waiting = false,
            Err(Error::EventsTaken { .. }) if waiting => {}
            Err(error @ Error::EventsTaken { .. }) => {
                waiting = true;
                tracing::info!("no top sources for now: {error}");
            }
            Err(error) => {
                tracing::warn!(%error, "no top sources any more");
                return;
            }
        }
    }
}
