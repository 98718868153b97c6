//! The addresses of RFC 5321, 4.1.2: paths, mailboxes, domains, address literals.
//!
//! Nothing is rewritten and nothing is guessed: the parts borrow from the text as written, and what
//! the grammar does not allow is an error. Characters above ASCII are allowed (RFC 6531); the
//! caller checks whether the session may use them. Of the lengths in 4.5.3.1 only that of the
//! domain is checked: they are minimum sizes, forwarders send local parts of more than 64 octets,
//! and the length of the command line bounds all of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// RFC 5321, 4.5.3.1.2.
const DOMAIN_LENGTH_MAX: usize = 255;
/// RFC 1035, 2.3.4.
const LABEL_LENGTH_MAX: usize = 63;

/// The part after the `@`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain<'a> {
    /// A name, as written.
    Name(&'a str),
    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal(IpAddr),
    /// `[tag:content]` with any other tag; the text between the brackets.
    GeneralLiteral(&'a str),
    /// No domain; only `postmaster` may have none.
    None,
}

/// A local part and a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox<'a> {
    /// As written, quotes included.
    pub local_part: &'a str,
    /// After the `@`.
    pub domain: Domain<'a>,
}

/// A forward-path, or a reverse-path that is not null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// The text between `<` and `>`, as written.
    pub raw: &'a str,
    /// The obsolete `@one,@two` before the colon, as written.
    pub source_route: Option<&'a str>,
    /// The mailbox.
    pub mailbox: Mailbox<'a>,
}

/// Why a text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// The angle brackets are missing or do not match.
    Brackets,
    /// The local part is empty or has a character that needs quotes.
    LocalPart,
    /// There is no domain, and the local part is not `postmaster`.
    NoDomain,
    /// The domain is not a name: a label is empty or too long, or has a character that names do not
    /// have.
    Domain,
    /// The text in square brackets is not an address.
    Literal,
    /// The text before the colon is not a source route.
    SourceRoute,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Brackets => "the address must stand in angle brackets",
            Self::LocalPart => "the local part is malformed",
            Self::NoDomain => "the domain is missing",
            Self::Domain => "the domain is malformed",
            Self::Literal => "the address literal is malformed",
            Self::SourceRoute => "the source route is malformed",
        })
    }
}

impl std::error::Error for PathError {}

impl<'a> Path<'a> {
    /// Parses the text between `<` and `>`, which must not be empty.
    ///
    /// # Errors
    /// The part of the text that RFC 5321 does not allow.
    pub fn parse(raw: &'a str) -> Result<Self, PathError> {
        let (source_route, mailbox) = if raw.starts_with('@') {
            let (route, mailbox) = split_source_route(raw)?;
            (Some(route), mailbox)
        } else {
            (None, raw)
        };
        Ok(Self {
            raw,
            source_route,
            mailbox: Mailbox::parse(mailbox)?,
        })
    }

    /// The mailbox as written. This is what a relay passes on: relays strip source routes (RFC
    /// 5321, 4.1.1.3 and F.2).
    #[must_use]
    pub fn without_route(&self) -> &'a str {
        // The colon after the route is one octet.
        self.source_route
            .map_or(self.raw, |route| &self.raw[route.len() + 1..])
    }
}

impl<'a> Mailbox<'a> {
    /// Parses `local-part@domain`, or `postmaster` alone.
    ///
    /// # Errors
    /// The part of the text that RFC 5321 does not allow.
    pub fn parse(text: &'a str) -> Result<Self, PathError> {
        let (local_part, rest) = if text.starts_with('"') {
            split_quoted(text)?
        } else {
            split_dot_string(text)?
        };
        let domain = match rest.strip_prefix('@') {
            Some(domain) => Domain::parse(domain)?,
            None if !rest.is_empty() => return Err(PathError::LocalPart),
            None if local_part.eq_ignore_ascii_case("postmaster") => Domain::None,
            None => return Err(PathError::NoDomain),
        };
        Ok(Self { local_part, domain })
    }
}

impl<'a> Domain<'a> {
    /// Parses the part after an `@`: a name, or a literal in square brackets.
    ///
    /// # Errors
    /// [`PathError::Domain`] or [`PathError::Literal`].
    pub fn parse(text: &'a str) -> Result<Self, PathError> {
        if let Some(literal) = text.strip_prefix('[') {
            let literal = literal.strip_suffix(']').ok_or(PathError::Literal)?;
            return parse_literal(literal);
        }
        if is_name(text) {
            Ok(Self::Name(text))
        } else {
            Err(PathError::Domain)
        }
    }
}

