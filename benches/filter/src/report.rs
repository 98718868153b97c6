//! The tables for people, the bars, and the JSON for machines.

use std::fmt;

use portcullis_benches::figures::Spread;
use portcullis_benches::machine::{Machine, version_of};
use serde::Serialize;

use crate::flood::{self, Sources};
use crate::syn_flood::Names;
use crate::traffic::Family;
use crate::{Options, loading, syn_flood, verdicts};

/// Everything that a run has to say.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    versions: Vec<String>,
    rounds: u32,
    /// Too short to be quoted.
    quick: bool,
    verdicts: Vec<verdicts::Outcome>,
    loading: Option<loading::Outcome>,
    floods: Vec<flood::Outcome>,
    syn_floods: Vec<syn_flood::Turn>,
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
        loading: Option<loading::Outcome>,
        floods: Vec<flood::Outcome>,
        syn_floods: Vec<syn_flood::Turn>,
    ) -> Self {
        let mut bars = verdict_bars(&verdicts);
        bars.extend(loading.iter().flat_map(loading_bars));
        bars.extend(floods.iter().flat_map(flood_bars));
        bars.extend(syn_flood_bar(&syn_floods));
        bars.extend(slow_flood_bars(&syn_floods));
        Self {
            machine,
            versions: vec![
                version_of("nft", &["--version"]),
                version_of("xdp-filter", &["load", "--version"]),
            ],
            rounds: options.rounds(),
            quick: options.quick,
            verdicts,
            loading,
            floods,
            syn_floods,
            bars,
        }
    }

    pub(crate) fn misses_a_bar(&self) -> bool {
        self.bars.iter().any(|bar| !bar.pass)
    }
}

/// The ratio to the bare program with warm caches, for every size: so it shows whether it grows.
fn verdict_bars(verdicts: &[verdicts::Outcome]) -> Vec<Bar> {
    let warm = verdicts.iter().filter(|outcome| outcome.is_warm());
    warm.filter_map(|outcome| {
        let gate = outcome.of(verdicts::GATE)?;
        let title = format!("verdict over bare, {}", of_verdict(outcome));
        Some(Bar::at_most(title, gate.over_bare, 1.5))
    })
    .collect()
}

fn loading_bars(outcome: &loading::Outcome) -> [Bar; 2] {
    let title = "snapshot file to in force";
    let memory = outcome.snapshot.memory_peak;
    [
        Bar::at_most(format!("{title}, s"), outcome.snapshot.seconds, 1.0),
        Bar::at_most(format!("{title}, MiB"), scaled(memory, MEBI), 256.0),
    ]
}

