//! What SMTP itself says of an authentication (RFC 4954): the names of the mechanisms, and base64.
//!
//! What the messages of a mechanism mean is left to the caller. An [`Encoded`] borrows from the
//! connection's input, which the caller wipes. It is decoded straight into memory of the caller, so
//! that nothing here keeps a copy of a password. Rejected: a box with the decoded octets in the
//! session, which would be one more place to wipe.

use std::fmt;

/// Octets of a line within an exchange, without CRLF (RFC 4954, 4).
pub const LINE_LENGTH_MAX: usize = 12_288;

/// A mechanism that this gate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// PLAIN (RFC 4616).
    Plain,
    /// LOGIN: user name and password, each asked for by a challenge of its own. It was never
    /// standardized, and many clients have nothing else.
    Login,
}

impl Mechanism {
    /// All of them, the best first: the order in the reply to EHLO.
    pub const ALL: [Self; 3] = [Self::ScramSha256, Self::Plain, Self::Login];

    /// Its name in the registry of SASL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
        }
    }

    /// The mechanism with this name, in any case.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mechanism| name.eq_ignore_ascii_case(mechanism.name().as_bytes()))
    }
}

/// A set of mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// Adds one.
    pub const fn insert(&mut self, mechanism: Mechanism) {
        self.0 |= 1 << mechanism as u8;
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn contains(self, mechanism: Mechanism) -> bool {
        self.0 & (1 << mechanism as u8) != 0
    }

    /// None.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of them, the best first.
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL
            .into_iter()
            .filter(move |mechanism| self.contains(*mechanism))
    }
}

impl FromIterator<Mechanism> for Mechanisms {
    fn from_iter<I: IntoIterator<Item = Mechanism>>(mechanisms: I) -> Self {
        let mut set = Self::default();
        for mechanism in mechanisms {
            set.insert(mechanism);
        }
        set
    }
}

/// Base64 that was checked (RFC 4648, 4): whole groups, padding only at the end, and no bit set
/// that stands for nothing. Its `Debug` shows no octet of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a>(&'a [u8]);

impl<'a> Encoded<'a> {
    /// Nothing: the empty message.
    pub const EMPTY: Self = Self(b"");

    /// Checks a text. `None`: it is no base64.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        if !text.len().is_multiple_of(4) {
            return None;
        }
        let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
        let digits = &text[..text.len() - padding];
        // The last digit before the padding has this many bits that no octet takes.
        let unused = match padding {
            0 => 0,
            1 => 0b11,
            2 => 0b1111,
            _ => return None,
        };
        let are_digits = digits.iter().all(|&b| digit(b).is_some());
        let is_canonical = digits
            .last()
            .and_then(|&b| digit(b))
            .is_none_or(|last| last & unused == 0);
        (are_digits && is_canonical).then_some(Self(text))
    }

    /// Appends the octets. The memory is reserved once and first: a vector that was empty never
    /// moves, so its owner can wipe all that it held.
    pub fn decode(self, into: &mut Vec<u8>) {
        into.reserve(self.0.len() / 4 * 3);
        for group in self.0.chunks_exact(4) {
            let padding = group.iter().filter(|&&b| b == b'=').count();
            let bits = group
                .iter()
                .fold(0, |bits, &b| bits << 6 | u32::from(digit(b).unwrap_or(0)));
            into.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
        }
    }

    /// Nothing was sent but the wish to go on.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} octets)", self.0.len())
    }
}

/// Appends octets in base64, with padding.
pub fn encode(octets: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.reserve(octets.len().div_ceil(3) * 4);
    for group in octets.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | u32::from(group.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            out.push(if at <= group.len() {
                DIGITS[(bits >> (18 - 6 * at)) as usize & 63]
            } else {
                b'='
            });
        }
    }
}

const fn digit(b: u8) -> Option<u8> {
    match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut octets = Vec::new();
        Encoded::parse(text)?.decode(&mut octets);
        Some(octets)
    }

    #[test]
    fn what_is_encoded_is_decoded_at_every_length() {
        let octets: Vec<u8> = (0..=255).rev().collect();
        for length in 0..octets.len() {
            let mut text = Vec::new();
            encode(&octets[..length], &mut text);
            assert_eq!(decoded(&text).as_deref(), Some(&octets[..length]));
        }
    }

    #[test]
    fn the_examples_of_rfc_4648_come_out() {
        for (octets, text) in [
            (&b""[..], &b""[..]),
            (b"f", b"Zg=="),
            (b"fo", b"Zm8="),
            (b"foo", b"Zm9v"),
            (b"foobar", b"Zm9vYmFy"),
            (b"\0a\0b", b"AGEAYg=="),
        ] {
            let mut out = Vec::new();
            encode(octets, &mut out);
            assert_eq!((&*out, decoded(text).unwrap()), (text, octets.to_vec()));
        }
    }

    #[test]
    fn what_is_no_base64_is_not_decoded() {
        for text in [
            &b"A"[..],
            b"Zg=",
            b"Zg",
            b"=",
            b"====",
            b"A===",
            b"Zh==",
            b"Zm9=",
            b"Zg==Zg==",
            b"Z g=",
            b"Zm9-",
            b"Zm9\xff",
        ] {
            assert_eq!(decoded(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn no_credential_shows_in_debug_output() {
        let shown = format!("{:?}", Encoded::parse(b"AGEAYg=="));
        assert_eq!(shown, "Some(Encoded(8 octets))");
    }

    #[test]
    fn decoding_moves_nothing_that_was_decoded() {
        let text = [b'A'; LINE_LENGTH_MAX];
        let mut octets = Vec::new();
        Encoded::parse(&text).unwrap().decode(&mut octets);
        assert!(octets.capacity() - octets.len() < 4);
    }
}
