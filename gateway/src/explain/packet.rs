//! What the filter does with the SYN of a client, by the same [`judge`] that the program in the
//! kernel runs: over a SYN that is made here, the lists of the configuration, and what the caller
//! knows of the recent verdicts and the budget.

use core::cell::Cell;
use core::net::{IpAddr, SocketAddr};

use portcullis_ebpf_common::layout::{LinkLayer, Mode, VerdictKey};
use portcullis_ebpf_common::{Action, Class, Lookup, Memory, Recent, Source, Verdict};
use portcullis_ebpf_common::{judge, packet};

use super::{Question, Step, StepOutcome, session};
use crate::config::{Config, Filter, FilterMode, Role};
use crate::lists::{Compiled, ListAction};
use crate::policy::Rule;

/// What is known of a client besides the configuration, to the filter.
#[derive(Clone, Debug, Default)]
pub struct PacketFacts {
    /// Where the packet comes in; `None`: the first interface of the edge, or the first of all.
    pub interface: Option<String>,
    /// Whether there is a recent verdict on the client; `None`: it is still to be looked up.
    pub recent: Option<RecentVerdict>,
    /// Whether the source has sent all the SYNs of this second that it may; `None`: not known.
    pub over_budget: Option<bool>,
}

/// What the filter remembers of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecentVerdict {
    /// There is none in force.
    Absent,
    /// There is one in force, with this cause and note.
    Present(String),
}

/// What happens to the SYN, if the filter sees it: it does not see the loopback.
pub(super) fn step(config: &Config, question: &Question) -> Option<Step> {
    let filter = config.filter.as_ref()?;
    let client = question.client.to_canonical();
    if filter.mode == FilterMode::Off || client.is_loopback() {
        return None;
    }
    let settings = filter.in_kernel();
    let listener = session::listener(config, question).address;
    let frame = syn(client, destination(client, listener), listener.port());
    let content = packet::read(&*frame, LinkLayer::Ethernet);
    let lists = Lists(config.policy.lists());
    let memory = Remembered::new(filter, &question.packet, question.granted);
    let role = role(filter, question.packet.interface.as_deref());
    let verdict = judge(
        &*frame,
        &content,
        role.in_kernel(),
        &settings,
        &lists,
        &memory,
    );
    Some(told(config, question, verdict, &memory))
}

/// The verdict in words.
fn told(config: &Config, question: &Question, verdict: Verdict, memory: &Remembered<'_>) -> Step {
    let mode = config
        .filter
        .as_ref()
        .map_or(Mode::Off, |filter| filter.in_kernel().mode());
    let is_against = verdict.reason().is_some();
    let waits_for = memory.waits_for();
    let outcome = match verdict {
        _ if verdict.drops(mode) => StepOutcome::Drop,
        _ if !waits_for.is_empty() && mode == Mode::Enforce => StepOutcome::Wait,
        _ => StepOutcome::Accept,
    };
    let answer = match (verdict, &question.packet.recent) {
        _ if is_against && mode == Mode::Monitor => "only counted: the filter monitors",
        (Verdict::Recent, Some(RecentVerdict::Present(why))) => why,
        (Verdict::Customer, _) => "customers reach what a permit list covers",
        (Verdict::OverBudget, _) => "passes, perhaps after a SYN cookie",
        (Verdict::Other, _) => "the filter does not look at this port",
        _ => "",
    };
    Step {
        rule: rule(config, verdict).name().to_owned(),
        answer: answer.to_owned(),
        waits_for,
        ..Step::new(
            "packet",
            question.client.to_canonical().to_string(),
            outcome,
        )
    }
}

/// The rule that a verdict is by.
fn rule(config: &Config, verdict: Verdict) -> Rule {
    let of_list = |list: u32, otherwise| {
        let list = u16::try_from(list).ok();
        let rule = list.and_then(|list| config.policy.list_rule(list));
        rule.unwrap_or(otherwise)
    };
    match verdict {
        Verdict::Permitted(list) => of_list(list, Rule::PERMIT_LIST),
        Verdict::Listed(list) => of_list(list, Rule::DROP_LIST),
        Verdict::Granted => Rule::GRANTED,
        Verdict::Recent => Rule::RECENT_VERDICT,
        Verdict::Unlisted => Rule::UNLISTED_DROP,
        Verdict::OverBudget => Rule::SYN_BUDGET,
        Verdict::Customer => Rule::CUSTOMER,
        Verdict::Passed => Rule::UNLISTED,
        // A SYN that is made here has no tags.
        Verdict::Other | Verdict::Tags => Rule::NOT_FILTERED,
    }
}

