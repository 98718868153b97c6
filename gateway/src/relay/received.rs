//! The `Received:` line that every message gets (RFC 5321 section 4.4), and the count of those it
//! has already.
//!
//! A message that carries more than [`HOPS_MAX`] of them is going round in a loop (section 6.3).
//! The count is taken while the message streams by, whatever the pieces it arrives in, and costs
//! nothing once its header has ended.

use std::io::Write as _;
use std::net::IpAddr;

/// More `Received:` lines than this are a loop.
pub const HOPS_MAX: u32 = 50;

/// A longer path is left out: no line may have more than 998 octets (RFC 5322 section 2.1.1).
const FOR_MAX: usize = 256;

/// Room for a common line, in bytes.
const LINE: usize = 256;

const FIELD: &[u8] = b"received:";

/// What the line says of one transaction.
#[derive(Debug)]
pub struct Received<'a> {
    /// The name the client gave with HELO or EHLO.
    pub helo: &'a str,
    /// Where it came from.
    pub client: IpAddr,
    /// Our own name.
    pub hostname: &'a str,
    /// What was spoken.
    pub protocol: Protocol,
    /// The transaction's id, as the log has it.
    pub id: &'a str,
    /// The recipient, when it is the only one; naming several would tell each of the others.
    pub recipient: Option<&'a str>,
    /// The date, as [`date`] makes it.
    pub date: &'a str,
}

/// What a message came by, as the `with` clause names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// EHLO was said.
    pub extended: bool,
    /// The session is under TLS.
    pub secured: bool,
    /// The client has authenticated.
    pub authenticated: bool,
    /// SMTPUTF8 was asked for.
    pub utf8: bool,
}

impl Protocol {
    /// Its name (RFC 3848; RFC 6531 section 4.3). HELO has one name, whatever it is under.
    pub const fn name(self) -> &'static str {
        match (self.utf8, self.secured, self.authenticated) {
            (true, false, false) => "UTF8SMTP",
            (true, false, true) => "UTF8SMTPA",
            (true, true, false) => "UTF8SMTPS",
            (true, true, true) => "UTF8SMTPSA",
            (false, ..) if !self.extended => "SMTP",
            (false, false, false) => "ESMTP",
            (false, false, true) => "ESMTPA",
            (false, true, false) => "ESMTPS",
            (false, true, true) => "ESMTPSA",
        }
    }
}

impl Received<'_> {
    /// How long the line is at most, without the recipient: the date may get a digit more until it
    /// is written.
    pub fn length_max(&self) -> usize {
        let mut line = Vec::with_capacity(LINE);
        let plain = Received {
            recipient: None,
            ..*self
        };
        plain.write(&mut line);
        line.len() + 1
    }

    /// Appends the folded line with its CRLF.
    ///
    /// Piece by piece and not with `write!`: the line is made for every message, and formatting
    /// cost more than the rest of a cut-through transaction's bookkeeping.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve(LINE);
        let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
        push("Received: from ");
        push(self.helo);
        push(" ([");
        push_address(self.client, out);
        let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
        push("])\r\n\tby ");
        push(self.hostname);
        push(" (Portcullis) with ");
        push(self.protocol.name());
        push(" id ");
        push(self.id);
        if let Some(recipient) = self.recipient.filter(|path| path.len() <= FOR_MAX) {
            push("\r\n\tfor <");
            push(recipient);
            push(">");
        }
        push(";\r\n\t");
        push(self.date);
        push("\r\n");
    }
}

/// Appends an address as a literal has it (RFC 5321 section 4.1.3), without the brackets.
fn push_address(address: IpAddr, out: &mut Vec<u8>) {
    let address = match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            // Writing to a vector cannot fail.
            let _ = write!(out, "IPv6:{address}");
            return;
        }
    };
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        if octet >= 100 {
            out.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            out.push(b'0' + octet / 10 % 10);
        }
        out.push(b'0' + octet % 10);
    }
}

/// How much longer the line is when it names this recipient.
pub fn recipient_length(path: &str) -> usize {
    if path.len() <= FOR_MAX {
        path.len() + "\r\n\tfor <>".len()
    } else {
        0
    }
}

