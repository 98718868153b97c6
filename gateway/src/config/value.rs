//! How single values are written: durations, sizes, prefixes, addresses with a port. Each function
//! takes the text and gives the value, or says in a few words what is wrong with it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::lists::entries::{MappedTooWide, unmapped};

/// `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"7d"`: a whole number and its unit. A number without a unit
/// is refused, because a reader cannot tell seconds from minutes.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        "" => return Err("the unit is missing: write \"30s\", \"5m\" or \"1h\"".to_owned()),
        _ => {
            return Err(format!(
                "unknown unit `{unit}` of time: ms, s, m, h and d are known"
            ));
        }
    };
    milliseconds
        .map(Duration::from_millis)
        .ok_or_else(|| "the number is too big".to_owned())
}

/// `"50MB"`, `"20GB"`, `"1MiB"`, `"4096"`: bytes, with decimal or binary multiples.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => {
            return Err(format!(
                "unknown unit `{unit}` of size: B, kB, MB, GB, TB, KiB, MiB, GiB and TiB are known"
            ));
        }
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| "the number is too big".to_owned())
}

fn number_and_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    match number.parse() {
        Ok(number) => Ok((number, unit.trim())),
        Err(_) if digits == 0 => Err("expected a whole number with a unit".to_owned()),
        Err(_) => Err("the number is too big".to_owned()),
    }
}

/// The shortest way to write a duration that [`duration`] takes.
pub fn write_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if milliseconds != 0 && milliseconds.is_multiple_of(length) {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    if milliseconds == 0 {
        "0s".to_owned()
    } else {
        format!("{milliseconds}ms")
    }
}

/// The shortest way to write a number of bytes with a binary unit that [`size`] takes.
pub(super) fn write_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// An address and a port: `"192.0.2.1:25"` or `"[2001:db8::1]:25"`. IPv4 that is written as IPv6 is
/// IPv4.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        "an IP address and a port are wanted, like \"0.0.0.0:25\" or \"[::]:25\" \
         (names are not resolved here)"
            .to_owned()
    })?;
    if address.port() == 0 {
        Err("port 0 is not a port to listen on".to_owned())
    } else {
        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

/// A single address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>()
        .map(|address| address.to_canonical())
        .map_err(|_| "expected an IP address".to_owned())
}

/// A network: a prefix, or a single address. Bits beyond the prefix length are refused: in the list
/// of networks that may relay, what was meant must be beyond doubt.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = address(text) {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text.parse().map_err(|_| {
        "expected a network, such as \"192.0.2.0/24\" or \"2001:db8::/32\"".to_owned()
    })?;
    let net = unmapped(net).map_err(|MappedTooWide| {
        "IPv4 clients are always seen with their IPv4 address: write the IPv4 network".to_owned()
    })?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!(
            "there are bits set beyond the prefix: did you mean {}?",
            net.trunc()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_never_read_with_another_unit() {
        let cases = [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
        ];
        for (text, milliseconds) in cases {
            let read = duration(text).expect(text);
            assert_eq!(read, Duration::from_millis(milliseconds));
            assert_eq!(write_duration(read), text);
        }
        for text in [
            "30",
            "",
            "s",
            "5M",
            "1.5h",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_never_read_with_another_factor() {
        for (text, bytes) in [
            ("50MB", 50_000_000),
            ("1MiB", 1_048_576),
            ("20GB", 20_000_000_000),
            ("512", 512),
        ] {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(size(&write_size(bytes)), Ok(bytes));
        }
        for text in ["50mb", "MB", "1.5GB", "-1", "99999999TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_with_host_bits_does_not_open_more_than_was_meant() {
        assert!(network("192.0.2.1/24").is_err());
        for text in [
            "::ffff:192.0.2.1/120",
            "::ffff:0:0/96",
            "::ffff:192.0.2.0/24",
            "::ffff:0:0/90",
        ] {
            assert!(network(text).is_err(), "{text}");
        }
        assert_eq!(
            network("::ffff:192.0.2.0/120").map(|net| net.to_string()),
            Ok("192.0.2.0/24".to_owned())
        );
        assert_eq!(
            network("192.0.2.1").map(|net| net.to_string()),
            Ok("192.0.2.1/32".to_owned())
        );
        assert_eq!(
            network("::ffff:192.0.2.1").map(|net| net.to_string()),
            Ok("192.0.2.1/32".to_owned())
        );
    }
}
