//! The tables for people, the bars, and the JSON for machines.

use std::fmt;

use portcullis_benches::figures::Spread;
use portcullis_benches::machine::{Machine, version_of};
use serde::Serialize;

use crate::flood::{self, Sources};
use crate::traffic::Family;
use crate::{Options, verdicts};

/// Everything that a run has to say.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    versions: Vec<String>,
    rounds: u32,
    /// Too short to be quoted.
    quick: bool,
    verdicts: Vec<verdicts::Outcome>,
    floods: Vec<flood::Outcome>,
    bars: Vec<Bar>,
}

/// A figure that was agreed on (design.md, "Figures to reach").
#[derive(Debug, Serialize)]
struct Bar {
    what: String,
    value: Spread,
    /// The most it may be, or the least.
    limit: f64,
    at_least: bool,
    pass: bool,
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
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        machine: Machine,
        verdicts: Vec<verdicts::Outcome>,
        floods: Vec<flood::Outcome>,
    ) -> Self {
        let mut bars = verdict_bars(options, &verdicts);
        bars.extend(floods.iter().flat_map(flood_bars));
        Self {
            machine,
            versions: vec![
                version_of("nft", &["--version"]),
                version_of("xdp-filter", &["load", "--version"]),
            ],
            rounds: options.rounds(),
            quick: options.quick,
            verdicts,
            floods,
            bars,
        }
    }

    pub(crate) fn misses_a_bar(&self) -> bool {
        self.bars.iter().any(|bar| !bar.pass)
    }
}

/// The ratio to the bare program with warm caches, for every size; how much of it growth is shows beside each other.
fn verdict_bars(options: &Options, verdicts: &[verdicts::Outcome]) -> Vec<Bar> {
    let warm = verdicts.iter().filter(|outcome| outcome.is_warm());
    let bars = warm.filter_map(|outcome| {
        let gate = outcome.of(verdicts::GATE)?;
        let title = format!("a verdict over bare, {}", of_verdict(outcome));
        Some(Bar::at_most(title, gate.over_bare, 1.5))
    });
    let _ = options;
    bars.collect()
}

fn flood_bars(outcome: &flood::Outcome) -> Vec<Bar> {
    let Some(gate) = outcome.of(verdicts::GATE) else {
        return Vec::new();
    };
    match outcome.sources {
        Sources::Listed => {
            let over_nftables = outcome.of(flood::NFTABLES).and_then(|nftables| {
                let rounds = gate.rounds.iter().zip(&nftables.rounds);
                Spread::of(rounds.map(|(gate, nftables)| gate.warm / nftables.warm))
            });
            let title = "flood, listed sources, over";
            over_nftables
                .map(|ratio| Bar::at_least(format!("{title} nftables"), ratio, 4.0))
                .into_iter()
                .chain([Bar::at_least(
                    format!("{title} bare XDP_DROP"),
                    gate.over_bare,
                    0.85,
                )])
                .collect()
        }
        Sources::Random => vec![Bar::at_least(
            "flood, random sources, warm, over bare XDP_DROP",
            gate.over_bare,
            0.7,
        )],
    }
}

fn of_verdict(outcome: &verdicts::Outcome) -> String {
    format!(
        "{} {}, {} {}",
        thousands(outcome.entries),
        match outcome.family {
            Family::Ipv4 => "IPv4 /32s",
            Family::Ipv6 => "IPv6 /64s",
        },
        thousands(outcome.sources),
        if outcome.hit { "listed" } else { "unlisted" },
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine   {}", self.machine)?;
        writeln!(f, "versions  {}", self.versions.join("; "))?;
        writeln!(
            f,
            "figures   median (min-max) of {} rounds, in which the contestants take turns",
            self.rounds
        )?;
        if !self.verdicts.is_empty() {
            self.fmt_verdicts(f)?;
        }
        for outcome in &self.floods {
            fmt_flood(f, outcome)?;
        }
        writeln!(f, "\nbars")?;
        for bar in &self.bars {
            let relation = if bar.at_least { ">=" } else { "<=" };
            let verdict = if bar.pass { "pass" } else { "MISSED" };
            writeln!(
                f,
                "  {:<72} {:<18} {relation} {:.2} {verdict}",
                bar.what,
                cell(bar.value, 2),
                bar.limit
            )?;
        }
        if self.quick {
            writeln!(
                f,
                "\nA quick run shows that it works; its figures are not to be quoted."
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn fmt_verdicts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\ncost of a verdict in ns, and over the bare program's: BPF_PROG_TEST_RUN, a new source for every packet; the\n\
             generator's cost is taken off, the call's (\"empty\") is not; 1,000 sources stay in the core's caches"
        )?;
        for outcome in &self.verdicts {
            writeln!(f, "  {}", of_verdict(outcome))?;
            for cost in &outcome.contestants {
                writeln!(
                    f,
                    "    {:<24} {:>22}   {:<18}",
                    cost.name,
                    cell(cost.nanoseconds, 1),
                    cell(cost.over_bare, 2)
                )?;
            }
        }
        Ok(())
    }
}

fn fmt_flood(f: &mut fmt::Formatter<'_>, outcome: &flood::Outcome) -> fmt::Result {
    let entries = thousands(outcome.entries);
    match outcome.sources {
        Sources::Listed => writeln!(
            f,
            "\nflood dropped, millions/s, {entries} /32s, from 100,000 of them (live frames over a veth, made and dropped on one core)"
        )?,
        Sources::Random => writeln!(
            f,
            "\nflood dropped, millions/s, {entries} /32s, random sources on no list, which are dropped: first pass, second pass"
        )?,
    }
    for figures in &outcome.contestants {
        let million = |spread: Spread| Spread {
            median: spread.median / 1e6,
            min: spread.min / 1e6,
            max: spread.max / 1e6,
        };
        let first_pass = figures
            .first_pass
            .map_or_else(String::new, |spread| cell(million(spread), 2));
        let limit = figures.limited_to.map_or_else(String::new, |entries| {
            format!("has {} entries", thousands(entries))
        });
        writeln!(
            f,
            "    {:<24} {first_pass:>18} {:>18}   {:<18} {limit}",
            figures.name,
            cell(million(figures.warm), 2),
            cell(figures.over_bare, 2),
        )?;
    }
    Ok(())
}

fn cell(spread: Spread, decimals: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.decimals$} ({min:.decimals$}-{max:.decimals$})")
}

/// A number with its thousands apart.
fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(10_000_000), "10,000,000");
        assert_eq!(thousands(999), "999");
    }

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
