//! The lists of a gate over time: what is read is held against what was in force before, kept for the next start, and read
//! again when its files change. Mail goes on meanwhile: files are read, compiled and written on threads of their own.
//!
//! Lists that lost too much are refused, all of them (there is one generation in force, never parts of two): while the gate
//! runs what is in force stays, and at a start the lists of the last compile are taken, which is kept in the state directory.
//! `portcullis lists compile --force` writes there, too: that is how somebody says that a loss is meant.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::spawn_blocking;

use super::{Control, reload};
use crate::config::Config;
use crate::filter;
use crate::lists::file::{self, Fault, Stored};
use crate::lists::guard::{self, Loss};
use crate::lists::watch::{Stamp, Watch};
use crate::lists::{List, Memory};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// When lists could not be put in force for a reason that is not in them (the kernel had no memory for them), the next attempt
/// waits for so long: it reads all of them.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// At a start: lists that lost too much since the last compile are replaced by those of that compile. Returns what has to
/// be told, loudly; nothing if all is well.
#[must_use]
pub fn hold_against_last(config: &mut Config) -> Vec<String> {
    if config.lists.sources.is_empty() {
        return Vec::new();
    }
    let path = config.saved_lists();
    let Some(last) = last_compile(&path) else {
        return Vec::new();
    };
    let losses = guard::losses(
        &last.about().lists,
        &config.policy.lists().lists,
        config.lists.shrink_max,
    );
    if losses.is_empty() {
        return Vec::new();
    }
    let mut told = about_losses(&losses, config);
    let compiled_at = last.about().compiled_at;
    let allocate = if config.policy.lists().filtered.in_kernel().is_some() {
        filter::memory
    } else {
        Memory::private
    };
    match last.load(allocate) {
        Ok(compiled) => {
            config.policy = Arc::new(config.policy.with_lists(compiled));
            config.lists.are_old = true;
            let age = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs().saturating_sub(compiled_at) / 60);
            told.push(format!(
                "the lists of the last compile are in force, of {age} minutes ago: {}",
                path.display()
            ));
        }
        Err(error) => told.push(format!(
            "{error}: the lists of the last compile cannot be had, and the ones with the loss are in force"
        )),
    }
    told
}

/// What was compiled last, if that can be said.
fn last_compile(path: &Path) -> Option<Stored> {
    match Stored::open(path) {
        Ok(stored) => Some(stored),
        Err(file::Error {
            fault: Fault::Io(error),
            ..
        }) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(
                "{error}; until then nothing is known of the lists that were in force before"
            );
            None
        }
    }
}

/// While the gate runs: the lists that lost too much against what is in force, unless somebody has compiled them so by force
/// since.
pub(super) fn losses(old: &Config, new: &Config) -> Vec<Loss> {
    let (before, after) = (&old.policy.lists().lists, &new.policy.lists().lists);
    let losses = guard::losses(before, after, new.lists.shrink_max);
    if losses.is_empty() || new.lists.sources.is_empty() {
        return Vec::new();
    }
    let is_forced = last_compile(&new.saved_lists()).is_some_and(|last| {
        last.about().compiled_at >= old.lists.compiled_at_seconds()
            && losses.iter().all(|loss| says(&last.about().lists, loss))
    });
    if is_forced { Vec::new() } else { losses }
}

fn says(lists: &[List], loss: &Loss) -> bool {
    let mut same_name = lists.iter().filter(|list| list.name == loss.list);
    same_name.any(|list| list.entries == loss.after)
}

/// What is said of losses, and what to do.
pub(super) fn about_losses(losses: &[Loss], config: &Config) -> Vec<String> {
    let losses = losses
        .iter()
        .map(|loss| format!("{loss} lost more than lists.shrink_max allows; is the file whole?"));
    let file = config
        .path
        .as_deref()
        .map_or_else(|| "FILE".into(), Path::to_string_lossy);
    let advice = format!(
        "if this is meant: portcullis lists compile -c {file} --force, and reload; else put the file right, which is noticed"
    );
    losses.chain([advice]).collect()
}

/// Keeps the lists in force for the next start.
pub(super) fn save(control: &Arc<Control>, config: &Arc<Config>) {
    if config.lists.sources.is_empty() || config.lists.are_old {
        return;
    }
    let (control, config) = (Arc::clone(control), Arc::clone(config));
    spawn_blocking(move || {
        let path = config.saved_lists();
        match file::write(&path, config.policy.lists(), config.lists.compiled_at) {
            Ok(()) => {
                control.files.saved(true);
                tracing::debug!(path = %path.display(), "the compiled lists are kept");
            }
            Err(error) => {
                control.files.saved(false);
                tracing::warn!(
                    %error,
                    "the lists in force are not kept: the next start has nothing to compare its lists with"
                );
            }
        }
    });
}

/// What a look found.
struct Look {
    files: Vec<(PathBuf, Option<Stamp>, Option<Stamp>)>,
    saved: Option<Stamp>,
}

impl Look {
    fn at(config: &Config) -> Look {
        let files = config.lists.files();
        let files = files.map(|(path, read)| (path.to_owned(), read, Stamp::of(path)));
        Look {
            files: files.collect(),
            saved: Stamp::of(&config.saved_lists()),
        }
    }
}

/// Looks at the files from time to time, and reads all lists again when one has changed.
pub(super) async fn watch(control: Arc<Control>) {
    let mut watch = Watch::default();
    // The kept lists at the last look: where something is refused and they change, somebody may have forced it.
    let mut saved_last = None;
    let mut not_before = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let config = control.shared.config.load_full();
        if !config.lists.watch || config.lists.files().next().is_none() {
            continue;
        }
        let is_refused = watch.has_refused() || config.lists.are_old;
        let Ok(look) = spawn_blocking(move || Look::at(&config)).await else {
            continue;
        };
        let saved_before = saved_last.replace(look.saved);
        let is_forced = is_refused && saved_before.is_some_and(|before| before != look.saved);
        if is_forced {
            watch.try_again();
        }
        let files = look.files.iter();
        let changed = watch.look(files.map(|(path, read, now)| (path.as_path(), *read, *now)));
        if (changed.is_empty() || Instant::now() < not_before) && !is_forced {
            continue;
        }
        tracing::debug!(?changed, "files of lists have changed");
        let counts = &control.reloads;
        match reload::lists(&control).await {
            Ok(done) => {
                counts.lists_good.fetch_add(1, Ordering::Relaxed);
                watch.try_again();
                done.log("lists reloaded");
            }
            Err(refused) => {
                let count = match refused {
                    reload::Refused::Losses(_) => &counts.lists_refused,
                    _ => &counts.lists_bad,
                };
                count.fetch_add(1, Ordering::Relaxed);
                match refused {
                    // It is not the fault of the files.
                    reload::Refused::Filter(_) | reload::Refused::Lost => {
                        not_before = Instant::now() + RETRY_AFTER;
                    }
                    _ => watch.refuse(changed),
                }
                refused.log("the lists stay as they were", &control);
            }
        }
    }
}