/// Whether this is a valid name for EHLO or HELO: letters, digits, hyphens, dots and underscores,
/// or an address literal.
///
/// A dot at the end is allowed: it changes nothing, and real clients send it.
#[must_use]
pub fn is_client_name(text: &str) -> bool {
    let text = if text.starts_with('[') {
        text
    } else {
        text.strip_suffix('.').unwrap_or(text)
    };
    text.is_ascii() && Domain::parse(text).is_ok()
}

/// Splits `<path> rest` into the text between the brackets and the rest. A bracket within quotes
/// does not count.
pub(crate) fn split_brackets(text: &str) -> Result<(&str, &str), PathError> {
    let inner = text.strip_prefix('<').ok_or(PathError::Brackets)?;
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Ok((&inner[..at], &inner[at + 1..])),
            _ => {}
        }
    }
    Err(PathError::Brackets)
}

/// Splits `@one,@two:mailbox` at the colon. A literal may contain colons.
fn split_source_route(text: &str) -> Result<(&str, &str), PathError> {
    let mut in_literal = false;
    let colon = text.bytes().position(|byte| {
        match byte {
            b'[' => in_literal = true,
            b']' => in_literal = false,
            _ => {}
        }
        byte == b':' && !in_literal
    });
    let (route, mailbox) = text.split_at(colon.ok_or(PathError::SourceRoute)?);
    let well_formed = route.split(',').all(|hop| {
        hop.strip_prefix('@')
            .is_some_and(|domain| Domain::parse(domain).is_ok())
    });
    if well_formed {
        Ok((route, &mailbox[1..]))
    } else {
        Err(PathError::SourceRoute)
    }
}

/// Splits off a Dot-string: atoms with single dots between them.
fn split_dot_string(text: &str) -> Result<(&str, &str), PathError> {
    let end = text
        .bytes()
        .position(|b| !is_atext(b) && b != b'.')
        .unwrap_or(text.len());
    let (local_part, rest) = text.split_at(end);
    if local_part.split('.').any(str::is_empty) {
        return Err(PathError::LocalPart);
    }
    Ok((local_part, rest))
}

/// Splits off a Quoted-string with its quotes.
fn split_quoted(text: &str) -> Result<(&str, &str), PathError> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            0..b' ' | 0x7f => return Err(PathError::LocalPart),
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok(text.split_at(at + 1)),
            _ => {}
        }
    }
    Err(PathError::LocalPart)
}

/// RFC 5322 `atext`, with the characters above ASCII that RFC 6531 adds.
fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LENGTH_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b >= 0x80 || b == b'-' || b == b'_')
    };
    text.len() <= DOMAIN_LENGTH_MAX && text.split('.').all(is_label)
}

