//! Whether the DNS lists answer, and are what they should be.

use super::Finding;
use crate::config::Config;
use crate::control::dnsbl::report::{self, ZoneReport, ZoneState};

/// Asks every zone that the configuration has; none of it keeps the gate from running.
pub(super) fn zones(config: &Config) -> Vec<Finding> {
    if config.policy.dnsbl().zones.is_empty() {
        return Vec::new();
    }
    match report::zones(config) {
        Ok(reports) => reports.iter().flat_map(findings).collect(),
        Err(error) => vec![Finding::problem(
            "DNS lists",
            format!("cannot be asked: {error}"),
            "look at the limits of this process (ulimit -a)",
        )],
    }
}

fn findings(report: &ZoneReport) -> Vec<Finding> {
    let subject = format!("DNS list {}", report.zone);
    let mut findings = vec![zone(&subject, report)];
    if report.state != ZoneState::Silent {
        findings.extend(report.failing.iter().map(|(server, error)| {
            Finding::warning(
                &subject,
                format!("the name server {server} does not answer for it: {error}"),
                "put it right, or take it out of dnsbl_policy.servers",
            )
        }));
    }
    findings
}

fn zone(subject: &str, report: &ZoneReport) -> Finding {
    match report.state {
        ZoneState::ListsAll => Finding::warning(
            subject,
            "it lists 127.0.0.1, which no list may, so most likely it lists everything: the gate \
             does not query it",
            "ask its operator, and remove it if it was abandoned; test_entries = false if it means \
             127.0.0.0/8",
        ),
        _ if report.lists_all_of_ipv6 => Finding::warning(
            subject,
            "it lists ::ffff:127.0.0.1 or ::1, which no list may, so most likely it lists all of \
             IPv6: the gate does not ask it about IPv6",
            "ask its operator; test_entries = false if it means them",
        ),
        ZoneState::Silent => {
            let errors = report.failing.iter();
            let errors: Vec<String> = errors
                .map(|(server, error)| format!("{server}: {error}"))
                .collect();
            Finding::warning(
                subject,
                format!("no answer ({})", errors.join("; ")),
                "is the name right, and do the name servers of dnsbl_policy.servers run?",
            )
        }
        ZoneState::Refuses => Finding::warning(
            subject,
            "it answers its test entry with an error: it refuses this resolver, or has been given \
             up",
            "ask it through a resolver of your own: lists refuse public ones",
        ),
        ZoneState::EntryMissing => Finding::warning(
            subject,
            "it does not list 127.0.0.2, as every list does",
            "is the name right? test_entries = false for a private list that lacks the entry",
        ),
        ZoneState::Well => Finding::ok(subject, "answers, and does not list everything"),
    }
}
