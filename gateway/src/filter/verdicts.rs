//! Recent verdicts: sources that are kept out for a while, because the relay has learned something or an operator says so.
//!
//! The map belongs to nobody: the gate writes it while it runs, the command line does with and without a gate, and each
//! change is one element, so no lock is needed between them. (What both count in the same instant may be counted once.)
//!
//! A verdict is never given to a permitted source or a local network. The program looks again for every packet that it
//! would drop, so that one that was given before a list or the networks changed does no harm until
//! [`remove_exempt`](Verdicts::remove_exempt) has taken it back.
//!
//! Beside the map lie hints, so that the program looks for a verdict only where there may be one: whoever gives one writes
//! its hint behind it. Whoever takes one away clears its hint, unless another verdict has the same; a hint that stays costs a
//! look for nothing, and no more.
//!
//! The map has its size. When it is full, a sixteenth of it goes at once, so that the search for what is least worth
//! keeping, which reads all of it, is paid for once in four thousand: first what has expired, then what has seen no packet
//! for the longest time. Rejected: an LRU map of the kernel, which recycles approximately and says nothing of it.

mod noted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, MapError};
use ipnet::IpNet;
use nix::libc;
use portcullis_ebpf_common::layout::{
    RecentVerdict, VERDICT_NOTE_MAX, VERDICTS_MAX, VerdictCounter, VerdictKey, hint,
};
use serde::Serialize;

use super::Error;
use super::address::{of_verdict, verdict_key, written};
use super::clock::{in_ns, now_ns};
use super::control::Control;
use super::error::{kernel, os_error};
use super::maps::{VERDICT_COUNTERS, Value, found, open, text};
use super::networks::LocalNetworks;
use super::pins::Pins;
use crate::lists::{Compiled, ListAction};

/// What goes at once when there is no room.
const BATCH: usize = VERDICTS_MAX as usize / 16;

/// The recent verdicts of a filter in place. It can be used from several threads at once.
///
/// Whatever walks over all of them, as giving one does when there is no room, takes some tenth of a second with a full map: it is
/// not for a thread that must not wait.
pub struct Verdicts {
    maps: Mutex<Maps>,
    /// To look at them while another thread changes them.
    seen: Elements,
}

/// The map itself.
struct Elements {
    verdicts: HashMap<MapData, VerdictKey, Value<RecentVerdict>>,
}

struct Maps {
    verdicts: Elements,
    /// It has the hints.
    control: Control,
    counters: Array<MapData, u64>,
    local: LocalNetworks,
}

/// Why a source has a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody has given it by hand.
    Operator,
    /// The source is on DNS lists.
    Dnsbl,
    /// A cause that this version does not know.
    Other,
}

impl Cause {
    const fn number(self) -> u32 {
        match self {
            Self::Other => 0,
            Self::Operator => 1,
            Self::Dnsbl => 2,
        }
    }

    const fn of_number(number: u32) -> Self {
        match number {
            1 => Self::Operator,
            2 => Self::Dnsbl,
            _ => Self::Other,
        }
    }

    /// As it is written in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Dnsbl => "dnsbl",
            Self::Other => "other",
        }
    }
}

/// A verdict to give.
#[derive(Clone, Copy, Debug)]
pub struct NewVerdict<'a> {
    /// On whom; of IPv6 it is on the /64.
    pub address: IpAddr,
    /// For how long.
    pub duration: Duration,
    /// Why.
    pub cause: Cause,
    /// For people, such as the list that names the source. What does not fit is cut off.
    pub note: &'a str,
}

/// What came of giving a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// The source is kept out from now on.
    Added,
    /// It was kept out already, and is for the new length of time.
    Renewed,
    /// It is not kept out.
    Refused(Exemption),
}

/// What protects a source from verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// It is in a local network.
    Local,
    /// This list permits it.
    Permitted {
        /// The list's name.
        list: String,
    },
}

/// A verdict in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerdictStatus {
    /// On whom: an IPv4 address, or an IPv6 /64.
    pub source: String,
    /// Why.
    pub cause: Cause,
    /// What was noted.
    pub note: String,
    /// Since it was given, or renewed.
    pub age_seconds: u64,
    /// Until it means nothing.
    pub expires_in_seconds: u64,
    /// Packets that it had dropped.
    pub packets: u64,
    /// Since the last of them.
    pub last_packet_seconds_ago: Option<u64>,
}

/// How many verdicts there are, and what became of others since the filter was put in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerdictCounts {
    /// In force.
    pub number: u64,
    /// For how many there is room.
    pub capacity: u64,
    /// Given to sources that had none.
    pub added: u64,
    /// Given to sources that had one.
    pub renewed: u64,
    /// Taken back.
    pub removed: u64,
    /// Gone because their time was over.
    pub expired: u64,
    /// Given up to have room for others.
    pub evicted: u64,
    /// Not given, because the source is permitted or local.
    pub refused: u64,
}