/// Parses the text between square brackets (RFC 5321, 4.1.3). An address that no host can have is
/// an error.
fn parse_literal(text: &str) -> Result<Domain<'_>, PathError> {
    let Some((tag, content)) = text.split_once(':') else {
        let address: Ipv4Addr = text.parse().map_err(|_| PathError::Literal)?;
        let of_a_host = address.octets()[0] != 0;
        return if of_a_host {
            Ok(Domain::Literal(address.into()))
        } else {
            Err(PathError::Literal)
        };
    };
    if tag.eq_ignore_ascii_case("IPv6") {
        let address: Ipv6Addr = content.parse().map_err(|_| PathError::Literal)?;
        let of_a_host = !address.is_unspecified();
        return if of_a_host {
            Ok(Domain::Literal(address.into()))
        } else {
            Err(PathError::Literal)
        };
    }
    let tag_is_good = !tag.is_empty()
        && !tag.ends_with('-')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let content_is_good =
        !content.is_empty() && content.bytes().all(|b| matches!(b, 33..=90 | 94..=126));
    if tag_is_good && content_is_good && text.len() <= DOMAIN_LENGTH_MAX {
        Ok(Domain::GeneralLiteral(text))
    } else {
        Err(PathError::Literal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_come_apart_where_the_grammar_says() {
        use Domain::{GeneralLiteral, Literal, Name};
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        for (text, local_part, domain) in [
            ("a@b", "a", Name("b")),
            ("a.b+c@d_e.example", "a.b+c", Name("d_e.example")),
            ("user%dom@isp.example", "user%dom", Name("isp.example")),
            (
                "dom!user@[192.0.2.1]",
                "dom!user",
                Literal(Ipv4Addr::new(192, 0, 2, 1).into()),
            ),
            (r#""user@dom"@b"#, r#""user@dom""#, Name("b")),
            (r#""a \" b"@c"#, r#""a \" b""#, Name("c")),
            (r#"""@c"#, r#""""#, Name("c")),
            ("a@[IPv6:2001:db8::1]", "a", Literal(v6.into())),
            ("a@[x-25:1]", "a", GeneralLiteral("x-25:1")),
            ("Postmaster", "Postmaster", Domain::None),
            ("jürgen@müller.example", "jürgen", Name("müller.example")),
        ] {
            assert_eq!(
                Mailbox::parse(text),
                Ok(Mailbox { local_part, domain }),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_no_address() {
        use PathError::{Domain, Literal, LocalPart, NoDomain, SourceRoute};
        for (text, error) in [
            ("", LocalPart),
            ("@", SourceRoute),
            ("a", NoDomain),
            ("dom!user", NoDomain),
            (r#""user@dom""#, NoDomain),
            ("a@", Domain),
            ("user@dom@", Domain),
            ("user@dom@server", Domain),
            ("user@dom@[192.0.2.1]", Domain),
            ("a..b@c", LocalPart),
            (".a@c", LocalPart),
            ("a.@c", LocalPart),
            ("a b@c", LocalPart),
            ("a<b@c", LocalPart),
            ("\"a\nb\"@c", LocalPart),
            (r#""a@c"#, LocalPart),
            (r#""a"b@c"#, LocalPart),
            ("a@b..c", Domain),
            ("a@b.", Domain),
            ("a@b c", Domain),
            ("a@[192.0.2.1", Literal),
            ("a@[0.2.2.1]", Literal),
            ("a@[321.2.2.1]", Literal),
            ("a@[1.2.3]", Literal),
            ("a@[IPv6:1]", Literal),
            ("a@[IPv6:::]", Literal),
            ("a@[tag:]", Literal),
            ("@a,b:c@d", SourceRoute),
            ("@a c@d", SourceRoute),
        ] {
            assert_eq!(Path::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn source_routes_are_kept_apart_from_the_mailbox() {
        for (raw, route, mailbox) in [
            ("@server:user@dom", "@server", "user@dom"),
            ("@a,@b.c:d@e", "@a,@b.c", "d@e"),
            ("@[192.0.2.1]:user@dom", "@[192.0.2.1]", "user@dom"),
            (
                "@[IPv6:2001:db8::1]:user@dom",
                "@[IPv6:2001:db8::1]",
                "user@dom",
            ),
        ] {
            let path = Path::parse(raw).unwrap();
            assert_eq!((path.raw, path.source_route), (raw, Some(route)));
            assert_eq!(path.mailbox, Mailbox::parse(mailbox).unwrap());
            assert_eq!(path.without_route(), mailbox);
        }
    }

    #[test]
    fn brackets_within_quotes_do_not_end_a_path() {
        assert_eq!(
            split_brackets(r#"<"a>\">"@b> SIZE=1"#),
            Ok((r#""a>\">"@b"#, " SIZE=1"))
        );
        assert_eq!(split_brackets("<>"), Ok(("", "")));
        for text in ["", "a@b", "<a@b", r#"<"a>@b"#] {
            assert_eq!(split_brackets(text), Err(PathError::Brackets), "{text}");
        }
    }

    #[test]
    fn client_names_are_names_or_addresses_of_hosts() {
        for good in [
            "a",
            "mail.isp.example",
            "a_b.c",
            "host.",
            "-x-",
            "[192.0.2.1]",
            "[IPv6:::1]",
        ] {
            assert!(is_client_name(good), "{good}");
        }
        let long = ["a23456789"; 26].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a@b",
            "[321.255.255.255]",
            "[0.255.255.255]",
            "[1.2.3]",
            "[192.0.2.1].",
            "ä",
            &long,
        ] {
            assert!(!is_client_name(bad), "{bad}");
        }
    }
}
