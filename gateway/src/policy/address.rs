//! Forms of addresses that ask a relay to send on to somewhere else than the domain after the `@`.
//!
//! Addresses are never rewritten here, but the next hop may do so, and takes our word for the
//! client. So strangers cannot use any of these forms, in local domains neither.

use portcullis_smtp::path::Path;

use super::Rule;

/// The form that is refused for strangers, if the path has one.
pub fn form(path: &Path<'_>) -> Option<Rule> {
    let local_part = path.mailbox.local_part;
    let holds = |wanted: fn(char) -> bool| local_part.chars().any(wanted);
    if path.source_route.is_some() {
        Some(Rule::SOURCE_ROUTE)
    } else if local_part.starts_with('"') {
        holds(|c| is_at(c) || is_percent(c) || is_bang(c)).then_some(Rule::QUOTED_LOCAL_PART)
    } else if is_encapsulated(local_part) {
        Some(Rule::ENCAPSULATED_ADDRESS)
    } else if holds(is_at) {
        Some(Rule::SECOND_AT)
    } else if holds(is_percent) {
        Some(Rule::PERCENT_HACK)
    } else if holds(is_bang) {
        Some(Rule::BANG_PATH)
    } else {
        None
    }
}

/// What a stranger is told when a rule refuses the recipient.
static REFUSALS: [(Rule, &str); 7] = [
    (
        Rule::SOURCE_ROUTE,
        "Relaying denied: source routes are not followed",
    ),
    (
        Rule::PERCENT_HACK,
        "Relaying denied: % in the local part is not followed",
    ),
    (
        Rule::BANG_PATH,
        "Relaying denied: ! in the local part is not followed",
    ),
    (
        Rule::SECOND_AT,
        "Relaying denied: a second @ is not followed",
    ),
    (
        Rule::QUOTED_LOCAL_PART,
        "Relaying denied: an address within quotes is not followed",
    ),
    (
        Rule::ENCAPSULATED_ADDRESS,
        "Relaying denied: encapsulated addresses are not unpacked",
    ),
    (
        Rule::FOREIGN_LITERAL,
        "Relaying denied: not an address of this system",
    ),
];

/// What a stranger is told when this rule refuses the recipient.
pub(super) fn refusal(rule: Rule) -> &'static str {
    REFUSALS
        .iter()
        .find(|(of, _)| *of == rule)
        .map_or("Relaying denied", |(_, text)| text)
}

/// `IMCEASMTP-user+40elsewhere`, `IMCEAEX-...`: what an Exchange server unpacks and sends to.
fn is_encapsulated(local_part: &str) -> bool {
    let Some((kind, _)) = local_part.split_once('-') else {
        return false;
    };
    let (Some(prefix), Some(of)) = (kind.get(..5), kind.get(5..)) else {
        return false;
    };
    prefix.eq_ignore_ascii_case("IMCEA")
        && !of.is_empty()
        && of.bytes().all(|octet| octet.is_ascii_alphanumeric())
}

// With SMTPUTF8 a local part may hold the wide and small forms of these characters, which a system
// that normalises (NFKC) turns into the plain ones.

fn is_at(c: char) -> bool {
    matches!(c, '@' | '\u{ff20}' | '\u{fe6b}')
}

fn is_percent(c: char) -> bool {
    matches!(c, '%' | '\u{ff05}' | '\u{fe6a}')
}

fn is_bang(c: char) -> bool {
    matches!(c, '!' | '\u{ff01}' | '\u{fe57}')
}