/// A moment in the form of RFC 5322 section 3.3, in UTC.
pub fn date(unix_time: u64) -> String {
    i64::try_from(unix_time)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .and_then(|moment| {
            jiff::fmt::rfc2822::to_string(&moment.to_zoned(jiff::tz::TimeZone::UTC)).ok()
        })
        .unwrap_or_else(|| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
}

/// Counts the `Received:` lines in the header of a message that arrives in pieces.
#[derive(Debug, Default)]
pub struct Hops {
    count: u32,
    /// How much of `FIELD` the present line has matched; `None` when it is another line.
    matched: Option<u8>,
    /// Octets in the present line, as far as that matters: an empty line ends the header.
    length: u8,
    begun: bool,
    body: bool,
}

impl Hops {
    /// Takes the next piece of the message; its lines end in CRLF. Returns how many octets of it
    /// belong to the header.
    pub fn update(&mut self, mut piece: &[u8]) -> usize {
        if self.body {
            return 0;
        }
        let length = piece.len();
        if !self.begun {
            self.begun = true;
            self.matched = Some(0);
        }
        while !piece.is_empty() && !self.body {
            self.line(&mut piece);
        }
        length - piece.len()
    }

    /// Whether the message has been through too many hands.
    pub fn is_loop(&self) -> bool {
        self.count > HOPS_MAX
    }

    /// Takes `piece` forward to the end of the present line, or to its own end.
    fn line(&mut self, piece: &mut &[u8]) {
        while let (Some(matched), Some((&octet, rest))) = (self.matched, piece.split_first()) {
            if octet == b'\n' {
                break;
            }
            *piece = rest;
            self.length = self.length.saturating_add(1);
            self.matched =
                (octet.to_ascii_lowercase() == FIELD[usize::from(matched)]).then_some(matched + 1);
            if self.matched == Some(FIELD.len() as u8) {
                self.count += 1;
                self.matched = None;
            }
        }
        let Some(end) = piece.iter().position(|&octet| octet == b'\n') else {
            self.length = self
                .length
                .saturating_add(u8::try_from(piece.len()).unwrap_or(u8::MAX));
            *piece = &[];
            return;
        };
        self.length = self
            .length
            .saturating_add(u8::try_from(end).unwrap_or(u8::MAX));
        // Only the CR stood on it.
        self.body = self.length <= 1;
        self.length = 0;
        self.matched = Some(0);
        *piece = &piece[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines counted, and the octets of the header.
    fn look(message: &str, cuts: &[usize]) -> (u32, usize) {
        let (mut hops, mut from, mut header) = (Hops::default(), 0, 0);
        for &cut in cuts.iter().chain([&message.len()]) {
            let cut = cut.clamp(from, message.len());
            header += hops.update(&message.as_bytes()[from..cut]);
            from = cut;
        }
        (hops.count, header)
    }

    fn count(message: &str, cuts: &[usize]) -> u32 {
        look(message, cuts).0
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        for address in [
            "0.0.0.0",
            "9.10.99.100",
            "255.200.19.1",
            "::1",
            "2001:db8::a:0:1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let mut out = Vec::new();
            push_address(address, &mut out);
            let tag = if address.is_ipv6() { "IPv6:" } else { "" };
            assert_eq!(out, format!("{tag}{address}").into_bytes());
        }
    }

    #[test]
    fn only_received_lines_of_the_header_are_counted() {
        let cases = [
            ("", 0),
            ("Received: a\r\n", 1),
            (
                "RECEIVED: a\r\n\tfolded\r\nreceived: b\r\n\
                 Subject: Received: c\r\n\r\nReceived: d\r\n",
                2,
            ),
            ("X-Received: a\r\nReceived : b\r\n\r\n", 0),
            (" Received: folded\r\n\r\n", 0),
            ("\r\nReceived: in the body\r\n", 0),
            ("Rec\r\nReceived: a\r\n", 1),
        ];
        for (message, expected) in cases {
            assert_eq!(count(message, &[]), expected, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn the_count_does_not_depend_on_how_the_message_is_cut(
            lines in prop::collection::vec(
                prop_oneof!["Received: x", "ReceiveD:", "Rece", "Subject: y", " z", ""],
                0..12,
            ),
            mut cuts in prop::collection::vec(0..200usize, 0..12),
        ) {
            let message: String = lines.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect();
            cuts.sort_unstable();
            prop_assert_eq!(look(&message, &cuts), look(&message, &[]));
            let header = message.strip_prefix("\r\n").map_or_else(
                || message.find("\r\n\r\n").map_or(message.len(), |end| end + 4),
                |_| 2,
            );
            prop_assert_eq!(look(&message, &cuts).1, header);
        }
    }

    #[test]
    fn the_protocol_says_whether_there_was_tls_and_authentication() {
        let name = |extended, utf8, secured, authenticated| {
            let protocol = Protocol {
                extended,
                secured,
                authenticated,
                utf8,
            };
            protocol.name()
        };
        for (secured, authenticated, suffix) in [
            (false, false, ""),
            (false, true, "A"),
            (true, false, "S"),
            (true, true, "SA"),
        ] {
            let (plain, utf8) = (format!("ESMTP{suffix}"), format!("UTF8SMTP{suffix}"));
            assert_eq!(name(true, false, secured, authenticated), plain);
            assert_eq!(name(true, true, secured, authenticated), utf8);
            assert_eq!(name(false, false, secured, authenticated), "SMTP");
        }
    }

    #[test]
    fn the_line_names_the_client_and_folds() {
        let mut out = Vec::new();
        let received = Received {
            helo: "client.example",
            client: "192.0.2.7".parse().unwrap(),
            hostname: "mx.example",
            protocol: Protocol {
                extended: true,
                ..Protocol::default()
            },
            id: "1A2",
            recipient: Some("a@b.example"),
            date: &date(0),
        };
        received.write(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "Received: from client.example ([192.0.2.7])\r\n\
             \tby mx.example (Portcullis) with ESMTP id 1A2\r\n\
             \tfor <a@b.example>;\r\n\tThu, 1 Jan 1970 00:00:00 +0000\r\n"
        );
    }
}
