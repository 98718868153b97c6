//! The zone files of rbldnsd for addresses: ip4set, ip4trie, ip4tset, ip6trie and ip6tset, read so
//! that what rbldnsd answers for is what is listed. Its manual page says less than its source,
//! which this follows (version 1.0, 2021):
//!
//! * Octets at the end may be left out: `10.1.2` is a /24, `10/8`; in an ip4set also `10.1-3`,
//!   `192.0.2.1-9`. Octets are decimal, whatever zeros precede them. An IPv6 prefix of whole groups
//!   may do without its length: `2001:db8:1:2` is a /64.
//! * Host bits beyond the length make a line bad (unless rbldnsd is run with `-e`).
//! * After the address stands its value, `:127.0.0.3:text` or a text; a value that rbldnsd would
//!   refuse makes the line invalid, except in the two sets with one value for all, which do not
//!   look at it.
//! * `!` begins an exclusion. In an ip4set lengths are rounded up to whole octets before they are
//!   compared, and the exclusion wins a draw; in the tries the longer prefix decides, and the first
//!   of two that are the same.
//! * `$MAXRANGE4` makes larger entries bad. All other `$` lines say what is answered, not for what;
//!   likewise behind `#`, `;` or `:`. So does a line that begins with a colon.
//!
//! One thing is taken more strictly: a last line without an end, which an abbreviated address would
//! complete to something larger than was meant; and one more generously: `\r\n` ends lines.

use core::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};

use super::super::entries::{Ipv4Prefix, Ipv6Prefix, Precedence};
use super::abbreviated::{Ipv4Range, groups, ipv4_prefix, ipv4_range, number, octets};
use super::{CUT_OFF, Dialect, Found, Meaning, Reason};

const INVALID_IPV4: Reason = "not an IPv4 address, prefix or range as rbldnsd reads them";
const INVALID_TRIE: Reason = "not an IPv4 address or prefix as rbldnsd's ip4trie reads them";
const INVALID_TSET: Reason =
    "not a whole IPv4 address, which is all that rbldnsd's ip4tset can hold";
const INVALID_IPV6: Reason = "not an IPv6 address or prefix as rbldnsd's ip6trie reads them";
const INVALID_IP6TSET: Reason =
    "not four groups of an IPv6 address, or ! and all eight, as rbldnsd's ip6tset reads them";
const HOST_BITS: Reason = "bits are set beyond the prefix length";
const INVALID_VALUE: Reason = "the value after the address is none that rbldnsd knows";
const UNKNOWN_DIRECTIVE: Reason = "not a directive that rbldnsd knows";
const COMBINED: Reason = "data sets of the type \"combined\" hold several lists: give each a file";
const INCLUDED: Reason = "$INCLUDE is not followed: give the other file as a list of its own";
const MAXRANGE: Reason = "larger than $MAXRANGE4 allows";

/// ip4set and ip4trie.
pub(super) struct Ip4<const IS_SET: bool> {
    /// The most addresses that an entry may cover.
    range_max: Option<u32>,
}

impl Ip4<true> {
    pub(super) fn set() -> Self {
        Self { range_max: None }
    }
}

impl Ip4<false> {
    pub(super) fn trie() -> Self {
        Self { range_max: None }
    }
}

impl<const IS_SET: bool> Dialect for Ip4<IS_SET> {
    const PRECEDENCE: Precedence = if IS_SET {
        Precedence::Octets
    } else {
        Precedence::Length
    };

    fn line(&mut self, text: &[u8], ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let text = match content(text)? {
            Content::Entry(text) => text,
            Content::Nothing => return Ok(Meaning::Nothing),
            Content::Directive(Directive {
                word: b"maxrange4",
                value,
            }) => return self.set_range_max(value),
            Content::Directive(..) => return Ok(Meaning::Directive),
            Content::DefaultValue(value) => return check_value(value).map(|()| Meaning::Directive),
        };
        let (is_exclusion, text) = exclusion(text);
        let (range, rest) = if IS_SET {
            ipv4_range(text).ok_or(INVALID_IPV4)?
        } else {
            ipv4_prefix(text).ok_or(INVALID_TRIE)?
        };
        if !ends_address(rest) {
            return Err(if IS_SET { INVALID_IPV4 } else { INVALID_TRIE });
        }
        let Ipv4Range {
            first,
            last,
            length,
            abbreviated,
        } = range;
        if Ipv4Prefix::around(first, length).address != first {
            return Err(HOST_BITS);
        }
        if self.range_max.is_some_and(|max| last - first >= max) {
            return Err(MAXRANGE);
        }
        if abbreviated && !ended && rest.is_empty() {
            return Err(CUT_OFF);
        }
        if !is_exclusion {
            check_value(rest)?;
        }
        if IS_SET {
            let into = if is_exclusion {
                &mut found.excluded
            } else {
                &mut found.entries
            };
            into.push_ipv4_range(first, last);
        } else {
            let prefix = Ipv4Prefix::around(first, length);
            if is_exclusion {
                found.excluded_ipv4.insert(prefix);
                found.excluded.ipv4.push(prefix);
            } else if !found.excluded_ipv4.is_empty() && found.excluded_ipv4.contains(&prefix) {
                found.void += 1;
            } else {
                found.entries.ipv4.push(prefix);
            }
        }
        Ok(if is_exclusion {
            Meaning::Exclusion
        } else {
            Meaning::Entry
        })
    }
}

