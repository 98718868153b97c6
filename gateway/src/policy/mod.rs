//! Who may do what: pure decisions over a compiled, immutable [`Policy`]. No system call, no clock,
//! no allocation for what is accepted.
//!
//! # The closed relay
//!
//! | client \ recipient | local domain | anywhere else |
//! |---|---|---|
//! | local network | accept | accept |
//! | authenticated | accept | accept |
//! | with a grant | accept | accept |
//! | every other client | accept | 550 5.7.1 |
//!
//! Everything else is in addition to this table and can only refuse. The order of all checks is one
//! table, [`pipeline::CHECKS`]; of those of a stage the first that refuses decides, and the first
//! that accepts is what admits. Scores are added up and refuse together:
//!
#![doc = include_str!("checks.md")]
//!
//! A grant is for an address and a time: its user has shown who it is, by POP or IMAP or to an
//! operator. It is a fact and not a standing of the client, because it comes and goes within a
//! session.
//!
//! In submission every client has to authenticate: the SMTP engine refuses MAIL before that, and
//! nothing here opens anything for a client that has not. Lists and DNS lists are for the mail of
//! other servers and do not hold there; the limits of sources and of users do.
//!
//! A permit list does not make a client local: what it permits is to connect. The DNS lists come
//! late because they are the only ones that a client may have to wait for: one that is refused
//! anyway does not wait. The postmaster can be reached from everywhere (RFC 5321 section 4.5.1),
//! also by those who want to know why they are on a list.

pub mod address;
mod changes;
mod checks;
pub mod dnsbl;
pub mod domain;
mod granted;
mod identity;
pub mod pipeline;
pub mod prefixes;
mod rule;
mod senders;

use core::net::IpAddr;

use ipnet::IpNet;
use portcullis_smtp::path::{Domain, Mailbox};
use portcullis_smtp::server::Blame;

use crate::lists::{Compiled, ListAction};
pub use changes::changes;
pub use checks::STOPPING;
use dnsbl::Dnsbl;
use domain::{Domains, Pattern, normal_form};
pub use granted::Granted;
pub use identity::{Identity, Proof};
pub use pipeline::{Decision, Facts, Listener, Lookup, Service, Stage, decide};
use prefixes::Prefixes;
pub use rule::{RULES_MAX, Rule, RuleKind};
pub use senders::Senders;

/// What a policy is made of.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The name of this gate.
    pub hostname: String,
    /// The addresses of this gate: `postmaster@[192.0.2.1]` is for us.
    pub addresses: Vec<IpAddr>,
    /// The networks that may relay to anywhere.
    pub networks: Vec<IpNet>,
    /// The domains that every client may send to. [`Pattern::Any`] has no place here: it would
    /// open the relay.
    pub domains: Vec<Pattern>,
    /// The lists.
    pub lists: Compiled,
    /// Whether a drop list also refuses a connection that arrives. Not when the filter only
    /// monitors.
    pub drop_lists_refuse: bool,
    /// The DNS lists.
    pub dnsbl: Dnsbl,
}

/// The policy in force.
#[derive(Clone, Debug)]
pub struct Policy {
    hostname: String,
    /// The domain that mail for this gate itself is routed by.
    home: String,
    addresses: Vec<IpAddr>,
    networks: Prefixes,
    domains: Domains,
    lists: Compiled,
    drop_lists_refuse: bool,
    dnsbl: Dnsbl,
    /// The rule of each list, and of each zone, in the order of the configuration.
    list_rules: Vec<Rule>,
    zone_rules: Vec<Rule>,
}

/// Whether a client may relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In one of the local networks: may send to anywhere.
    Local,
    /// Every other client: may send to local domains.
    Stranger,
}

/// What is known of a client from its address alone; decided once, when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// IPv4 addresses always as such, never mapped into IPv6.
    pub address: IpAddr,
    /// Whether it may relay.
    pub standing: Standing,
    /// The rule of the list that decides about it.
    pub listing: Option<Rule>,
    /// Whether that is a hard drop list: a grant makes no difference.
    pub is_hard: bool,
}

impl Client {
    /// Whether the limits on a single source do not hold for this client: local networks and
    /// permit-listed sources.
    pub fn is_exempt(&self) -> bool {
        let permitted = self
            .listing
            .is_some_and(|rule| rule.kind() == RuleKind::PermitList);
        permitted || self.standing == Standing::Local
    }

    /// What it counts against that the next hop does not know a recipient.
    pub fn blame_for_unknown_recipient(&self) -> Blame {
        if self.is_exempt() {
            Blame::None
        } else {
            Blame::UnknownRecipient
        }
    }
}

