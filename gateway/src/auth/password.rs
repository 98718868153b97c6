//! A password while it is in memory, and the form of names.

use std::fmt;

use stringprep::saslprep;
use zeroize::Zeroizing;

/// More than a person types and less than what would make a check a way to keep us busy.
const OCTETS_MAX: usize = 1_024;

/// A password. It is wiped when it is dropped, and has no `Clone` and no content in `Debug`, so
/// that it cannot get into a log, an event or the message of a panic.
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// The password in the form in which it is stored and compared: SASLprep (RFC 4013), which
    /// makes one of the several ways to write the same characters. What SASLprep refuses stays as
    /// it is: the hash then decides.
    ///
    /// `None`: no password can be like this (empty, over 1,024 octets, or with a NUL).
    pub fn new(octets: Zeroizing<Vec<u8>>) -> Option<Self> {
        if octets.is_empty() || octets.len() > OCTETS_MAX || octets.contains(&0) {
            return None;
        }
        // For ASCII the result is the text itself, and no copy is made.
        let prepared = match std::str::from_utf8(&octets).ok().map(saslprep) {
            Some(Ok(std::borrow::Cow::Owned(text))) => Some(Zeroizing::new(text.into_bytes())),
            _ => None,
        };
        let password = prepared.unwrap_or(octets);
        (!password.is_empty()).then_some(Self(password))
    }

    /// The octets, for a hash and nothing else.
    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// The form in which names of users are compared: SASLprep (RFC 4013), and letters in lower case,
/// because people write their address in either. Two users cannot differ in case alone.
///
/// `None`: no user can have this name (empty, over 255 octets, or with characters that SASLprep
/// does not allow).
pub fn name_key(name: &str) -> Option<Box<str>> {
    if name.len() > 255 {
        return None;
    }
    let key = saslprep(name).ok()?.to_lowercase();
    (!key.is_empty()).then(|| key.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Option<Password> {
        Password::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn nothing_that_is_printed_of_a_password_shows_it() {
        let secret = "open sesame 4711";
        let credentials = super::super::Credentials {
            name: "alice".into(),
            password: password(secret).unwrap(),
        };
        let shown = format!("{credentials:?} {:#?}", Some(&credentials.password));
        assert!(shown.contains("alice"), "{shown}");
        assert!(
            !shown.contains("sesame") && !shown.contains("111, 112"),
            "{shown}"
        );
    }

    #[test]
    fn one_password_is_one_however_its_characters_are_written() {
        let composed = password("caf\u{e9}").unwrap();
        let decomposed = password("cafe\u{301}").unwrap();
        assert_eq!(composed.octets(), decomposed.octets());
        // SASLprep refuses a control character; the octets still are a password.
        assert_eq!(password("a\u{7}b").unwrap().octets(), b"a\x07b");
    }

    #[test]
    fn what_can_be_no_password_is_none() {
        let long = "x".repeat(OCTETS_MAX + 1);
        for text in ["", "a\0b", "\u{ad}", &long] {
            assert!(password(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn names_are_compared_without_case() {
        assert_eq!(
            name_key("Alice@ISP.example").as_deref(),
            Some("alice@isp.example")
        );
        assert_eq!(name_key("\u{212b}"), name_key("a\u{30a}"));
        for name in ["", "a\nb", "\u{7f}", &"a".repeat(256)] {
            assert_eq!(name_key(name), None, "{name:?}");
        }
    }
}
