//! SCRAM-SHA-256 (RFC 5802, RFC 7677): what is stored for it, and the server's side.
//!
//! A user without keys, and one who does not exist, get keys that are made from the name and the
//! secret of the file: the same salt at each attempt, as a real user has, and a proof that never
//! fits.
//!
//! Rejected: the server of the crate rsasl 2.3.1. An empty first message makes it panic, it leaves
//! names escaped, it takes its nonce from a generator of its own, and it tells an unknown user from
//! a wrong password (`e=unknown-user`). Its client is what the tests run against this.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::users::Verifiers;
use super::{Password, Users, name_key};

/// Iterations of the keys that are made here. RFC 7677 section 4 asks for at least 4,096; the
/// client does the work, at each login.
pub(super) const ITERATIONS: u32 = 10_000;
const ITERATIONS_MIN: u32 = 4_096;
/// More would keep a client busy for seconds.
const ITERATIONS_MAX: u32 = 1_000_000;

const SCHEME: &str = "SCRAM-SHA-256$";

/// What is stored in place of a password, in the form of RFC 5803:
/// `SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY`.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    pub(super) iterations: u32,
    salt: Box<[u8]>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// Without the keys.
impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramKeys({} iterations)", self.iterations)
    }
}

/// As it is written in the file.
impl ScramKeys {
    /// The keys of a password with this salt (RFC 5802 section 3).
    pub fn create(password: &Password, salt: &[u8]) -> Self {
        let mut salted = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(password.octets(), salt, ITERATIONS, &mut *salted);
        let client_key = Zeroizing::new(hmac(&*salted, &[b"Client Key"]));
        Self {
            iterations: ITERATIONS,
            salt: salt.into(),
            stored_key: Sha256::digest(*client_key).into(),
            server_key: hmac(&*salted, &[b"Server Key"]),
        }
    }

    /// Keys that no password fits, the same for a name as long as the secret is.
    fn decoy(secret: &[u8], name: &str, iterations: u32) -> Self {
        let derived = |what: &[u8]| hmac(secret, &[what, name.as_bytes()]);
        Self {
            iterations,
            salt: derived(b"salt")[..super::verifier::SALT_LENGTH].into(),
            stored_key: derived(b"stored"),
            server_key: derived(b"server"),
        }
    }

