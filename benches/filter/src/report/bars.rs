//! The figures that were agreed on.

use portcullis_benches::figures::Spread;
use serde::Serialize;

use super::tables::{MEBI, scaled};
use super::{HELD, of_flood, of_verdict};
use crate::flood::{self, FloodResult, Sources};
use crate::loading::LoadingResult;
use crate::syn_flood::{self, Names};
use crate::verdicts::{self, VerdictResult};

/// A figure, and what it may be at most or at least.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bar {
    pub(super) what: String,
    pub(super) value: Spread,
    /// The most it may be, or the least.
    limit: f64,
    at_least: bool,
    pub(super) pass: bool,
}

impl Bar {
    fn at_most(what: impl Into<String>, value: Spread, limit: f64) -> Self {
        Self {
            what: what.into(),
            value,
            limit,
            at_least: false,
            pass: value.median <= limit,
        }
    }

    fn at_least(what: impl Into<String>, value: Spread, limit: f64) -> Self {
        Self {
            what: what.into(),
            value,
            limit,
            at_least: true,
            pass: value.median >= limit,
        }
    }

    /// The limit, and whether it is kept.
    pub(super) fn verdict(&self) -> String {
        let relation = if self.at_least { ">=" } else { "<=" };
        let verdict = if self.pass { "pass" } else { "MISSED" };
        format!("{relation} {:.2} {verdict}", self.limit)
    }
}

/// The ratio to the bare program with warm caches, for every size: so it shows whether it grows.
pub(super) fn verdicts(results: &[VerdictResult]) -> Vec<Bar> {
    let warm = results.iter().filter(|result| result.is_warm());
    warm.filter_map(|result| {
        let filter = result.of(verdicts::PORTCULLIS)?;
        let title = format!("verdict over bare, {}", of_verdict(result));
        Some(Bar::at_most(title, filter.over_bare, 1.5))
    })
    .collect()
}

pub(super) fn loading(result: &LoadingResult) -> [Bar; 2] {
    let title = "snapshot file to in force";
    let memory = result.snapshot.memory_peak;
    [
        Bar::at_most(format!("{title}, s"), result.snapshot.seconds, 1.0),
        Bar::at_most(format!("{title}, MiB"), scaled(memory, MEBI), 256.0),
    ]
}

pub(super) fn flood(result: &FloodResult) -> Vec<Bar> {
    let Some(filter) = result.of(verdicts::PORTCULLIS) else {
        return Vec::new();
    };
    let over_nftables = result.of(flood::NFTABLES).and_then(|nftables| {
        let rounds = filter.rounds.iter().zip(&nftables.rounds);
        Spread::of(rounds.map(|(filter, nftables)| filter.warm / nftables.warm))
    });
    let title = format!("flood, {}", of_flood(result));
    let bare = |limit| Bar::at_least(format!("{title}, over bare"), filter.over_bare, limit);
    match result.sources {
        Sources::Near => over_nftables
            .map(|ratio| Bar::at_least(format!("{title}, over nftables"), ratio, 4.0))
            .into_iter()
            .chain([bare(0.85)])
            .collect(),
        // Not one of the agreed figures; it is what a botnet looks like, so it is shown.
        Sources::Scattered => Vec::new(),
        Sources::Random => vec![bare(0.7)],
    }
}

/// The filter where the kernel alone does not hold out any more, and beside slow floods.
pub(super) fn syn_floods(turns: &[syn_flood::Turn]) -> Vec<Bar> {
    let fastest = fastest_syn_flood(turns).into_iter();
    fastest.chain(slow_syn_floods(turns)).collect()
}

/// At the highest rate of those at which the kernel alone does not hold out.
fn fastest_syn_flood(turns: &[syn_flood::Turn]) -> Option<Bar> {
    let (kernel, filter) = turns
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .rfind(|(kernel, _)| kernel.names == Names::Random && kernel.over_calm.median < HELD)?;
    let title = format!(
        "connects beside {:.1} million SYNs/s over calm, where the kernel alone has {:.2}",
        filter.flood / 1e6,
        kernel.over_calm.median
    );
    Some(Bar::at_least(title, filter.over_calm, HELD))
}

/// The filter beside a flood that costs its sender nothing, and in which every name is forged.
fn slow_syn_floods(turns: &[syn_flood::Turn]) -> impl Iterator<Item = Bar> {
    let of_filter = |turn: &&syn_flood::Turn| {
        turn.defence == syn_flood::Defence::Portcullis && turn.rate == syn_flood::SLOW
    };
    turns.iter().filter(of_filter).map(|turn| {
        let title = match turn.names {
            Names::Random => "connects beside 1,000 SYNs/s in random names, over calm",
            Names::Own => "connects beside 1,000 SYNs/s in the clients' own name, over calm",
        };
        Bar::at_least(title, turn.over_calm, HELD)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_missed_by_the_median_alone() {
        let spread = Spread {
            median: 1.4,
            min: 1.3,
            max: 9.0,
        };
        assert!(Bar::at_most("", spread, 1.5).pass);
        assert!(!Bar::at_least("", spread, 1.5).pass);
    }
}
