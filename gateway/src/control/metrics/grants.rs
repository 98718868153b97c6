//! The metrics of grants and of the logs that tell of logins.

use super::text::Text;
use crate::control::grants::Report;

pub(super) fn render(text: &mut Text, grants: &Report) {
    text.gauge("portcullis_grants", "Addresses with a grant now.");
    text.sample(&[], grants.number);
    text.gauge(
        "portcullis_grants_max",
        "How many there may be: grants.max.",
    );
    text.sample(&[], grants.max);
    text.counter(
        "portcullis_grant_changes_total",
        "Changes of grants; no-room: not added, there were as many as grants.max allows.",
    );
    for (change, count) in [
        ("added", grants.added),
        ("renewed", grants.renewed),
        ("revoked", grants.revoked),
        ("expired", grants.expired),
        ("no-room", grants.no_room),
    ] {
        text.sample(&[("change", change)], count);
    }
    text.counter(
        "portcullis_grant_log_lines_total",
        "Lines of the logs that are followed; login: told of a login; long: too long to be read; \
         other: all others.",
    );
    let other = grants
        .lines
        .saturating_sub(grants.logins + grants.long_lines);
    for (kind, count) in [
        ("login", grants.logins),
        ("long", grants.long_lines),
        ("other", other),
    ] {
        text.sample(&[("kind", kind)], count);
    }
}
