//! The metrics of the filter: its interfaces, lists, recent verdicts and top sources.

use super::text::Text;
use crate::filter::{InterfaceStatus, ListStatus, Status, TopSources, VerdictCounts};

/// Top sources in the metrics; `/api/status` has more.
const TOP_SOURCES_MAX: usize = 10;

/// What the filter counts, and what is in force.
pub(super) fn render(text: &mut Text, filter: &Status) {
    interfaces(text, filter);
    counters(text, filter);
    lists(text, filter);
    verdicts(text, &filter.verdicts);
    top_sources(text, &filter.top_sources);
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
        "1 if the filter answers nothing on the interface, because it would be lost: a veth whose \
         other end runs no XDP program, or no Ethernet header.",
    );
    for interface in &filter.interfaces {
        let labels = [("interface", &*interface.name)];
        text.sample(&labels, u8::from(interface.answers_lost));
    }
    text.gauge(
        "portcullis_filter_unfiltered_since_seconds",
        "Unix time since which an interface of the configuration has been without the filter; 0 \
         while it has it.",
    );
    for interface in &filter.interfaces {
        text.sample(
            &[("interface", &interface.name)],
            interface.unfiltered_since.unwrap_or_default(),
        );
    }
}

fn counters(text: &mut Text, filter: &Status) {
    type Value = fn(&InterfaceStatus) -> u64;
    let counters: [(&str, &str, Value); 8] = [
        (
            "portcullis_filter_passed_packets_total",
            "Packets to a filtered port that were let through: all, those of the permitted, \
             granted, over-budget and monitored metrics included.",
            |interface| interface.passed,
        ),
        (
            "portcullis_filter_permitted_packets_total",
            "Those of the passed packets that a permit list names; they are in the passed metric, \
             too.",
            |interface| interface.permitted,
        ),
        (
            "portcullis_filter_granted_packets_total",
            "Those of the passed packets that would have been dropped, but for a grant of their \
             source; they are in the passed metric, too.",
            |interface| interface.granted,
        ),
        (
            "portcullis_filter_over_budget_packets_total",
            "Those of the passed packets that were SYNs beyond the budget of their source, for \
             which the kernel had no cookie.",
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
            "Packets without a readable port: judged as if it were a filtered one, and counted \
             as passed or dropped, too.",
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
        "Packets within packets, which the filter does not read and lets through; they are among \
         the others, too.",
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
        "Those of the passed packets that would have been dropped, were the mode not monitor, by \
         reason.",
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
        "Recent verdicts by what became of them; evicted: given up for others, because there was \
         no more room; refused: not added, the source is permitted or local; no-room: not added, \
         all that there is room for was added by people.",
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
    for source in top.sources.iter().take(TOP_SOURCES_MAX) {
        let labels = [
            ("source", &*source.source),
            ("reason", source.reason),
            ("list", source.list.as_deref().unwrap_or_default()),
        ];
        text.sample(&labels, source.recent_events);
    }
}
