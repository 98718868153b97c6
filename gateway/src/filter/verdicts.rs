//! Recent verdicts: sources that are kept out for a while, because the relay has learned something
//! or an operator says so.
//!
//! The map belongs to nobody: the gate writes it while it runs, the command line does with and
//! without a gate, and each change is one element, so no lock is needed between them. (What both
//! count in the same instant may be counted once.)
//!
//! A verdict is never given to a permitted source or a local network. The program looks again for
//! every packet that it would drop, so that one that was given before a list or the networks
//! changed does no harm until [`remove_exempt`](Verdicts::remove_exempt) has taken it back.
//!
//! Beside the map lie hints, so that the program looks for a verdict only where there may be one:
//! whoever gives one writes its hint behind it. Whoever takes one away clears its hint, unless
//! another verdict has the same; a hint that stays costs a look for nothing, and no more.
//!
//! The map has its size. When it is full, a sixteenth of it goes at once, so that the search for
//! what is least worth keeping, which reads all of it, is paid for once in sixteen thousand: first
//! what has expired, then what has seen no packet for the longest time. What a person added goes
//! for nothing that was learned, nor for what another person adds: if there is nothing else, there
//! is no room. Rejected: an LRU map of the kernel, which recycles approximately and says nothing of
//! it; a second map for what a person adds, which would cost every packet of a source with a hint a
//! second look.
//!
//! | file | subject |
//! |---|---|
//! | `map.rs` | the map, the hints, and the room |
//! | `exempt.rs` | what no verdict keeps out |
//! | `noted.rs` | those that one reason brought about, when it turns out to be none |

mod exempt;
mod map;
mod noted;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use portcullis_ebpf_common::layout::{
    RecentVerdict, VERDICT_NOTE_MAX, VERDICTS_MAX, VerdictCounter, VerdictKey,
};
use serde::Serialize;

use super::Error;
use super::address::{format_network, of_verdict, verdict_key};
use super::clock::{in_ns, now_ns};
use super::maps::text;
use super::pins::Pins;
use crate::lists::Compiled;

pub use self::exempt::Exemption;
use self::exempt::{InForce, Permits};
use self::map::{Elements, Maps};

/// The recent verdicts of a filter in place. It can be used from several threads at once.
///
/// Whatever walks over all of them, as giving one does when there is no room, takes some tenth of a
/// second with a full map: it is not for a thread that must not wait.
pub struct Verdicts {
    maps: Mutex<Maps>,
    /// To look at them while another thread changes them.
    seen: Elements,
    /// The lists that the program looked into when they were opened, for who has none of its own.
    in_force: Option<InForce>,
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
    /// On whom: an address, or a /64 of IPv6. Of an address of IPv6, too, it is on the /64.
    pub source: IpNet,
    /// For how long.
    pub duration: Duration,
    /// Why.
    pub cause: Cause,
    /// For people, such as the list that names the source. What does not fit is cut off.
    pub note: &'a str,
}

/// What came of giving a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddResult {
    /// The source is kept out from now on.
    Added,
    /// It was kept out already, and is for the new length of time.
    Renewed,
    /// It was kept out already by a person, whose word stays.
    Kept,
    /// It is not kept out.
    Refused(Exemption),
    /// It is not kept out, because all that there is room for was added by people.
    NoRoom,
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
    /// Parts of it that are let in all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Exemption>,
}

/// How many verdicts there are, and what became of others since the filter was put in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerdictCounts {
    /// In force.
    pub number: u64,
    /// Of them, those that a person added: they are never given up.
    pub by_operator: u64,
    /// For how many there is room.
    pub capacity: u64,
    /// AddResult to sources that had none.
    pub added: u64,
    /// AddResult to sources that had one.
    pub renewed: u64,
    /// Taken back.
    pub removed: u64,
    /// Gone because their time was over.
    pub expired: u64,
    /// AddResult up to have room for others.
    pub evicted: u64,
    /// Not given, because the source is permitted or local.
    pub refused: u64,
    /// Not given, because there was no room but that of what a person added.
    pub no_room: u64,
}

impl Verdicts {
    /// The verdicts of the filter that is pinned under this path, and the lists that it has. No
    /// gate has to run.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] if the caller may not.
    pub fn open(pin_path: &Path) -> Result<Self, Error> {
        let pins = Pins::attached(pin_path)?;
        let in_force = match InForce::open(&pins) {
            // With fewer rights than root's the program alone knows them, which passes what they
            // permit.
            Err(Error::NotPermitted { .. }) => None,
            opened => opened?,
        };
        Ok(Self {
            in_force,
            ..Self::of(&pins)?
        })
    }

