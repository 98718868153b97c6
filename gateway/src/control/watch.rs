//! The files of the lists while the gate runs: all lists are read again when one of them has
//! changed. Mail goes on meanwhile: files are looked at, read, compiled and written on threads of
//! their own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::Control;
use super::reload::{self, Refused, What};
use crate::config::Config;
use crate::lists::watch::{Seen, Stamp, Watch};
use crate::lists::writers::Writers;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// When lists could not be put in force for a reason that is not in them (the kernel had no memory
/// for them), the next attempt waits for so long: it reads all of them.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a look found.
struct Look {
    files: Vec<Seen>,
    saved: Option<Stamp>,
}

impl Look {
    fn at(config: &Config, writers: &mut Writers) -> Look {
        let is_text = config.lists.sources.snapshot().is_none();
        let files = config.lists.files();
        let mut files: Vec<Seen> = files
            .map(|(path, read)| Seen::at(path, read, is_text))
            .collect();
        writers.look(&mut files);
        Look {
            files,
            saved: Stamp::of(&config.saved_lists()),
        }
    }
}

/// Looks at the files from time to time, and reads all lists again when one has changed.
pub(super) async fn run(control: Arc<Control>) {
    let mut watch = Watch::default();
    let mut writers = Writers::default();
    // The kept lists at the last look: where something is refused and they change, an operator may
    // have forced it. What was refused at the start may be forced before the first look.
    let mut saved_last = Stamp::of(&control.shared.config.load().saved_lists());
    let mut not_before = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let config = control.shared.config.load_full();
        if !config.lists.watch || config.lists.files().next().is_none() {
            continue;
        }
        let is_refused = watch.has_refused() || config.lists.are_old;
        let mut used = std::mem::take(&mut writers);
        let look = spawn_blocking(move || (Look::at(&config, &mut used), used)).await;
        let Ok((look, used)) = look else {
            continue;
        };
        writers = used;
        let saved_before = std::mem::replace(&mut saved_last, look.saved);
        let is_forced = is_refused && saved_before != look.saved;
        if is_forced {
            watch.try_again();
        }
        let changed = watch.look(look.files);
        if (changed.is_empty() || Instant::now() < not_before) && !is_forced {
            continue;
        }
        tracing::debug!(?changed, "files of lists have changed");
        let counts = &control.reloads;
        let result = reload::lists(&control).await;
        let count = match &result {
            Ok(_) => &counts.lists_good,
            Err(Refused::Lists(_)) => &counts.lists_refused,
            Err(_) => &counts.lists_bad,
        };
        count.fetch_add(1, Ordering::Relaxed);
        counts.tell(What::Lists, &result);
        match result {
            Ok(_) => watch.try_again(),
            // It is not the fault of the files.
            Err(Refused::Filter(_) | Refused::Lost) => {
                not_before = Instant::now() + RETRY_AFTER;
            }
            Err(_) => watch.refuse(changed),
        }
    }
}