fn flood_bars(outcome: &flood::Outcome) -> Vec<Bar> {
    let Some(gate) = outcome.of(verdicts::GATE) else {
        return Vec::new();
    };
    let over_nftables = outcome.of(flood::NFTABLES).and_then(|nftables| {
        let rounds = gate.rounds.iter().zip(&nftables.rounds);
        Spread::of(rounds.map(|(gate, nftables)| gate.warm / nftables.warm))
    });
    let entries = thousands(outcome.entries);
    let title = format!("flood, {}, {entries} entries", of_flood(outcome));
    let bare = |limit| Bar::at_least(format!("{title}, over bare"), gate.over_bare, limit);
    match outcome.sources {
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

/// The filter where the kernel alone does not hold out any more, at the highest rate of those.
fn syn_flood_bar(turns: &[syn_flood::Turn]) -> Option<Bar> {
    let (kernel, gate) = turns
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .rfind(|(kernel, _)| kernel.names == Names::Random && kernel.over_calm.median < HELD)?;
    let title = format!(
        "connects beside {:.1} million SYNs/s over calm, where the kernel alone has {:.2}",
        gate.flood / 1e6,
        kernel.over_calm.median
    );
    Some(Bar::at_least(title, gate.over_calm, HELD))
}

/// The filter beside a flood that costs its sender nothing, and in which every name is forged.
fn slow_flood_bars(turns: &[syn_flood::Turn]) -> Vec<Bar> {
    let of_gate = |turn: &&syn_flood::Turn| {
        turn.defence == syn_flood::Defence::Portcullis && turn.rate == syn_flood::SLOW
    };
    let bar = |turn: &syn_flood::Turn| {
        let title = match turn.names {
            Names::Random => "connects beside 1,000 SYNs/s in random names, over calm",
            Names::Own => "connects beside 1,000 SYNs/s in the clients' own name, over calm",
        };
        Bar::at_least(title, turn.over_calm, HELD)
    };
    turns.iter().filter(of_gate).map(bar).collect()
}

/// A share of the connections with no flood that counts as holding out.
const HELD: f64 = 0.9;

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

fn of_flood(outcome: &flood::Outcome) -> &'static str {
    match outcome.sources {
        Sources::Near => "100,000 listed sources of one /15",
        Sources::Scattered => "100,000 listed sources of all IPv4",
        Sources::Random => "unlisted sources of all IPv4",
    }
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
        if let Some(outcome) = &self.loading {
            fmt_loading(f, outcome)?;
        }
        for outcome in &self.floods {
            fmt_flood(f, outcome)?;
        }
        if !self.syn_floods.is_empty() {
            fmt_syn_floods(f, &self.syn_floods)?;
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

/// How much more a warm verdict costs with the most entries than with the fewest, contestant by
/// contestant.
fn growth(verdicts: &[verdicts::Outcome]) -> Option<String> {
    let mut warm = verdicts
        .iter()
        .filter(|outcome| outcome.is_warm() && outcome.hit && outcome.family == Family::Ipv4);
    let fewest = warm.next()?;
    let most = warm.next_back()?;
    let growths = most.contestants.iter().filter_map(|cost| {
        let before = fewest.of(cost.name)?.nanoseconds.median;
        let ratio = cost.nanoseconds.median / before;
        Some(format!("{} {ratio:.2}", cost.name))
    });
    Some(format!(
        "250 listed sources cost with {} entries, over what they cost with {}: {}",
        thousands(most.entries),
        thousands(fewest.entries),
        growths.collect::<Vec<_>>().join(", ")
    ))
}

impl Report {
    fn fmt_verdicts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nverdict, ns a packet: BPF_PROG_TEST_RUN, a new source for every packet; what the generator costs is taken off, what the\n\
             call costs (\"empty\") is not; what 250 sources need stays in the core's caches; over bare: portcullis, same round\n"
        )?;
        write!(f, "  {:<42}", "entries, sources")?;
        for (name, _) in verdicts::CONTESTANTS {
            write!(f, " {name:>20}")?;
        }
        writeln!(f, "   over bare")?;
        for outcome in &self.verdicts {
            write!(f, "  {:<42}", of_verdict(outcome))?;
            for (name, _) in verdicts::CONTESTANTS {
                let cost = outcome.of(name);
                let nanoseconds = cost.map_or_else(String::new, |cost| cell(cost.nanoseconds, 0));
                write!(f, " {nanoseconds:>20}")?;
            }
            let ratio = outcome.of(verdicts::GATE).map(|cost| cost.over_bare);
            writeln!(
                f,
                "   {}",
                ratio.map_or_else(String::new, |ratio| cell(ratio, 2))
            )?;
        }
        if let Some(growth) = growth(&self.verdicts) {
            writeln!(f, "\n  {growth}")?;
        }
        Ok(())
    }
}

fn fmt_loading(f: &mut fmt::Formatter<'_>, outcome: &loading::Outcome) -> fmt::Result {
    writeln!(
        f,
        "\nlists, {} /32s: the gateway's commands from start to end, files in the page cache; memory: all that was ever resident,\n\
         the kernel's maps included\n",
        thousands(outcome.entries)
    )?;
    writeln!(f, "  {:<42} {:>20} {:>24}", "", "seconds", "MiB")?;
    for (name, loading) in [
        ("text to in force (filter attach)", &outcome.text),
        ("text to snapshot file (lists compile)", &outcome.compile),
        (
            "snapshot file to in force (filter attach)",
            &outcome.snapshot,
        ),
    ] {
        writeln!(
            f,
            "  {name:<42} {:>20} {:>24}",
            cell(loading.seconds, 2),
            cell(scaled(loading.memory_peak, MEBI), 0)
        )?;
    }
    writeln!(
        f,
        "  the maps have {:.0} MiB, the file {:.0} MiB; the call that exchanges them takes {} us",
        outcome.map_size as f64 / MEBI,
        outcome.file_size as f64 / MEBI,
        cell(outcome.swap_us, 0)
    )
}

fn fmt_flood(f: &mut fmt::Formatter<'_>, outcome: &flood::Outcome) -> fmt::Result {
    let how = match outcome.sources {
        Sources::Near => {
            "a second; live frames over a veth, made, delivered and dropped on one core"
        }
        Sources::Scattered => "a second; what a lookup reads does not fit the caches (no bar)",
        Sources::Random => {
            "a second; what is on no list is dropped; both passes have the same sources"
        }
    };
    writeln!(
        f,
        "\nflood, {}, {} /32s: millions of packets dropped\n{how}\n",
        of_flood(outcome),
        thousands(outcome.entries)
    )?;
    writeln!(
        f,
        "  {:<24} {:>20} {:>20}   over bare",
        "", "first pass", "warm"
    )?;
    for figures in &outcome.contestants {
        let millions = |spread| cell(scaled(spread, 1e6), 2);
        let first_pass = figures.first_pass.map_or_else(String::new, millions);
        let limit = figures.limited_to.map_or_else(String::new, |entries| {
            format!("(has {} entries)", thousands(entries))
        });
        writeln!(
            f,
            "  {:<24} {first_pass:>20} {:>20}   {:<18} {limit}",
            figures.name,
            millions(figures.warm),
            cell(figures.over_bare, 2),
        )?;
    }
    Ok(())
}

fn fmt_syn_floods(f: &mut fmt::Formatter<'_>, turns: &[syn_flood::Turn]) -> fmt::Result {
    writeln!(
        f,
        "\nhonest clients beside a flood of SYNs with forged sources, one core each: connections a second, the longest wait, those\n\
         that gave up; over calm: the same defence with no flood\n"
    )?;
    writeln!(
        f,
        "  {:<14} {:<12} {:>10} {:>12} {:>12} {:>8} {:>16} {:>16}",
        "defence",
        "names",
        "SYNs/s",
        "connects/s",
        "worst, ms",
        "gave up",
        "over calm",
        "cookies by XDP"
    )?;
    for turn in turns {
        writeln!(
            f,
            "  {:<14} {:<12} {:>10} {:>12.0} {:>12.1} {:>8} {:>16} {:>16}",
            turn.defence.name(),
            turn.names.name(),
            thousands(turn.flood as u32),
            turn.connects,
            turn.worst * 1e3,
            turn.failed,
            cell(turn.over_calm, 2),
            turn.cookies
        )?;
    }
    let held = turns
        .iter()
        .filter(|turn| turn.defence == syn_flood::Defence::Kernel)
        .filter(|turn| turn.names == Names::Random);
    if held.clone().all(|turn| turn.over_calm.median >= HELD) {
        let most = held.map(|turn| turn.flood).fold(0.0, f64::max);
        writeln!(
            f,
            "  the kernel alone held {HELD} of its calm rate up to {:.1} million SYNs/s",
            most / 1e6
        )?;
    }
    Ok(())
}

const MEBI: f64 = 1_048_576.0;

fn scaled(spread: Spread, unit: f64) -> Spread {
    Spread {
        median: spread.median / unit,
        min: spread.min / unit,
        max: spread.max / unit,
    }
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
