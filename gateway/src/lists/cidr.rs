//! The format `cidr`: how published lists of networks are read.

use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// A line of a list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A file of the format `cidr`, read.
#[derive(Clone, Debug, Default)]
pub struct Cidr {
    /// What it lists, in its order.
    pub prefixes: Vec<IpNet>,
    /// The first of the lines that cannot be read, at most [`Cidr::BAD_LINES_KEPT`].
    pub bad_lines: Vec<BadLine>,
    /// How many lines cannot be read.
    pub bad_line_count: u64,
    /// How many prefixes had bits set beyond their length; those bits were cleared.
    pub masked_count: u64,
    /// The first line with such a prefix.
    pub masked_first: Option<usize>,
}

impl Cidr {
    /// Enough to see what kind of file it is.
    pub const BAD_LINES_KEPT: usize = 10;

    /// Reads a list: an address, a prefix or a range `a-b` on each line; `#` and `;` begin a comment, which may hold
    /// any octets.
    pub fn read(file: &[u8]) -> Cidr {
        let mut list = Cidr::default();
        for (line, text) in (1..).zip(file.split(|&octet| octet == b'\n')) {
            let content = text
                .split(|&octet| octet == b'#' || octet == b';')
                .next()
                .unwrap_or(text)
                .trim_ascii();
            if content.is_empty() {
                continue;
            }
            if let Err(reason) = list.read_entry(line, content) {
                list.bad_line_count += 1;
                if list.bad_lines.len() < Cidr::BAD_LINES_KEPT {
                    let shown = text.trim_ascii_end();
                    let text = String::from_utf8_lossy(&shown[..shown.len().min(200)]).into_owned();
                    list.bad_lines.push(BadLine { line, text, reason });
                }
            }
        }
        list
    }

    fn read_entry(&mut self, line: usize, content: &[u8]) -> Result<(), &'static str> {
        const UNKNOWN: &str = "not an address, a prefix or a range";
        let content = core::str::from_utf8(content).map_err(|_| UNKNOWN)?;
        if let Ok(address) = content.parse::<IpAddr>() {
            self.prefixes.push(IpNet::from(address.to_canonical()));
        } else if let Some((address, length)) = content.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| "not an address before the /")?;
            let length: u8 = length
                .parse()
                .map_err(|_| "not a prefix length after the /")?;
            let net = IpNet::new(address, length)
                .map_err(|_| "the prefix length is beyond that of the address")?;
            if net.trunc() != net {
                self.masked_count += 1;
                self.masked_first.get_or_insert(line);
            }
            self.prefixes.push(canonical(net.trunc()));
        } else if let Some((first, last)) = content.split_once('-') {
            let parse = |text: &str| {
                text.trim()
                    .parse::<IpAddr>()
                    .map(|address| address.to_canonical())
            };
            match (parse(first), parse(last)) {
                (Ok(first), Ok(last)) if first > last => {
                    return Err("the range ends before it begins");
                }
                (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) => {
                    self.prefixes
                        .extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
                }
                (Ok(IpAddr::V6(first)), Ok(IpAddr::V6(last))) => {
                    self.prefixes
                        .extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
                }
                (Ok(_), Ok(_)) => return Err("the ends of the range are not of one family"),
                _ => return Err(UNKNOWN),
            }
        } else {
            return Err(UNKNOWN);
        }
        Ok(())
    }
}

/// IPv4 written as IPv6 (`::ffff:192.0.2.0/120`) is the IPv4 network: that is what packets and clients have.
fn canonical(net: IpNet) -> IpNet {
    match net.addr().to_canonical() {
        IpAddr::V4(address) if net.prefix_len() >= 96 && net.addr().is_ipv6() => {
            IpNet::new(address.into(), net.prefix_len() - 96).unwrap_or(net)
        }
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_it_is_published_is_read_as_it_is_meant() {
        let text = b"# drop.netset, \xe9dition 3\r\n\r\n192.0.2.1\r\n198.51.100.0/24 ; SBL1\n  203.0.113.9/24\t\n\
            192.0.2.8-192.0.2.11\n2001:db8::/32\n2001:db8:1:: - 2001:db8:1::1\n::ffff:192.0.2.77\n::ffff:10.0.0.0/104";
        let list = Cidr::read(text);
        let read: Vec<_> = list.prefixes.iter().map(ToString::to_string).collect();
        let expected = [
            "192.0.2.1/32",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "192.0.2.8/30",
            "2001:db8::/32",
            "2001:db8:1::/127",
            "192.0.2.77/32",
            "10.0.0.0/8",
        ];
        assert_eq!(read, expected);
        assert_eq!(
            (list.bad_line_count, list.masked_count, list.masked_first),
            (0, 1, Some(5))
        );
    }

    #[test]
    fn a_line_that_cannot_be_read_is_never_passed_over() {
        let bad = [
            "example.org",
            "192.0.2.0/33",
            "192.0.2.0/x",
            "192.0.2/24",
            "192.0.2.9-192.0.2.1",
            "192.0.2.1-2001:db8::1",
            "1.2.3.4 5.6.7.8",
            "010.0.0.1",
            "\u{ff}",
        ];
        for text in bad {
            let list = Cidr::read(text.as_bytes());
            assert_eq!((list.bad_line_count, list.prefixes.len()), (1, 0), "{text}");
        }
        let many = Cidr::read("x\n".repeat(1_000).as_bytes());
        assert_eq!(
            (many.bad_line_count, many.bad_lines.len()),
            (1_000, Cidr::BAD_LINES_KEPT)
        );
    }
}