/// What is behind the interface that the packet comes in by.
fn role(filter: &Filter, interface: Option<&str>) -> Role {
    let named = interface.and_then(|name| {
        let mut interfaces = filter.interfaces.iter();
        interfaces.find(|interface| interface.name == name)
    });
    let edge = || {
        let mut interfaces = filter.interfaces.iter();
        interfaces.find(|interface| interface.role == Role::Edge)
    };
    let chosen = named.or_else(edge).or_else(|| filter.interfaces.first());
    chosen.map_or(Role::Edge, |interface| interface.role)
}

/// The address that a client of this family connects to.
fn destination(client: IpAddr, listener: SocketAddr) -> IpAddr {
    let address = listener.ip().to_canonical();
    match (client, address) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => address,
        // It listens on all addresses, or the client comes to another listener.
        (IpAddr::V4(_), IpAddr::V6(_)) => IpAddr::from([0; 4]),
        (IpAddr::V6(_), IpAddr::V4(_)) => IpAddr::from([0; 16]),
    }
}

/// An Ethernet frame with a SYN.
fn syn(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    // A header of five words; the flag SYN.
    (tcp[12], tcp[13]) = (0x50, 0x02);
    let mut frame = vec![0; 12];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
            frame.extend(octets(from));
            frame.extend(octets(to));
        }
    }
    frame.extend(tcp);
    frame
}

/// The lists of the configuration, as the program has them.
struct Lists<'a>(&'a Compiled);

impl Lookup for Lists<'_> {
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

fn address(source: &Source) -> IpAddr {
    let [_, a, b, c, d] = source.0;
    if source.is_ipv4() {
        return IpAddr::from(a.to_ne_bytes());
    }
    let mut octets = [0; 16];
    for (place, word) in octets.chunks_exact_mut(4).zip([a, b, c, d]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets)
}

/// What the program remembers, as far as it is known; and what it was asked about that is not.
struct Remembered<'a> {
    filter: &'a Filter,
    facts: &'a PacketFacts,
    granted: bool,
    recent_unknown: Cell<bool>,
}

impl<'a> Remembered<'a> {
    fn new(filter: &'a Filter, facts: &'a PacketFacts, granted: bool) -> Self {
        Self {
            filter,
            facts,
            granted,
            recent_unknown: Cell::new(false),
        }
    }

    /// What would have had to be known. The budget is not among it: the packet passes either way.
    fn waits_for(&self) -> Vec<&'static str> {
        let unknown = self.recent_unknown.get();
        unknown
            .then(|| Rule::RECENT_VERDICT.name())
            .into_iter()
            .collect()
    }
}

/// Nanoseconds at which the packet comes: any time will do.
const NOW_NS: u64 = 1 << 40;

impl Memory for Remembered<'_> {
    type Recent = InForce;

    fn granted_until_ns(&self, _: &Source) -> u64 {
        if self.granted { u64::MAX } else { 0 }
    }

    fn recent(&self, _: &VerdictKey) -> Option<InForce> {
        self.recent_unknown.set(self.facts.recent.is_none());
        matches!(self.facts.recent, Some(RecentVerdict::Present(_))).then_some(InForce)
    }

    fn is_local(&self, source: &Source) -> bool {
        let address = address(source);
        let mut networks = self.filter.local_networks.iter();
        networks.any(|network| network.contains(&address))
    }

    fn now_ns(&self) -> u64 {
        NOW_NS
    }

    fn exhausts(&self, _: &VerdictKey, _: u32) -> bool {
        self.facts.over_budget.unwrap_or_default()
    }
}

/// A recent verdict that is in force.
struct InForce;

impl Recent for InForce {
    fn added_ns(&self) -> u64 {
        0
    }

    fn expires_ns(&self) -> u64 {
        u64::MAX
    }

    fn count(&self, _: u64) {}
}
