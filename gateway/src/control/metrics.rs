//! The state of the gate in the text format of Prometheus (version 0.0.4).
//!
//! Written by hand: the client libraries want to own the counters, and ours belong to workers that
//! share nothing; what would be left of a library is the escaping of label values, ten lines.

mod dnsbl;
mod files;

use std::fmt::{Display, Write as _};

use super::state::State;
use crate::filter::{InterfaceStatus, ListStatus, Reasons, Status, TopSources, VerdictCounts};

/// The `Content-Type` of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Top sources in the metrics; `/api/status` has more.
const TOP_SOURCES_TOLD: usize = 10;

/// The metrics of a state.
pub(super) fn render(state: &State) -> String {
    let mut text = Text::default();
    process(&mut text, state);
    files::render(&mut text, state);
    sessions(&mut text, state);
    next_hops(&mut text, state);
    dnsbl::render(&mut text, &state.dnsbl);
    if let Some(filter) = &state.filter {
        interfaces(&mut text, filter);
        lists(&mut text, filter);
        verdicts(&mut text, &filter.verdicts);
        top_sources(&mut text, &filter.top_sources);
    }
    text.0
}

fn process(text: &mut Text, state: &State) {
    text.gauge("portcullis_build_info", "The version that runs; always 1.");
    text.sample(&[("version", state.version)], 1);
    text.gauge(
        "portcullis_uptime_seconds",
        "Seconds since the gate began to serve.",
    );
    text.sample(&[], state.uptime_seconds);
    text.gauge(
        "portcullis_workers",
        "Workers, each with a ring and a thread.",
    );
    text.sample(&[], state.workers);
    text.counter(
        "portcullis_reloads_total",
        "Reloads of the configuration; a bad one changed nothing.",
    );
    text.sample(&[("result", "good")], state.reloads.good);
    text.sample(&[("result", "bad")], state.reloads.bad);
    text.counter(
        "portcullis_list_reloads_total",
        "Reloads of the lists after a change of their files; refused: a list had lost or gained too much, and the old ones stayed.",
    );
    text.sample(&[("result", "good")], state.reloads.lists.good);
    text.sample(&[("result", "bad")], state.reloads.lists.bad);
    text.sample(&[("result", "refused")], state.reloads.lists.refused);
    text.gauge(
        "portcullis_lists_old",
        "1 if those of an earlier compile are in force, because what was read at the start could not be used.",
    );
    text.sample(&[], u8::from(state.reloads.lists_are_old));
}

fn sessions(text: &mut Text, state: &State) {
    text.counter(
        "portcullis_sessions_total",
        "Connections taken from clients.",
    );
    text.sample(&[], state.sessions.total);
    text.gauge("portcullis_sessions_open", "Sessions open now.");
    text.sample(&[], state.sessions.open);
    text.counter(
        "portcullis_sessions_ended_total",
        "Sessions ended by the gate, by the rule that did it.",
    );
    for (rule, count) in &state.sessions.ended {
        text.sample(&[("rule", rule)], count);
    }
    text.counter(
        "portcullis_transactions_total",
        "Mail transactions, by how they ended and by the rule that decided.",
    );
    for transactions in &state.transactions {
        let labels = [
            ("outcome", transactions.outcome),
            ("rule", &transactions.rule),
        ];
        text.sample(&labels, transactions.count);
    }
    text.counter(
        "portcullis_recipients_refused_total",
        "Recipients refused, by the rule that did it.",
    );
    for (rule, count) in &state.recipients_refused {
        text.sample(&[("rule", rule)], count);
    }
    text.counter(
        "portcullis_commands_refused_total",
        "Commands other than MAIL and RCPT that the SMTP session refused, by the rule that did it.",
    );
    for (rule, count) in &state.commands_refused {
        text.sample(&[("rule", rule)], count);
    }
    text.counter(
        "portcullis_received_octets_total",
        "Octets of message content taken from clients.",
    );
    text.sample(&[], state.received_octets);
    text.counter(
        "portcullis_receives_starved_total",
        "Receives that found no free buffer and had to wait.",
    );
    text.sample(&[], state.starved_receives);
}

fn next_hops(text: &mut Text, state: &State) {
    type Value = fn(&super::state::NextHop) -> u64;
    let gauges: [(&str, &str, Value); 4] = [
        (
            "portcullis_next_hop_up",
            "1 unless a worker leaves the next hop alone after a failure.",
            |hop| u64::from(hop.up),
        ),
        (
            "portcullis_next_hop_connections_open",
            "Connections to the next hop.",
            |hop| hop.open,
        ),
        (
            "portcullis_next_hop_connections_idle",
            "Connections to the next hop that wait for a message.",
            |hop| hop.idle,
        ),
        (
            "portcullis_next_hop_clients_waiting",
            "Clients that wait for a connection to the next hop.",
            |hop| hop.waiting,
        ),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help);
        for hop in &state.next_hops {
            text.sample(&[("next_hop", &hop.address.to_string())], value(hop));
        }
    }
    text.counter(
        "portcullis_next_hop_failures_total",
        "Connections to the next hop that could not be opened.",
    );
    for hop in &state.next_hops {
        text.sample(
            &[("next_hop", &hop.address.to_string())],
            hop.failures_total,
        );
    }
    text.gauge(
        "portcullis_next_hop_name_resolved",
        "1 if the last look-up of the next hop's name went well.",
    );
    for name in &state.names {
        let labels = [("next_hop", &*format!("{}:{}", name.name, name.port))];
        text.sample(&labels, u8::from(name.resolved));
    }
}

