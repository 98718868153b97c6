//! Recent verdicts: sources whose packets are dropped for a while, because the relay has learned
//! something about them or an operator says so.
//!
//! Several processes write the map: the gate, and the command line with and without a gate. Each
//! change is one element, so they need no lock. (If two count at the same moment, it may be counted
//! once.)
//!
//! A verdict is never added on a permitted source or a local network. The program checks this again
//! for every packet that it would drop. So a verdict from before a change of the lists or networks
//! does no harm until [`remove_exempt`](Verdicts::remove_exempt) has removed it.
//!
//! Beside the map there are hints: the program looks a source up only if its hint is set. A verdict
//! is written before its hint. When a verdict is removed, its hint is cleared, unless another
//! verdict has the same hint. A hint that stays set costs one useless lookup, and no more.
//!
//! The map has a fixed size. When it is full, up to a sixteenth of it is evicted at once, because
//! the search reads the whole map: first expired verdicts, then those without a packet for the
//! longest time. A verdict that an operator added is never evicted before it expires; if there are
//! no others, the map has no room. Rejected: an LRU map of the kernel, which evicts approximately
//! and does not report it; and a second map for operators, which would cost every packet of a
//! source with a hint a second lookup.
//!
//! | file | subject |
//! |---|---|
//! | `map.rs` | the map, the hints, and eviction |
//! | `exempt.rs` | the networks that are exempt from verdicts |
//! | `noted.rs` | removing all verdicts with the same cause and note |

mod exempt;
mod map;
mod noted;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::MapData;
use ipnet::IpNet;
use portcullis_ebpf_common::layout::{
    RecentVerdict, VERDICT_NOTE_MAX, VERDICTS_MAX, VerdictCounter, VerdictKey,
};
use serde::{Deserialize, Serialize};

use super::Error;
use super::address::{format_network, of_verdict, verdict_key};
use super::clock::{in_ns, now_ns};
use super::grants;
use super::maps::{open_data, text};
use super::pins::Pins;
use crate::lists::Compiled;

pub use self::exempt::Exemption;
use self::exempt::{InForce, Permits};
use self::map::{Elements, Maps};

/// The recent verdicts of an attached filter. Several threads can use it at once.
///
/// A method that reads all verdicts takes some tenths of a second with a full map; adding one to a
/// full map does too. So it is not for a thread that must not block.
pub struct Verdicts {
    maps: Mutex<Maps>,
    /// To read verdicts while another thread changes them.
    seen: Elements,
    /// The map of the grants, which the program asks before it drops.
    grants: MapData,
    /// The lists in force when this was opened, for a caller without lists of its own.
    in_force: Option<InForce>,
}

/// Why a source has a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// An operator has added it.
    Operator,
    /// The source is on DNS lists.
    Dnsbl,
    /// The source has guessed at passwords.
    Password,
    /// A cause that this version does not know.
    Other,
}

impl Cause {
    const fn number(self) -> u32 {
        match self {
            Self::Other => 0,
            Self::Operator => 1,
            Self::Dnsbl => 2,
            Self::Password => 3,
        }
    }

    const fn of_number(number: u32) -> Self {
        match number {
            1 => Self::Operator,
            2 => Self::Dnsbl,
            3 => Self::Password,
            _ => Self::Other,
        }
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Dnsbl => "dnsbl",
            Self::Password => "password",
            Self::Other => "other",
        }
    }
}

/// A verdict to add.
#[derive(Clone, Copy, Debug)]
pub struct NewVerdict<'a> {
    /// The source: an address, or an IPv6 /64. A verdict on an IPv6 address covers its /64.
    pub source: IpNet,
    /// How long it is in force.
    pub duration: Duration,
    /// Why it is added.
    pub cause: Cause,
    /// A note for users, such as the list that names the source. A long note is cut off.
    pub note: &'a str,
}

/// The result of adding a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddResult {
    /// The source had no verdict, and has one now.
    Added,
    /// The source had a verdict, which now has the new duration.
    Renewed,
    /// The source has a verdict of an operator, which stays as it is.
    Kept,
    /// The source is exempt: it gets no verdict.
    Refused(Exemption),
    /// The map is full of verdicts of operators: the source gets none.
    NoRoom,
}

/// A verdict in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictStatus {
    /// The source: an IPv4 address, or an IPv6 /64.
    pub source: String,
    /// Why it was added.
    pub cause: Cause,
    /// The note.
    pub note: String,
    /// Seconds since it was added.
    pub age_seconds: u64,
    /// Seconds until it expires.
    pub expires_in_seconds: u64,
    /// Packets that it was against. They were dropped, unless their source had a grant.
    pub packets: u64,
    /// Seconds since the last of those packets.
    pub last_packet_seconds_ago: Option<u64>,
    /// Parts of the /64 that are exempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Exemption>,
}

/// How many verdicts there are, and the counters since the filter was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerdictCounts {
    /// Verdicts in force.
    pub number: u64,
    /// Of them, those that an operator added: they are never evicted.
    pub by_operator: u64,
    /// How many the map can hold.
    pub capacity: u64,
    /// Added on sources without a verdict.
    pub added: u64,
    /// Renewed on sources with a verdict.
    pub renewed: u64,
    /// Removed before they expired.
    pub removed: u64,
    /// Removed because they had expired.
    pub expired: u64,
    /// Evicted to make room for others.
    pub evicted: u64,
    /// Refused, because the source is permitted or local.
    pub refused: u64,
    /// Refused, because the map was full of verdicts of operators.
    pub no_room: u64,
}

