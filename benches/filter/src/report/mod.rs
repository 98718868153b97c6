//! What a run has to say: a part for each measurement, with its table and its bars, as Markdown for
//! people and for RESULTS.md; and the JSON for machines.

mod bars;
mod tables;

use std::fmt;

use anyhow::Result;
use portcullis_benches::machine::{Machine, commit_of_binary, version_of};
use portcullis_benches::results::{self, circumstances};
use portcullis_benches::table::Table;
use serde::Serialize;

use self::bars::Bar;
use crate::traffic::Family;
use crate::{Options, flood, loading, syn_flood, verdicts};

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) verdicts: Vec<verdicts::VerdictResult>,
    pub(crate) loading: Option<loading::LoadingResult>,
    pub(crate) floods: Vec<flood::FloodResult>,
    pub(crate) syn_floods: Vec<syn_flood::Turn>,
}

/// The same with the circumstances and the bars.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    versions: Vec<String>,
    rounds: u32,
    /// Too short to be quoted.
    quick: bool,
    measured: Measured,
    bars: Vec<Bar>,
    #[serde(skip)]
    parts: Vec<Part>,
}

/// A measurement: a section of RESULTS.md.
#[derive(Debug)]
struct Part {
    title: &'static str,
    text: String,
    bars: Vec<Bar>,
}

impl Report {
    pub(crate) fn new(options: &Options, machine: Machine, measured: Measured) -> Self {
        let parts = parts(&measured);
        let mut versions = vec![
            version_of("nft", &["--version"]),
            version_of("xdp-filter", &["load", "--version"]),
        ];
        if let Some(binary) = &options.against {
            versions.push(format!("other build: commit {}", commit_of_binary(binary)));
        }
        Self {
            machine,
            versions,
            rounds: options.rounds(),
            quick: options.quick,
            bars: parts.iter().flat_map(|part| part.bars.clone()).collect(),
            measured,
            parts,
        }
    }

    pub(crate) fn misses_a_bar(&self) -> bool {
        self.bars.iter().any(|bar| !bar.pass)
    }

    /// Puts each part into a section of its own.
    pub(crate) fn record(&self) -> Result<()> {
        for part in &self.parts {
            let body = format!("{}\n{part}", self.circumstances());
            results::record(part.title, &body)?;
        }
        Ok(())
    }

    fn circumstances(&self) -> Table {
        let figures = format!(
            "median (min-max) of {} rounds, in which the contestants take turns",
            self.rounds
        );
        circumstances(&self.machine, &self.versions, &[("figures", figures)])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.circumstances())?;
        for part in &self.parts {
            write!(f, "\n## {}\n\n{part}", part.title)?;
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

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.bars.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(1, ["bar", "", ""]);
        for bar in &self.bars {
            table.row([bar.what.clone(), bar.value.cell(2), bar.verdict()]);
        }
        write!(f, "\n{table}")
    }
}

fn parts(measured: &Measured) -> Vec<Part> {
    let mut parts = Vec::new();
    if !measured.verdicts.is_empty() {
        let has_other = measured.verdicts[0].of(verdicts::OTHER).is_some();
        parts.push(Part {
            title: if has_other {
                "Filter: verdicts, two builds in turns \
                 (`cargo xtask bench filter --only verdicts --against`)"
            } else {
                "Filter: verdicts (`cargo xtask bench filter --only verdicts`)"
            },
            text: tables::verdicts(&measured.verdicts),
            bars: bars::verdicts(&measured.verdicts),
        });
    }
    if let Some(loading) = &measured.loading {
        parts.push(Part {
            title: "Filter: lists (`cargo xtask bench filter --only loading`)",
            text: tables::loading(loading),
            bars: bars::loading(loading).into(),
        });
    }
    if !measured.floods.is_empty() {
        parts.push(Part {
            title: "Filter: floods (`cargo xtask bench filter --only flood`)",
            text: tables::floods(&measured.floods),
            bars: measured.floods.iter().flat_map(bars::flood).collect(),
        });
    }
    if !measured.syn_floods.is_empty() {
        parts.push(Part {
            title: "Filter: SYN floods (`cargo xtask bench filter --only syn-flood`)",
            text: tables::syn_floods(&measured.syn_floods),
            bars: bars::syn_floods(&measured.syn_floods),
        });
    }
    parts
}

/// A share of the connections with no flood that counts as holding out.
const HELD: f64 = 0.9;

fn of_verdict(result: &verdicts::VerdictResult) -> String {
    format!(
        "{} {}, {} {}",
        thousands(result.entries),
        match result.family {
            Family::Ipv4 => "IPv4 /32s",
            Family::Ipv6 => "IPv6 /64s",
        },
        thousands(result.sources),
        if result.hit { "listed" } else { "unlisted" },
    )
}

fn of_flood(result: &flood::FloodResult) -> String {
    let sources = match result.sources {
        flood::Sources::Near => "100,000 listed sources of one /15",
        flood::Sources::Scattered => "100,000 listed sources of all IPv4",
        flood::Sources::Random => "unlisted sources of all IPv4",
    };
    format!("{sources}, {} entries", thousands(result.entries))
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
}
