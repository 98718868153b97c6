//! The verdict on the host: userspace's own lookup instead of the kernel's, and a memory of sources
//! that ends with the case.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::layout::VerdictKey;
use portcullis_ebpf_common::{
    Action, Class, Lookup, Memory, Packet, Recent, Source, Verdict, judge, packet,
};

use super::{Age, Case, Expected, File};

/// An address as the program sees it.
#[must_use]
pub fn source(address: IpAddr) -> Source {
    match address {
        IpAddr::V4(address) => Source::ipv4(address.octets()),
        IpAddr::V6(address) => Source::ipv6(address.octets()),
    }
}

/// The address that the program sees so.
fn address(source: &Source) -> IpAddr {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(&source.0[1..]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    if source.is_ipv4() {
        let [a, b, c, d, ..] = bytes;
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(bytes)
    }
}

/// Userspace's own lookup: the slot of a list is its place in the configuration.
pub struct Userspace<'a>(pub &'a Compiled);

impl Lookup for Userspace<'_> {
    fn class(&self, source: &Source) -> Class {
        let listing = self.0.filtered(address(source));
        listing.map_or(Class::NONE, |listing| {
            let action = match listing.action {
                ListAction::Permit => Action::Permit,
                ListAction::Drop | ListAction::Reject => Action::Drop,
                ListAction::HardDrop => Action::HardDrop,
            };
            Class::new(action, listing.list)
        })
    }
}

/// What is remembered of sources while one case runs.
#[derive(Default)]
pub struct HostMemory {
    recent: HashMap<VerdictKey, Term>,
    granted: HashMap<[u32; 5], u64>,
    local: Vec<IpNet>,
    syns: RefCell<HashMap<VerdictKey, u32>>,
}

/// When a verdict was added, and when it ends.
#[derive(Clone, Copy)]
pub struct Term {
    added_ns: u64,
    expires_ns: u64,
}

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000_000 * SECOND;

impl Age {
    /// When a verdict of this age was added and ends, if it is `now_ns` now. In nanoseconds.
    #[must_use]
    pub fn term(self, now_ns: u64) -> (u64, u64) {
        let ago = |seconds: u64| now_ns.saturating_sub(seconds * SECOND);
        match self {
            Self::Fresh => (ago(1), now_ns + 3600 * SECOND),
            Self::Current => (ago(60), now_ns + 3600 * SECOND),
            Self::Expired => (ago(60), ago(1)),
        }
    }
}

impl HostMemory {
    /// What the file says is remembered.
    #[must_use]
    pub fn new(file: &File) -> Self {
        let recent = file.recent.iter().map(|(address, age)| {
            let (added_ns, expires_ns) = age.term(NOW);
            let term = Term {
                added_ns,
                expires_ns,
            };
            (source(*address).key(), term)
        });
        let granted = file.grants.iter();
        let granted = granted.map(|(address, age)| (source(*address).0, age.term(NOW).1));
        Self {
            recent: recent.collect(),
            granted: granted.collect(),
            local: file.local.clone(),
            syns: RefCell::default(),
        }
    }
}

impl Recent for Term {
    fn added_ns(&self) -> u64 {
        self.added_ns
    }

    fn expires_ns(&self) -> u64 {
        self.expires_ns
    }

    fn count(&self, _now_ns: u64) {}
}

impl Memory for HostMemory {
    type Recent = Term;

    fn granted_until_ns(&self, source: &Source) -> u64 {
        self.granted.get(&source.0).copied().unwrap_or_default()
    }

    fn recent(&self, key: &VerdictKey) -> Option<Term> {
        self.recent.get(key).copied()
    }

    fn is_local(&self, source: &Source) -> bool {
        let address = address(source);
        self.local.iter().any(|network| network.contains(&address))
    }

    fn now_ns(&self) -> u64 {
        NOW
    }

    fn exhausts(&self, key: &VerdictKey, budget: u32) -> bool {
        let mut syns = self.syns.borrow_mut();
        let sent = syns.entry(*key).or_default();
        if *sent >= budget {
            return true;
        }
        *sent += 1;
        false
    }
}

/// A frame as the program sees it: of a long one, the first buffer.
#[derive(Clone, Copy)]
pub struct FirstBuffer<'a>(&'a [u8], bool);

/// What the kernel has room for in the page of a frame that it runs through a program: all but
/// headroom and tailroom.
const FIRST_BUFFER_OCTETS: usize = 4096 - 256 - 320;

impl<'a> FirstBuffer<'a> {
    /// The first buffer of a frame.
    #[must_use]
    pub fn of(frame: &'a [u8]) -> Self {
        match frame.split_at_checked(FIRST_BUFFER_OCTETS) {
            Some((first, rest)) => Self(first, !rest.is_empty()),
            None => Self(frame, false),
        }
    }
}

impl Packet for FirstBuffer<'_> {
    fn half(&self, offset: usize) -> Option<u16> {
        self.0.half(offset)
    }

    fn word(&self, offset: usize) -> Option<u32> {
        self.0.word(offset)
    }

    fn continues(&self) -> bool {
        self.1
    }
}

/// What becomes of a frame of this case on the host, when it has come as often before as the case
/// says.
#[must_use]
pub fn judge_on_host(file: &File, case: &Case, frame: FirstBuffer<'_>) -> Verdict {
    let settings = case.circumstances.settings(&file.ports);
    let memory = HostMemory::new(file);
    let content = packet::read(&frame, case.circumstances.layer);
    let mut verdict = Verdict::Other;
    for _ in 0..=case.before {
        verdict = judge(
            &frame,
            &content,
            case.circumstances.role,
            &settings,
            &Userspace(&file.lists),
            &memory,
        );
    }
    verdict
}

impl Expected {
    /// What a case says of this verdict.
    #[must_use]
    pub fn of(file: &File, verdict: Verdict) -> Self {
        let list = |slot: u32| {
            let list = usize::try_from(slot)
                .ok()
                .and_then(|slot| file.lists.lists.get(slot));
            list.map(|list| list.name.clone()).unwrap_or_default()
        };
        match verdict {
            Verdict::Other => Self::Other,
            Verdict::Passed => Self::Pass,
            Verdict::Permitted(slot) => Self::Permit(list(slot)),
            Verdict::Listed(slot) => Self::Drop(list(slot)),
            Verdict::Granted => Self::Granted,
            Verdict::Recent => Self::DropRecent,
            Verdict::Unlisted => Self::DropUnlisted,
            Verdict::OverBudget => Self::OverBudget,
            Verdict::Customer => Self::DropCustomer,
            Verdict::Tags => Self::DropTags,
        }
    }

    /// The verdict that a case carries out in this way: an answer is not one.
    #[must_use]
    pub fn unanswered(case: &Case) -> Self {
        match &case.expected {
            Self::Reset => Self::DropCustomer,
            Self::Cookie if case.circumstances.are_over_budget(case.before) => Self::OverBudget,
            Self::Cookie => Self::Pass,
            other => other.clone(),
        }
    }
}
