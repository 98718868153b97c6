//! The tables, one function for each measurement: what was done, then the figures.

use std::fmt::Write as _;

use portcullis_benches::figures::Spread;
use portcullis_benches::table::Table;

use super::{HELD, of_flood, of_verdict, thousands};
use crate::flood::FloodResult;
use crate::loading::LoadingResult;
use crate::syn_flood::{self, Names};
use crate::traffic::Family;
use crate::verdicts::{self, VerdictResult};

pub(super) const MEBI: f64 = 1_048_576.0;

pub(super) fn scaled(spread: Spread, unit: f64) -> Spread {
    Spread {
        median: spread.median / unit,
        min: spread.min / unit,
        max: spread.max / unit,
    }
}

pub(super) fn verdicts(results: &[VerdictResult]) -> String {
    let names: Vec<&str> = verdicts::CONTESTANTS
        .into_iter()
        .filter(|name| results.iter().any(|result| result.of(name).is_some()))
        .collect();
    let titles = ["entries, sources"]
        .into_iter()
        .chain(names.clone())
        .chain(["over bare"]);
    let mut table = Table::new(1, titles);
    for result in results {
        let mut row = vec![of_verdict(result)];
        for name in &names {
            let cost = result.of(name);
            row.push(cost.map_or_else(String::new, |cost| cost.nanoseconds.cell(0)));
        }
        let this = result.of(verdicts::PORTCULLIS);
        row.extend(this.map(|cost| cost.over_bare.cell(2)));
        table.row(row);
    }
    let mut text = format!(
        "Nanoseconds a packet: BPF_PROG_TEST_RUN, a new source for every packet. What the \
         generator\ncosts is taken off, what the call costs (\"empty\") is not. What 250 sources \
         need stays in the\ncore's caches. Over bare: portcullis, same round.\n\n{table}"
    );
    if let Some(growth) = growth(results) {
        let _ = write!(text, "\n{growth}");
    }
    if results.iter().any(|result| result.over_other().is_some()) {
        let _ = write!(text, "\n{}", builds(results));
    }
    text
}

/// This build beside the other one.
fn builds(results: &[VerdictResult]) -> Table {
    let mut table = Table::new(
        1,
        [
            "a verdict of this build over the other's",
            "ratio",
            "so it is",
        ],
    );
    for result in results {
        if let Some(ratio) = result.over_other() {
            table.row([
                of_verdict(result).as_str(),
                &ratio.cell(2),
                ratio.beside_one(),
            ]);
        }
    }
    table
}

/// How much more a warm verdict costs with the most entries than with the fewest, contestant by
/// contestant.
fn growth(results: &[VerdictResult]) -> Option<Table> {
    let mut warm = results
        .iter()
        .filter(|result| result.is_warm() && result.hit && result.family == Family::Ipv4);
    let fewest = warm.next()?;
    let most = warm.next_back()?;
    let mut table = Table::new(
        1,
        [
            format!("250 listed sources, {} entries", thousands(most.entries)),
            format!("over {}", thousands(fewest.entries)),
        ],
    );
    for cost in &most.contestants {
        let before = fewest.of(cost.name)?.nanoseconds.median;
        let ratio = format!("{:.2}", cost.nanoseconds.median / before);
        table.row([cost.name, &ratio]);
    }
    Some(table)
}

pub(super) fn loading(result: &LoadingResult) -> String {
    let mut table = Table::new(1, ["", "seconds", "MiB"]);
    for (name, loading) in [
        ("text to in force (filter attach)", &result.text),
        ("text to snapshot file (lists compile)", &result.compile),
        (
            "snapshot file to in force (filter attach)",
            &result.snapshot,
        ),
    ] {
        let memory = scaled(loading.memory_peak, MEBI);
        table.row([name, &loading.seconds.cell(2), &memory.cell(0)]);
    }
    format!(
        "{} /32s: the gateway's commands from start to end, files in the page cache. Memory: all \
         that\nwas ever resident, the kernel's maps included.\n\n{table}\n\
         The maps have {:.0} MiB, the file {:.0} MiB; the call that exchanges them takes {} us.\n",
        thousands(result.entries),
        result.map_size as f64 / MEBI,
        result.file_size as f64 / MEBI,
        result.swap_us.cell(0)
    )
}

pub(super) fn floods(results: &[FloodResult]) -> String {
    let mut text = "Millions of packets dropped in a second: live frames over a veth, made, \
                    delivered and dropped on\none core. With random sources what is on no list is \
                    dropped, and both passes have the same\nsources. What a lookup for sources of \
                    all IPv4 reads does not fit the caches.\n"
        .to_owned();
    for result in results {
        let title = of_flood(result);
        let titles = [
            title.as_str(),
            "first pass",
            "warm",
            "over bare",
            "limited to",
        ];
        let mut table = Table::new(1, titles);
        for figures in &result.contestants {
            let millions = |spread| scaled(spread, 1e6).cell(2);
            let entries = |entries| format!("{} entries", thousands(entries));
            table.row([
                figures.name.to_owned(),
                figures.first_pass.map_or_else(String::new, millions),
                millions(figures.warm),
                figures.over_bare.cell(2),
                figures.limited_to.map_or_else(String::new, entries),
            ]);
        }
        let _ = write!(text, "\n{table}");
    }
    text
}

pub(super) fn syn_floods(turns: &[syn_flood::Turn]) -> String {
    let mut table = Table::new(
        2,
        [
            "defence",
            "names",
            "SYNs/s",
            "connects/s",
            "worst, ms",
            "gave up",
            "over calm",
            "cookies by XDP",
        ],
    );
    for turn in turns {
        table.row([
            turn.defence.name().to_owned(),
            turn.names.name().to_owned(),
            thousands(turn.flood as u32),
            format!("{:.0}", turn.connects),
            format!("{:.1}", turn.worst * 1e3),
            turn.failed.to_string(),
            turn.over_calm.cell(2),
            turn.cookies.to_string(),
        ]);
    }
    let mut text = format!(
        "Honest clients beside a flood of SYNs with forged sources, one core each: connections a \
         second,\nthe longest wait, those that gave up. Over calm: the same defence with no \
         flood.\n\n{table}"
    );
    let held = turns
        .iter()
        .filter(|turn| turn.defence == syn_flood::Defence::Kernel)
        .filter(|turn| turn.names == Names::Random);
    if held.clone().all(|turn| turn.over_calm.median >= HELD) {
        let most = held.map(|turn| turn.flood).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\nThe kernel alone held {HELD} of its calm rate up to {:.1} million SYNs/s.",
            most / 1e6
        );
    }
    text
}
