//! The map of recent verdicts, the hints beside it, and the room in it.

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

/// What goes at once when there is no room.
const BATCH: usize = VERDICTS_MAX as usize / 16;
/// After a search that found nothing to give up the next is left for so long, in nanoseconds: it
/// reads all of the map.
const SEARCH_AGAIN_NS: u64 = 5_000_000_000;
/// The kernel makes memory for elements in the background, and may be a moment behind.
const MEMORY_TRIES: u32 = 20;
const MEMORY_WAIT: Duration = Duration::from_millis(1);

/// The map itself.
pub(super) struct Elements {
    verdicts: HashMap<MapData, VerdictKey, Value<RecentVerdict>>,
    /// The same map, to read all of it.
    map: MapData,
}

/// All that lies beside it.
pub(super) struct Maps {
    pub(super) verdicts: Elements,
    /// It has the hints.
    control: Control,
    counters: Array<MapData, u64>,
    pub(super) local: LocalNetworks,
    /// It was told that the map is full, and has not been far from it since.
    told_full: bool,
    /// When a search found nothing that could be given up.
    nothing_to_give_up_ns: Option<u64>,
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

    /// Removes an element; says whether it was there.
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
            told_full: false,
            nothing_to_give_up_ns: None,
        })
    }

    /// Writes a verdict, if need be in the place of others; says whether there was room.
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
        if !self.make_room(now_ns)? {
            return Ok(false);
        }
        match self.insert(key, verdict) {
            Ok(()) => Ok(true),
            // Others were quicker.
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

    /// Sets the hints of all verdicts: a process that ended between the two may have left one
    /// without.
    pub(super) fn set_all_hints(&self) -> Result<(), Error> {
        for (key, _) in self.verdicts.all()? {
            self.control.set_hint(hint(&key));
        }
        Ok(())
    }

    /// Clears the hints of verdicts that have gone, unless another has the same.
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
        // A hint that another process set meanwhile stands behind its verdict: if it was cleared,
        // the verdict is here by now. Who cannot see all of them sets every hint again.
        let all = self.verdicts.all();
        let needed = all.as_ref().ok().map(|all| Hints::of(all));
        for hint in cleared {
            if needed.as_ref().is_none_or(|needed| needed.has(hint)) {
                self.control.set_hint(hint);
            }
        }
        all.map(drop)
    }

    /// Removes those to which it applies, and counts them. Gives how many there were, and how many
    /// are left.
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
        self.nothing_to_give_up_ns = self.nothing_to_give_up_ns.filter(|_| removed.is_empty());
        Ok((removed.len() as u64, left))
    }

    /// Tells once that there are as many as there can be: by this process or by another.
    pub(super) fn tell_if_full(&mut self, number: u64) {
        let max = u64::from(VERDICTS_MAX);
        if number >= max && !self.told_full {
            self.told_full = true;
            tracing::warn!(
                number,
                "the recent verdicts are full: for a new one those of least use are given up, but none that a person added"
            );
        } else if number < max / 8 * 7 {
            self.told_full = false;
        }
    }

    /// Gives up what is over, and else a sixteenth of those that were learned; says whether there
    /// were any.
    fn make_room(&mut self, now_ns: u64) -> Result<bool, Error> {
        let is_soon = |then: u64| now_ns.saturating_sub(then) < SEARCH_AGAIN_NS;
        if self.nothing_to_give_up_ns.is_some_and(is_soon) {
            return Ok(false);
        }
        let mut all = self.verdicts.all()?;
        self.tell_if_full(all.len() as u64);
        all.retain(|(_, verdict)| may_be_given_up(verdict, now_ns));
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
        self.count(VerdictCounter::Evicted, evicted)?;
        self.nothing_to_give_up_ns = gone.is_empty().then_some(now_ns);
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

/// Whether a verdict may go for another: what a person added only when it is over.
fn may_be_given_up(verdict: &RecentVerdict, now_ns: u64) -> bool {
    verdict.expires_ns <= now_ns || Cause::of_number(verdict.cause) != Cause::Operator
}

/// What goes first when there is no room has the least: what is over, then by the last sign of
/// life, then by age. A verdict that was given a moment ago has had no time to be of use, so being
/// given counts as a sign of life.
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
    fn what_a_person_added_is_given_up_only_when_it_is_over() {
        let of = |cause: Cause, expires_ns| RecentVerdict {
            cause: cause.number(),
            ..verdict(expires_ns, 1, 0)
        };
        assert!(may_be_given_up(&of(Cause::Operator, 100), 100));
        assert!(!may_be_given_up(&of(Cause::Operator, 101), 100));
        assert!(may_be_given_up(&of(Cause::Dnsbl, 101), 100));
        assert!(may_be_given_up(&of(Cause::Other, 101), 100));
    }
}