impl Verdicts {
    /// The verdicts of the filter that is pinned under this path. No gate has to run.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] if the caller may not.
    pub fn open(pin_path: &Path) -> Result<Self, Error> {
        Self::of(&Pins::attached(pin_path)?)
    }

    pub(super) fn of(pins: &Pins) -> Result<Self, Error> {
        let maps = Maps {
            verdicts: Elements::open(pins)?,
            control: Control::open(pins)?,
            counters: open(pins, VERDICT_COUNTERS)?,
            local: LocalNetworks::open(pins)?,
        };
        Ok(Self {
            maps: Mutex::new(maps),
            seen: Elements::open(pins)?,
        })
    }

    /// Makes sure that the program finds every verdict.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub(super) fn set_all_hints(&self) -> Result<(), Error> {
        self.maps().set_all_hints()
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a source out for a while, unless it is in a local network or one of these lists permits it. For the first ten
    /// seconds only new connections are refused, so that one that is open can end in order.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read or written.
    pub fn add(&self, new: &NewVerdict<'_>, lists: Option<&Compiled>) -> Result<Given, Error> {
        let mut maps = self.maps();
        let exemption = if maps.local.cover(new.address)? {
            Some(Exemption::Local)
        } else {
            lists.and_then(|lists| permit(lists, new.address))
        };
        if let Some(exemption) = exemption {
            maps.count(VerdictCounter::Refused, 1)?;
            return Ok(Given::Refused(exemption));
        }
        let key = verdict_key(new.address);
        let before = maps.verdicts.get(key)?;
        let now_ns = now_ns();
        let still = before.filter(|before| before.expires_ns > now_ns);
        let verdict = RecentVerdict {
            expires_ns: now_ns.saturating_add(in_ns(new.duration)),
            // Who is out already gets no second time of grace.
            added_ns: still.map_or(now_ns, |before| before.added_ns),
            last_ns: still.map_or(0, |before| before.last_ns),
            packets: still.map_or(0, |before| before.packets),
            cause: new.cause.number(),
            reserved: 0,
            note: note(new.note),
        };
        if let Err(error) = maps.insert(key, verdict) {
            if os_error(&error) != Some(libc::E2BIG) {
                return Err(kernel("writing a recent verdict")(error));
            }
            maps.make_room(now_ns)?;
            maps.insert(key, verdict)
                .map_err(kernel("writing a recent verdict"))?;
        }
        let (given, counter) = match still {
            Some(_) => (Given::Renewed, VerdictCounter::Renewed),
            None => (Given::Added, VerdictCounter::Added),
        };
        maps.count(counter, 1)?;
        Ok(given)
    }

    /// Takes back the verdict on a source, or on the /64 of an IPv6 one; says whether there was one.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove(&self, address: IpAddr) -> Result<bool, Error> {
        let mut maps = self.maps();
        let key = verdict_key(address);
        let removed = maps.verdicts.take(key)?;
        if removed {
            maps.clear_hints(&[key])?;
            maps.count(VerdictCounter::Removed, 1)?;
        }
        Ok(removed)
    }

    /// Takes all back; says how many there were.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn flush(&self) -> Result<u64, Error> {
        let now_ns = now_ns();
        self.maps()
            .remove_where(VerdictCounter::Removed, |_, verdict| {
                verdict.expires_ns > now_ns
            })
    }

    /// Removes those whose time is over, which mean nothing already; says how many.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn sweep(&self) -> Result<u64, Error> {
        let now_ns = now_ns();
        self.maps()
            .remove_where(VerdictCounter::Expired, |_, verdict| {
                verdict.expires_ns <= now_ns
            })
    }

    /// Takes back those on sources that are local by now or permitted by these lists; says how many. A /64 of IPv6 of
    /// which only a part is permitted stays: the program passes that part.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove_exempt(&self, local: &[IpNet], lists: &Compiled) -> Result<u64, Error> {
        let exempt = |source: IpNet| {
            let permitted = lists.filtered(source.network()).is_some_and(|listing| {
                listing.action == ListAction::Permit && listing.prefix.contains(&source)
            });
            permitted || local.iter().any(|network| network.contains(&source))
        };
        self.maps()
            .remove_where(VerdictCounter::Removed, |key, _| exempt(of_verdict(key)))
    }

    /// The verdicts in force, the newest first.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn list(&self) -> Result<Vec<VerdictStatus>, Error> {
        let now_ns = now_ns();
        let mut verdicts = self.seen.all()?;
        verdicts.retain(|(_, verdict)| verdict.expires_ns > now_ns);
        verdicts.sort_unstable_by_key(|(key, verdict)| (u64::MAX - verdict.added_ns, *key));
        let seconds = |later: u64, earlier: u64| later.saturating_sub(earlier) / 1_000_000_000;
        let status = |(key, verdict): &(VerdictKey, RecentVerdict)| VerdictStatus {
            source: written(&of_verdict(*key)),
            cause: Cause::of_number(verdict.cause),
            note: text(&verdict.note),
            age_seconds: seconds(now_ns, verdict.added_ns),
            expires_in_seconds: seconds(verdict.expires_ns, now_ns),
            packets: verdict.packets,
            last_packet_seconds_ago: (verdict.last_ns > 0)
                .then(|| seconds(now_ns, verdict.last_ns)),
        };
        Ok(verdicts.iter().map(status).collect())
    }

    /// How many there are and were.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn counts(&self) -> Result<VerdictCounts, Error> {
        let now_ns = now_ns();
        let all = self.seen.all()?;
        let maps = self.maps();
        let in_force = all
            .iter()
            .filter(|(_, verdict)| verdict.expires_ns > now_ns);
        Ok(VerdictCounts {
            number: in_force.count() as u64,
            capacity: u64::from(VERDICTS_MAX),
            added: maps.counted(VerdictCounter::Added)?,
            renewed: maps.counted(VerdictCounter::Renewed)?,
            removed: maps.counted(VerdictCounter::Removed)?,
            expired: maps.counted(VerdictCounter::Expired)?,
            evicted: maps.counted(VerdictCounter::Evicted)?,
            refused: maps.counted(VerdictCounter::Refused)?,
        })
    }
}

