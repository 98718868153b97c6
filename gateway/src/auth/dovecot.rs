//! The lines of Dovecot's auth protocol, version 1.2, as a client (a mail server) speaks it:
//! <https://doc.dovecot.org/2.3/developer_manual/design/auth_protocol/>. Fields end with a tab,
//! lines with LF.
//!
//! Octets only: the connection is in the control plane. The exchange itself is Dovecot's; what the
//! client of ours says goes to it as it is, in base64.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::exchange::Mechanism;

/// A longest line that is sent, without its LF. For one of 16,384 octets Dovecot closes the
/// connection, and with it all that is in flight. What SMTP lets a client say in base64 has at most
/// 12,288 (RFC 4954 section 4).
pub const LINE_LENGTH_MAX: usize = 16_000;

/// What a client asks for.
#[derive(Debug)]
pub struct Attempt {
    /// Its mechanism. It has to be one that Dovecot has announced.
    pub mechanism: Mechanism,
    /// Where it comes from.
    pub client: IpAddr,
    /// Whether it speaks TLS: else Dovecot may refuse plaintext mechanisms.
    pub is_secured: bool,
    /// What came with AUTH itself, decoded; an empty one is not the same as none.
    pub initial: Option<Secret>,
}

/// Octets of an exchange: perhaps a password. A clone is the same octets and no copy.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the octets, which are wiped with the last clone.
    pub fn new(octets: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(octets))
    }
}

/// Without the octets.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The lines that open a connection. `process` is what Dovecot logs us by.
pub fn hello(process: u32) -> String {
    format!("VERSION\t1\t2\nCPID\t{process}\n")
}

/// The line that begins an exchange. `None`: Dovecot would take it as too long.
pub fn begin(id: u32, attempt: &Attempt) -> Option<Zeroizing<String>> {
    let Attempt {
        mechanism, client, ..
    } = attempt;
    let secured = if attempt.is_secured { "\tsecured" } else { "" };
    let name = mechanism.name();
    // Not to wait for up to 17 s after failures of the same address: that is counted here.
    let head = format!("AUTH\t{id}\t{name}\tservice=smtp{secured}\tno-penalty\trip={client}");
    // `resp=` comes last: what follows it belongs to it.
    line(&head, "\tresp=", attempt.initial.as_ref())
}

/// The line with a further response of the client.
pub fn proceed(id: u32, response: &Secret) -> Option<Zeroizing<String>> {
    line(&format!("CONT\t{id}"), "\t", Some(response))
}

/// The line that gives an exchange up. It has no reply.
pub fn cancel(id: u32) -> String {
    format!("CANCEL\t{id}\n")
}

fn line(head: &str, before: &str, octets: Option<&Secret>) -> Option<Zeroizing<String>> {
    let length = octets.map_or(0, |octets| octets.0.len().div_ceil(3) * 4);
    let length = head.len() + before.len() + length;
    if length > LINE_LENGTH_MAX {
        return None;
    }
    // All of its length at once: growing would leave copies behind.
    let mut line = Zeroizing::new(String::with_capacity(length + 1));
    line.push_str(head);
    if let Some(octets) = octets {
        line.push_str(before);
        BASE64.encode_string(&**octets.0, &mut line);
    }
    line.push('\n');
    Some(line)
}

/// A line of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerLine {
    /// Its version: another first number is another protocol.
    Version(u32),
    /// A mechanism that it has.
    Mechanism(String),
    /// The end of what it says of itself.
    Done,
    /// The exchange is over: the client is this user.
    Ok(u32, String),
    /// The exchange is over.
    Fail(u32, Failure),
    /// A challenge, decoded.
    Continue(u32, Vec<u8>),
    /// One that says nothing that is needed.
    Other,
}

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// For what the client said; with the name that it gave, where Dovecot knows that.
    Refused(Option<String>),
    /// For reasons of Dovecot's own, such as a database that is away.
    Temporary,
}

impl ServerLine {
    /// Reads a line, without its LF. `None`: this is not the protocol.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split('\t');
        let command = fields.next()?;
        let mut number = || fields.next()?.parse::<u32>().ok();
        Some(match command {
            "VERSION" => Self::Version(number()?),
            "MECH" => Self::Mechanism(fields.next()?.to_owned()),
            "DONE" => Self::Done,
            "OK" => {
                let id = number()?;
                let user = fields.find_map(|field| field.strip_prefix("user="))?;
                Self::Ok(id, unescaped(user)?)
            }
            "FAIL" => {
                let id = number()?;
                let (mut is_temporary, mut user) = (false, None);
                for field in fields {
                    is_temporary |= matches!(field, "temp" | "code=temp_fail");
                    user = user.or(field.strip_prefix("user="));
                }
                let failure = match is_temporary {
                    true => Failure::Temporary,
                    false => Failure::Refused(user.and_then(unescaped)),
                };
                Self::Fail(id, failure)
            }
            "CONT" => {
                let id = number()?;
                let challenge = fields.next().unwrap_or_default();
                Self::Continue(id, BASE64.decode(challenge).ok()?)
            }
            _ => Self::Other,
        })
    }
}

