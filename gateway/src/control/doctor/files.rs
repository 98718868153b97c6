//! Whether the user that the gate becomes can use what it needs later.

use super::Finding;
use crate::config::Config;
use crate::control::files::{self, Unusable};
use crate::control::user::User;

/// Becomes that user, and looks.
pub(super) fn files(config: &Config) -> Vec<Finding> {
    let may_make_it = nix::unistd::geteuid().is_root();
    let is_missing = files::needs_state(config) && !config.state_dir.exists();
    if let Some(name) = &config.user
        && let Ok(user) = User::find(name)
        && (may_make_it || user.is_taken_on())
        && let Err(error) = user.take_on(false)
    {
        return vec![Finding::problem(
            "user",
            error,
            "look at the capabilities of this process: it has to set its user and groups",
        )];
    }
    let mut findings = Vec::new();
    for unusable in files::unusable(config) {
        if is_missing && may_make_it && unusable.what == "state_dir" {
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
            "all can be used that will be needed later",
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
