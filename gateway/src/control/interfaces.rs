//! Interfaces under a running gate: when one comes, goes or loses its filter, the filter is put
//! back, and the log says so.
//!
//! The kernel reports interfaces that come and go. It does not report a program that was taken off,
//! so the gate looks from time to time as well.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::{Control, Error};
use crate::config::{Config, FilterMode};
use crate::filter::{self, AttachedFilter, LinkEvent, LinkEvents};

/// Between two looks without an event.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Watches for as long as the gate runs; without a filter there is nothing to watch. On a thread of
/// its own: it waits in the kernel, and for lists that are being put in place.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn watch(control: &Arc<Control>) -> Result<(), Error> {
    if control.filter.is_none() {
        return Ok(());
    }
    let control = Arc::downgrade(control);
    thread::Builder::new()
        .name("interfaces".to_owned())
        .spawn(move || keep_attached(&control))
        .map_err(|error| Error::Io("start the watch over interfaces", error))?;
    Ok(())
}

fn keep_attached(control: &Weak<Control>) {
    let open = LinkEvents::open();
    let mut events = open.inspect_err(deaf).ok();
    // The first look is for what has happened before there was a socket to tell it.
    let mut gone = Vec::new();
    while let Some(control) = control.upgrade() {
        if let Some(held) = &control.filter {
            held.lock().reattach(&gone, false);
        }
        let config = control.shared.config.load_full();
        drop(control);
        gone = until_something(&config, &mut events);
    }
}

fn deaf(error: &std::io::Error) {
    tracing::warn!(%error, "cannot hear of interfaces that come and go: looking at them every 5 s");
}

/// Waits until there is a reason to look; returns the indexes of the interfaces that were deleted
/// meanwhile.
fn until_something(config: &Config, events: &mut Option<LinkEvents>) -> Vec<u32> {
    let end = Instant::now() + LOOK_EVERY;
    let mut gone = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return gone;
        }
        match events.as_ref().map(|events| events.take(left)) {
            Some(Ok(Some(reported))) => {
                let deleted = reported.iter().filter(|event| event.is_gone);
                gone.extend(deleted.map(|event| event.index));
                if reported.iter().any(|event| concerns(config, event)) {
                    return gone;
                }
            }
            // Some of it was lost.
            Some(Ok(None)) => return gone,
            Some(Err(error)) => {
                deaf(&error);
                *events = None;
            }
            None => thread::sleep(left),
        }
    }
}

/// Thousands of customers' interfaces may come and go that have no filter.
fn concerns(config: &Config, event: &LinkEvent) -> bool {
    let mut interfaces = config.filter.iter().flat_map(|filter| &filter.interfaces);
    interfaces.any(|interface| interface.name == event.name)
}

/// What is said where the pins do not stay.
pub const PINS_ARE_PRIVATE: &str = "the BPF file system is seen by this process and its children \
     alone (`ip netns exec` makes such a /sys): the filter is gone with the last of them, and no \
     other command sees it; enter the network namespace with `nsenter --net=/run/netns/NAME` \
     instead";

/// A filter that drops, and that the configuration does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfigured {
    /// Where it is pinned.
    pub pin_path: PathBuf,
    /// What is said of it.
    pub text: String,
    /// The command that takes it off.
    pub removal: String,
}

/// Filters that sit on interfaces of this network namespace and drop, although the configuration
/// has none, has it off, or has it elsewhere. `with_held`: also those that a process holds, which
/// may be another gate's.
#[must_use]
pub fn unconfigured(config: &Config, with_held: bool) -> Vec<Unconfigured> {
    let (reason, active) = match &config.filter {
        None => ("the configuration has no [filter]".to_owned(), None),
        Some(settings) if settings.mode == FilterMode::Off => {
            ("filter.mode is \"off\"".to_owned(), None)
        }
        Some(settings) => {
            let path = &settings.pin_path;
            let reason = format!("filter.pin_path is {}", path.display());
            (reason, Some(path))
        }
    };
    // One that has a filter of its own says nothing of those that other gates hold.
    let with_held = with_held && active.is_none();
    let describe = |found: AttachedFilter| {
        let (path, interfaces) = (found.pin_path.display(), found.interfaces.join(", "));
        let holder = found.holder.as_ref();
        let holder = holder.map_or(String::new(), |holder| format!("; {holder} holds it"));
        Unconfigured {
            text: format!(
                "a filter that is pinned under {path} still drops on {interfaces}, although \
                 {reason}{holder}"
            ),
            removal: found.detach_command(),
            pin_path: found.pin_path,
        }
    };
    filter::attached_filters()
        .into_iter()
        .filter(|found| Some(&found.pin_path) != active)
        .filter(|found| found.drops() && (with_held || found.holder.is_none()))
        .map(describe)
        .collect()
}