impl Verdicts {
    /// The verdicts of the filter that is pinned under this path, with its lists. It needs no
    /// running gate.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, [`Error::NotPermitted`] without privileges.
    pub fn open(pin_path: &Path) -> Result<Self, Error> {
        let pins = Pins::attached(pin_path)?;
        let in_force = match InForce::open(&pins) {
            // Only root may read the lists. Without them a verdict on a permitted source can be
            // added, but the program passes the source all the same.
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
            grants: open_data(pins, "GRANTS")?,
            in_force: None,
        })
    }

    /// Sets the hints of all verdicts, so that the program finds each of them.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub(super) fn set_all_hints(&self) -> Result<(), Error> {
        self.maps().set_all_hints()
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These lists or, without any, those in force.
    fn permits<'a>(&'a self, lists: Option<&'a Compiled>) -> Option<&'a dyn Permits> {
        match (lists, &self.in_force) {
            (Some(lists), _) => Some(lists),
            (None, Some(in_force)) => Some(in_force),
            (None, None) => None,
        }
    }

    /// Adds a verdict on a source, unless the source is in a local network or a list permits it.
    /// The lists are `lists` or, if that is `None`, those in force when this was
    /// [opened](Self::open).
    ///
    /// For the first ten seconds the program drops new connections only, so that open ones can end
    /// in order.
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
        let by_operator = |cause| cause == Cause::Operator;
        if still.is_some_and(|before| by_operator(Cause::of_number(before.cause)))
            && !by_operator(new.cause)
        {
            return Ok(AddResult::Kept);
        }
        let verdict = RecentVerdict {
            expires_ns: now_ns.saturating_add(in_ns(new.duration)),
            // A renewed verdict has no second grace period.
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

    /// The exempt parts of the /64 of an IPv6 source: local networks, and networks that a list
    /// permits; the lists as of [`add`](Self::add).
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn exceptions(
        &self,
        source: IpAddr,
        lists: Option<&Compiled>,
    ) -> Result<Vec<Exemption>, Error> {
        let local = self.maps().local.all()?;
        let verdict = of_verdict(verdict_key(source));
        Ok(exempt::within(&local, self.permits(lists), verdict))
    }

    /// Removes the verdict on a source, or on the /64 of an IPv6 source. Returns whether there was
    /// one.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove(&self, address: IpAddr) -> Result<bool, Error> {
        let removed = self.remove_all(&[address])?;
        Ok(removed == [true])
    }

    /// Removes the verdicts on many sources, as [`remove`](Self::remove) does on one, but reads the
    /// map only once for them. Returns for each whether there was one.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove_all(&self, addresses: &[IpAddr]) -> Result<Vec<bool>, Error> {
        let mut maps = self.maps();
        let mut removed = Vec::with_capacity(addresses.len());
        let mut gone = Vec::new();
        let mut failed = None;
        for address in addresses {
            let key = verdict_key(*address);
            match maps.verdicts.take(key) {
                Ok(was_there) => {
                    removed.push(was_there);
                    gone.extend(was_there.then_some(key));
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        maps.clear_hints(&gone)?;
        maps.count(VerdictCounter::Removed, gone.len() as u64)?;
        failed.map_or(Ok(removed), Err)
    }

    /// Removes all verdicts. Returns how many were in force.
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

    /// Removes expired verdicts, which have no effect any more. Returns how many. If the map is
    /// full, this logs it.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn sweep(&self) -> Result<u64, Error> {
        let now_ns = now_ns();
        let mut maps = self.maps();
        let is_expired = |_, verdict: &RecentVerdict| verdict.expires_ns <= now_ns;
        let (removed, left) = maps.remove_where(VerdictCounter::Expired, is_expired)?;
        maps.log_if_full(left);
        Ok(removed)
    }

    /// Removes verdicts on sources that are now local or permitted by these lists. Returns how
    /// many. A verdict on a /64 of which only a part is permitted stays: the program passes that
    /// part.
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

    /// How many verdicts there are, and the counters.
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

    /// The addresses with a grant in force: their packets pass, whatever verdict there is.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn granted(&self) -> Result<Vec<IpAddr>, Error> {
        grants::in_force(&self.grants)
    }

    /// How many verdicts were evicted so far to make room for others.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    pub fn evicted(&self) -> Result<u64, Error> {
        self.maps().counted(VerdictCounter::Evicted)
    }
}

/// An IPv4-mapped IPv6 address becomes an IPv4 address.
fn canonical(source: IpNet) -> IpNet {
    match source.addr().to_canonical() {
        IpAddr::V4(address) if source.prefix_len() == source.max_prefix_len() => {
            IpAddr::V4(address).into()
        }
        _ => source,
    }
}

/// The part of a note that fits, cut between characters.
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
        for cause in [Cause::Operator, Cause::Dnsbl, Cause::Password, Cause::Other] {
            assert_eq!(Cause::of_number(cause.number()), cause);
        }
        assert_eq!(Cause::of_number(77), Cause::Other, "of a later version");
    }
}