impl<const IS_SET: bool> Ip4<IS_SET> {
    /// A number of addresses, or a prefix length; it can only become smaller.
    fn set_range_max(&mut self, value: &[u8]) -> Result<Meaning, Reason> {
        let (length, digits) = match value.strip_prefix(b"/") {
            Some(digits) => (true, digits),
            None => (false, value),
        };
        let number = match number(digits, u32::MAX) {
            Some((number, [])) if number > 0 => number,
            _ => return Err(UNKNOWN_DIRECTIVE),
        };
        let range = match (length, number) {
            (false, range) => range,
            (true, length @ 1..=32) => 1 << (32 - length),
            (true, _) => return Err(UNKNOWN_DIRECTIVE),
        };
        self.range_max = Some(self.range_max.map_or(range, |max| max.min(range)));
        Ok(Meaning::Directive)
    }
}

/// ip4tset.
pub(super) struct Ip4tset;

impl Dialect for Ip4tset {
    fn line(&mut self, text: &[u8], _ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let text = match content(text)? {
            Content::Entry(text) => text,
            Content::Nothing => return Ok(Meaning::Nothing),
            Content::Directive(..) | Content::DefaultValue(_) => return Ok(Meaning::Directive),
        };
        match octets(text) {
            Some((address, 32, rest)) if ends_address(rest) => {
                found.entries.ipv4.push(Ipv4Prefix::around(address, 32));
                Ok(Meaning::Entry)
            }
            _ => Err(INVALID_TSET),
        }
    }
}

/// ip6trie.
pub(super) struct Ip6trie;

impl Dialect for Ip6trie {
    fn line(&mut self, text: &[u8], ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let text = match content(text)? {
            Content::Entry(text) => text,
            Content::Nothing => return Ok(Meaning::Nothing),
            Content::Directive(..) => return Ok(Meaning::Directive),
            // "::1" is an address.
            Content::DefaultValue(value) if value.starts_with(b"::") => value,
            Content::DefaultValue(value) => return check_value(value).map(|()| Meaning::Directive),
        };
        let (is_exclusion, text) = exclusion(text);
        let (address, groups_length, rest) = groups(text).ok_or(INVALID_IPV6)?;
        let (length, rest, abbreviated) = match rest.strip_prefix(b"/") {
            Some(rest) => {
                let (length, rest) = number(rest, 128).ok_or(INVALID_IPV6)?;
                (length as u8, rest, false)
            }
            None if groups_length == 16 => return Err(INVALID_IPV6),
            None => (groups_length, rest, groups_length < 128),
        };
        if !ends_address(rest) {
            return Err(INVALID_IPV6);
        }
        let prefix = Ipv6Prefix::around(address, length);
        if prefix.address != address {
            return Err(HOST_BITS);
        }
        if abbreviated && !ended && rest.is_empty() {
            return Err(CUT_OFF);
        }
        if is_exclusion {
            found.exclude(net(prefix)?)?;
            found.excluded_ipv6.insert(prefix);
            return Ok(Meaning::Exclusion);
        }
        check_value(rest)?;
        if !found.excluded_ipv6.is_empty() && found.excluded_ipv6.contains(&prefix) {
            found.void += 1;
        } else {
            found.push(net(prefix)?)?;
        }
        Ok(Meaning::Entry)
    }
}

/// So that IPv4 written as IPv6 is found.
fn net(prefix: Ipv6Prefix) -> Result<IpNet, Reason> {
    let net = Ipv6Net::new(Ipv6Addr::from_bits(prefix.address), prefix.length);
    net.map(IpNet::V6).map_err(|_| INVALID_IPV6)
}

/// ip6tset.
pub(super) struct Ip6tset;

