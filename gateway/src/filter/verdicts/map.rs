//! The map of recent verdicts, the hints beside it, and eviction when it is full.

use std::io;
use std::thread;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, MapError};
use nix::libc;
use portcullis_ebpf_common::layout::{
    RecentVerdict, VERDICT_HINTS, VERDICTS_MAX, VerdictCounter, VerdictKey, hint,
};

use super::super::Error;
use super::super::batch;
use super::super::control::Control;
use super::super::error::{kernel, os_error};
use super::super::maps::{VERDICT_COUNTERS, Value, found, open, open_data};
use super::super::networks::LocalNetworks;
use super::super::pins::Pins;
use super::Cause;

/// How many verdicts are evicted at once when the map is full.
const BATCH: usize = VERDICTS_MAX as usize / 16;
/// Nanoseconds to the next search after one that found nothing to evict: a search reads the whole
/// map.
const SEARCH_AGAIN_NS: u64 = 5_000_000_000;
/// The kernel allocates elements in the background, and may be a moment late.
const MEMORY_TRIES: u32 = 20;
const MEMORY_WAIT: Duration = Duration::from_millis(1);

/// The map itself.
pub(super) struct Elements {
    verdicts: HashMap<MapData, VerdictKey, Value<RecentVerdict>>,
    /// The same map, to read all of it.
    map: MapData,
}

/// The map and all that belongs to it.
pub(super) struct Maps {
    pub(super) verdicts: Elements,
    /// The hints are in it.
    control: Control,
    counters: Array<MapData, u64>,
    pub(super) local: LocalNetworks,
    /// The log has said that the map is full, and it has stayed nearly full since.
    is_full_logged: bool,
    /// When a search found nothing to evict.
    nothing_to_evict_ns: Option<u64>,
}

impl Elements {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            verdicts: open(pins, "VERDICTS")?,
            map: open_data(pins, "VERDICTS")?,
        })
    }

    pub(super) fn get(&self, key: VerdictKey) -> Result<Option<RecentVerdict>, Error> {
        let value =
            found(self.verdicts.get(&key, 0)).map_err(kernel("reading a recent verdict"))?;
        Ok(value.map(|Value(verdict)| verdict))
    }

    /// Removes an element. Returns whether it was there.
    pub(super) fn take(&mut self, key: VerdictKey) -> Result<bool, Error> {
        match self.verdicts.remove(&key) {
            Ok(()) => Ok(true),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(kernel("removing a recent verdict")(error)),
        }
    }

    /// All elements, each once.
    pub(super) fn all(&self) -> Result<Vec<(VerdictKey, RecentVerdict)>, Error> {
        let all: io::Result<Vec<(VerdictKey, Value<RecentVerdict>)>> = batch::elements(&self.map);
        let all = all.map_err(kernel("reading the recent verdicts"))?;
        let verdicts = all.into_iter().map(|(key, Value(verdict))| (key, verdict));
        Ok(verdicts.collect())
    }
}

