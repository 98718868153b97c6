//! The metrics of DNS lists.

use super::text::Text;
use crate::control::dnsbl::{Dnsbl, Family, Server, Trust};

/// What is known of DNS lists and of the name servers that are asked about them.
pub(super) fn render(text: &mut Text, dnsbl: &Dnsbl) {
    text.counter(
        "portcullis_dnsbl_answers_total",
        "Answers of DNS lists, by zone and by what they count for.",
    );
    for zone in &dnsbl.zones {
        let results = [
            ("listed", zone.listed),
            ("not-listed", zone.not_listed),
            ("silent", zone.silent),
            ("ignored", zone.ignored),
        ];
        for (result, count) in results {
            text.sample(&[("zone", &zone.zone), ("result", result)], count);
        }
    }
    let gauges = [
        (
            "portcullis_dnsbl_zone_in_use",
            "1 if what the zone says counts; 0: it has not answered its test entries yet, or is \
             switched off.",
            Trust::InUse,
        ),
        (
            "portcullis_dnsbl_zone_switched_off",
            "1 if the zone lists the loopback address, which no list may: it is not asked.",
            Trust::SwitchedOff,
        ),
    ];
    for (name, help, wanted) in gauges {
        text.gauge(name, help);
        for zone in &dnsbl.zones {
            for (family, trust) in [(Family::Ipv4, zone.ipv4), (Family::Ipv6, zone.ipv6)] {
                let labels = [("zone", &*zone.zone), ("family", family.name())];
                text.sample(&labels, u8::from(trust == wanted));
            }
        }
    }
    text.gauge(
        "portcullis_dnsbl_server_up",
        "1 if the name server has answered its last question about the zone.",
    );
    for (zone, server) in servers(dnsbl) {
        let labels = [("zone", zone), ("server", &*server.server.to_string())];
        text.sample(&labels, u8::from(server.answers));
    }
    text.counter(
        "portcullis_dnsbl_server_failures_total",
        "Questions that the name server did not answer: it could not be reached, was silent, or \
         answered with an error.",
    );
    for (zone, server) in servers(dnsbl) {
        let labels = [("zone", zone), ("server", &*server.server.to_string())];
        text.sample(&labels, server.failures);
    }
    text.counter(
        "portcullis_dnsbl_cache_hits_total",
        "Questions to DNS lists whose answer was remembered.",
    );
    text.sample(&[], dnsbl.cache_hits);
    text.counter(
        "portcullis_dnsbl_unasked_total",
        "Questions to DNS lists that were too many at a time, and count as not listed.",
    );
    text.sample(&[], dnsbl.unasked);
    text.gauge(
        "portcullis_dnsbl_sources_outstanding",
        "Sources that DNS lists are being asked about.",
    );
    text.sample(&[], dnsbl.outstanding);
}

/// Each zone with each of its name servers.
fn servers(dnsbl: &Dnsbl) -> impl Iterator<Item = (&str, &Server)> {
    let zones = dnsbl.zones.iter();
    zones.flat_map(|zone| zone.servers.iter().map(|server| (&*zone.zone, server)))
}