    /// Reads them in the form of RFC 5803.
    ///
    /// # Errors
    /// What is wrong, without the content.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || "expected SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY".to_owned();
        let rest = text.strip_prefix(SCHEME).ok_or_else(form)?;
        let (first, keys) = rest.split_once('$').ok_or_else(form)?;
        let (iterations, salt) = first.split_once(':').ok_or_else(form)?;
        let (stored, server) = keys.split_once(':').ok_or_else(form)?;
        let iterations: u32 = iterations.parse().map_err(|_| form())?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(format!(
                "SCRAM keys have from {ITERATIONS_MIN} to {ITERATIONS_MAX} iterations"
            ));
        }
        let salt = BASE64.decode(salt).map_err(|_| form())?;
        if !(8..=64).contains(&salt.len()) {
            return Err("the salt of SCRAM keys has from 8 to 64 octets".to_owned());
        }
        let key = |text: &str| <[u8; 32]>::try_from(BASE64.decode(text).ok()?).ok();
        Ok(Self {
            iterations,
            salt: salt.into(),
            stored_key: key(stored).ok_or_else(form)?,
            server_key: key(server).ok_or_else(form)?,
        })
    }

    /// The form of RFC 5803. It is as good as the password for a server that is asked by it: only
    /// the file gets it.
    pub fn to_text(&self) -> String {
        let Self { iterations, .. } = self;
        let [salt, stored, server] =
            [&*self.salt, &self.stored_key, &self.server_key].map(|octets| BASE64.encode(octets));
        format!("{SCHEME}{iterations}:{salt}${stored}:{server}")
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// A name as SCRAM writes it (RFC 5802 section 5.1: `=2C` is a comma, `=3D` is `=`).
fn unescaped_key(name: &str) -> Option<Box<str>> {
    name_key(&name.replace("=2C", ",").replace("=3D", "="))
}

impl Verifiers {
    /// The keys of a user, or those that only look like some.
    fn scram_keys(&self, name: Option<&str>) -> ScramKeys {
        let name = name.unwrap_or_default();
        // Made for each name: a known one takes no less time.
        let decoy = ScramKeys::decoy(&self.secret, name, self.scram_iterations);
        let user = self.users.get(name);
        user.and_then(|user| user.scram.clone()).unwrap_or(decoy)
    }
}

/// One exchange.
pub(super) struct ScramExchange(State);

enum State {
    First {
        users: Users,
        nonce: [u8; 16],
    },
    Final(Box<Outstanding>),
    /// The client has to take note of the signature, by an empty response.
    Proven(Box<str>),
    Over,
}

/// What is kept between the two messages of the client.
struct Outstanding {
    /// Who it is if the proof fits. Empty: what was given can be no name.
    name: Box<str>,
    /// It asks to act as no other user.
    is_own: bool,
    keys: ScramKeys,
    /// What `c=` has to be.
    binding: String,
    nonce: String,
    /// `client-first-message-bare,server-first-message,`
    messages: String,
}

/// What comes of a proof.
enum Proof {
    Right {
        name: Box<str>,
        /// Of the server.
        signature: [u8; 32],
    },
    /// It is wrong, or the user is not who it asks to act as. The name that was given.
    Wrong(Box<str>),
}

/// What comes of a message of the client.
pub(super) enum ScramStep {
    Challenge(Vec<u8>),
    Success(Box<str>),
    Malformed,
    /// The proof is wrong; the name that was given.
    Refused(Box<str>),
}

impl ScramExchange {
    /// The nonce is fresh random octets.
    pub(super) fn new(users: &Users, nonce: [u8; 16]) -> Self {
        let users = users.clone();
        Self(State::First { users, nonce })
    }

    pub(super) fn step(&mut self, response: &[u8]) -> ScramStep {
        let Ok(text) = std::str::from_utf8(response) else {
            self.0 = State::Over;
            return ScramStep::Malformed;
        };
        match std::mem::replace(&mut self.0, State::Over) {
            State::First { users, nonce } => match first(text, &users, nonce) {
                Some((outstanding, challenge)) => {
                    self.0 = State::Final(Box::new(outstanding));
                    ScramStep::Challenge(challenge.into_bytes())
                }
                None => ScramStep::Malformed,
            },
            State::Final(outstanding) => match outstanding.check(text) {
                Some(Proof::Right { name, signature }) => {
                    self.0 = State::Proven(name);
                    ScramStep::Challenge(format!("v={}", BASE64.encode(signature)).into_bytes())
                }
                Some(Proof::Wrong(name)) => ScramStep::Refused(name),
                None => ScramStep::Malformed,
            },
            State::Proven(name) if text.is_empty() => ScramStep::Success(name),
            State::Proven(_) | State::Over => ScramStep::Malformed,
        }
    }
}

/// Takes client-first-message (RFC 5802 section 7) and makes server-first-message. `None`: it is
/// malformed, or asks for what is not offered: a channel binding, a mandatory extension.
fn first(text: &str, users: &Users, nonce: [u8; 16]) -> Option<(Outstanding, String)> {
    // `y`: the client could bind the channel and saw that we do not offer it, which is so.
    let after_flag = text
        .strip_prefix("n,")
        .or_else(|| text.strip_prefix("y,"))?;
    let (acting_as, bare) = after_flag.split_once(',')?;
    let acting_as = match acting_as {
        "" => None,
        given => Some(given.strip_prefix("a=").filter(|name| !name.is_empty())?),
    };
    let mut parts = bare.split(',');
    let name = parts
        .next()?
        .strip_prefix("n=")
        .filter(|name| !name.is_empty())?;
    let client_nonce = parts.next()?.strip_prefix("r=")?;
    if client_nonce.is_empty() || !client_nonce.bytes().all(|octet| octet.is_ascii_graphic()) {
        return None;
    }
    let name = unescaped_key(name);
    let keys = users.verifiers().scram_keys(name.as_deref());
    let nonce = format!("{client_nonce}{}", BASE64.encode(nonce));
    let (salt, iterations) = (BASE64.encode(&keys.salt), keys.iterations);
    let challenge = format!("r={nonce},s={salt},i={iterations}");
    let is_own = acting_as.is_none_or(|other| unescaped_key(other) == name);
    let outstanding = Outstanding {
        name: name.unwrap_or_default(),
        is_own,
        keys,
        binding: BASE64.encode(&text[..text.len() - bare.len()]),
        nonce,
        messages: format!("{bare},{challenge},"),
    };
    Some((outstanding, challenge))
}

impl Outstanding {
    /// Checks client-final-message. `None`: it is malformed.
    fn check(self, text: &str) -> Option<Proof> {
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let mut parts = without_proof.split(',');
        let binding = parts.next()?.strip_prefix("c=")?;
        let nonce = parts.next()?.strip_prefix("r=")?;
        let proof = <[u8; 32]>::try_from(BASE64.decode(proof).ok()?).ok()?;
        let message = [self.messages.as_bytes(), without_proof.as_bytes()];
        let signature = hmac(&self.keys.stored_key, &message);
        let mut client_key = Zeroizing::new(proof);
        client_key
            .iter_mut()
            .zip(signature)
            .for_each(|(octet, with)| *octet ^= with);
        let stored: [u8; 32] = Sha256::digest(*client_key).into();
        let fits = bool::from(stored.ct_eq(&self.keys.stored_key));
        let is_same = binding == self.binding && nonce == self.nonce;
        if !(fits && is_same && self.is_own) {
            return Some(Proof::Wrong(self.name));
        }
        let signature = hmac(&self.keys.server_key, &message);
        Some(Proof::Right {
            name: self.name,
            signature,
        })
    }
}
