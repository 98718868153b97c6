//! `benches/RESULTS.md`: what the benches found when it was last worth recording.
//!
//! Only a bench writes it (`--record`), never a hand: each replaces its own sections, with the
//! machine, the versions and the date, and leaves the others as they are.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::machine::{Machine, commit};
use crate::table::Table;

/// Where it is in this checkout.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");

const PREAMBLE: &str = "\
# Results

The benches write this file (`cargo xtask bench ... --record`); do not edit it. A figure is worth
something only beside another one of the same run: ratios carry over to other machines, times do
not. Where there are several rounds, a figure is the median with the least and the greatest.
";

/// What a section says first: how the figures came about.
#[must_use]
pub fn circumstances(machine: &Machine, versions: &[String], notes: &[(&str, String)]) -> Table {
    let mut table = Table::new(2, ["", ""]);
    table.row(["date", &Timestamp::now().strftime("%Y-%m-%d").to_string()]);
    table.row(["commit", &commit()]);
    table.row(["machine", &machine.to_string()]);
    table.row(["versions", &versions.join("; ")]);
    for (name, value) in notes {
        table.row([*name, value]);
    }
    table
}

/// Puts a section in place of the one with this title, or at the end.
///
/// # Errors
/// If the file cannot be read or written.
pub fn record(title: &str, body: &str) -> Result<()> {
    let path = Path::new(PATH);
    let before = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => PREAMBLE.to_owned(),
        read => read.context(PATH)?,
    };
    fs::write(path, with_section(&before, title, body)).context(PATH)?;
    println!("recorded in {PATH}");
    Ok(())
}

fn with_section(document: &str, title: &str, body: &str) -> String {
    let heading = format!("## {title}\n");
    let section = format!("{heading}\n{}\n", body.trim());
    let is_begin = |at: &usize| *at == 0 || document[..*at].ends_with('\n');
    let begin = document
        .match_indices(&heading)
        .map(|(at, _)| at)
        .find(is_begin);
    let Some(begin) = begin else {
        return format!("{}\n\n{section}", document.trim_end());
    };
    let after = &document[begin + heading.len()..];
    match after.find("\n## ") {
        Some(end) => format!("{}{section}{}", &document[..begin], &after[end..]),
        None => format!("{}{section}", &document[..begin]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_replaces_its_own_section_and_no_other() {
        let first = with_section("# Results\n", "relay", "old\n\n### part\n");
        let both = with_section(&first, "relay, kept", "other");
        let replaced = with_section(&both, "relay", "new");
        assert_eq!(
            replaced,
            "# Results\n\n## relay\n\nnew\n\n## relay, kept\n\nother\n"
        );
        let last = with_section(&replaced, "relay, kept", "another");
        assert_eq!(last, replaced.replace("other", "another"));
    }
}
