//! XCLIENT (Postfix's XCLIENT_README): a trusted front says which client it speaks for.
//!
//! Everything is checked when the command is parsed. The values borrow from the command line, and
//! only who wants a text decodes it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::envelope::is_xtext;

/// What the reply to EHLO offers.
pub(crate) const OFFER: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

/// The arguments of XCLIENT: at least one attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xclient<'a>(&'a str);

/// One attribute. What the front does not name keeps its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// NAME: the client's name in DNS.
    Name(Value<Xtext<'a>>),
    /// ADDR: the client's address.
    Address(Value<IpAddr>),
    /// PORT: the client's port.
    Port(Value<u16>),
    /// PROTO: the client said EHLO (`ESMTP`) rather than HELO (`SMTP`).
    Extended(bool),
    /// HELO: the argument of EHLO or HELO.
    Hello(Value<Xtext<'a>>),
    /// LOGIN: the user as whom the client authenticated.
    Login(Value<Xtext<'a>>),
    /// DESTADDR: the address that the client connected to.
    ServerAddress(Value<IpAddr>),
    /// DESTPORT: the port that the client connected to.
    ServerPort(Value<u16>),
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<T> {
    /// This one.
    Known(T),
    /// `[UNAVAILABLE]`: there is none.
    Unavailable,
    /// `[TEMPUNAVAIL]`: it could not be found out.
    TemporarilyUnavailable,
}

/// A text in xtext (RFC 3461, 4) that decodes to UTF-8 without control characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Xtext<'a>(&'a str);

impl<'a> Xclient<'a> {
    /// Parses what follows `XCLIENT `. `None`: an attribute is unknown or its value malformed.
    #[must_use]
    pub fn parse(arguments: &'a [u8]) -> Option<Self> {
        let arguments = str::from_utf8(arguments).ok()?;
        let mut attributes = words(arguments).peekable();
        attributes.peek()?;
        let are_good = attributes.all(|word| Attribute::parse(word).is_some());
        are_good.then_some(Self(arguments))
    }

    /// The attributes, in the order of the command. A later one overrides an earlier one.
    pub fn attributes(self) -> impl Iterator<Item = Attribute<'a>> {
        words(self.0).filter_map(Attribute::parse)
    }
}

fn words(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split(' ').filter(|word| !word.is_empty())
}

impl<'a> Attribute<'a> {
    fn parse(word: &'a str) -> Option<Self> {
        let (name, value) = word.split_once('=')?;
        Some(match name.to_ascii_uppercase().as_str() {
            "NAME" => Self::Name(Value::parse(value, Xtext::parse)?),
            "ADDR" => Self::Address(Value::parse(value, parse_address)?),
            "PORT" => Self::Port(Value::parse(value, parse_port)?),
            "PROTO" if value.eq_ignore_ascii_case("SMTP") => Self::Extended(false),
            "PROTO" if value.eq_ignore_ascii_case("ESMTP") => Self::Extended(true),
            "HELO" => Self::Hello(Value::parse(value, Xtext::parse)?),
            "LOGIN" => Self::Login(Value::parse(value, Xtext::parse)?),
            "DESTADDR" => Self::ServerAddress(Value::parse(value, parse_address)?),
            "DESTPORT" => Self::ServerPort(Value::parse(value, parse_port)?),
            _ => return None,
        })
    }
}

impl<T> Value<T> {
    fn parse<'a>(value: &'a str, known: impl FnOnce(&'a str) -> Option<T>) -> Option<Self> {
        Some(match value {
            _ if value.eq_ignore_ascii_case("[UNAVAILABLE]") => Self::Unavailable,
            _ if value.eq_ignore_ascii_case("[TEMPUNAVAIL]") => Self::TemporarilyUnavailable,
            _ => Self::Known(known(value)?),
        })
    }
}

/// `192.0.2.1` or `IPV6:2001:db8::1`.
fn parse_address(value: &str) -> Option<IpAddr> {
    match value.split_at_checked("IPV6:".len()) {
        Some((tag, address)) if tag.eq_ignore_ascii_case("IPV6:") => {
            address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        _ => value.parse().ok().map(IpAddr::V4),
    }
}

fn parse_port(value: &str) -> Option<u16> {
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

impl<'a> Xtext<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let decoded = (!text.is_empty() && is_xtext(text)).then(|| octets(text))?;
        let decoded = String::from_utf8(decoded).ok()?;
        (!decoded.contains(char::is_control)).then_some(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn decode(self) -> String {
        String::from_utf8_lossy(&octets(self.0)).into_owned()
    }
}

impl fmt::Debug for Xtext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.decode(), f)
    }
}

fn octets(xtext: &str) -> Vec<u8> {
    let mut octets = Vec::with_capacity(xtext.len());
    let mut rest = xtext.as_bytes();
    while let [octet, after @ ..] = rest {
        let (octet, after) = match after {
            [high, low, after @ ..] if *octet == b'+' => (nibble(*high) << 4 | nibble(*low), after),
            _ => (*octet, after),
        };
        octets.push(octet);
        rest = after;
    }
    octets
}

const fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit & 0x5f).wrapping_sub(b'A' - 10) & 0xf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(arguments: &str) -> Option<String> {
        let xclient = Xclient::parse(arguments.as_bytes())?;
        Some(format!("{:?}", xclient.attributes().collect::<Vec<_>>()))
    }

    #[test]
    fn every_attribute_is_understood() {
        assert_eq!(
            shown("name=a.example ADDR=192.0.2.1 PORT=50000 PROTO=esmtp").unwrap(),
            "[Name(Known(\"a.example\")), Address(Known(192.0.2.1)), Port(Known(50000)), \
             Extended(true)]"
        );
        assert_eq!(
            shown("HELO=+5B192.0.2.1] LOGIN=a+2Bb DESTADDR=ipv6:2001:db8::1 DESTPORT=25").unwrap(),
            "[Hello(Known(\"[192.0.2.1]\")), Login(Known(\"a+b\")), \
             ServerAddress(Known(2001:db8::1)), ServerPort(Known(25))]"
        );
        assert_eq!(
            shown("NAME=[TEMPUNAVAIL]  ADDR=[UNAVAILABLE]").unwrap(),
            "[Name(TemporarilyUnavailable), Address(Unavailable)]"
        );
    }

    #[test]
    fn what_is_malformed_is_refused_as_a_whole() {
        for arguments in [
            "",
            " ",
            "NAME",
            "NAME=",
            "NAME=a+0D+0Ab",
            "NAME=a+2",
            "NAME=a=b",
            "NAME=+FF",
            "ADDR=2001:db8::1",
            "ADDR=IPV6:192.0.2.1",
            "ADDR=192.0.2.256",
            "ADDR=localhost",
            "PORT=65536",
            "PORT=+1",
            "PORT=",
            "PROTO=LMTP",
            "PROTO=[UNAVAILABLE]",
            "ADDR=192.0.2.1 COLOUR=green",
        ] {
            assert_eq!(shown(arguments), None, "{arguments}");
        }
    }
}