fn interfaces(text: &mut Text, filter: &Status) {
    text.gauge(
        "portcullis_filter_attached",
        "1 if the XDP program sits on the interface.",
    );
    for interface in &filter.interfaces {
        let labels = [
            ("interface", &*interface.name),
            ("xdp_mode", interface.xdp_mode),
        ];
        text.sample(&labels, u8::from(interface.attached));
    }
    text.gauge(
        "portcullis_filter_answers_lost",
        "1 if the filter answers nothing on the interface, because it would be lost: a veth whose other end runs no XDP program, or no Ethernet header.",
    );
    for interface in &filter.interfaces {
        let labels = [("interface", &*interface.name)];
        text.sample(&labels, u8::from(interface.answers_lost));
    }
    text.gauge(
        "portcullis_filter_unfiltered_since_seconds",
        "Unix time since which an interface of the configuration has been without the filter; 0 while it has it.",
    );
    for interface in &filter.interfaces {
        text.sample(
            &[("interface", &interface.name)],
            interface.unfiltered_since.unwrap_or_default(),
        );
    }
    type Value = fn(&InterfaceStatus) -> u64;
    let counters: [(&str, &str, Value); 7] = [
        (
            "portcullis_filter_passed_packets_total",
            "Packets to a filtered port that were let through: all, those of the permitted, over-budget and monitored metrics included.",
            |interface| interface.passed,
        ),
        (
            "portcullis_filter_permitted_packets_total",
            "Those of the passed packets that a permit list names; they are in the passed metric, too.",
            |interface| interface.permitted,
        ),
        (
            "portcullis_filter_over_budget_packets_total",
            "Those of the passed packets that were SYNs beyond the budget of their source, for which the kernel had no cookie.",
            |interface| interface.over_budget,
        ),
        (
            "portcullis_filter_other_packets_total",
            "Packets that are none of the filter's business, let through.",
            |interface| interface.other,
        ),
        (
            "portcullis_filter_resets_total",
            "Packets of customers that were answered with a RST instead of being dropped.",
            |interface| interface.resets,
        ),
        (
            "portcullis_filter_syn_cookies_total",
            "SYNs that were answered with a cookie.",
            |interface| interface.syn_cookies,
        ),
        (
            "portcullis_filter_hidden_packets_total",
            "Packets whose port cannot be read: judged as if it were a filtered one, and counted as passed or dropped, too.",
            |interface| interface.hidden,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help);
        for interface in &filter.interfaces {
            text.sample(&[("interface", &interface.name)], value(interface));
        }
    }
    text.counter(
        "portcullis_filter_unread_packets_total",
        "Packets within packets, which the filter does not read and lets through; they are among the others, too.",
    );
    for interface in &filter.interfaces {
        for (encapsulation, packets) in interface.unread.each() {
            let labels = [
                ("interface", &*interface.name),
                ("encapsulation", encapsulation),
            ];
            text.sample(&labels, packets);
        }
    }
    text.counter(
        "portcullis_filter_dropped_packets_total",
        "Packets dropped, by reason.",
    );
    for interface in &filter.interfaces {
        text.reasons(&interface.name, interface.dropped);
    }
    text.counter(
        "portcullis_filter_monitored_packets_total",
        "Those of the passed packets that would have been dropped, were the mode not monitor, by reason.",
    );
    for interface in &filter.interfaces {
        text.reasons(&interface.name, interface.monitored);
    }
}

fn lists(text: &mut Text, filter: &Status) {
    text.gauge(
        "portcullis_filter_list_entries",
        "Entries of the list, as they were written.",
    );
    for list in &filter.lists {
        text.sample(
            &[("list", &*list.name), ("action", list.action)],
            list.entries,
        );
    }
    type Value = fn(&ListStatus) -> u64;
    let counters: [(&str, &str, Value); 3] = [
        (
            "portcullis_filter_list_dropped_packets_total",
            "Packets that the list had dropped.",
            |list| list.dropped_packets,
        ),
        (
            "portcullis_filter_list_permitted_packets_total",
            "Packets that the list had let through.",
            |list| list.permitted_packets,
        ),
        (
            "portcullis_filter_list_monitored_packets_total",
            "Packets that the list would have had dropped, were the mode not monitor.",
            |list| list.monitored_packets,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help);
        for list in &filter.lists {
            text.sample(&[("list", &list.name)], value(list));
        }
    }
}

