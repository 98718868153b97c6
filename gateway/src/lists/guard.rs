//! The guard: a list that lost much at once has probably lost it on the way, and a gate that takes it opens itself.
//!
//! Downloads end early, disks fill up, a provider puts an error page where the list was. What was in force before is then
//! better than what is there now, however old it is; whether it was meant, only a person can say. The measure is the
//! number of entries, which costs nothing to keep. Rejected: to compare the entries themselves (a list that is replaced by as
//! many others is the business of whoever provides it).

use core::fmt;

use super::List;

/// Percent of its entries that a list may lose, unless the configuration says otherwise.
pub const SHRINK_MAX: u8 = 50;

/// With this the guard is off.
pub const OFF: u8 = 100;

/// A list that lost too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its name.
    pub list: String,
    /// How many entries it had.
    pub before: u64,
    /// How many it would have.
    pub after: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss {
            list,
            before,
            after,
        } = self;
        write!(f, "list {list} ({before} -> {after} entries)")
    }
}

/// The lists that are empty and were not, or lost more than `shrink_max` percent of their entries. A list
/// that is new or gone is the business of whoever wrote the configuration.
pub fn losses(before: &[List], after: &[List], shrink_max: u8) -> Vec<Loss> {
    if shrink_max >= OFF {
        return Vec::new();
    }
    let mut losses = Vec::new();
    for old in before {
        let Some(new) = after.iter().find(|new| new.name == old.name) else {
            continue;
        };
        let (before, after) = (old.entries, new.entries);
        let lost = u128::from(before.saturating_sub(after));
        if (after == 0 && before > 0) || lost * 100 > u128::from(before) * u128::from(shrink_max) {
            losses.push(Loss {
                list: old.name.clone(),
                before,
                after,
            });
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::super::ListAction;
    use super::*;

    fn lists<const N: usize>(counts: [(&str, u64); N]) -> [List; N] {
        counts.map(|(name, entries)| List {
            name: name.to_owned(),
            action: ListAction::Drop,
            entries,
            ipv6_entries: 0,
            file: None,
        })
    }

    #[test]
    fn a_list_that_lost_too_much_is_told_and_one_that_grew_is_not() {
        let cases = [
            (100, 50, 50, false),
            (100, 49, 50, true),
            (100, 101, 0, false),
            (100, 99, 0, true),
            (1, 0, 99, true),
            (0, 0, 0, false),
            (0, 1_000, 50, false),
            (u64::MAX, 0, 50, true),
            (u64::MAX, u64::MAX, 50, false),
            (100, 0, OFF, false),
        ];
        for (before, after, shrink_max, is_loss) in cases {
            let losses = losses(
                &lists([("drop", before)]),
                &lists([("drop", after)]),
                shrink_max,
            );
            assert_eq!(
                !losses.is_empty(),
                is_loss,
                "{before} -> {after}, {shrink_max}"
            );
        }
    }

    #[test]
    fn lists_are_compared_by_name_and_not_by_place() {
        let before = lists([("a", 10), ("b", 1_000), ("gone", 5)]);
        let after = lists([("new", 0), ("b", 1_000), ("a", 4)]);
        let losses = losses(&before, &after, 50);
        let told: Vec<String> = losses.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["list a (10 -> 4 entries)"]);
    }
}
