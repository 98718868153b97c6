//! Is this machine able to run the gate? What `portcullis doctor` looks at, before an error at the
//! start says it.
//!
//! Nothing is changed by looking: no program is put on an interface (some drivers drop their link
//! for that) and no port is listened on, so that it can be asked beside a gate that serves.
//!
//! What can be tried without that is tried rather than judged ([`rehearse`]): rings, threads and
//! the change of the user are taken in the order of a start, by its own code, so that `doctor` and
//! `run` stay the same.

mod files;
mod machine;
mod network;
mod packets;
mod zones;

use std::fmt::Display;

use serde::Serialize;

use crate::config::{Config, FilterMode};
use crate::control::rehearsal;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The gate runs, but not as well as it could.
    Warning,
    /// The gate does not run.
    Problem,
}

/// What was looked at, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` if all is well.
    pub next_step: Option<String>,
}

impl Finding {
    fn ok(subject: impl Display, found: impl Display) -> Self {
        Self {
            subject: subject.to_string(),
            level: Level::Ok,
            found: found.to_string(),
            next_step: None,
        }
    }

    fn warning(subject: impl Display, found: impl Display, next_step: impl Display) -> Self {
        Self {
            level: Level::Warning,
            next_step: Some(next_step.to_string()),
            ..Self::ok(subject, found)
        }
    }

    fn problem(subject: impl Display, found: impl Display, next_step: impl Display) -> Self {
        Self {
            level: Level::Problem,
            ..Self::warning(subject, found, next_step)
        }
    }
}

/// Looks at everything that this configuration needs.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![machine::kernel()];
    if !config.listeners.is_empty() {
        findings.push(machine::ring());
        findings.push(machine::descriptors(config));
        findings.push(network::backlog());
    }
    let answers =
        |filter: &crate::config::Filter| filter.mode == FilterMode::Enforce && filter.syn_cookies;
    let filter_answers = config.filter.as_ref().is_some_and(answers);
    // A filter may stand before a server that is not this gate.
    if !config.listeners.is_empty() || filter_answers {
        findings.push(network::syn_cookies(filter_answers));
    }
    findings.extend(network::ports(config));
    findings.extend(machine::user(config));
    findings.extend(network::access(config));
    match &config.filter {
        Some(filter) if filter.mode != FilterMode::Off => {
            findings.extend(packets::filter(filter));
            findings.extend(packets::unconfigured(config));
        }
        _ => match packets::unconfigured(config) {
            found if found.is_empty() => {
                findings.push(Finding::ok("filter", "none is configured, or it is off"));
            }
            found => findings.extend(found),
        },
    }
    findings.extend(zones::zones(config));
    findings.extend(lists(config));
    findings
}

/// A start with files of lists that cannot be used takes the lists of the last compile.
fn lists(config: &Config) -> Option<Finding> {
    config.lists.are_old.then(|| {
        Finding::warning(
            "lists",
            config.lists.fallback.join("; "),
            "correct the files: a running gate notices it; a start before that uses the old lists",
        )
    })
}

/// Starts as the gate does, but listens nowhere and serves nothing; then looks at the files that
/// are needed later. To be called last: this process is the user of the configuration from then on,
/// for good.
pub fn rehearse(config: &Config) -> Vec<Finding> {
    let is_missing = files::will_be_made(config);
    match rehearsal::start(config) {
        Ok(()) => {
            let mut findings = vec![Finding::ok(
                "start",
                "rings and threads can be created, and the gate can become the user",
            )];
            findings.extend(files::files(config, is_missing));
            findings
        }
        Err(error) => vec![Finding::problem(
            "start",
            error,
            "look at the problems above, and at the limits of this process (ulimit -a)",
        )],
    }
}

/// The number in a file of /proc/sys.
fn setting(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_gate_can_run_wherever_it_is_tested() {
        let findings = examine(&Config::default_gate());
        let problems: Vec<_> = findings
            .iter()
            .filter(|finding| finding.level == Level::Problem)
            .collect();
        assert!(problems.is_empty(), "{problems:#?}");
    }

    #[test]
    fn whatever_is_not_well_comes_with_a_next_step() {
        for finding in examine(&Config::default_gate()) {
            assert_eq!(
                finding.level == Level::Ok,
                finding.next_step.is_none(),
                "{finding:?}"
            );
        }
    }
}
