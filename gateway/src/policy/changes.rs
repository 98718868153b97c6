//! What a new policy decides otherwise than the old one, for the log of a reload.

use std::collections::BTreeSet;

use super::dnsbl::Zone;
use super::{Policy, Rule};

/// What differs in what is decided, in short sentences: rules that come or go, and what a listing
/// in a zone counts. Nothing, if a client cannot notice; what is *on* a list is not looked at.
pub fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let mut changes = Vec::new();
    let (before, after) = (rules(old), rules(new));
    let names = |rules: Vec<&Rule>| -> Vec<&str> {
        let mut names: Vec<_> = rules.iter().map(|rule| rule.name()).collect();
        names.sort_unstable();
        names
    };
    for name in names(after.difference(&before).collect()) {
        changes.push(format!("rule {name} (new)"));
    }
    for name in names(before.difference(&after).collect()) {
        changes.push(format!("rule {name} (removed)"));
    }
    changes.extend(zone_changes(old, new));
    let (before, after) = (old.drop_lists_refuse, new.drop_lists_refuse);
    if before != after {
        let refuse = if after { "refuse" } else { "do not refuse" };
        changes.push(format!("drop lists {refuse} sessions from now on"));
    }
    changes
}

/// The rules of lists and zones.
fn rules(policy: &Policy) -> BTreeSet<Rule> {
    let lists = policy.list_rules.iter();
    lists.chain(&policy.zone_rules).copied().collect()
}

fn zone_changes(old: &Policy, new: &Policy) -> Vec<String> {
    let mut changes = Vec::new();
    for zone in &new.dnsbl.zones {
        let same = |before: &&Zone| before.name == zone.name;
        let Some(before) = old.dnsbl.zones.iter().find(same) else {
            continue;
        };
        let (name, was, is) = (&zone.name, before.score, zone.score);
        if was != is {
            changes.push(format!("a listing in {name} scores {is} instead of {was}"));
        }
        if before.replies != zone.replies {
            changes.push(format!("other answers of {name} are a listing"));
        }
    }
    let (was, is) = (old.dnsbl.reject_at, new.dnsbl.reject_at);
    if was != is && !new.dnsbl.zones.is_empty() {
        changes.push(format!(
            "clients are refused at a score of {is} instead of {was}"
        ));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::{Compiled, ListAction};
    use crate::policy::Terms;
    use crate::policy::dnsbl::Dnsbl;

    fn policy(lists: &[(&str, ListAction)], zones: &[(&str, i32)], reject_at: i32) -> Policy {
        let list = |(name, action): &(&str, ListAction)| ((*name).to_owned(), *action, Vec::new());
        let zone = |(name, score): &(&str, i32)| Zone {
            name: (*name).into(),
            replies: Vec::new(),
            score: *score,
            test_entries: true,
        };
        Policy::new(Terms {
            lists: Compiled::new(lists.iter().map(list)),
            dnsbl: Dnsbl {
                zones: zones.iter().map(zone).collect(),
                reject_at,
            },
            ..Terms::default()
        })
    }

    #[test]
    fn a_reload_is_told_by_the_rules_that_come_and_go() {
        let old = policy(
            &[("spam", ListAction::Reject)],
            &[("a.example", 1), ("b.example", 1)],
            2,
        );
        let new = policy(
            &[("spam", ListAction::Drop)],
            &[("b.example", 3), ("c.example", 1)],
            3,
        );
        let expected = [
            "rule dnsbl:c.example (new)",
            "rule drop-list:spam (new)",
            "rule dnsbl:a.example (removed)",
            "rule reject-list:spam (removed)",
            "a listing in b.example scores 3 instead of 1",
            "clients are refused at a score of 3 instead of 2",
        ];
        assert_eq!(changes(&old, &new), expected);
        assert_eq!(changes(&new, &new), [""; 0]);
    }
}
