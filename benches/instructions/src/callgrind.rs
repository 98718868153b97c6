//! Runs a scenario under valgrind's callgrind and reads its profile.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_benches::interrupt;

use crate::counted::TOGGLES;
use crate::scenario::Scenario;
use crate::world::Work;

/// The functions that users of the allocator call (mimalloc's part of `GlobalAlloc`, except
/// `mi_free`).
const ALLOCATE: [&str; 6] = [
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_realloc",
    "mi_realloc_aligned",
];

/// What was counted in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) instructions: u64,
    /// Calls of the allocator for new or more memory.
    pub(crate) allocations: u64,
    pub(crate) work: Work,
}

/// Counts what the worker does in one run of this program; the profile goes to `directory`.
///
/// # Errors
/// If valgrind is not there, the run fails, or nothing was counted.
pub(crate) fn count(scenario: Scenario, units: u32, directory: &Path) -> Result<Counts> {
    interrupt::check()?;
    let name = scenario.name();
    let profile = directory.join(format!("{name}-{units}.callgrind"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
    valgrind.args(TOGGLES.map(|pattern| format!("--toggle-collect={pattern}")));
    valgrind.arg(env::current_exe()?);
    valgrind.args(["--run", &name, "--units", &units.to_string()]);
    let output = interrupt::unblocked(|| valgrind.output())?;
    let output = output.context("cannot start valgrind (cargo xtask setup)")?;
    ensure!(
        output.status.success(),
        "{name}, {units} units: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let text = fs::read(&profile).with_context(|| profile.display().to_string())?;
    let text = String::from_utf8_lossy(&text);
    let instructions = totals(&text).context("callgrind's profile has no totals")?;
    ensure!(
        instructions > 0,
        "callgrind counted nothing: the program was built without its symbols"
    );
    Ok(Counts {
        instructions,
        allocations: calls(&text, &ALLOCATE),
        work: serde_json::from_slice(&output.stdout)?,
    })
}

/// The line `totals:` of a profile.
fn totals(profile: &str) -> Option<u64> {
    let line = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok()
}

/// The number of calls of these functions together. A profile names a function once, as
/// `(NUMBER) NAME`, and by its number after that.
fn calls(profile: &str, wanted: &[&str]) -> u64 {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut is_wanted = false;
    let mut sum = 0;
    for line in profile.lines() {
        if let Some(calls) = line.strip_prefix("calls=") {
            let count = calls
                .split(' ')
                .next()
                .and_then(|count| count.parse::<u64>().ok());
            sum += count.filter(|_| is_wanted).unwrap_or_default();
            continue;
        }
        let called = line.strip_prefix("cfn=");
        let Some(function) = called.or_else(|| line.strip_prefix("fn=")) else {
            continue;
        };
        let (number, name) = function.split_once(' ').unwrap_or((function, ""));
        if !name.is_empty() {
            names.insert(number, name);
        }
        if called.is_some() {
            is_wanted = names.get(number).is_some_and(|name| wanted.contains(name));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_a_profile_are_found() {
        assert_eq!(
            totals("events: Ir\nfn=(1) a\n1 5\ntotals: 1234\n"),
            Some(1234)
        );
        assert_eq!(totals("events: Ir\n"), None);
    }

    #[test]
    fn calls_are_found_where_a_function_is_named_and_where_it_has_its_number() {
        let profile = "\
fn=(1) worker
1 5
cfn=(2) mi_malloc
calls=3 0
1 50
cfn=(3) mi_free
calls=100 0
fn=(2)
1 7
fn=(4) mi_realloc
1 7
fn=(5) reply
cfn=(2)
calls=20 0
1 9
cfn=(4)
calls=1 0
";
        assert_eq!(calls(profile, &["mi_malloc", "mi_realloc"]), 24);
    }
}
