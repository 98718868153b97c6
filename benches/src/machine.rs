//! What a run says about the machine that it ran on. No figure is worth anything without it.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde::Serialize;

/// The machine and the versions of what was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor as it calls itself.
    pub cpu: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Whether the processor says that it is a virtual one.
    pub virtualized: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The load average over the last minute before the run: how quiet the machine was.
    pub load_average: String,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn describe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value_of = |key: &str| {
            cpuinfo
                .lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        Self {
            cpu: value_of("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: thread::available_parallelism().map_or(1, NonZero::get),
            virtualized: value_of("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: first_line("/proc/sys/kernel/osrelease"),
            load_average: first_line("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let virtualized = if self.virtualized { " (virtual)" } else { "" };
        write!(
            f,
            "{}{virtualized}, {} cores, Linux {}, load average {}",
            self.cpu, self.cores, self.kernel, self.load_average
        )
    }
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

/// The commit that this checkout is at, and whether anything was changed since.
#[must_use]
pub fn commit() -> String {
    commit_at(Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// The same for the checkout in whose target directory a binary is.
#[must_use]
pub fn commit_of_binary(binary: &Path) -> String {
    binary
        .parent()
        .map_or_else(|| "unknown".to_owned(), commit_at)
}

/// With `-dirty` if anything but what benches record was changed since.
fn commit_at(directory: &Path) -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let output = git.arg("-C").arg(directory).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--",
        ":(top)",
        ":(top,exclude)benches/RESULTS.md",
    ]);
    let is_clean = changed.is_some_and(|changed| changed.is_empty());
    if is_clean {
        commit
    } else {
        format!("{commit}-dirty")
    }
}

/// The first line that a command prints about its version, wherever it prints it.
#[must_use]
pub fn version_of(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else {
        return format!("{program}: not found");
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or("unknown")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_outside_of_a_checkout_has_no_known_commit() {
        assert_eq!(commit_of_binary(Path::new("/proc/self/exe")), "unknown");
    }
}