impl Elements {
    fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            verdicts: open(pins, "VERDICTS")?,
        })
    }

    fn get(&self, key: VerdictKey) -> Result<Option<RecentVerdict>, Error> {
        let value =
            found(self.verdicts.get(&key, 0)).map_err(kernel("reading a recent verdict"))?;
        Ok(value.map(|Value(verdict)| verdict))
    }

    /// Removes an element; says whether it was there.
    fn take(&mut self, key: VerdictKey) -> Result<bool, Error> {
        match self.verdicts.remove(&key) {
            Ok(()) => Ok(true),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(kernel("removing a recent verdict")(error)),
        }
    }

    /// All elements, each once. If somebody else removes the element that the walk stands on, the kernel begins again
    /// from the first: hence the set, and the bound.
    fn all(&self) -> Result<Vec<(VerdictKey, RecentVerdict)>, Error> {
        let (keys, _) = self.keys()?;
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            // One that went meanwhile is none.
            all.extend(self.get(key)?.map(|verdict| (key, verdict)));
        }
        Ok(all)
    }

    /// The keys, and whether those are all: a walk that began again may not have come to its end within the bound.
    fn keys(&self) -> Result<(BTreeSet<VerdictKey>, bool), Error> {
        let steps_max = 2 * VERDICTS_MAX as usize;
        let mut keys = BTreeSet::new();
        for (step, key) in self.verdicts.keys().enumerate() {
            if step >= steps_max {
                return Ok((keys, false));
            }
            keys.insert(key.map_err(kernel("reading the recent verdicts"))?);
        }
        Ok((keys, true))
    }
}

impl Maps {
    fn insert(&mut self, key: VerdictKey, verdict: RecentVerdict) -> Result<(), MapError> {
        self.verdicts.verdicts.insert(key, Value(verdict), 0)?;
        self.control.set_hint(hint(&key));
        Ok(())
    }

    /// Sets the hints of all verdicts: a process that ended between the two may have left one without.
    fn set_all_hints(&self) -> Result<(), Error> {
        let (keys, _) = self.verdicts.keys()?;
        for key in &keys {
            self.control.set_hint(hint(key));
        }
        Ok(())
    }

    /// Clears the hints of verdicts that have gone, unless another has the same.
    fn clear_hints(&self, gone: &[VerdictKey]) -> Result<(), Error> {
        let mut cleared: BTreeSet<u32> = gone.iter().map(hint).collect();
        let (keys, are_all) = self.verdicts.keys()?;
        if !are_all {
            return Ok(());
        }
        for key in keys {
            cleared.remove(&hint(&key));
        }
        if cleared.is_empty() {
            return Ok(());
        }
        for hint in &cleared {
            self.control.clear_hint(*hint);
        }
        // A hint that somebody set meanwhile stands behind its verdict: if it was cleared, the verdict is here by now. Who cannot
        // see all of them sets every hint again.
        let keys = self.verdicts.keys();
        let needed: Option<BTreeSet<u32>> = match &keys {
            Ok((keys, true)) => Some(keys.iter().map(hint).collect()),
            _ => None,
        };
        for hint in cleared {
            if needed.as_ref().is_none_or(|needed| needed.contains(&hint)) {
                self.control.set_hint(hint);
            }
        }
        keys.map(|_| ())
    }

