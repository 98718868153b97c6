//! The lists of a gate over time: what is read is held against what was in force before, kept for
//! the next start, and read again when its files change. Mail goes on meanwhile: files are read,
//! compiled and written on threads of their own.
//!
//! Lists that lost too much, or would newly refuse too much, are refused, all of them (there is one
//! generation in force, never parts of two): while the gate runs what is in force stays, and at a
//! start the lists of the last compile are taken, which is kept in the state directory. So they are
//! where a file cannot be read at the start. `portcullis lists compile --force` writes there, too:
//! that is how an operator says that a loss or a growth is meant. A snapshot that was compiled
//! elsewhere says it of itself.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrIn6, SockaddrStorage};
use tokio::task::spawn_blocking;

use super::{Control, reload};
use crate::config::{Config, of_last_compile};
use crate::filter;
use crate::lists::file::{self, About, Fault, Stored};
use crate::lists::guard::{self, Growth, GrowthLimits, Loss, Protected, ProtectedRole};
use crate::lists::watch::{Seen, Stamp, Watch};
use crate::lists::writers::Writers;
use crate::lists::{Compiled, List, private};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// When lists could not be put in force for a reason that is not in them (the kernel had no memory
/// for them), the next attempt waits for so long: it reads all of them.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What has to be told of the lists at a start.
#[derive(Debug, Default)]
pub struct StartNotes {
    /// What is not in force as it should be.
    pub errors: Vec<String>,
    /// What is, and should be looked at.
    pub warnings: Vec<String>,
}

/// At a start: lists that lost too much since the last compile, or would newly refuse too much, are
/// replaced by those of that compile. Returns what has to be told, loudly; nothing if all is well.
#[must_use]
pub fn hold_against_last(config: &mut Config) -> StartNotes {
    let mut notes = StartNotes::default();
    if config.lists.are_old {
        notes.errors.clone_from(&config.lists.fallback);
        return notes;
    }
    if config.policy.lists().lists.is_empty() {
        return notes;
    }
    let last = kept_at(config).and_then(|path| Some((last_compile(&path)?, path)));
    let Some((last, path)) = last else {
        notes.warnings = first_compile(config);
        return notes;
    };
    let refusal = refusal_at_start(&last, config, &path);
    if !refusal.is_empty() {
        notes.errors = refusal.told(config);
        notes.errors.push(take_last(last, config, &path));
    }
    notes
}

/// Where the lists in force are kept; nowhere if the configuration loads that very file.
pub(super) fn kept_at(config: &Config) -> Option<PathBuf> {
    let path = config.saved_lists();
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    match &config.lists.snapshot {
        Some(loaded)
            if *loaded == path || real(loaded).is_some_and(|at| Some(at) == real(&path)) =>
        {
            None
        }
        _ => Some(path),
    }
}

/// With nothing to compare with, lists may cover what they like: those of bogons rightly hold a
/// good part of all addresses. It is told.
fn first_compile(config: &Config) -> Vec<String> {
    let protected = protected(config);
    guard::unknown_before(config.policy.lists(), &growth_limits(config, &protected))
}

fn refusal_at_start(last: &Stored, config: &Config, path: &Path) -> Refusal {
    let after = config.policy.lists();
    let mut refusal = Refusal::default();
    if !config.lists.sources.is_empty() {
        refusal.losses = guard::losses(&last.about().lists, &after.lists, config.lists.shrink_max);
    }
    let protected = protected(config);
    let limits = growth_limits(config, &protected);
    if config.lists.are_forced || !limits.may_be_passed(after) {
        return refusal;
    }
    match file::load(path, private) {
        Ok(before) => refusal.growths = guard::growths(&before, after, &limits),
        Err(error) => {
            tracing::warn!("{error}; what the lists cover is compared with nothing");
        }
    }
    refusal
}

fn growth_limits<'a>(config: &'a Config, protected: &'a [Protected]) -> GrowthLimits<'a> {
    GrowthLimits {
        grow_max: config.lists.grow_max,
        protected,
        covered: config.lists.covered.as_deref(),
    }
}

/// Those whom no list may newly refuse: of the configuration, the addresses of this machine where
/// the gate listens on all, and those of the filter's interfaces.
#[must_use]
pub fn protected(config: &Config) -> Vec<Protected> {
    let mut protected = config.protected();
    let listens_on_all = |v6: bool| {
        let mut listeners = config.listeners.iter();
        listeners.any(|listener| {
            listener.address.ip().is_unspecified() && (listener.address.is_ipv6() || !v6)
        })
    };
    let is_filtered = |name: &str| {
        let mut filters = config.filter.iter().flat_map(|filter| &filter.interfaces);
        filters.any(|interface| interface.name == name)
    };
    for interface in getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address.and_then(ip_address) else {
            continue;
        };
        if is_filtered(&interface.interface_name) || listens_on_all(address.is_ipv6()) {
            let new = Protected::address(address, ProtectedRole::Gate);
            protected.extend(new.filter(|new| !protected.contains(new)));
        }
    }
    protected
}

/// The address of an interface; none that is good on its link alone, as many machines have the
/// same.
fn ip_address(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = address.as_sockaddr_in6().map(SockaddrIn6::ip);
    let v6 = v6.filter(|v6| !v6.is_unicast_link_local());
    v4.or_else(|| v6.map(IpAddr::V6))
}

