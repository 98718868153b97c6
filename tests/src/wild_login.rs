//! Logs that may hold anything, for fuzzing: the first octet says how the log is cut into pieces,
//! the rest is the log.

use std::sync::LazyLock;

use portcullis::config::LoginPattern;
use portcullis::control::grants::lines::{LINE_MAX, Lines};

static DOVECOT: LazyLock<LoginPattern> =
    LazyLock::new(|| LoginPattern::parse("dovecot").expect("it is ours"));

/// Reads a log in pieces, and looks for logins.
///
/// # Errors
/// Something that must hold whatever is in a log does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [size, log @ ..] = script else {
        return Ok(());
    };
    let whole = read(&[log]);
    let pieces: Vec<&[u8]> = log.chunks(usize::from(*size) + 1).collect();
    if read(&pieces) != whole {
        return Err("the size of the pieces makes a difference".to_owned());
    }
    let (lines, long) = whole;
    let ends = log.iter().filter(|octet| **octet == b'\n').count();
    if lines.len() as u64 + long != ends as u64 {
        return Err(format!(
            "{} lines and {long} long ones of {ends}",
            lines.len()
        ));
    }
    for line in &lines {
        if line.len() > LINE_MAX || line.contains(&b'\n') {
            return Err("a line that is none".to_owned());
        }
        let Some(login) = DOVECOT.login(line) else {
            continue;
        };
        if login.address.is_loopback() || login.address != login.address.to_canonical() {
            return Err(format!("{} has a grant", login.address));
        }
        // What a client chooses stands behind the first `<`.
        let named = line
            .iter()
            .position(|octet| *octet == b'<')
            .unwrap_or_default();
        let before = String::from_utf8_lossy(&line[..named]);
        let told = ["Login: user=", "Logged in: user="];
        if !told.iter().any(|told| before.ends_with(told)) {
            return Err(format!("a login within the name of a client: {before}"));
        }
    }
    Ok(())
}

/// The lines, and how many were too long.
fn read(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, u64) {
    let (mut lines, mut given) = (Lines::default(), Vec::new());
    for piece in pieces {
        lines.feed(piece, |line| given.push(line.to_vec()));
    }
    (given, lines.take_long())
}

/// Beginnings for a fuzzer: logins, and what must not be taken for one.
pub const SEEDS: [&str; 3] = [
    "\x07Nov 29 05:00:00 mx dovecot: pop3-login: Login: user=<joe>, method=PLAIN, \
     rip=192.0.2.1, lip=192.0.2.25, mpid=7, TLS, session=<abc>\n",
    "\x01imap-login: Info: Logged in: user=<joe>, method=PLAIN, rip=2001:db8::7, lip=::1\r\nx",
    "\x40pop3-login: Disconnected (auth failed): user=<x, pop3-login: Login: user=<a>, \
     method=P, rip=192.0.2.1, lip=1>\n\n",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_hold_of_any_log_holds_of_what_is_near_a_login() {
        let mut random = fastrand::Rng::with_seed(110);
        for seed in SEEDS {
            for round in 0..3_000 {
                let mut script = seed.as_bytes().to_vec();
                for _ in 0..round % 6 {
                    let at = random.usize(..script.len());
                    let from = random.usize(..script.len());
                    match random.u8(..4) {
                        0 => script[at] = random.u8(..),
                        1 => script.insert(at, b"<>\n, =:"[random.usize(..7)]),
                        2 => script.extend_from_within(from..),
                        _ => script.extend_from_slice(&[b'x'; 3_000]),
                    }
                }
                check(&script).unwrap_or_else(|error| {
                    panic!("{error}: {}", String::from_utf8_lossy(&script));
                });
            }
        }
    }
}