    /// Removes those to which it applies, and counts them.
    fn remove_where(
        &mut self,
        counter: VerdictCounter,
        applies: impl Fn(VerdictKey, &RecentVerdict) -> bool,
    ) -> Result<u64, Error> {
        let mut removed = Vec::new();
        for (key, verdict) in self.verdicts.all()? {
            if applies(key, &verdict) && self.verdicts.take(key)? {
                removed.push(key);
            }
        }
        self.clear_hints(&removed)?;
        self.count(counter, removed.len() as u64)?;
        Ok(removed.len() as u64)
    }

    fn make_room(&mut self, now_ns: u64) -> Result<(), Error> {
        let mut all = self.verdicts.all()?;
        all.sort_unstable_by_key(|(key, verdict)| (worth(verdict, now_ns), *key));
        let (mut expired, mut evicted) = (0, 0);
        let mut gone = Vec::new();
        for (key, verdict) in all {
            let is_over = verdict.expires_ns <= now_ns;
            if !is_over && expired + evicted >= BATCH as u64 {
                break;
            }
            if self.verdicts.take(key)? {
                *(if is_over { &mut expired } else { &mut evicted }) += 1;
                gone.push(key);
            }
        }
        self.clear_hints(&gone)?;
        tracing::debug!(expired, evicted, "made room for recent verdicts");
        self.count(VerdictCounter::Expired, expired)?;
        self.count(VerdictCounter::Evicted, evicted)
    }

    fn counted(&self, counter: VerdictCounter) -> Result<u64, Error> {
        self.counters
            .get(&(counter as u32), 0)
            .map_err(kernel("reading the counters of recent verdicts"))
    }

    fn count(&mut self, counter: VerdictCounter, number: u64) -> Result<(), Error> {
        if number == 0 {
            return Ok(());
        }
        let total = self.counted(counter)?.wrapping_add(number);
        self.counters
            .set(counter as u32, total, 0)
            .map_err(kernel("counting recent verdicts"))
    }
}

/// What goes first when there is no room has the least: what is over, then by the last sign of life, then by age. A
/// verdict that was given a moment ago has had no time to be of use, so being given counts as a sign of life.
fn worth(verdict: &RecentVerdict, now_ns: u64) -> (bool, u64, u64) {
    (
        verdict.expires_ns > now_ns,
        verdict.last_ns.max(verdict.added_ns),
        verdict.added_ns,
    )
}

/// The list that permits an address.
fn permit(lists: &Compiled, address: IpAddr) -> Option<Exemption> {
    let listing = lists.filtered(address.to_canonical())?;
    let list = lists.lists.get(usize::from(listing.list))?;
    (listing.action == ListAction::Permit).then(|| Exemption::Permitted {
        list: list.name.clone(),
    })
}

/// As much of a note as fits, without half a character at its end.
fn note(text: &str) -> [u8; VERDICT_NOTE_MAX] {
    let mut note = [0; VERDICT_NOTE_MAX];
    let fits = text.floor_char_boundary(VERDICT_NOTE_MAX);
    if let Some(fitting) = note.get_mut(..fits) {
        fitting.copy_from_slice(&text.as_bytes()[..fits]);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(expires_ns: u64, added_ns: u64, last_ns: u64) -> RecentVerdict {
        RecentVerdict {
            expires_ns,
            added_ns,
            last_ns,
            packets: 0,
            cause: 0,
            reserved: 0,
            note: note(""),
        }
    }

    #[test]
    fn what_is_over_goes_first_and_then_what_is_least_of_use() {
        let now_ns = 100;
        let in_order = [
            ("over, though it was of use", verdict(100, 1, 99)),
            ("no packet since it was given long ago", verdict(200, 10, 0)),
            ("its last packet came a while ago", verdict(200, 5, 40)),
            ("just given", verdict(200, 90, 0)),
            ("a packet a moment ago", verdict(200, 1, 95)),
        ];
        for pair in in_order.windows(2) {
            let [(first, a), (second, b)] = pair else {
                continue;
            };
            assert!(
                worth(a, now_ns) < worth(b, now_ns),
                "{first} should go before {second}"
            );
        }
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let long = "é".repeat(VERDICT_NOTE_MAX);
        assert_eq!(text(&note(&long)), "é".repeat(VERDICT_NOTE_MAX / 2));
        let odd = format!("x{long}");
        assert_eq!(text(&note(&odd)).len(), VERDICT_NOTE_MAX - 1);
        assert_eq!(text(&note("bl.example")), "bl.example");
    }

    #[test]
    fn causes_keep_their_numbers_in_the_map() {
        for cause in [Cause::Operator, Cause::Dnsbl, Cause::Other] {
            assert_eq!(Cause::of_number(cause.number()), cause);
        }
        assert_eq!(Cause::of_number(77), Cause::Other, "of a later version");
    }
}
