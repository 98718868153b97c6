//! Whether the user that the gate becomes can use what it needs later.

use super::Finding;
use crate::config::Config;
use crate::control::files::{self, Unusable};

/// Whether the state directory is missing, and a start by this user, which has to be asked before
/// it is another, would make it.
pub(super) fn will_be_made(config: &Config) -> bool {
    nix::unistd::geteuid().is_root() && files::needs_state(config) && !config.state_dir.exists()
}

/// Looks at them as the user that this process is.
pub(super) fn files(config: &Config, state_dir_will_be_made: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for unusable in files::unusable(config) {
        if state_dir_will_be_made && unusable.what == "state_dir" {
            let found = format!(
                "{} is missing; the gate makes it at its start",
                unusable.path.display()
            );
            findings.push(Finding::ok("state_dir", found));
        } else {
            findings.push(finding(&unusable));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "files",
            "the gate can use all files that it needs later",
        ));
    }
    findings
}

fn finding(unusable: &Unusable) -> Finding {
    let Unusable {
        what,
        path,
        problem,
        consequence,
        next_step,
    } = unusable;
    let found = format!("{}: {problem}; {consequence}", path.display());
    Finding::warning(what, found, next_step)
}
