//! XCLIENT toward a next hop: who the client is, as attributes of the command (Postfix's
//! XCLIENT_README).
//!
//! The command is sent for each client of a connection, and **every attribute that the next hop
//! offers is in it**, as `[UNAVAILABLE]` if it is not known: attributes hold until the next command
//! changes them, so one left out would be that of the client before.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// XCLIENT_README: a command has at most 512 octets, as RFC 5321, 4.5.3.1.4 has it. Here without
/// `XCLIENT` and CRLF.
pub const ATTRIBUTES_LENGTH_MAX: usize = 512 - "XCLIENT\r\n".len();

const UNAVAILABLE: &str = "[UNAVAILABLE]";
const TEMPORARILY_UNAVAILABLE: &str = "[TEMPUNAVAIL]";

/// The attributes, in the order in which they get their room: what is short or decides most comes
/// first.
const NAMES: [(Offered, &str); 8] = [
    (Offered::ADDR, "ADDR"),
    (Offered::PORT, "PORT"),
    (Offered::PROTO, "PROTO"),
    (Offered::DESTADDR, "DESTADDR"),
    (Offered::DESTPORT, "DESTPORT"),
    (Offered::LOGIN, "LOGIN"),
    (Offered::HELO, "HELO"),
    (Offered::NAME, "NAME"),
];

/// The attributes that a next hop takes, from its reply to EHLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered(u8);

impl Offered {
    const NAME: Self = Self(1);
    const ADDR: Self = Self(1 << 1);
    const PORT: Self = Self(1 << 2);
    const PROTO: Self = Self(1 << 3);
    const HELO: Self = Self(1 << 4);
    const LOGIN: Self = Self(1 << 5);
    const DESTADDR: Self = Self(1 << 6);
    const DESTPORT: Self = Self(1 << 7);

    /// Reads what follows `XCLIENT` in the reply to EHLO. Attributes that are not known here are
    /// left out.
    pub fn new(arguments: &str) -> Self {
        let words = arguments.split_ascii_whitespace();
        let known = words.filter_map(|word| {
            let name = |&&(_, name): &&(Self, &str)| name.eq_ignore_ascii_case(word);
            NAMES.iter().find(name)
        });
        Self(known.fold(0, |all, (attribute, _)| all | attribute.0))
    }

    /// Whether the next hop can be told the client's address. If not, the rest would say something
    /// about another client than the one that it sees.
    pub fn names_clients(self) -> bool {
        self.has(Self::ADDR)
    }

    fn has(self, attribute: Self) -> bool {
        self.0 & attribute.0 != 0
    }
}

/// The name of the client in DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientName<'a> {
    /// A name that leads back to the address.
    Known(&'a str),
    /// There is none.
    Unavailable,
    /// It could not be found out at this time.
    TemporarilyUnavailable,
}

/// What the gate knows of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// Its address and port.
    pub address: SocketAddr,
    /// The address and port of the gate that it connected to.
    pub server: SocketAddr,
    /// Its name in DNS.
    pub name: ClientName<'a>,
    /// The argument of HELO or EHLO, if it sent one.
    pub helo: Option<&'a str>,
    /// It sent EHLO.
    pub is_esmtp: bool,
    /// The user as whom it authenticated.
    pub login: Option<&'a str>,
}

/// Appends the attributes that are offered, each with a space before it: what follows `XCLIENT`,
/// without CRLF. At most [`ATTRIBUTES_LENGTH_MAX`] octets: a value that does not fit counts as not
/// known.
///
/// All octets are printable ASCII, so a value can neither end the command nor begin another
/// attribute.
pub fn write_attributes(client: &Client<'_>, offered: Offered, out: &mut String) {
    let offered = NAMES.iter().filter(|(it, _)| offered.has(*it));
    let shortest = |name: &str| " =".len() + name.len() + UNAVAILABLE.len();
    let mut reserved: usize = offered.clone().map(|(_, name)| shortest(name)).sum();
    let mut left = ATTRIBUTES_LENGTH_MAX;
    for &(attribute, name) in offered {
        reserved -= shortest(name);
        let room = left - reserved - " =".len() - name.len();
        let value = Some(value(client, attribute)).filter(|value| value.len() <= room);
        let value = value.as_deref().unwrap_or(UNAVAILABLE);
        out.push(' ');
        out.push_str(name);
        out.push('=');
        out.push_str(value);
        left -= " =".len() + name.len() + value.len();
    }
}

/// The value of one attribute, in xtext.
/// Octets of a name that Postfix takes.
const HELO_MAX: usize = 255;

fn value(client: &Client<'_>, attribute: Offered) -> String {
    let given = |text: Option<&str>| match text {
        Some(text) if !text.is_empty() => xtext(text),
        _ => UNAVAILABLE.to_owned(),
    };
    match attribute {
        Offered::ADDR => address(client.address.ip()),
        // A front need not say it.
        Offered::PORT if client.address.port() == 0 => UNAVAILABLE.to_owned(),
        Offered::PORT => client.address.port().to_string(),
        Offered::PROTO => if client.is_esmtp { "ESMTP" } else { "SMTP" }.to_owned(),
        // A socket on all addresses does not say on which of them the client came in.
        Offered::DESTADDR if client.server.ip().is_unspecified() => UNAVAILABLE.to_owned(),
        Offered::DESTADDR => address(client.server.ip()),
        Offered::DESTPORT => client.server.port().to_string(),
        Offered::LOGIN => given(client.login),
        // Postfix refuses the whole command for a longer one.
        Offered::HELO => given(client.helo.filter(|name| name.len() <= HELO_MAX)),
        _ => match client.name {
            ClientName::Known(name) => given(Some(name)),
            ClientName::Unavailable => UNAVAILABLE.to_owned(),
            ClientName::TemporarilyUnavailable => TEMPORARILY_UNAVAILABLE.to_owned(),
        },
    }
}