impl Maps {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            verdicts: Elements::open(pins)?,
            control: Control::open(pins)?,
            counters: open(pins, VERDICT_COUNTERS)?,
            local: LocalNetworks::open(pins)?,
            is_full_logged: false,
            nothing_to_evict_ns: None,
        })
    }

    /// Writes a verdict, and evicts others if the map is full. Returns whether there was room.
    pub(super) fn put(
        &mut self,
        key: VerdictKey,
        verdict: RecentVerdict,
        now_ns: u64,
    ) -> Result<bool, Error> {
        let failed = kernel("writing a recent verdict");
        match self.insert(key, verdict) {
            Ok(()) => return Ok(true),
            Err(error) if os_error(&error) == Some(libc::E2BIG) => {}
            Err(error) => return Err(failed(error)),
        }
        if !self.evict(now_ns)? {
            return Ok(false);
        }
        match self.insert(key, verdict) {
            Ok(()) => Ok(true),
            // Other processes have filled the map again.
            Err(error) if os_error(&error) == Some(libc::E2BIG) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    fn insert(&mut self, key: VerdictKey, verdict: RecentVerdict) -> Result<(), MapError> {
        let mut tries = MEMORY_TRIES;
        loop {
            match self.verdicts.verdicts.insert(key, Value(verdict), 0) {
                Err(error) if os_error(&error) == Some(libc::ENOMEM) && tries > 0 => {
                    tries -= 1;
                    thread::sleep(MEMORY_WAIT);
                }
                result => break result?,
            }
        }
        self.control.set_hint(hint(&key));
        Ok(())
    }

    /// Sets the hints of all verdicts: a process that ended between verdict and hint may have left
    /// a verdict without one.
    pub(super) fn set_all_hints(&self) -> Result<(), Error> {
        for (key, _) in self.verdicts.all()? {
            self.control.set_hint(hint(&key));
        }
        Ok(())
    }

    /// Clears the hints of removed verdicts, unless another verdict has the same hint.
    pub(super) fn clear_hints(&self, gone: &[VerdictKey]) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        let needed = Hints::of(&self.verdicts.all()?);
        let mut cleared: Vec<u32> = gone.iter().map(hint).collect();
        cleared.retain(|hint| !needed.has(*hint));
        if cleared.is_empty() {
            return Ok(());
        }
        for hint in &cleared {
            self.control.clear_hint(*hint);
        }
        // Another process writes its verdict before its hint. So if its hint was cleared just now,
        // the verdict shows in a second reading. If that fails, every hint is set again.
        let all = self.verdicts.all();
        let needed = all.as_ref().ok().map(|all| Hints::of(all));
        for hint in cleared {
            if needed.as_ref().is_none_or(|needed| needed.has(hint)) {
                self.control.set_hint(hint);
            }
        }
        all.map(drop)
    }

    /// Removes the verdicts to which `applies` returns true, and counts them. Returns how many it
    /// removed, and how many are left.
    pub(super) fn remove_where(
        &mut self,
        counter: VerdictCounter,
        applies: impl Fn(VerdictKey, &RecentVerdict) -> bool,
    ) -> Result<(u64, u64), Error> {
        let all = self.verdicts.all()?;
        let mut removed = Vec::new();
        for (key, verdict) in &all {
            if applies(*key, verdict) && self.verdicts.take(*key)? {
                removed.push(*key);
            }
        }
        self.clear_hints(&removed)?;
        self.count(counter, removed.len() as u64)?;
        let left = (all.len() - removed.len()) as u64;
        self.nothing_to_evict_ns = self.nothing_to_evict_ns.filter(|_| removed.is_empty());
        Ok((removed.len() as u64, left))
    }

    /// Logs once that the map is full, whichever process filled it.
    pub(super) fn log_if_full(&mut self, number: u64) {
        let max = u64::from(VERDICTS_MAX);
        if number >= max && !self.is_full_logged {
            self.is_full_logged = true;
            tracing::warn!(
                number,
                "the recent verdicts are full: a new one evicts those of least use, but none that \
                 a person added"
            );
        } else if number < max / 8 * 7 {
            self.is_full_logged = false;
        }
    }

    /// Removes expired verdicts and, if there are too few, evicts up to a sixteenth of the map from
    /// those that an operator did not add. Returns whether it removed any.
    fn evict(&mut self, now_ns: u64) -> Result<bool, Error> {
        let is_soon = |then: u64| now_ns.saturating_sub(then) < SEARCH_AGAIN_NS;
        if self.nothing_to_evict_ns.is_some_and(is_soon) {
            return Ok(false);
        }
        let mut all = self.verdicts.all()?;
        self.log_if_full(all.len() as u64);
        all.retain(|(_, verdict)| may_be_evicted(verdict, now_ns));
        all.sort_unstable_by_key(|(key, verdict)| (worth(verdict, now_ns), *key));
        let (mut expired, mut evicted) = (0, 0);
        let mut gone = Vec::new();
        for (key, verdict) in all {
            let is_expired = verdict.expires_ns <= now_ns;
            if !is_expired && expired + evicted >= BATCH as u64 {
                break;
            }
            if self.verdicts.take(key)? {
                *(if is_expired {
                    &mut expired
                } else {
                    &mut evicted
                }) += 1;
                gone.push(key);
            }
        }
        self.clear_hints(&gone)?;
        tracing::debug!(expired, evicted, "made room for recent verdicts");
        self.count(VerdictCounter::Expired, expired)?;
        self.count(VerdictCounter::Evicted, evicted)?;
        self.nothing_to_evict_ns = gone.is_empty().then_some(now_ns);
        Ok(!gone.is_empty())
    }

    pub(super) fn counted(&self, counter: VerdictCounter) -> Result<u64, Error> {
        self.counters
            .get(&(counter as u32), 0)
            .map_err(kernel("reading the counters of recent verdicts"))
    }

    pub(super) fn count(&mut self, counter: VerdictCounter, number: u64) -> Result<(), Error> {
        if number == 0 {
            return Ok(());
        }
        let total = self.counted(counter)?.wrapping_add(number);
        self.counters
            .set(counter as u32, total, 0)
            .map_err(kernel("counting recent verdicts"))
    }
}

