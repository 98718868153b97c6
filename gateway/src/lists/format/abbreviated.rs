//! Addresses as rbldnsd writes them: parts at the end may be left out, and what follows the address
//! is not looked at. Each function gives the rest of the line back beside what it read, and `None`
//! where rbldnsd finds no address.
//!
//! By hand, because no library has this notation, and ten million lines go through it.

/// A decimal number up to a maximum, and what follows it.
pub(super) fn number(text: &[u8], max: u32) -> Option<(u32, &[u8])> {
    let digits = text
        .iter()
        .take_while(|octet| octet.is_ascii_digit())
        .count();
    let (digits, rest) = text.split_at(digits);
    let mut number = 0u32;
    for digit in digits {
        number = number
            .checked_mul(10)?
            .checked_add(u32::from(digit - b'0'))?;
    }
    (!digits.is_empty() && number <= max).then_some((number, rest))
}

/// The octets of an IPv4 address, of which those at the end may be missing: the address, how many
/// bits were given, and what follows.
pub(super) fn octets(text: &[u8]) -> Option<(u32, u8, &[u8])> {
    let (mut address, mut length, mut rest) = (0, 0, text);
    loop {
        let (octet, behind) = number(rest, 255)?;
        length += 8;
        address |= octet << (32 - length);
        rest = match behind {
            [b'.', behind @ ..] if length < 32 => behind,
            _ => return Some((address, length as u8, behind)),
        };
    }
}

/// What an IPv4 entry covers.
pub(super) struct Ipv4Range {
    pub(super) first: u32,
    pub(super) last: u32,
    /// The prefix length, 32 for a range.
    pub(super) length: u8,
    /// Whether it says less than it could, so that its beginning alone would mean more.
    pub(super) abbreviated: bool,
}

/// An address or prefix.
pub(super) fn ipv4_prefix(text: &[u8]) -> Option<(Ipv4Range, &[u8])> {
    let (first, given, rest) = octets(text)?;
    let (length, rest, abbreviated) = match rest {
        [b'/', rest @ ..] => {
            let (length, rest) = number(rest, 32)?;
            (length as u8, rest, false)
        }
        // One number alone is more likely a mistake than a /8.
        _ if given == 8 => return None,
        _ => (given, rest, given < 32),
    };
    let hosts = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
    let range = Ipv4Range {
        first,
        last: first | hosts,
        length,
        abbreviated,
    };
    Some((range, rest))
}

/// An address, prefix or range. The end of a range may be the last octet alone; missing octets of
/// its end are all ones.
pub(super) fn ipv4_range(text: &[u8]) -> Option<(Ipv4Range, &[u8])> {
    let (first, given, rest) = octets(text)?;
    let [b'-', rest @ ..] = rest else {
        let (range, rest) = ipv4_prefix(text)?;
        return (range.length > 0).then_some((range, rest));
    };
    let (end, end_given, rest) = octets(rest)?;
    let before = u32::from(given) - 8;
    let end = match end_given {
        8 => first & !u32::MAX.checked_shr(before).unwrap_or(0) | end >> before,
        _ if end_given == given => end,
        _ => return None,
    };
    let hosts = u32::MAX.checked_shr(u32::from(given)).unwrap_or(0);
    let range = Ipv4Range {
        first,
        last: end | hosts,
        length: 32,
        abbreviated: given < 32 || end_given < 32,
    };
    (first <= range.last).then_some((range, rest))
}

/// The groups of an IPv6 address, of which those at the end may be missing; "::" completes it. The
/// address, how many bits were given, and what follows. Dotted quads are not known.
pub(super) fn groups(text: &[u8]) -> Option<(u128, u8, &[u8])> {
    let mut groups = [0u16; 8];
    let (mut count, mut rest) = (0, text);
    let mut gap = None;
    if let [b':', b':', behind @ ..] = rest {
        (gap, rest) = (Some(0), behind);
    }
    let mut complete = false;
    while let Some((group, behind)) = group(rest) {
        groups[count] = group;
        count += 1;
        rest = behind;
        match behind {
            [b':', behind @ ..] if count < 8 => rest = behind,
            _ => {
                complete = true;
                break;
            }
        }
        if let ([b':', behind @ ..], None) = (rest, gap) {
            (gap, rest) = (Some(count), behind);
        }
    }
    let length = match gap {
        // A gap of nothing is none.
        Some(_) if count == 8 => return None,
        Some(gap) => {
            groups[gap..].rotate_right(8 - count);
            128
        }
        None if !complete => return None,
        None => count as u8 * 16,
    };
    let address = groups
        .iter()
        .fold(0, |address, &group| address << 16 | u128::from(group));
    Some((address, length, rest))
}

/// A group, however many zeros precede it.
fn group(text: &[u8]) -> Option<(u16, &[u8])> {
    let digits = text
        .iter()
        .take_while(|octet| octet.is_ascii_hexdigit())
        .count();
    let (digits, rest) = text.split_at(digits);
    let mut group = 0u16;
    for &digit in digits {
        let digit = char::from(digit).to_digit(16)? as u16;
        group = group.checked_mul(16)?.checked_add(digit)?;
    }
    (!digits.is_empty()).then_some((group, rest))
}
