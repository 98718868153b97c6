//! The lists of a gate over time: what is read is compared with what was in force before, and kept
//! for the next start.
//!
//! Lists that lost too much, or would newly refuse too much, are refused, all of them (there is one
//! generation in force, never parts of two): while the gate runs what is in force stays, and at a
//! start the lists of the last compile are taken, which is kept in the state directory. So they are
//! where a file cannot be read at the start. `portcullis lists compile --force` writes there, too:
//! that is how an operator says that a loss or a growth is meant. A snapshot that was compiled
//! elsewhere says it of itself.
//!
//! How lists get from their files into force is in [`lists`](crate::lists); here is what they are
//! compared with, and whose memory they are to lie in.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrIn6, SockaddrStorage};
use tokio::task::spawn_blocking;

use super::Control;
use crate::config::{Config, Errors, FilterMode, Pending, of_last_compile};
use crate::filter;
use crate::lists::file::{self, About, Stored};
use crate::lists::guard::{Guard, Protected, ProtectedRole};
use crate::lists::{Allocate, Before, Read, Refusal};

/// What a start takes.
#[derive(Debug)]
pub struct Started {
    /// The configuration, with its lists.
    pub config: Config,
    /// What is not in force as it should be, a line each.
    pub errors: Vec<String>,
}

/// Why lists are not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// They lost more than they may, or would newly refuse more: what is said of it.
    Refused(Vec<String>),
    /// A file changed under our hands.
    File(file::Error),
}

/// At a start: lists that lost too much since the last compile, or would newly refuse too much, are
/// replaced by those of that compile.
///
/// # Errors
/// A snapshot that changed after it was found good.
pub fn start(mut pending: Pending) -> Result<Started, Errors> {
    let Some(read) = pending.read.take() else {
        return Ok(Started {
            config: pending.unchecked()?,
            errors: Vec::new(),
        });
    };
    let in_kernel = in_kernel(&pending.config);
    let mut errors = Vec::new();
    let checked = if pending.config.lists.are_old {
        errors.clone_from(&pending.config.lists.fallback);
        read.unchecked()
    } else if read.lists().is_empty() {
        read.unchecked()
    } else {
        let guard = guard(&pending.config);
        let last = kept_at(&pending.config).and_then(|path| last_compile(&path));
        match last {
            None => read.first(&guard),
            Some(last) => match read.check(&guard, &Before::Kept(&last)) {
                Ok(checked) => checked,
                Err(refusal) => {
                    let compiled_at = last.about().compiled_at;
                    errors = refused(&refusal, &pending.config);
                    errors.push(of_last_compile(last.path(), compiled_at));
                    pending.config.lists.take_last(compiled_at);
                    Read::of_snapshot(last)?.unchecked()
                }
            },
        }
    };
    let placed = checked.place(in_kernel)?;
    Ok(Started {
        config: pending.with(placed),
        errors,
    })
}

/// While the gate runs: the configuration with its lists, compared with those in force. Blocks: not
/// for the control plane's own thread.
///
/// # Errors
/// See [`NotTaken`]. No memory of the kernel is taken then.
pub(super) fn in_place_of(
    old: &Config,
    mut pending: Pending,
    elsewhere: Option<Allocate>,
) -> Result<Config, NotTaken> {
    let Some(read) = pending.read.take() else {
        return Ok(pending.with(Default::default()));
    };
    let config = &pending.config;
    let before = Before::InForce {
        lists: old.policy.lists(),
        compiled_at: old.lists.compiled_at_seconds(),
        kept: &config.saved_lists(),
    };
    let checked = read.check(&guard(config), &before);
    let checked = checked.map_err(|refusal| NotTaken::Refused(refused(&refusal, config)))?;
    let placed = checked.place(elsewhere).map_err(NotTaken::File)?;
    Ok(pending.with(placed))
}

/// Where a gate with a filter has what the filter needs: in the kernel, from the start.
fn in_kernel(config: &Config) -> Option<Allocate> {
    let filter = config.filter.as_ref();
    let filter = filter.filter(|filter| filter.mode != FilterMode::Off);
    filter.map(|_| filter::memory as Allocate)
}

/// Where the lists in force are kept; nowhere if the configuration loads that very file.
pub(super) fn kept_at(config: &Config) -> Option<PathBuf> {
    let path = config.saved_lists();
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    match config.lists.sources.snapshot() {
        Some(loaded)
            if loaded == path || real(loaded).is_some_and(|at| Some(at) == real(&path)) =>
        {
            None
        }
        _ => Some(path),
    }
}

/// What the lists of a configuration are judged by.
#[must_use]
pub fn guard(config: &Config) -> Guard {
    let mut guard = config.guard();
    protect_own(config, &mut guard.protected);
    guard
}

/// Adds the addresses of this machine where the gate listens on all, and those of the filter's
/// interfaces.
fn protect_own(config: &Config, protected: &mut Vec<Protected>) {
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
}

/// The address of an interface; none that is good on its link alone, as many machines have the
/// same.
fn ip_address(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = address.as_sockaddr_in6().map(SockaddrIn6::ip);
    let v6 = v6.filter(|v6| !v6.is_unicast_link_local());
    v4.or_else(|| v6.map(IpAddr::V6))
}

/// What was compiled last, if that can be said.
fn last_compile(path: &Path) -> Option<Stored> {
    Stored::open_last(path).unwrap_or_else(|error| {
        tracing::warn!("{error}; the lists are compared with nothing");
        None
    })
}

/// What is said of lists that are refused, and what to do.
fn refused(refusal: &Refusal, config: &Config) -> Vec<String> {
    let mut lines = refusal.lines();
    lines.push(if config.lists.sources.snapshot().is_some() {
        "if this is meant: compile the snapshot with --force; else correct it: the gate notices"
            .to_owned()
    } else {
        let file = config.path.as_deref();
        let file = file.map_or_else(|| "FILE".into(), Path::to_string_lossy);
        format!(
            "if this is meant: portcullis lists compile -c {file} --force, and reload; else \
             correct the file: the gate notices"
        )
    });
    lines
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
            loaded_from: config.lists.sources.snapshot().map(Path::to_owned),
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
                    "the lists in force are not kept: the next start has nothing to compare its \
                     lists with"
                );
            }
        }
    });
}