/// Puts the lists of the last compile in place of those that were read. Returns what has to be
/// told.
fn take_last(last: Stored, config: &mut Config, path: &Path) -> String {
    let compiled_at = last.about().compiled_at;
    let allocate = if config.policy.lists().filtered.memory::<filter::KernelMemory>().is_some() {
        filter::memory
    } else {
        private
    };
    match last.load(allocate) {
        Ok(compiled) => {
            config.policy = Arc::new(config.policy.with_lists(compiled));
            config.lists.are_old = true;
            of_last_compile(path, compiled_at)
        }
        Err(error) => format!(
            "{error}: the lists of the last compile cannot be had, and the ones that were read are in force"
        ),
    }
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
            tracing::warn!("{error}; the lists are compared with nothing");
            None
        }
    }
}

/// Why lists are refused.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    losses: Vec<Loss>,
    growths: Vec<Growth>,
}

impl Refusal {
    pub(super) fn is_empty(&self) -> bool {
        self.losses.is_empty() && self.growths.is_empty()
    }

    /// What is said of it, and what to do.
    pub(super) fn told(&self, config: &Config) -> Vec<String> {
        const GROWTHS_TOLD: usize = 10;
        let losses = self.losses.iter().map(|loss| {
            format!("{loss} lost more than lists.shrink_max allows; is the file whole?")
        });
        let growths = self.growths.iter().take(GROWTHS_TOLD);
        let growths = growths.map(|growth| format!("{growth}; is the file right?"));
        let more = self.growths.len().saturating_sub(GROWTHS_TOLD);
        let more = (more > 0).then(|| format!("and {more} more of the kind"));
        let file = config
            .path
            .as_deref()
            .map_or_else(|| "FILE".into(), Path::to_string_lossy);
        let advice = if config.lists.snapshot.is_some() {
            "if this is meant: compile the snapshot with --force; else put it right, which is noticed".to_owned()
        } else {
            format!(
                "if this is meant: portcullis lists compile -c {file} --force, and reload; else put the file right, which is noticed"
            )
        };
        losses.chain(growths).chain(more).chain([advice]).collect()
    }
}

/// While the gate runs: the lists that lost too much against what is in force, or would newly
/// refuse too much, unless somebody has compiled them so by force since. Blocks: not for the
/// control plane's own thread.
pub(super) fn refusal(old: &Config, new: &Config) -> Refusal {
    let (before, after) = (old.policy.lists(), new.policy.lists());
    let mut refusal = Refusal::default();
    if !new.lists.sources.is_empty() {
        refusal.losses = guard::losses(&before.lists, &after.lists, new.lists.shrink_max);
    }
    let protected = protected(new);
    let limits = growth_limits(new, &protected);
    if !new.lists.are_forced {
        refusal.growths = guard::growths(before, after, &limits);
    }
    let is_forced = !refusal.is_empty()
        && !new.lists.sources.is_empty()
        && last_compile(&new.saved_lists()).is_some_and(|last| {
            last.about().compiled_at >= old.lists.compiled_at_seconds()
                && (refusal.losses.iter()).all(|loss| says(&last.about().lists, loss))
                && (refusal.growths.is_empty() || has_not_grown_since(last, after, &limits))
        });
    if is_forced {
        Refusal::default()
    } else {
        refusal
    }
}

fn has_not_grown_since(last: Stored, after: &Compiled, limits: &GrowthLimits<'_>) -> bool {
    last.load(private)
        .is_ok_and(|last| guard::growths(&last, after, limits).is_empty())
}

fn says(lists: &[List], loss: &Loss) -> bool {
    let mut same_name = lists.iter().filter(|list| list.name == loss.list);
    same_name.any(|list| list.entries == loss.after)
}

/// Keeps the lists in force for the next start.
pub(super) fn save(control: &Arc<Control>, config: &Arc<Config>) {
    if config.policy.lists().lists.is_empty() || config.lists.are_old {
        return;
    }
    let Some(path) = kept_at(config) else {
        return;
    };
    let (control, config) = (Arc::clone(control), Arc::clone(config));
    spawn_blocking(move || {
        let lists = config.policy.lists();
        let about = About {
            loaded_from: config.lists.snapshot.clone(),
            ..About::of(lists, config.lists.compiled_at)
        };
        match file::write_as(&path, lists, &about) {
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
    files: Vec<Seen>,
    saved: Option<Stamp>,
}

impl Look {
    fn at(config: &Config, writers: &mut Writers) -> Look {
        let is_text = config.lists.snapshot.is_none();
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
pub(super) async fn watch(control: Arc<Control>) {
    let mut watch = Watch::default();
    let mut writers = Writers::default();
    // The kept lists at the last look: where something is refused and they change, somebody may
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
        match reload::lists(&control).await {
            Ok(done) => {
                counts.lists_good.fetch_add(1, Ordering::Relaxed);
                watch.try_again();
                done.log("lists reloaded");
            }
            Err(refused) => {
                let count = match refused {
                    reload::Refused::Lists(_) => &counts.lists_refused,
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
