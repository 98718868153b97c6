//! One AUTH command on the server's side (RFC 4954), as an object without input or output: it
//! takes the client's responses, decoded, and says what comes next.
//!
//! PLAIN (RFC 4616) and LOGIN are so little that they are here: a library would copy the password
//! to places that are not wiped. SCRAM-SHA-256 is in `scram.rs`. `-PLUS` is not offered.

use std::fmt;

pub use portcullis_smtp::sasl::Mechanism;
use zeroize::Zeroizing;

use super::scram::{ScramExchange, ScramStep};
use super::{Credentials, Password, Users, name_key};

/// What comes after a response of the client.
#[derive(Debug)]
pub enum Step {
    /// `334` with these octets in base64; then a response is to come.
    Challenge(Vec<u8>),
    /// The password is to be checked, by [`Users::check`]: the exchange is over, and that decides.
    Check(Credentials),
    /// `235`: it is this user.
    Success(Box<str>),
    /// The exchange is over: what the client said is wrong without a check. It is counted and held
    /// back as a wrong password is. This is the name that it gave.
    Wrong(Box<str>),
    /// `501 5.5.2`: the exchange is over, this is not what the mechanism says (RFC 4954 section 4).
    Malformed,
}

/// One AUTH command, from its mechanism to its end.
pub struct Exchange(State);

enum State {
    Plain,
    Login,
    LoginName,
    LoginPassword(Option<Box<str>>),
    Scram(Box<ScramExchange>),
    Over,
}

/// Without what the client has said so far.
impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Plain => "Exchange(PLAIN)",
            State::Login | State::LoginName | State::LoginPassword(_) => "Exchange(LOGIN)",
            State::Scram(_) => "Exchange(SCRAM-SHA-256)",
            State::Over => "Exchange(over)",
        })
    }
}

impl Exchange {
    /// Begins one. The users are those in force at this moment, to its end; the nonce is fresh
    /// random octets (only SCRAM needs it).
    pub fn new(mechanism: Mechanism, users: &Users, nonce: [u8; 16]) -> Self {
        Self(match mechanism {
            Mechanism::Plain => State::Plain,
            Mechanism::Login => State::Login,
            Mechanism::ScramSha256 => State::Scram(Box::new(ScramExchange::new(users, nonce))),
        })
    }

    /// Begins by what came with AUTH itself: the initial response, decoded (`=` is an empty one),
    /// or `None`. In all mechanisms here the client speaks first, so without one it is asked.
    pub fn begin(&mut self, initial: Option<Zeroizing<Vec<u8>>>) -> Step {
        if matches!(self.0, State::Login) {
            self.0 = State::LoginName;
            return match initial {
                Some(name) => self.step(name),
                None => Step::Challenge(b"Username:".to_vec()),
            };
        }
        match initial {
            Some(response) => self.step(response),
            None => Step::Challenge(Vec::new()),
        }
    }

    /// Takes a response of the client, decoded. It is wiped.
    pub fn step(&mut self, response: Zeroizing<Vec<u8>>) -> Step {
        match std::mem::replace(&mut self.0, State::Over) {
            State::Plain => plain(&response),
            State::Login | State::LoginName => {
                // A name that no user can have is found wrong with its password, as others are.
                let name = std::str::from_utf8(&response).ok().and_then(name_key);
                self.0 = State::LoginPassword(name);
                Step::Challenge(b"Password:".to_vec())
            }
            State::LoginPassword(name) => credentials(name, response),
            State::Scram(mut scram) => match scram.step(&response) {
                ScramStep::Challenge(challenge) => {
                    self.0 = State::Scram(scram);
                    Step::Challenge(challenge)
                }
                ScramStep::Success(name) => Step::Success(name),
                ScramStep::Malformed => Step::Malformed,
                ScramStep::Refused(name) => Step::Wrong(name),
            },
            State::Over => Step::Malformed,
        }
    }
}

/// `[authzid] NUL authcid NUL passwd` (RFC 4616 section 2).
fn plain(response: &[u8]) -> Step {
    let parts: Vec<&[u8]> = response.splitn(4, |&octet| octet == 0).collect();
    let [acting_as, name, password] = parts[..] else {
        return Step::Malformed;
    };
    let key = |octets: &[u8]| std::str::from_utf8(octets).ok().and_then(name_key);
    let name = key(name);
    // No user acts as another. The check is done nevertheless: the answer takes its time.
    let is_own = acting_as.is_empty() || key(acting_as) == name;
    credentials(name.filter(|_| is_own), Zeroizing::new(password.to_vec()))
}

/// What can be no name is checked as a name that no user has, so that it takes as long.
fn credentials(name: Option<Box<str>>, password: Zeroizing<Vec<u8>>) -> Step {
    let name = name.unwrap_or_default();
    match Password::new(password) {
        Some(password) => Step::Check(Credentials { name, password }),
        // That a password is empty or has a NUL, the client knows.
        None => Step::Wrong(name),
    }
}

#[cfg(test)]
mod tests;
