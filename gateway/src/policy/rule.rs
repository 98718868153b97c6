//! The rules: what every decision is named after, in the log, in the metrics and in `explain`. The
//! names are stable; people have dashboards and scripts that hold them.

/// Which rule made a decision. Small and `Copy`; a rule of a list holds the list's place in the
/// configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Accepts a connection: the client is on no list and in no local network.
    Unlisted,
    /// Accepts a HELO or EHLO: no name makes a client local, and none is refused.
    AnyHello,
    /// Accepts a sender: no sender makes a client local, and none is refused.
    AnySender,
    /// Accepts: the client is in one of the local networks.
    LocalNetwork,
    /// Accepts: the recipient's domain is one of ours.
    LocalDomain,
    /// Accepts: the recipient's domain is an address literal that names this gate.
    OwnLiteral,
    /// Accepts: the postmaster of this gate (RFC 5321 section 4.5.1).
    Postmaster,
    /// Refuses: a stranger may not relay to anywhere else. The rule that keeps the relay closed.
    ClosedRelay,
    /// Refuses a stranger's recipient: `@a,@b:user@c`.
    SourceRoute,
    /// Refuses a stranger's recipient: `user%elsewhere@here`.
    PercentHack,
    /// Refuses a stranger's recipient: `elsewhere!user@here`.
    BangPath,
    /// Refuses a stranger's recipient: a second `@` outside of quotes.
    SecondAt,
    /// Refuses a stranger's recipient: a quoted local part that holds `@`, `%` or `!`.
    QuotedLocalPart,
    /// Refuses a stranger's recipient: `IMCEASMTP-user+40elsewhere@here`.
    EncapsulatedAddress,
    /// Refuses a stranger's recipient: an address literal that is not ours.
    ForeignLiteral,
    /// Refuses: no route of the configuration covers the recipient's domain.
    NoRoute,
    /// Defers: the transaction has another next hop already, and this recipient needs one of its
    /// own.
    OtherNextHop,
    /// Answered by the SMTP session itself: syntax, order of commands, limits.
    Protocol,
    /// Drops a packet: the filter passes only sources of permit lists.
    UnlistedDrop,
    /// Accepts a connection: the client is on this permit list.
    PermitList(u16),
    /// Refuses a connection (in the filter: drops the packet): the client is on this drop list.
    DropList(u16),
    /// Refuses a connection: the client is on this reject list.
    RejectList(u16),
    /// Refuses a recipient: DNS lists give the client too high a score, and this zone the most of
    /// it.
    Dnsbl(u16),
}

/// The rules that every configuration has, in the order of their [index](Rule::index).
const FIXED: [(Rule, &str); 19] = [
    (Rule::Unlisted, "unlisted"),
    (Rule::AnyHello, "any-hello"),
    (Rule::AnySender, "any-sender"),
    (Rule::LocalNetwork, "local-network"),
    (Rule::LocalDomain, "local-domain"),
    (Rule::OwnLiteral, "own-literal"),
    (Rule::Postmaster, "postmaster"),
    (Rule::ClosedRelay, "closed-relay"),
    (Rule::SourceRoute, "source-route"),
    (Rule::PercentHack, "percent-hack"),
    (Rule::BangPath, "bang-path"),
    (Rule::SecondAt, "second-at"),
    (Rule::QuotedLocalPart, "quoted-local-part"),
    (Rule::EncapsulatedAddress, "encapsulated-address"),
    (Rule::ForeignLiteral, "foreign-literal"),
    (Rule::NoRoute, "no-route"),
    (Rule::Protocol, "protocol"),
    (Rule::UnlistedDrop, "unlisted-drop"),
    (Rule::OtherNextHop, "other-next-hop"),
];

impl Rule {
    /// A dense number within its part of the names: the fixed rules with the lists behind them, or
    /// the zones.
    fn index(self) -> usize {
        match self {
            Rule::PermitList(list) | Rule::DropList(list) | Rule::RejectList(list) => {
                FIXED.len() + usize::from(list)
            }
            Rule::Dnsbl(zone) => usize::from(zone),
            Rule::Unlisted => 0,
            Rule::AnyHello => 1,
            Rule::AnySender => 2,
            Rule::LocalNetwork => 3,
            Rule::LocalDomain => 4,
            Rule::OwnLiteral => 5,
            Rule::Postmaster => 6,
            Rule::ClosedRelay => 7,
            Rule::SourceRoute => 8,
            Rule::PercentHack => 9,
            Rule::BangPath => 10,
            Rule::SecondAt => 11,
            Rule::QuotedLocalPart => 12,
            Rule::EncapsulatedAddress => 13,
            Rule::ForeignLiteral => 14,
            Rule::NoRoute => 15,
            Rule::Protocol => 16,
            Rule::UnlistedDrop => 17,
            Rule::OtherNextHop => 18,
        }
    }
}

/// The names of all rules under a configuration: the fixed ones, those of the lists, those of the
/// zones.
#[derive(Clone, Debug)]
pub(super) struct Names {
    names: Vec<String>,
    /// Where those of the zones begin.
    zones_from: usize,
}

impl Names {
    /// `of_lists` are the rules of the lists, in the order of the configuration: `drop-list:NAME`;
    /// `of_zones` those of the DNS lists: `dnsbl:ZONE`.
    pub(super) fn new(of_lists: Vec<String>, of_zones: Vec<String>) -> Names {
        let zones_from = FIXED.len() + of_lists.len();
        let fixed = FIXED.iter().map(|(_, name)| (*name).to_owned());
        Names {
            names: fixed.chain(of_lists).chain(of_zones).collect(),
            zones_from,
        }
    }

    pub(super) fn all(&self) -> &[String] {
        &self.names
    }

    /// A rule that another configuration made is named by its kind at least: after a reload a
    /// session may still hold a decision of the configuration before.
    pub(super) fn name(&self, rule: Rule) -> &str {
        let (before, zones) = self.names.split_at(self.zones_from);
        let part = if matches!(rule, Rule::Dnsbl(_)) {
            zones
        } else {
            before
        };
        match part.get(rule.index()) {
            Some(name) => name,
            None => match rule {
                Rule::PermitList(_) => "permit-list",
                Rule::DropList(_) => "drop-list",
                Rule::Dnsbl(_) => "dnsbl",
                _ => "reject-list",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rules_share_a_counter_or_a_name() {
        for (index, (rule, name)) in FIXED.iter().enumerate() {
            assert_eq!(rule.index(), index, "{name}");
            assert_eq!(FIXED.iter().filter(|(_, other)| other == name).count(), 1);
        }
        assert_eq!(Rule::DropList(0).index(), FIXED.len());
        assert_eq!(Rule::RejectList(3).index(), FIXED.len() + 3);
    }

    #[test]
    fn a_rule_of_another_configuration_is_not_given_the_name_of_another_kind() {
        let names = Names::new(vec!["drop-list:a".to_owned()], vec!["dnsbl:b".to_owned()]);
        assert_eq!(names.name(Rule::DropList(0)), "drop-list:a");
        assert_eq!(names.name(Rule::DropList(1)), "drop-list");
        assert_eq!(names.name(Rule::Dnsbl(0)), "dnsbl:b");
        assert_eq!(names.name(Rule::Dnsbl(1)), "dnsbl");
    }
}
