//! The metrics of next hops.

use super::text::Text;
use crate::control::state::{NextHop, State};
use crate::relay::hop::HopEvent;

/// Their connections, their failures, and whether their names are resolved.
pub(super) fn render(text: &mut Text, state: &State) {
    type Value = fn(&NextHop) -> u64;
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
    let by_result = [
        (
            "portcullis_next_hop_tls_total",
            "Connections to the next hop by what came of TLS on them.",
            &HopEvent::TLS[..],
        ),
        (
            "portcullis_next_hop_auth_total",
            "Connections to the next hop by what came of AUTH on them.",
            &HopEvent::AUTH[..],
        ),
    ];
    for (name, help, events) in by_result {
        text.counter(name, help);
        for hop in &state.next_hops {
            let next_hop = hop.address.to_string();
            for &(event, result) in events {
                let labels = [("next_hop", &*next_hop), ("result", result)];
                text.sample(&labels, hop.events[event as usize]);
            }
        }
    }
    text.counter(
        "portcullis_next_hop_clients_unnamed_total",
        "Transactions whose client the next hop was to be told of and does not take.",
    );
    for hop in &state.next_hops {
        text.sample(
            &[("next_hop", &hop.address.to_string())],
            hop.events[HopEvent::ClientUnnamed as usize],
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
