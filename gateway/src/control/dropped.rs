//! What the control plane does for the filter while the gate runs: it removes recent verdicts whose time is over, looks
//! whether what the filter answers still arrives, and reads along with what is dropped, so that the top sources are known.
//!
//! Reading costs the program something for every packet that it tells of, so it is done only where somebody may ask:
//! with an admin endpoint. If another process reads (`portcullis filter events`), the gate waits for its turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Control;
use crate::filter::{ANNOUNCE_EVERY, Error, Events, READ_EVERY, Verdicts};

/// Expired verdicts do nothing, but they take up room.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The program at the other end of a veth can come and go at any time. A look costs two questions to the kernel.
const ANSWERS_EVERY: Duration = Duration::from_secs(5);

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

/// Counts what is dropped by source, for as long as the gate runs.
pub(super) async fn count_sources(mut events: Events) {
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut announced: Option<Instant> = None;
    let mut waiting = false;
    loop {
        ticks.tick().await;
        events.count_all();
        if announced.is_some_and(|then| then.elapsed() < ANNOUNCE_EVERY) {
            continue;
        }
        announced = Some(Instant::now());
        match events.take_turn().and_then(|()| events.announce()) {
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