fn address(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("IPV6:{ip}"),
    }
}

/// RFC 3461, 4: `+` and two hexadecimal digits in place of what is not printable, `+` and `=`. A
/// `[` at the beginning too: a client that says `[UNAVAILABLE]` is not one that said nothing, for
/// those that look before they decode.
fn xtext(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (at, octet) in text.bytes().enumerate() {
        let plain = octet.is_ascii_graphic() && !matches!(octet, b'+' | b'=');
        if plain && (at > 0 || octet != b'[') {
            encoded.push(octet.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "+{octet:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: &str = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

    fn client<'a>() -> Client<'a> {
        Client {
            address: "192.0.2.1:50000".parse().expect("an address"),
            server: "198.51.100.1:25".parse().expect("an address"),
            name: ClientName::Known("client.example"),
            helo: Some("[192.0.2.1]"),
            is_esmtp: true,
            login: Some("anna+test=1"),
        }
    }

    fn attributes(client: &Client<'_>, offered: &str) -> String {
        let mut out = String::new();
        write_attributes(client, Offered::new(offered), &mut out);
        out
    }

    #[test]
    fn a_next_hop_gets_the_attributes_that_it_offers_and_no_other() {
        assert_eq!(
            attributes(&client(), ALL),
            " ADDR=192.0.2.1 PORT=50000 PROTO=ESMTP DESTADDR=198.51.100.1 DESTPORT=25 \
             LOGIN=anna+2Btest+3D1 HELO=+5B192.0.2.1] NAME=client.example"
        );
        let some = attributes(&client(), "proto Addr REVERSE");
        assert_eq!(some, " ADDR=192.0.2.1 PROTO=ESMTP");
        assert_eq!(attributes(&client(), ""), "");
        let long = "a".repeat(256);
        let mut longer = client();
        longer.helo = Some(&long);
        assert_eq!(attributes(&longer, "HELO"), " HELO=[UNAVAILABLE]");
        longer.helo = Some(&long[1..]);
        assert!(attributes(&longer, "HELO").ends_with("aaa"));
        assert!(Offered::new("NAME addr").names_clients());
        assert!(!Offered::new("NAME LOGIN ADDRESS").names_clients());
    }

    #[test]
    fn what_is_not_known_of_a_client_is_not_what_was_known_of_the_one_before() {
        let unknown = Client {
            address: "[2001:db8::1]:50000".parse().expect("an address"),
            server: "[::ffff:198.51.100.1]:25".parse().expect("an address"),
            name: ClientName::TemporarilyUnavailable,
            helo: None,
            is_esmtp: false,
            login: Some(""),
        };
        assert_eq!(
            attributes(&unknown, ALL),
            " ADDR=IPV6:2001:db8::1 PORT=50000 PROTO=SMTP DESTADDR=198.51.100.1 DESTPORT=25 \
             LOGIN=[UNAVAILABLE] HELO=[UNAVAILABLE] NAME=[TEMPUNAVAIL]"
        );
        let name = ClientName::Unavailable;
        let none = attributes(&Client { name, ..unknown }, "NAME");
        assert_eq!(none, " NAME=[UNAVAILABLE]");
    }

    #[test]
    fn what_does_not_fit_is_unavailable_and_leaves_room_for_what_follows() {
        let long = "=".repeat(150);
        let client = Client {
            helo: Some(&long),
            login: Some("anna"),
            ..client()
        };
        let written = attributes(&client, ALL);
        let end = " LOGIN=anna HELO=[UNAVAILABLE] NAME=client.example";
        assert!(written.ends_with(end), "{written}");
    }

    /// What a next hop reads, by name.
    fn decoded(written: &str) -> Vec<(&str, String)> {
        let attributes = written.split(' ').skip(1);
        let pairs = attributes.map(|attribute| attribute.split_once('=').expect("a pair"));
        pairs
            .map(|(name, value)| {
                let mut octets = Vec::new();
                let mut rest = value.as_bytes();
                while let [octet, after @ ..] = rest {
                    rest = after;
                    let [high, low, after @ ..] = after else {
                        octets.push(*octet);
                        continue;
                    };
                    if *octet != b'+' {
                        octets.push(*octet);
                        continue;
                    }
                    let digits = [*high, *low];
                    let digits = std::str::from_utf8(&digits).expect("digits");
                    octets.push(u8::from_str_radix(digits, 16).expect("digits"));
                    rest = after;
                }
                (name, String::from_utf8(octets).expect("the text of before"))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn no_value_ends_the_command_or_begins_another_attribute(
            helo in ".{0,200}",
            login in "[a-z+= \r\n]{0,120}",
            name in "[a-z.=]{0,300}",
        ) {
            let client = Client {
                helo: Some(&helo),
                login: Some(&login),
                name: ClientName::Known(&name),
                ..client()
            };
            let written = attributes(&client, ALL);
            prop_assert!(written.len() <= ATTRIBUTES_LENGTH_MAX);
            prop_assert!(written.bytes().all(|octet| matches!(octet, b' '..=b'~')));
            let read = decoded(&written);
            let names: Vec<&str> = read.iter().map(|(name, _)| *name).collect();
            prop_assert_eq!(names, NAMES.map(|(_, name)| name).to_vec());
            for (at, given) in [(5, &login), (6, &helo), (7, &name)] {
                let value = &read[at].1;
                prop_assert!(value == given || value == UNAVAILABLE, "{value:?} for {given:?}");
            }
        }
    }
}
