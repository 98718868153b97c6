//! Which lines of a log tell of a login, and from which address.
//!
//! A line holds words that clients choose: Dovecot logs the names of users that do not exist, and
//! Postfix, which may write to the same file, what a client sends in place of a command. So the
//! pattern for Dovecot begins at the beginning of the line. Before the service come only the words
//! of syslog (a time, a host) and Dovecot's own tag: none with a `<`, where the words of Dovecot's
//! clients begin, and none that ends in a colon, as the tag of every other program does. The regex
//! crate takes time linear in the line, whatever the pattern.

use std::net::IpAddr;

use regex::bytes::{Regex, RegexBuilder};

/// Dovecot 2.3 and 2.4: `pop3-login: Login: user=<joe>, method=PLAIN, rip=192.0.2.1, ...`.
const DOVECOT: &str = concat!(
    r"^(?:[^\s<>]*[^\s<>:] +){0,6}(?:dovecot(?:\[[0-9]+\])?: )?",
    r"(?:pop3|imap|submission|managesieve)-login: (?:Info: )?(?:Login|Logged in): ",
    r"user=<(?P<user>[^<>]*)>, (?:[a-z]+=[^<>=, ]*, )*rip=(?P<ip>[0-9A-Fa-f.:]+)(?:,|$)",
);
/// Bytes of a compiled pattern.
const COMPILED_MAX: usize = 1 << 20;

/// A pattern for lines that tell of a login.
#[derive(Clone, Debug)]
pub struct LoginPattern {
    text: String,
    regex: Regex,
}

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login<'a> {
    /// The client's address; an IPv4 address always as such.
    pub address: IpAddr,
    /// The user, as it stands in the line; empty if the pattern has no such group.
    pub user: &'a [u8],
}

impl LoginPattern {
    /// The pattern of this name, or this regular expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<LoginPattern, String> {
        let expression = if text == "dovecot" { DOVECOT } else { text };
        let regex = RegexBuilder::new(expression)
            // A name in another encoding is no reason to overlook a login.
            .unicode(false)
            .size_limit(COMPILED_MAX)
            .dfa_size_limit(COMPILED_MAX)
            .build()
            .map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                let last = last.trim_start_matches("error: ");
                format!("neither \"dovecot\" nor a regular expression: {last}")
            })?;
        if !regex.capture_names().flatten().any(|name| name == "ip") {
            return Err("there is no group named `ip`: write (?P<ip>[0-9A-Fa-f.:]+)".to_owned());
        }
        Ok(LoginPattern {
            text: text.to_owned(),
            regex,
        })
    }

    /// The login that a line tells of. Addresses that no client of a network can have (loopback,
    /// multicast, unspecified) are none.
    pub fn login<'a>(&self, line: &'a [u8]) -> Option<Login<'a>> {
        let found = self.regex.captures(line)?;
        let address = std::str::from_utf8(found.name("ip")?.as_bytes()).ok()?;
        let address: IpAddr = address.parse().ok()?;
        let address = address.to_canonical();
        if !super::Grants::may_have(address) {
            return None;
        }
        let user = found.name("user").map_or(&[][..], |user| user.as_bytes());
        Some(Login { address, user })
    }
}

impl PartialEq for LoginPattern {
    fn eq(&self, other: &LoginPattern) -> bool {
        self.text == other.text
    }
}

impl Eq for LoginPattern {}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Option<(String, String)> {
        let pattern = LoginPattern::parse("dovecot").unwrap();
        let login = pattern.login(line.as_bytes())?;
        let user = String::from_utf8_lossy(login.user).into_owned();
        Some((user, login.address.to_string()))
    }

    #[test]
    fn the_logins_of_dovecot_are_found() {
        for (line, user, address) in [
            (
                "Nov 29 05:00:00 mx dovecot: pop3-login: Login: user=<joe>, method=PLAIN, \
                 rip=192.0.2.1, lip=192.0.2.25, mpid=7, TLS, session=<abc>",
                "joe",
                "192.0.2.1",
            ),
            (
                "Nov 29 05:00:00 imap-login: Info: Login: user=<joe@isp.example>, method=PLAIN, \
                 rip=2001:db8::7, lip=::1, mpid=7, session=<abc>",
                "joe@isp.example",
                "2001:db8::7",
            ),
            (
                "2026-11-29T05:00:00 dovecot[9]: imap-login: Logged in: user=<joe>, \
                 method=SCRAM-SHA-256, rip=::ffff:192.0.2.1, lip=192.0.2.25",
                "joe",
                "192.0.2.1",
            ),
            (
                "Nov  9 05:00:00 mx dovecot[412]: submission-login: Login: user=<joe>, \
                 method=PLAIN, rip=192.0.2.1, lip=192.0.2.25",
                "joe",
                "192.0.2.1",
            ),
        ] {
            let expected = Some((user.to_owned(), address.to_owned()));
            assert_eq!(told(line), expected, "{line}");
        }
    }

    #[test]
    fn no_client_can_write_itself_a_login_by_its_name() {
        for line in [
            "pop3-login: Disconnected: Connection closed (auth failed, 1 attempts): user=<joe>, \
             method=PLAIN, rip=192.0.2.1, lip=192.0.2.25",
            "pop3-login: Disconnected (auth failed): user=<pop3-login: Login: user=<a>, \
             rip=192.0.2.1, >, method=PLAIN, rip=203.0.113.9, lip=192.0.2.25",
            "pop3-login: Disconnected (auth failed): user=<x, pop3-login: Login: user=<a>, \
             method=P, rip=192.0.2.1, lip=1>",
            "auth: passwd-file(<pop3-login: Login: user=<a>, rip=192.0.2.1,): unknown user",
            "Nov 29 05:00:00 mx postfix/smtpd[7]: warning: non-SMTP command from \
             unknown[192.0.2.1]: pop3-login: Login: user=<a>, rip=192.0.2.1, x",
            "Nov 29 05:00:00 mx postfix/smtpd[7]: improper command pipelining after EHLO from \
             unknown[192.0.2.1]: pop3-login: Login: user=<a>, rip=192.0.2.1, x",
            "postfix/smtpd[7]: dovecot: pop3-login: Login: user=<a>, rip=192.0.2.1, x",
            "Nov 29 05:00:00 mx sshd[7]: Invalid user pop3-login: Login: user=<a>, rip=192.0.2.1,",
            "pop3-login: Login: user=<joe>, method=PLAIN, lip=192.0.2.25",
            "pop3-login: Login: user=<joe>, method=PLAIN, rip=127.0.0.1, lip=127.0.0.1",
            "pop3-login: Login: user=<joe>, method=PLAIN, rip=1:2, lip=127.0.0.1",
            "",
        ] {
            assert_eq!(told(line), None, "{line}");
        }
    }

    #[test]
    fn a_pattern_of_ones_own_has_a_group_for_the_address() {
        let own = LoginPattern::parse(r"^popd: (?P<user>\S+) from \[(?P<ip>[^]]+)\]$").unwrap();
        let login = own
            .login(b"popd: j\xff from [192.0.2.1]")
            .map(|login| login.address);
        assert_eq!(login, Some([192, 0, 2, 1].into()), "no UTF-8 in the name");
        for (bad, why) in [("dovecat", "no group"), ("(?P<ip>", "regular expression")] {
            let error = LoginPattern::parse(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(
            LoginPattern::parse(r"(?P<ip>\w{5000}{5000})").is_err(),
            "too large"
        );
    }
}