/// A set of hints.
struct Hints(Vec<u64>);

impl Hints {
    fn of(all: &[(VerdictKey, RecentVerdict)]) -> Self {
        let mut words = vec![0_u64; VERDICT_HINTS as usize / 64];
        for (key, _) in all {
            let hint = hint(key);
            if let Some(word) = words.get_mut(hint as usize / 64) {
                *word |= 1 << (hint % 64);
            }
        }
        Self(words)
    }

    fn has(&self, hint: u32) -> bool {
        let word = self.0.get(hint as usize / 64);
        word.is_some_and(|word| word & 1 << (hint % 64) != 0)
    }
}

/// Whether a verdict may be evicted: one that an operator added only after it has expired.
fn may_be_evicted(verdict: &RecentVerdict, now_ns: u64) -> bool {
    verdict.expires_ns <= now_ns || Cause::of_number(verdict.cause) != Cause::Operator
}

/// The order of eviction, lowest first: expired verdicts, then by the time of the last packet, then
/// by age. A new verdict has had no time for a packet, so the time when it was added counts as one.
fn worth(verdict: &RecentVerdict, now_ns: u64) -> (bool, u64, u64) {
    (
        verdict.expires_ns > now_ns,
        verdict.last_ns.max(verdict.added_ns),
        verdict.added_ns,
    )
}

#[cfg(test)]
mod tests {
    use portcullis_ebpf_common::layout::VERDICT_NOTE_MAX;

    use super::*;

    fn verdict(expires_ns: u64, added_ns: u64, last_ns: u64) -> RecentVerdict {
        RecentVerdict {
            expires_ns,
            added_ns,
            last_ns,
            packets: 0,
            cause: 0,
            reserved: 0,
            note: [0; VERDICT_NOTE_MAX],
        }
    }

    #[test]
    fn expired_verdicts_are_evicted_first_and_then_those_of_least_use() {
        let now_ns = 100;
        let in_order = [
            ("expired, though it was of use", verdict(100, 1, 99)),
            ("added long ago, and no packet since", verdict(200, 10, 0)),
            ("its last packet came a while ago", verdict(200, 5, 40)),
            ("just added", verdict(200, 90, 0)),
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
    fn a_verdict_of_an_operator_is_evicted_only_after_it_has_expired() {
        let of = |cause: Cause, expires_ns| RecentVerdict {
            cause: cause.number(),
            ..verdict(expires_ns, 1, 0)
        };
        assert!(may_be_evicted(&of(Cause::Operator, 100), 100));
        assert!(!may_be_evicted(&of(Cause::Operator, 101), 100));
        assert!(may_be_evicted(&of(Cause::Dnsbl, 101), 100));
        assert!(may_be_evicted(&of(Cause::Other, 101), 100));
    }
}