/// Takes the escapes of a value out: `0x01` and a character.
fn unescaped(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        value.push(match character {
            '\u{1}' => match characters.next()? {
                '0' => '\0',
                '1' => '\u{1}',
                't' => '\t',
                'r' => '\r',
                'n' => '\n',
                _ => return None,
            },
            character => character,
        });
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(initial: Option<&[u8]>) -> Attempt {
        Attempt {
            mechanism: Mechanism::Plain,
            client: [192, 0, 2, 7].into(),
            is_secured: true,
            initial: initial.map(|octets| Secret::new(Zeroizing::new(octets.to_vec()))),
        }
    }

    #[test]
    fn a_request_has_its_response_last_and_an_empty_one_is_not_none() {
        let head = "AUTH\t7\tPLAIN\tservice=smtp\tsecured\tno-penalty\trip=192.0.2.7";
        for (initial, tail) in [
            (None, ""),
            (Some(&b""[..]), "\tresp="),
            (Some(b"\0a\0b"), "\tresp=AGEAYg=="),
        ] {
            let line = begin(7, &attempt(initial)).unwrap();
            assert_eq!(*line, format!("{head}{tail}\n"));
        }
        let response = Secret::new(Zeroizing::new(b"x".to_vec()));
        assert_eq!(*proceed(8, &response).unwrap(), "CONT\t8\teA==\n");
        assert_eq!(cancel(9), "CANCEL\t9\n");
    }

    #[test]
    fn a_line_that_would_close_the_connection_is_not_made() {
        let longest =
            (1..13_000).filter_map(|length| begin(7, &attempt(Some(&vec![b'x'; length]))));
        let longest = longest.map(|line| line.len()).max();
        assert!(longest.is_some_and(|length| length <= LINE_LENGTH_MAX + 1));
        assert!(begin(7, &attempt(Some(&[b'x'; 12_000]))).is_none());
    }

    #[test]
    fn no_request_shows_what_the_client_said() {
        let shown = format!("{:?}", attempt(Some(b"\0alice\0sesame")));
        assert!(
            !shown.contains("sesame") && !shown.contains("115"),
            "{shown}"
        );
    }

    #[test]
    fn lines_of_the_server_are_read() {
        let refused = |user: Option<&str>| Failure::Refused(user.map(str::to_owned));
        let ok = |user: &str| Some(ServerLine::Ok(3, user.to_owned()));
        for (line, read) in [
            ("VERSION\t1\t2", Some(ServerLine::Version(1))),
            (
                "MECH\tPLAIN\tplaintext",
                Some(ServerLine::Mechanism("PLAIN".to_owned())),
            ),
            ("SPID\t4711", Some(ServerLine::Other)),
            ("COOKIE\tabcdef", Some(ServerLine::Other)),
            ("DONE", Some(ServerLine::Done)),
            ("OK\t3\tuser=alice\toriginal_user=Alice", ok("alice")),
            ("OK\t3\tuser=a\u{1}tb\u{1}1", ok("a\tb\u{1}")),
            ("OK\t3", None),
            ("OK\tx\tuser=alice", None),
            (
                "FAIL\t3\tuser=a",
                Some(ServerLine::Fail(3, refused(Some("a")))),
            ),
            ("FAIL\t3", Some(ServerLine::Fail(3, refused(None)))),
            (
                "FAIL\t3\tuser=a\ttemp",
                Some(ServerLine::Fail(3, Failure::Temporary)),
            ),
            (
                "FAIL\t3\tcode=temp_fail",
                Some(ServerLine::Fail(3, Failure::Temporary)),
            ),
            (
                "FAIL\t3\tuser=temp_fail",
                Some(ServerLine::Fail(3, refused(Some("temp_fail")))),
            ),
            (
                "CONT\t3\tVXNlcm5hbWU6",
                Some(ServerLine::Continue(3, b"Username:".to_vec())),
            ),
            ("CONT\t3\t", Some(ServerLine::Continue(3, Vec::new()))),
            ("CONT\t3\t???", None),
            ("", Some(ServerLine::Other)),
        ] {
            assert_eq!(ServerLine::parse(line.as_bytes()), read, "{line:?}");
        }
        assert_eq!(ServerLine::parse(b"OK\t3\tuser=\xff"), None);
    }
}