    pub(super) fn of(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            maps: Mutex::new(Maps::open(pins)?),
            seen: Elements::open(pins)?,
            in_force: None,
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

    /// These lists, or those in force.
    fn permits<'a>(&'a self, lists: Option<&'a Compiled>) -> Option<&'a dyn Permits> {
        match (lists, &self.in_force) {
            (Some(lists), _) => Some(lists),
            (None, Some(in_force)) => Some(in_force),
            (None, None) => None,
        }
    }

    /// Keeps a source out for a while, unless it is in a local network or a list permits it: one of
    /// these or, where none are given and they were [opened](Self::open), of those in force. For
    /// the first ten seconds only new connections are refused, so that one that is open can end in
    /// order.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read or written.
    pub fn add(&self, new: &NewVerdict<'_>, lists: Option<&Compiled>) -> Result<AddResult, Error> {
        let mut maps = self.maps();
        let source = canonical(new.source);
        if let Some(exemption) = exempt::of(&maps.local, self.permits(lists), source)? {
            maps.count(VerdictCounter::Refused, 1)?;
            return Ok(AddResult::Refused(exemption));
        }
        let key = verdict_key(source.addr());
        let now_ns = now_ns();
        let before = maps.verdicts.get(key)?;
        let still = before.filter(|before| before.expires_ns > now_ns);
        let by_person = |cause| cause == Cause::Operator;
        if still.is_some_and(|before| by_person(Cause::of_number(before.cause)))
            && !by_person(new.cause)
        {
            return Ok(AddResult::Kept);
        }
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
        let (given, counter) = match still {
            _ if !maps.put(key, verdict, now_ns)? => (AddResult::NoRoom, VerdictCounter::NoRoom),
            Some(_) => (AddResult::Renewed, VerdictCounter::Renewed),
            None => (AddResult::Added, VerdictCounter::Added),
        };
        maps.count(counter, 1)?;
        Ok(given)
    }

    /// The parts of the /64 of an IPv6 source that a verdict on it does not keep out: what is
    /// local, and what a list in force permits, if those were [opened](Self::open).
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn exceptions(&self, source: IpAddr) -> Result<Vec<Exemption>, Error> {
        let local = self.maps().local.all()?;
        let verdict = of_verdict(verdict_key(source));
        Ok(exempt::within(&local, self.permits(None), verdict))
    }

    /// Takes back the verdict on a source, or on the /64 of an IPv6 one; says whether there was
    /// one.
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
        let is_in_force = |_, verdict: &RecentVerdict| verdict.expires_ns > now_ns;
        let removed = self
            .maps()
            .remove_where(VerdictCounter::Removed, is_in_force);
        removed.map(|(removed, _)| removed)
    }

    /// Removes those whose time is over, which mean nothing already; says how many. If the map is
    /// full, that is told.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn sweep(&self) -> Result<u64, Error> {
        let now_ns = now_ns();
        let mut maps = self.maps();
        let is_over = |_, verdict: &RecentVerdict| verdict.expires_ns <= now_ns;
        let (removed, left) = maps.remove_where(VerdictCounter::Expired, is_over)?;
        maps.tell_if_full(left);
        Ok(removed)
    }

    /// Takes back those on sources that are local by now or permitted by these lists; says how
    /// many. A /64 of IPv6 of which only a part is permitted stays: the program passes that part.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove_exempt(&self, local: &[IpNet], lists: &Compiled) -> Result<u64, Error> {
        let is_exempt = |key, _: &RecentVerdict| {
            let source = of_verdict(key);
            local.iter().any(|network| network.contains(&source))
                || exempt::permit_of(lists, source).is_some()
        };
        let removed = self.maps().remove_where(VerdictCounter::Removed, is_exempt);
        removed.map(|(removed, _)| removed)
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
        let mut local = self.maps().local.all()?;
        local.retain(|network| network.addr().is_ipv6() && network.prefix_len() > 64);
        let permits = self.permits(None);
        let seconds = |later: u64, earlier: u64| later.saturating_sub(earlier) / 1_000_000_000;
        let status = |(key, verdict): &(VerdictKey, RecentVerdict)| VerdictStatus {
            source: format_network(&of_verdict(*key)),
            cause: Cause::of_number(verdict.cause),
            note: text(&verdict.note),
            age_seconds: seconds(now_ns, verdict.added_ns),
            expires_in_seconds: seconds(verdict.expires_ns, now_ns),
            packets: verdict.packets,
            last_packet_seconds_ago: (verdict.last_ns > 0)
                .then(|| seconds(now_ns, verdict.last_ns)),
            except: exempt::within(&local, permits, of_verdict(*key)),
        };
        Ok(verdicts.iter().map(status).collect())
    }

    /// How many there are and were.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn counts(&self) -> Result<VerdictCounts, Error> {
        let now_ns = now_ns();
        let mut all = self.seen.all()?;
        all.retain(|(_, verdict)| verdict.expires_ns > now_ns);
        let by_operator = all
            .iter()
            .filter(|(_, verdict)| Cause::of_number(verdict.cause) == Cause::Operator);
        let maps = self.maps();
        Ok(VerdictCounts {
            number: all.len() as u64,
            by_operator: by_operator.count() as u64,
            capacity: u64::from(VERDICTS_MAX),
            added: maps.counted(VerdictCounter::Added)?,
            renewed: maps.counted(VerdictCounter::Renewed)?,
            removed: maps.counted(VerdictCounter::Removed)?,
            expired: maps.counted(VerdictCounter::Expired)?,
            evicted: maps.counted(VerdictCounter::Evicted)?,
            refused: maps.counted(VerdictCounter::Refused)?,
            no_room: maps.counted(VerdictCounter::NoRoom)?,
        })
    }

    /// How many were given up so far to have room for others.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn evicted(&self) -> Result<u64, Error> {
        self.maps().counted(VerdictCounter::Evicted)
    }
}

/// An IPv4 address that is written as an IPv6 one is one of IPv4.
fn canonical(source: IpNet) -> IpNet {
    match source.addr().to_canonical() {
        IpAddr::V4(address) if source.prefix_len() == source.max_prefix_len() => {
            IpAddr::V4(address).into()
        }
        _ => source,
    }
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
