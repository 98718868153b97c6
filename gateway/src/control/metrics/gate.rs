//! The metrics of the process, its sessions and its records.

use super::text::Text;
use crate::control::state::State;

/// The version, the time since the start, and what became of reloads.
pub(super) fn process(text: &mut Text, state: &State) {
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
        "Reloads of the lists after a change of their files; refused: a list had lost or gained \
         too much, and the old ones stayed.",
    );
    text.sample(&[("result", "good")], state.reloads.lists.good);
    text.sample(&[("result", "bad")], state.reloads.lists.bad);
    text.sample(&[("result", "refused")], state.reloads.lists.refused);
    text.gauge(
        "portcullis_lists_old",
        "1 if those of an earlier compile are in force, because what was read at the start could \
         not be used.",
    );
    text.sample(&[], u8::from(state.reloads.lists_are_old));
    text.counter(
        "portcullis_admin_refused_total",
        "Callers of the admin endpoints that had no right to do what they asked for.",
    );
    text.sample(&[], state.admin_refused);
}

/// Sessions, transactions, and what was refused.
pub(super) fn sessions(text: &mut Text, state: &State) {
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
    fronts(text, state);
    text.gauge(
        "portcullis_tls_handshakes_open",
        "TLS handshakes with clients that go on now.",
    );
    text.sample(&[], state.sessions.tls_handshakes_open);
    text.counter(
        "portcullis_tls_handshakes_total",
        "TLS handshakes with clients, by how they ended. One that was refused did not begin: it \
         is counted by its rule.",
    );
    for (result, count) in &state.sessions.tls_handshakes {
        text.sample(&[("result", result)], count);
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
    text.counter(
        "portcullis_records_lost_total",
        "Records of sessions and transactions that a reader of them lost because it was too slow; \
         all: every reader lost them.",
    );
    for (reader, count) in &state.records_lost {
        text.sample(&[("reader", reader)], count);
    }
}

/// What came of trusted fronts.
fn fronts(text: &mut Text, state: &State) {
    text.counter(
        "portcullis_proxy_headers_total",
        "Connections of trusted fronts that have to begin with a PROXY header, by what they began \
         with.",
    );
    for (result, count) in &state.fronts.proxy_headers {
        text.sample(&[("result", result)], count);
    }
    text.counter(
        "portcullis_xclient_total",
        "XCLIENT commands of trusted fronts; unknown: they left it open which client it is.",
    );
    text.sample(&[("result", "client")], state.fronts.xclient);
    text.sample(&[("result", "unknown")], state.fronts.xclient_unknown);
}
