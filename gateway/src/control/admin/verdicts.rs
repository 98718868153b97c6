//! Recent verdicts by command: what is asked and answered, and the work, which a command does by
//! itself when no gate runs.
//!
//! A request is looked at as a whole before any of it is done, so a bad one changes nothing. Then
//! each verdict is one element of a map: what was done before an error of the kernel stays, and
//! the same request again does no harm.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use ipnet::IpNet;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};

use super::super::Control;
use super::commands::{Done, NotDone};
use crate::filter::{self, AddResult, Cause, Exemption, NewVerdict, Verdicts, verdict_network};
use crate::lists::Compiled;

/// Sources in one request, at most. More are several requests.
pub const SOURCES_MAX: usize = 10_000;
/// Bytes of a note in a request, at most. A verdict keeps the first 64.
pub const NOTE_MAX: usize = 256;
/// How long a verdict can be in force.
pub const DURATIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);

/// Verdicts to add, at `/api/verdicts/add`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The pin path of the filter that is meant; without it, the gate's own.
    #[serde(default)]
    pub pin_path: Option<PathBuf>,
    /// The verdicts.
    pub verdicts: Vec<Wanted>,
}

/// A verdict to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// An IPv4 address with /32, or an IPv6 prefix from /64 to /128, which stands for its /64.
    pub source: IpNet,
    /// How long it is in force.
    pub seconds: u64,
    /// The reason.
    #[serde(default)]
    pub note: String,
}

/// What became of the verdicts to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// On sources without a verdict.
    pub added: u64,
    /// On sources with a verdict.
    pub renewed: u64,
    /// Sources for which there was no room.
    pub no_room: u64,
    /// Learned verdicts that were evicted to make room.
    pub evicted: u64,
    /// Sources that are exempt.
    pub refused: Vec<Refused>,
    /// The exempt parts of the source, if it is the only one.
    pub except: Vec<Exemption>,
    /// Addresses of the sources that have a grant, and pass until it ends.
    #[serde(default)]
    pub granted: Vec<IpAddr>,
}

/// A source that is exempt from verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Why it is exempt.
    pub exemption: Exemption,
}

/// Sources whose verdicts are removed, at `/api/verdicts/remove`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// As of [`Add`].
    #[serde(default)]
    pub pin_path: Option<PathBuf>,
    /// The sources, as of [`Wanted`].
    pub sources: Vec<IpNet>,
}

/// What became of them: for each source, whether it had a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// In the order of the request.
    pub removed: Vec<bool>,
}

/// The filter whose verdicts are all removed, at `/api/verdicts/flush`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// As of [`Add`].
    #[serde(default)]
    pub pin_path: Option<PathBuf>,
}

/// How many that were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Those in force.
    pub removed: u64,
}

/// Adds verdicts of an operator. The lists are those in force, or `None` for those that the
/// verdicts were opened with.
///
/// # Errors
/// Those of the kernel.
pub fn add(
    verdicts: &Verdicts,
    lists: Option<&Compiled>,
    wanted: &[Wanted],
) -> Result<Added, filter::Error> {
    let evicted = verdicts.evicted()?;
    let mut all = Added::default();
    let mut kept_out = FxHashSet::default();
    for (index, one) in wanted.iter().enumerate() {
        let new = NewVerdict {
            source: one.source,
            duration: Duration::from_secs(one.seconds),
            cause: Cause::Operator,
            note: &one.note,
        };
        match verdicts.add(&new, lists)? {
            AddResult::Added => all.added += 1,
            AddResult::Renewed | AddResult::Kept => all.renewed += 1,
            AddResult::NoRoom => {
                all.no_room += 1;
                continue;
            }
            AddResult::Refused(exemption) => {
                all.refused.push(Refused { index, exemption });
                continue;
            }
        }
        kept_out.insert(verdict_network(one.source.addr()));
    }
    all.evicted = verdicts.evicted()?.saturating_sub(evicted);
    all.granted = verdicts.granted()?;
    all.granted
        .retain(|address| kept_out.contains(&verdict_network(*address)));
    if let [one] = wanted {
        all.except = verdicts.exceptions(one.source.addr(), lists)?;
    }
    Ok(all)
}

/// Removes verdicts.
///
/// # Errors
/// Those of the kernel.
pub fn remove(verdicts: &Verdicts, sources: &[IpNet]) -> Result<Removed, filter::Error> {
    let addresses: Vec<_> = sources.iter().map(IpNet::addr).collect();
    let removed = verdicts.remove_all(&addresses)?;
    Ok(Removed { removed })
}