fn verdicts(text: &mut Text, verdicts: &VerdictCounts) {
    text.gauge("portcullis_filter_verdicts", "Recent verdicts in force.");
    text.sample(&[], verdicts.number);
    text.gauge(
        "portcullis_filter_verdicts_max",
        "Recent verdicts for which there is room.",
    );
    text.sample(&[], verdicts.capacity);
    text.gauge(
        "portcullis_filter_verdicts_by_operator",
        "Those of the recent verdicts that a person added, and that are never given up for others.",
    );
    text.sample(&[], verdicts.by_operator);
    text.counter(
        "portcullis_filter_verdict_changes_total",
        "Recent verdicts by what became of them; evicted: given up for others, because there was no more room; refused: not given, \
         the source is permitted or local; no-room: not given, all that there is room for was added by people.",
    );
    let changes = [
        ("added", verdicts.added),
        ("renewed", verdicts.renewed),
        ("removed", verdicts.removed),
        ("expired", verdicts.expired),
        ("evicted", verdicts.evicted),
        ("refused", verdicts.refused),
        ("no-room", verdicts.no_room),
    ];
    for (change, count) in changes {
        text.sample(&[("change", change)], count);
    }
}

/// Every source is a time series of its own, so there are few.
fn top_sources(text: &mut Text, top: &TopSources) {
    text.gauge(
        "portcullis_filter_top_source_events",
        "Sampled drops of those sources that have the most; one a minute ago counts for a half.",
    );
    for source in top.sources.iter().take(TOP_SOURCES_TOLD) {
        let labels = [
            ("source", &*source.source),
            ("reason", source.reason),
            ("list", source.list.as_deref().unwrap_or_default()),
        ];
        text.sample(&labels, source.recent_events);
    }
}

/// The text so far, and the metric that samples are for.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(self.1);
        for (number, (name, value)) in labels.iter().enumerate() {
            self.0.push(if number == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{name}=\"");
            escape(value, &mut self.0);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn reasons(&mut self, interface: &str, reasons: Reasons) {
        for (reason, packets) in reasons.each() {
            self.sample(&[("interface", interface), ("reason", reason)], packets);
        }
    }
}

/// Backslashes, quotes and line ends would end a label value before its time.
fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::dnsbl::{Dnsbl, Server, Trust, Zone};
    use super::super::state::{NextHop, Transactions};
    use super::*;
    use crate::filter::{TopSourceStatus, Unread};

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
            recipients_refused: BTreeMap::from([("closed-relay".to_owned(), 11)]),
            commands_refused: BTreeMap::from([("sequence".to_owned(), 12)]),
            transactions: vec![Transactions {
                outcome: "accepted",
                rule: "local-network".to_owned(),
                count: 12,
            }],
            next_hops: vec![NextHop {
                address: "[2001:db8::1]:25".parse().unwrap(),
                up: true,
                open: 1,
                idle: 0,
                waiting: 0,
                failures_total: 2,
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
    fn a_label_value_cannot_break_out_of_its_quotes() {
        let mut text = Text::default();
        text.counter("x", "y");
        text.sample(&[("rule", "a\"b\\c\nd é"), ("other", "")], 1);
        assert_eq!(
            text.0,
            "# HELP x y\n# TYPE x counter\nx{rule=\"a\\\"b\\\\c\\nd é\",other=\"\"} 1\n"
        );
    }

    #[test]
    fn what_was_counted_is_told_under_its_name() {
        let text = render(&state());
        for line in [
            "portcullis_build_info{version=\"1.2.3\"} 1",
            "portcullis_lists_old 0",
            "portcullis_recipients_refused_total{rule=\"closed-relay\"} 11",
            "portcullis_commands_refused_total{rule=\"sequence\"} 12",
            "portcullis_transactions_total{outcome=\"accepted\",rule=\"local-network\"} 12",
            "portcullis_next_hop_up{next_hop=\"[2001:db8::1]:25\"} 1",
            "portcullis_next_hop_failures_total{next_hop=\"[2001:db8::1]:25\"} 2",
            "portcullis_filter_passed_packets_total{interface=\"eth0\"} 10",
            "portcullis_filter_dropped_packets_total{interface=\"eth0\",reason=\"unlisted\"} 4",
            "portcullis_dnsbl_answers_total{zone=\"bl.example\",result=\"silent\"} 15",
            "portcullis_dnsbl_cache_hits_total 17",
            "portcullis_dnsbl_zone_in_use{zone=\"bl.example\",family=\"ipv4\"} 1",
            "portcullis_dnsbl_zone_in_use{zone=\"bl.example\",family=\"ipv6\"} 0",
            "portcullis_dnsbl_zone_switched_off{zone=\"bl.example\",family=\"ipv6\"} 1",
            "portcullis_dnsbl_server_up{zone=\"bl.example\",server=\"192.0.2.53:53\"} 0",
            "portcullis_dnsbl_server_failures_total{zone=\"bl.example\",server=\"192.0.2.53:53\"} 17",
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
            "portcullis_filter_verdicts 16",
            "portcullis_filter_verdicts_by_operator 19",
            "portcullis_filter_verdict_changes_total{change=\"no-room\"} 20",
            "portcullis_filter_verdict_changes_total{change=\"evicted\"} 17",
            "portcullis_filter_top_source_events{source=\"2001:db8::/64\",reason=\"listed\",list=\"drop\"} 18",
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