impl Policy {
    /// Compiles a policy.
    pub fn new(terms: Terms) -> Policy {
        let mut domains = Domains::default();
        for pattern in terms
            .domains
            .iter()
            .filter(|pattern| **pattern != Pattern::Any)
        {
            domains.add(pattern, 0);
        }
        let home = terms.domains.iter().find_map(|pattern| match pattern {
            Pattern::Exact(domain) => Some(domain.clone()),
            _ => None,
        });
        let hostname = normal_form(&terms.hostname).into_owned();
        Policy {
            home: home.unwrap_or_else(|| hostname.clone()),
            hostname,
            addresses: terms.addresses,
            networks: Prefixes::new(terms.networks.into_iter().map(|net| (net, 0)).collect()),
            domains,
            list_rules: list_rules(&terms.lists),
            zone_rules: zone_rules(&terms.dnsbl),
            lists: terms.lists,
            drop_lists_refuse: terms.drop_lists_refuse,
            dnsbl: terms.dnsbl,
        }
    }

    /// The same policy with other lists.
    #[must_use]
    pub fn with_lists(&self, lists: Compiled) -> Policy {
        Policy {
            list_rules: list_rules(&lists),
            lists,
            ..self.clone()
        }
    }

    /// What the address says about a client.
    pub fn client(&self, address: IpAddr) -> Client {
        let address = address.to_canonical();
        let local = self.networks.lookup(address).is_some();
        let filtered = self.lists.filtered(address);
        let filtered = filtered
            .filter(|listing| listing.action == ListAction::Permit || self.drop_lists_refuse);
        let is_hard = filtered.is_some_and(|listing| listing.action == ListAction::HardDrop);
        Client {
            address,
            is_hard,
            standing: if local {
                Standing::Local
            } else {
                Standing::Stranger
            },
            listing: filtered
                .or_else(|| self.lists.rejected(address))
                .and_then(|listing| self.list_rule(listing.list)),
        }
    }

    /// Whether DNS lists are asked about a client: there are some, it is a stranger that no permit
    /// list names, and it does not come to submit. (Their users sit at addresses that such lists
    /// say should send no mail by themselves.)
    pub fn asks_about(&self, service: Service, client: &Client) -> bool {
        !self.dnsbl.zones.is_empty() && !client.is_exempt() && !service.is_submission()
    }

    /// The score at which a client is refused. It is at least 1: a client that no check counts
    /// against never has it.
    pub fn reject_at(&self) -> i64 {
        i64::from(self.dnsbl.reject_at).max(1)
    }

    /// The DNS lists.
    pub fn dnsbl(&self) -> &Dnsbl {
        &self.dnsbl
    }

    /// `<postmaster>`, which RFC 5321 section 4.5.1 wants accepted, and the same at the name of
    /// this gate.
    fn is_own_postmaster(&self, mailbox: &Mailbox<'_>) -> bool {
        let own = match mailbox.domain {
            Domain::None => true,
            Domain::Name(domain) => normal_form(domain) == self.hostname,
            Domain::Literal(address) => self.is_own_address(address),
            Domain::GeneralLiteral(_) => false,
        };
        own && mailbox.local_part.eq_ignore_ascii_case("postmaster")
    }

    fn is_own_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address.to_canonical())
    }

    /// Whether every client may send to this domain.
    pub fn is_local_domain(&self, domain: &str) -> bool {
        self.domains.lookup(domain).is_some()
    }

    /// The domain that decides about the route of a recipient: its own, or for mail to this gate
    /// itself (the postmaster, our literals) the first local domain, or the name of the gate when
    /// there is none. A literal that is not ours has none: only the route `*` covers it.
    pub fn routed_domain<'a>(&'a self, mailbox: &Mailbox<'a>) -> &'a str {
        match mailbox.domain {
            _ if self.is_own_postmaster(mailbox) => &self.home,
            Domain::Name(domain) => domain,
            Domain::Literal(address) if self.is_own_address(address) => &self.home,
            _ => "",
        }
    }

    /// The local networks.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.networks.iter().map(|(net, _)| *net)
    }

    /// The addresses of this gate that the configuration names.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The lists, with their overlaps settled.
    pub fn lists(&self) -> &Compiled {
        &self.lists
    }

    /// The rule of a list, by its place in the configuration.
    pub fn list_rule(&self, list: u16) -> Option<Rule> {
        self.list_rules.get(usize::from(list)).copied()
    }

    /// The rule of a DNS list, by its place in the configuration.
    pub fn zone_rule(&self, zone: usize) -> Rule {
        self.zone_rules.get(zone).copied().unwrap_or(Rule::DNSBL)
    }
}

fn list_rules(lists: &Compiled) -> Vec<Rule> {
    let lists = lists.lists.iter();
    lists
        .map(|list| Rule::of_list(list.action, &list.name))
        .collect()
}

fn zone_rules(dnsbl: &Dnsbl) -> Vec<Rule> {
    let zones = dnsbl.zones.iter();
    zones.map(|zone| Rule::of_zone(&zone.name)).collect()
}
