//! Being asked to stop, for commands that have something to clean up.
//!
//! A handler, not a blocked signal: a process inherits the signals that its parent blocks, and a
//! gate that the demo starts would then never see its SIGTERM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// Whether SIGINT, SIGTERM or SIGHUP has come.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over for the rest of the process's life.
    ///
    /// # Errors
    /// When the thread or the handlers cannot be set up.
    pub fn watch() -> io::Result<Self> {
        let interrupt = Self(Arc::default());
        let flag = Arc::clone(&interrupt.0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (mut int, mut term, mut hup) = {
            let _inside = runtime.enter();
            let kinds = [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ];
            let [int, term, hup] = kinds.map(signal);
            (int?, term?, hup?)
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                tokio::select! { _ = int.recv() => {} _ = term.recv() => {} _ = hup.recv() => {} }
                flag.store(true, Ordering::Relaxed);
            });
            })?;
        Ok(interrupt)
    }

    /// Whether it is time to stop.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