impl Dialect for Ip6tset {
    fn line(&mut self, text: &[u8], _ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let text = match content(text)? {
            Content::Entry(text) => text,
            Content::Nothing => return Ok(Meaning::Nothing),
            Content::DefaultValue(value) if value.starts_with(b"::") => {
                return Err(INVALID_IP6TSET);
            }
            Content::Directive(..) | Content::DefaultValue(_) => return Ok(Meaning::Directive),
        };
        let (is_exclusion, text) = exclusion(text);
        let (address, length, rest) = groups(text).ok_or(INVALID_IP6TSET)?;
        if !ends_address(rest) || length != if is_exclusion { 128 } else { 64 } {
            return Err(INVALID_IP6TSET);
        }
        if is_exclusion {
            found.excluded.ipv6.push(Ipv6Prefix::around(address, 128));
            return Ok(Meaning::Exclusion);
        }
        found.entries.ipv6.push(Ipv6Prefix::around(address, 64));
        Ok(Meaning::Entry)
    }
}

/// What a line is about.
enum Content<'a> {
    Nothing,
    Directive(Directive<'a>),
    /// From its colon on.
    DefaultValue(&'a [u8]),
    Entry(&'a [u8]),
}

struct Directive<'a> {
    /// What stands behind the dollar sign, in lower case.
    word: &'static [u8],
    value: &'a [u8],
}

const DIRECTIVES: [&[u8]; 7] = [
    b"soa",
    b"ns",
    b"nameserver",
    b"ttl",
    b"timestamp",
    b"maxrange4",
    b"origin",
];

fn content(text: &[u8]) -> Result<Content<'_>, Reason> {
    let text = trim(text);
    Ok(match text {
        [] => Content::Nothing,
        [b'$', directive @ ..] | [b':', b'$', directive @ ..] => match known(directive)? {
            Some(directive) => Content::Directive(directive),
            None => return Err(UNKNOWN_DIRECTIVE),
        },
        [b'#' | b';', b'$', directive @ ..] => match known(directive)? {
            Some(directive) => Content::Directive(directive),
            None => Content::Nothing,
        },
        [b'#' | b';', ..] => Content::Nothing,
        [b':', ..] => Content::DefaultValue(text),
        // Records of the zone itself, as other data sets have them.
        [b'@', b' ' | b'\t', ..] => Content::Directive(Directive {
            word: b"@",
            value: &[],
        }),
        _ => Content::Entry(text),
    })
}

/// A directive that says nothing about which addresses are listed, or how large an entry may be.
fn known(text: &[u8]) -> Result<Option<Directive<'_>>, Reason> {
    let end = text.iter().position(|&octet| is_space(octet));
    let (word, value) = text.split_at(end.unwrap_or(text.len()));
    if word.eq_ignore_ascii_case(b"dataset") {
        return Err(COMBINED);
    }
    if word.eq_ignore_ascii_case(b"include") {
        return Err(INCLUDED);
    }
    if value.is_empty() {
        return Ok(None);
    }
    if matches!(word, [b'0'..=b'9' | b'=']) {
        return Ok(Some(Directive {
            word: b"substitution",
            value,
        }));
    }
    let mut directives = DIRECTIVES.iter();
    let found = directives.find(|known| word.eq_ignore_ascii_case(known));
    Ok(found.map(|&word| Directive {
        word,
        value: trim(value),
    }))
}

fn exclusion(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'!', rest @ ..] => (true, trim(rest)),
        _ => (false, text),
    }
}

fn is_space(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

fn trim(text: &[u8]) -> &[u8] {
    let begin = text.iter().position(|&octet| !is_space(octet));
    let end = text.iter().rposition(|&octet| !is_space(octet));
    match (begin, end) {
        (Some(begin), Some(end)) => &text[begin..=end],
        _ => &[],
    }
}

/// Whether an address may end where this follows.
fn ends_address(rest: &[u8]) -> bool {
    matches!(rest, [] | [b' ' | b'\t' | b'#' | b';' | b':', ..])
}

/// Whether what follows an address (or is a default) is a value, a text, a comment or nothing. Only
/// what begins with a colon can be wrong: behind it stands an address, of which octets may be
/// missing, and then another colon or nothing.
fn check_value(rest: &[u8]) -> Result<(), Reason> {
    let Some(value) = trim(rest).strip_prefix(b":") else {
        return Ok(());
    };
    match octets(value) {
        Some((address, _, rest)) if address != 0 => match trim(rest) {
            [] | [b':', ..] => Ok(()),
            _ => Err(INVALID_VALUE),
        },
        _ => Err(INVALID_VALUE),
    }
}
