//! The life of a gate: start, serve, stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::start::{self, RunningWorker, StartError};
use crate::config::Config;
use crate::worker::{Life, Shared};

/// Serves until SIGTERM or SIGINT: the first lets what is in flight finish, the second stops at once.
///
/// # Errors
/// When the gate cannot start, or a worker failed.
pub fn serve(config: Config) -> Result<(), StartError> {
    let prepared = start::prepare(&config)?;
    let addresses: Vec<String> = config
        .listeners
        .iter()
        .map(|listener| listener.address.to_string())
        .collect();
    let shared = Arc::new(Shared::new(Arc::new(config)));
    let workers = start::run(prepared, &shared)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Io("start the control plane", error))?;
    tracing::info!(
        listening = addresses.join(" "),
        workers = workers.len(),
        "serving"
    );
    runtime.block_on(watch(&shared, &workers))?;
    for worker in workers {
        worker
            .join()
            .map_err(|error| StartError::Io("go on with a worker", error))?;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn watch(shared: &Shared, workers: &[RunningWorker]) -> Result<(), StartError> {
    let listen = |kind| signal(kind).map_err(|error| StartError::Io("listen for signals", error));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut life = Life::Running;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    while !workers.iter().all(RunningWorker::is_finished) {
        let asked = tokio::select! {
            () = asked_to_stop(&mut terminate, &mut interrupt) => true,
            _ = look.tick() => false,
        };
        if asked {
            life = if life == Life::Running {
                Life::Draining
            } else {
                Life::Stopping
            };
            tracing::info!(at_once = life == Life::Stopping, "stopping");
            shared.set_life(life);
            workers.iter().for_each(|worker| worker.waker.wake());
        }
    }
    Ok(())
}

async fn asked_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