pub(super) fn add_at(control: &Control, request: &Add) -> Result<Done, NotDone> {
    check(request.verdicts.iter().map(|one| one.source))?;
    for (index, one) in request.verdicts.iter().enumerate() {
        if !DURATIONS.contains(&Duration::from_secs(one.seconds)) {
            return Err(bad(index, "a verdict is for 1 to 31536000 seconds"));
        }
        if one.note.len() > NOTE_MAX {
            return Err(bad(index, "the note is longer than 256 bytes"));
        }
    }
    let verdicts = held(control, request.pin_path.as_ref())?;
    let config = control.shared.config.load();
    let lists = Some(config.policy.lists());
    let all = add(verdicts, lists, &request.verdicts).map_err(NotDone::broken)?;
    let named = named(request.verdicts.iter().map(|one| one.source));
    let summary = format!(
        "{} added, {} renewed, {} refused, {} without room: {named}",
        all.added,
        all.renewed,
        all.refused.len(),
        all.no_room,
    );
    Done::new(&all, summary)
}

pub(super) fn remove_at(control: &Control, request: &Remove) -> Result<Done, NotDone> {
    check(request.sources.iter().copied())?;
    let verdicts = held(control, request.pin_path.as_ref())?;
    let all = remove(verdicts, &request.sources).map_err(NotDone::broken)?;
    let number = all.removed.iter().filter(|removed| **removed).count();
    let named = named(request.sources.iter().copied());
    Done::new(&all, format!("{number} removed: {named}"))
}

pub(super) fn flush_at(control: &Control, request: &Flush) -> Result<Done, NotDone> {
    let verdicts = held(control, request.pin_path.as_ref())?;
    let removed = verdicts.flush().map_err(NotDone::broken)?;
    Done::new(&Flushed { removed }, format!("{removed} removed"))
}

/// The verdicts of the gate's filter, if that is the one that is meant.
fn held<'c>(control: &'c Control, pin_path: Option<&PathBuf>) -> Result<&'c Verdicts, NotDone> {
    let Some(held) = &control.filter else {
        return Err(NotDone::new(
            StatusCode::CONFLICT,
            "this gate holds no filter",
        ));
    };
    let config = control.shared.config.load();
    let own = config.filter.as_ref().map(|filter| &filter.pin_path);
    match pin_path {
        Some(path) if Some(path) != own => Err(NotDone::new(
            StatusCode::CONFLICT,
            "this gate holds another filter",
        )),
        _ => Ok(&held.verdicts),
    }
}

fn check(sources: impl ExactSizeIterator<Item = IpNet>) -> Result<(), NotDone> {
    if sources.len() > SOURCES_MAX {
        let why = format!("more than {SOURCES_MAX} sources: send several requests");
        return Err(NotDone::new(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    for (index, source) in sources.enumerate() {
        let fits = match source {
            IpNet::V4(source) => source.prefix_len() == 32,
            IpNet::V6(source) => source.prefix_len() >= 64,
        };
        if !fits {
            return Err(bad(
                index,
                "a verdict is on one IPv4 address or on one IPv6 /64",
            ));
        }
    }
    Ok(())
}

fn bad(index: usize, why: &str) -> NotDone {
    NotDone::new(StatusCode::BAD_REQUEST, format!("source {index}: {why}"))
}

/// The first sources, for the log.
fn named(mut sources: impl ExactSizeIterator<Item = IpNet>) -> String {
    const NAMED_MAX: usize = 5;
    let more = sources.len().saturating_sub(NAMED_MAX);
    let first: Vec<_> = sources
        .by_ref()
        .take(NAMED_MAX)
        .map(|it| it.to_string())
        .collect();
    let first = first.join(" ");
    if more == 0 {
        first
    } else {
        format!("{first} and {more} more")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control::idle(crate::config::Config::default_gate())
    }

    #[test]
    fn a_request_with_one_bad_source_is_refused_as_a_whole_before_the_filter_is_asked_for() {
        let wanted = |source: &str, seconds| Wanted {
            source: source.parse().unwrap(),
            seconds,
            note: String::new(),
        };
        let status = |verdicts| {
            let request = Add {
                pin_path: None,
                verdicts,
            };
            add_at(&control(), &request).err().map(|error| error.status)
        };
        let good = wanted("192.0.2.1/32", 60);
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(status(vec![good.clone(), wanted("192.0.2.0/24", 60)]), bad);
        assert_eq!(status(vec![good.clone(), wanted("2001:db8::/48", 60)]), bad);
        assert_eq!(status(vec![good.clone(), wanted("2001:db8::/64", 0)]), bad);
        let many = vec![good.clone(); SOURCES_MAX + 1];
        assert_eq!(status(many), Some(StatusCode::PAYLOAD_TOO_LARGE));
        // There is no filter here.
        assert_eq!(status(vec![good]), Some(StatusCode::CONFLICT));
    }
}
