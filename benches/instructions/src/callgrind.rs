//! Runs a scenario under valgrind's callgrind and reads how many instructions it counted.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_benches::interrupt;

use crate::counted::TOGGLES;
use crate::scenario::Scenario;
use crate::world::Work;

/// Counts the worker's instructions, and what it has the driver do, in one run of this program; the profile goes to `directory`.
///
/// # Errors
/// If valgrind is not there, the run fails, or nothing was counted.
pub(crate) fn count(scenario: Scenario, units: u32, directory: &Path) -> Result<(u64, Work)> {
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
    let instructions = totals(&String::from_utf8_lossy(&text));
    let instructions = instructions.context("callgrind's profile has no totals")?;
    ensure!(
        instructions > 0,
        "callgrind counted nothing: the program was built without its symbols"
    );
    Ok((instructions, serde_json::from_slice(&output.stdout)?))
}

/// The line `totals:` of a profile.
fn totals(profile: &str) -> Option<u64> {
    let line = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::totals;

    #[test]
    fn the_totals_of_a_profile_are_found() {
        assert_eq!(
            totals("events: Ir\nfn=(1) a\n1 5\ntotals: 1234\n"),
            Some(1234)
        );
        assert_eq!(totals("events: Ir\n"), None);
    }
}
