//! The state of the gate in the text format of Prometheus (version 0.0.4), a file for each subject.
//!
//! Written by hand: the client libraries want to own the counters, and ours belong to workers that
//! share nothing; what would be left of a library is the escaping of label values, ten lines.

mod auth;
mod dnsbl;
mod files;
mod filter;
mod gate;
mod grants;
mod next_hops;
mod text;

use self::text::Text;
use super::state::State;

/// The `Content-Type` of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of a state.
pub(super) fn render(state: &State) -> String {
    let mut text = Text::default();
    gate::process(&mut text, state);
    files::render(&mut text, state);
    gate::sessions(&mut text, state);
    auth::render(&mut text, &state.auth);
    next_hops::render(&mut text, state);
    dnsbl::render(&mut text, &state.dnsbl);
    if let Some(grants) = &state.grants {
        grants::render(&mut text, grants);
    }
    if let Some(filter) = &state.filter {
        filter::render(&mut text, filter);
    }
    text.into_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::dnsbl::{Dnsbl, Server, Trust, Zone};
    use super::super::grants::Report;
    use super::super::state::{Auth, AuthAttempts, NextHop, Transactions};
    use super::*;
    use crate::filter::{
        InterfaceStatus, ListStatus, Reasons, Status, TopSourceStatus, TopSources, Unread,
        VerdictCounts,
    };
    use crate::relay::hop::HopEvent;

    fn state() -> State {
        let interface = InterfaceStatus {
            name: "eth0".to_owned(),
            role: "edge",
            link: Some("ethernet"),
            xdp_mode: "driver",
            attached: true,
            present: true,
            current_name: None,
            unfiltered_since: None,
            unfiltered_reason: None,
            passed: 10,
            permitted: 1,
            granted: 22,
            over_budget: 6,
            other: 2,
            unread: Unread::new(|kind| if kind.name() == "esp" { 18 } else { 0 }),
            dropped: Reasons {
                listed: 3,
                unlisted: 4,
                ..Reasons::default()
            },
            resets: 13,
            syn_cookies: 14,
            answers_lost: true,
            hidden: 15,
            monitored: Reasons {
                listed: 5,
                ..Reasons::default()
            },
        };
        let list = ListStatus {
            name: "drop".to_owned(),
            action: "drop",
            entries: 7,
            dropped_packets: 8,
            permitted_packets: 0,
            monitored_packets: 9,
        };
        State {
            version: "1.2.3",
            records_lost: BTreeMap::from([("log", 21)]),
            recipients_refused: BTreeMap::from([("closed-relay".to_owned(), 11)]),
            commands_refused: BTreeMap::from([("sequence".to_owned(), 12)]),
            transactions: vec![Transactions {
                outcome: "accepted",
                rule: "local-network".to_owned(),
                count: 12,
            }],
            auth: Auth {
                attempts: vec![AuthAttempts {
                    mechanism: "SCRAM-SHA-256",
                    result: "refused",
                    count: 26,
                }],
                unasked: 27,
                dovecot_up: Some(true),
            },
            next_hops: vec![NextHop {
                address: "[2001:db8::1]:25".parse().unwrap(),
                up: true,
                open: 1,
                idle: 0,
                waiting: 0,
                failures_total: 2,
                events: [3; HopEvent::ALL.len()],
            }],
            dnsbl: Dnsbl {
                zones: vec![Zone {
                    zone: "bl.example".to_owned(),
                    listed: 13,
                    not_listed: 14,
                    silent: 15,
                    ignored: 16,
                    ipv4: Trust::InUse,
                    ipv6: Trust::SwitchedOff,
                    lists_test_entry: Some(true),
                    servers: vec![Server {
                        server: "192.0.2.53:53".parse().unwrap(),
                        answers: false,
                        failures: 17,
                    }],
                }],
                cache_hits: 17,
                ..Dnsbl::default()
            },
            admin_refused: 26,
            grants: Some(Report {
                number: 23,
                no_room: 24,
                lines: 30,
                logins: 25,
                ..Report::default()
            }),
            filter: Some(Status {
                pin_path: "/sys/fs/bpf/portcullis".into(),
                layout: 1,
                mode: "enforce",
                unlisted: "pass",
                ports: vec![25],
                generation: 1,
                interfaces: vec![interface],
                lists: vec![list],
                verdicts: VerdictCounts {
                    number: 16,
                    by_operator: 19,
                    no_room: 20,
                    evicted: 17,
                    ..VerdictCounts::default()
                },
                top_sources: TopSources {
                    watched: true,
                    age_seconds: Some(0),
                    sources: vec![TopSourceStatus {
                        source: "2001:db8::/64".to_owned(),
                        recent_events: 18,
                        reason: "listed",
                        list: Some("drop".to_owned()),
                        interface: Some("eth0".to_owned()),
                        last_seconds_ago: 0,
                    }],
                },
            }),
            ..State::default()
        }
    }

    #[test]
    fn what_was_counted_is_told_under_its_name() {
        let text = render(&state());
        for line in [
            "portcullis_build_info{version=\"1.2.3\"} 1",
            "portcullis_lists_old 0",
            "portcullis_records_lost_total{reader=\"log\"} 21",
            "portcullis_recipients_refused_total{rule=\"closed-relay\"} 11",
            "portcullis_commands_refused_total{rule=\"sequence\"} 12",
            "portcullis_transactions_total{outcome=\"accepted\",rule=\"local-network\"} 12",
            "portcullis_auth_attempts_total{mechanism=\"SCRAM-SHA-256\",result=\"refused\"} 26",
            "portcullis_auth_unasked_total 27",
            "portcullis_auth_dovecot_up 1",
            "portcullis_next_hop_up{next_hop=\"[2001:db8::1]:25\"} 1",
            "portcullis_next_hop_failures_total{next_hop=\"[2001:db8::1]:25\"} 2",
            "portcullis_next_hop_tls_total{next_hop=\"[2001:db8::1]:25\",result=\"full\"} 3",
            "portcullis_next_hop_auth_total{next_hop=\"[2001:db8::1]:25\",result=\"refused\"} 3",
            "portcullis_next_hop_clients_unnamed_total{next_hop=\"[2001:db8::1]:25\"} 3",
            "portcullis_filter_passed_packets_total{interface=\"eth0\"} 10",
            "portcullis_filter_dropped_packets_total{interface=\"eth0\",reason=\"unlisted\"} 4",
            "portcullis_dnsbl_answers_total{zone=\"bl.example\",result=\"silent\"} 15",
            "portcullis_dnsbl_cache_hits_total 17",
            "portcullis_dnsbl_zone_in_use{zone=\"bl.example\",family=\"ipv4\"} 1",
            "portcullis_dnsbl_zone_in_use{zone=\"bl.example\",family=\"ipv6\"} 0",
            "portcullis_dnsbl_zone_switched_off{zone=\"bl.example\",family=\"ipv6\"} 1",
            "portcullis_dnsbl_server_up{zone=\"bl.example\",server=\"192.0.2.53:53\"} 0",
            "portcullis_dnsbl_server_failures_total{zone=\"bl.example\",\
             server=\"192.0.2.53:53\"} 17",
            "portcullis_filter_dropped_packets_total{interface=\"eth0\",reason=\"verdict\"} 0",
            "portcullis_filter_monitored_packets_total{interface=\"eth0\",reason=\"listed\"} 5",
            "portcullis_filter_over_budget_packets_total{interface=\"eth0\"} 6",
            "portcullis_filter_answers_lost{interface=\"eth0\"} 1",
            "portcullis_filter_resets_total{interface=\"eth0\"} 13",
            "portcullis_filter_syn_cookies_total{interface=\"eth0\"} 14",
            "portcullis_filter_hidden_packets_total{interface=\"eth0\"} 15",
            "portcullis_filter_unread_packets_total{interface=\"eth0\",encapsulation=\"esp\"} 18",
            "portcullis_filter_unread_packets_total{interface=\"eth0\",encapsulation=\"mpls\"} 0",
            "portcullis_filter_dropped_packets_total{interface=\"eth0\",reason=\"vlan-tags\"} 0",
            "portcullis_filter_granted_packets_total{interface=\"eth0\"} 22",
            "portcullis_admin_refused_total 26",
            "portcullis_grants 23",
            "portcullis_grant_changes_total{change=\"no-room\"} 24",
            "portcullis_grant_log_lines_total{kind=\"login\"} 25",
            "portcullis_grant_log_lines_total{kind=\"other\"} 5",
            "portcullis_filter_verdicts 16",
            "portcullis_filter_verdicts_by_operator 19",
            "portcullis_filter_verdict_changes_total{change=\"no-room\"} 20",
            "portcullis_filter_verdict_changes_total{change=\"evicted\"} 17",
            "portcullis_filter_top_source_events{source=\"2001:db8::/64\",reason=\"listed\",\
             list=\"drop\"} 18",
            "portcullis_filter_list_entries{list=\"drop\",action=\"drop\"} 7",
            "portcullis_filter_list_dropped_packets_total{list=\"drop\"} 8",
        ] {
            assert!(
                text.lines().any(|given| given == line),
                "{line} is not in\n{text}"
            );
        }
    }

    #[test]
    fn every_sample_stands_under_its_help_and_type_and_no_metric_comes_twice() {
        let text = render(&state());
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap();
                assert!(!seen.contains(&name), "{name} comes twice");
                seen.push(name);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(rest.starts_with(seen.last().unwrap()), "{line}");
                assert_eq!(
                    rest.ends_with(" counter"),
                    seen.last().unwrap().ends_with("_total"),
                    "{line}"
                );
            } else {
                assert_eq!(
                    line.split(['{', ' ']).next(),
                    seen.last().copied(),
                    "{line}"
                );
            }
        }
    }
}
