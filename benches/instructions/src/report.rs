//! The table for people and the JSON for machines, and for the comparison with another build.

use std::fmt;

use portcullis_benches::machine::{Machine, commit, version_of};
use portcullis_benches::results::circumstances;
use portcullis_benches::table::Table;
use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;

/// How much more a unit may cost than in the build that is compared with, in percent.
const CHANGE_MAX: f64 = 5.0;

/// What a unit of a scenario costs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) scenario: Scenario,
    /// Instructions of the worker per unit.
    pub(crate) instructions: f64,
    /// Calls of the allocator for new or more memory per unit.
    pub(crate) allocations: f64,
    /// Operations of the kernel that it submits per unit.
    pub(crate) operations: f64,
    /// Batches per unit: less than one where clients are served together.
    pub(crate) batches: f64,
}

/// What is written as JSON, and read again as the other build's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    pub(crate) commit: String,
    pub(crate) costs: Vec<Cost>,
}

/// Everything that a run has to say.
pub(crate) struct Report {
    machine: Machine,
    pub(crate) costs: Costs,
    other: Option<Costs>,
}

impl Report {
    pub(crate) fn new(costs: Vec<Cost>, other: Option<Costs>) -> Self {
        let commit = commit();
        Self {
            machine: Machine::describe(),
            costs: Costs { commit, costs },
            other,
        }
    }

    /// Whether a scenario costs more than it may, beside the other build.
    pub(crate) fn misses_a_bar(&self) -> bool {
        let changes = self.costs.costs.iter().filter_map(|cost| self.change(cost));
        changes.into_iter().any(|(_, change)| change > CHANGE_MAX)
    }

    /// The other build's cost, and how many more instructions this one's are, in percent.
    fn change(&self, cost: &Cost) -> Option<(&Cost, f64)> {
        let others = &self.other.as_ref()?.costs;
        let other = others
            .iter()
            .find(|other| other.scenario == cost.scenario)?;
        Some((
            other,
            (cost.instructions / other.instructions - 1.0) * 100.0,
        ))
    }

    fn notes(&self) -> Vec<(&'static str, String)> {
        let mut notes = vec![
            (
                "instructions",
                "the worker's own (callgrind), those of the driver and the kernel not".to_owned(),
            ),
            (
                "allocations",
                "its calls of the allocator for new or more memory".to_owned(),
            ),
            (
                "operations",
                "what it submits to the kernel: sends, receives, accepts, closes and the like"
                    .to_owned(),
            ),
        ];
        if let Some(other) = &self.other {
            let commit = &other.commit;
            notes.push((
                "other build",
                format!("commit {commit}, where two: in brackets"),
            ));
        }
        notes
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = [
            version_of("valgrind", &["--version"]),
            version_of("rustc", &["-V"]),
        ];
        let circumstances = circumstances(&self.machine, &versions, &self.notes());
        writeln!(f, "{circumstances}")?;
        let mut titles = vec!["scenario", "by", "instructions"];
        if self.other.is_some() {
            titles.extend(["other build", "change", "bar"]);
        }
        titles.extend(["allocations", "operations", "batches"]);
        let mut table = Table::new(2, titles);
        for cost in &self.costs.costs {
            let change = self.change(cost);
            let other = change.map(|(other, _)| other);
            let mut row = vec![
                cost.scenario.title().to_owned(),
                cost.scenario.unit().to_owned(),
                format!("{:.0}", cost.instructions),
            ];
            if let Some((other, change)) = change {
                let verdict = if change > CHANGE_MAX {
                    "MISSED"
                } else {
                    "pass"
                };
                row.extend([
                    format!("{:.0}", other.instructions),
                    format!("{change:+.1} %"),
                    format!("<= +{CHANGE_MAX:.0} % {verdict}"),
                ]);
            }
            let figures: [fn(&Cost) -> f64; 3] = [
                |cost| cost.allocations,
                |cost| cost.operations,
                |cost| cost.batches,
            ];
            row.extend(figures.map(|figure| match other {
                Some(other) => format!("{:.2} ({:.2})", figure(cost), figure(other)),
                None => format!("{:.2}", figure(cost)),
            }));
            table.row(row);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(this: f64, other: f64) -> Report {
        let cost = |instructions| {
            vec![Cost {
                scenario: Scenario::Noop,
                instructions,
                allocations: 1.0,
                operations: 1.0,
                batches: 1.0,
            }]
        };
        let other = Costs {
            commit: String::new(),
            costs: cost(other),
        };
        Report::new(cost(this), Some(other))
    }

    #[test]
    fn a_build_that_costs_a_tenth_more_misses_the_bar_and_one_that_costs_less_does_not() {
        assert!(report(1_100.0, 1_000.0).misses_a_bar());
        assert!(!report(900.0, 1_000.0).misses_a_bar());
    }
}
