//! Plain lists: an address, a prefix or a range `a-b` on each line, IPv4 and IPv6 mixed; `#` and
//! `;` begin a comment, which may hold any octets. So are netset files, Spamhaus' older text form,
//! and most of what people write by hand.
//!
//! Addresses are written in full: an octet with a leading zero is octal to some and decimal to
//! others, and `10.1` means something else to each reader.

use core::net::IpAddr;

use ipnet::IpNet;

use super::super::entries::{MappedTooWide, unmapped};
use super::{CUT_OFF, Dialect, Found, Meaning, Reason, before_comment};

/// The format.
pub(super) struct Cidr;

/// Host bits of the widest IPv4 prefix that may be written as IPv6.
const MAPPED_HOSTS: u32 = 0xff_ffff;

const UNKNOWN: Reason = "not an address, a prefix or a range";

impl Dialect for Cidr {
    fn line(&mut self, text: &[u8], ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let content = before_comment(text);
        if content.is_empty() {
            return Ok(Meaning::Nothing);
        }
        let content = core::str::from_utf8(content).map_err(|_| UNKNOWN)?;
        match memchr::memchr2(b'/', b'-', content.as_bytes()) {
            None => {
                let address: IpAddr = content.parse().map_err(|_| UNKNOWN)?;
                found.push(IpNet::from(address))?;
                Ok(Meaning::Entry)
            }
            Some(at) if content.as_bytes()[at] == b'/' => {
                let (net, was_masked) = prefix(content)?;
                if was_masked && !ended {
                    return Err(CUT_OFF);
                }
                found.push(net)?;
                Ok(if was_masked {
                    Meaning::MaskedEntry
                } else {
                    Meaning::Entry
                })
            }
            Some(at) => range(&content[..at], &content[at + 1..], found).map(|()| Meaning::Entry),
        }
    }
}

/// A prefix without host bits, and whether it had any. IPv4 that is written as IPv6 is IPv4.
pub(super) fn prefix(text: &str) -> Result<(IpNet, bool), Reason> {
    let (address, length) = text.split_once('/').ok_or("not a prefix")?;
    let address: IpAddr = address.parse().map_err(|_| "not an address before the /")?;
    let is_number = !length.is_empty() && length.bytes().all(|octet| octet.is_ascii_digit());
    let length: u8 = match length.parse() {
        Ok(length) if is_number => length,
        _ => return Err("not a prefix length after the /"),
    };
    let net = IpNet::new(address, length)
        .map_err(|_| "the prefix length is beyond that of the address")?;
    // Before its host bits go: ::ffff:192.0.2.0/24 would become a prefix of IPv6.
    let net = unmapped(net).map_err(|MappedTooWide| MappedTooWide::REASON)?;
    Ok((net.trunc(), net.trunc() != net))
}

fn range(first: &str, last: &str, found: &mut Found) -> Result<(), Reason> {
    let end = |text: &str| -> Result<IpAddr, Reason> { text.trim().parse().map_err(|_| UNKNOWN) };
    let (first, last) = (end(first)?, end(last)?);
    let is_mapped = first.is_ipv6() || last.is_ipv6();
    match (first.to_canonical(), last.to_canonical()) {
        (first, last) if first > last && first.is_ipv4() == last.is_ipv4() => {
            return Err("the range ends before it begins");
        }
        (IpAddr::V4(first), IpAddr::V4(last))
            if is_mapped && last.to_bits() - first.to_bits() > MAPPED_HOSTS =>
        {
            return Err(MappedTooWide::REASON);
        }
        (IpAddr::V4(first), IpAddr::V4(last)) => found
            .entries
            .push_ipv4_range(first.to_bits(), last.to_bits()),
        (IpAddr::V6(first), IpAddr::V6(last)) => found
            .entries
            .push_ipv6_range(first.to_bits(), last.to_bits()),
        _ => return Err("the ends of the range are not of one family"),
    }
    Ok(())
}
