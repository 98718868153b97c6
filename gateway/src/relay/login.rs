//! AUTH toward a next hop (RFC 4954): who the gate is there, and the client's side of an exchange.
//!
//! A password goes out only under TLS with a next hop that was verified; the configuration holds
//! that. It is in no log and no `Debug`, and each copy of it is wiped.
//!
//! Rejected: the client of the crate rsasl, which takes as many iterations of SCRAM as the next hop
//! asks for: a worker would serve no one else meanwhile.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use portcullis_smtp::sasl::{Mechanism, Mechanisms};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// RFC 7677 section 4.
const ITERATIONS_MIN: u32 = 4_096;
/// They take some ten milliseconds, in which the worker does nothing else; once for each next hop,
/// because what comes of them is kept.
const ITERATIONS_MAX: u32 = 100_000;
/// More than any salt or nonce has.
const CHALLENGE_LENGTH_MAX: usize = 1_024;

type Key = Zeroizing<[u8; 32]>;

/// A user of a next hop, with the password.
pub struct Login {
    user: Box<str>,
    password: Zeroizing<Vec<u8>>,
    /// The salted password, and what it was made with: a next hop has one salt for a user.
    salted: Mutex<Option<(Vec<u8>, u32, Key)>>,
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

/// The next hop does not follow the mechanism; in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected(pub &'static str);

impl Login {
    /// A user with a password.
    pub fn new(user: &str, password: Zeroizing<Vec<u8>>) -> Self {
        Self {
            user: user.into(),
            password,
            salted: Mutex::default(),
        }
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password, for what must not be the same for two of them.
    pub(super) fn password(&self) -> &[u8] {
        &self.password
    }

    /// Begins an exchange by the best of the mechanisms that are offered; `None`: there is none
    /// that is known. `nonce` is fresh random octets.
    pub fn begin(self: &Arc<Self>, offered: Mechanisms, nonce: [u8; 16]) -> Option<Exchange> {
        let mechanism = offered.iter().next()?;
        let stage = match mechanism {
            Mechanism::Plain => Stage::Plain,
            Mechanism::Login => Stage::User,
            Mechanism::ScramSha256 => {
                let user = self.user.replace('=', "=3D").replace(',', "=2C");
                Stage::First(format!("n={user},r={}", BASE64.encode(nonce)))
            }
        };
        Some(Exchange {
            login: Arc::clone(self),
            mechanism,
            stage,
        })
    }

    fn salted(&self, salt: &[u8], iterations: u32) -> Key {
        let mut kept = self.salted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, by, key)) = kept.as_ref()
            && (of.as_slice(), *by) == (salt, iterations)
        {
            return key.clone();
        }
        let text = std::str::from_utf8(&self.password).ok();
        let prepared = text.and_then(|text| stringprep::saslprep(text).ok());
        // What SASLprep refuses is taken as it is.
        let prepared = prepared.map(|text| Zeroizing::new(text.into_owned().into_bytes()));
        let password = prepared.as_deref().unwrap_or(&self.password);
        let mut key = Key::default();
        pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut *key);
        *kept = Some((salt.to_vec(), iterations, key.clone()));
        key
    }
}

/// One AUTH command, from its mechanism to its end.
pub struct Exchange {
    login: Arc<Login>,
    mechanism: Mechanism,
    stage: Stage,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({})", self.mechanism.name())
    }
}

enum Stage {
    Plain,
    User,
    Password,
    /// `client-first-message-bare`
    First(String),
    /// The same, to which the reply of the next hop belongs.
    ServerFirst(String),
    /// The signature by which the next hop proves that it knows the password.
    ServerFinal([u8; 32]),
    Over,
}

impl Exchange {
    /// The mechanism.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The initial response; LOGIN has none. One that did not fit into the command is the answer
    /// to an empty challenge.
    pub fn initial(&self) -> Option<Zeroizing<Vec<u8>>> {
        match &self.stage {
            Stage::Plain => {
                let user = self.login.user.as_bytes();
                let password = self.login.password();
                let mut response = Vec::with_capacity(user.len() + password.len() + 2);
                response.push(0);
                response.extend_from_slice(user);
                response.push(0);
                response.extend_from_slice(password);
                Some(Zeroizing::new(response))
            }
            Stage::First(bare) => Some(Zeroizing::new(format!("n,,{bare}").into_bytes())),
            _ => None,
        }
    }

    /// The initial response was in the command.
    pub fn sent_initial(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::First(bare) => Stage::ServerFirst(bare),
            _ => Stage::Over,
        };
    }

    /// The response to a challenge, both decoded.
    ///
    /// # Errors
    /// The challenge is none that the mechanism has here; the exchange is to be cancelled.
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unexpected> {
        if challenge.len() > CHALLENGE_LENGTH_MAX {
            return Err(Unexpected("a challenge that is too long"));
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            stage @ (Stage::Plain | Stage::First(_)) if challenge.is_empty() => {
                self.stage = stage;
                let response = self.initial().unwrap_or_default();
                self.sent_initial();
                Ok(response)
            }
            // What the challenges of LOGIN say differs from server to server.
            Stage::User => {
                self.stage = Stage::Password;
                Ok(Zeroizing::new(self.login.user.as_bytes().to_vec()))
            }
            Stage::Password => Ok(self.login.password.clone()),
            Stage::ServerFirst(bare) => self.prove(&bare, challenge),
            Stage::ServerFinal(signature) => {
                let proof = challenge
                    .strip_prefix(b"v=")
                    .and_then(|text| BASE64.decode(text).ok());
                if proof.as_deref() != Some(&signature) {
                    return Err(Unexpected("a proof that it does not know the password"));
                }
                Ok(Zeroizing::default())
            }
            Stage::Plain | Stage::First(_) | Stage::Over => {
                Err(Unexpected("a challenge that the mechanism does not have"))
            }
        }
    }

    /// Whether the next hop has proved what the mechanism has it prove.
    pub fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// `client-final-message` (RFC 5802 section 7).
    fn prove(&mut self, bare: &str, challenge: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unexpected> {
        let malformed = Unexpected("a challenge that is not one of SCRAM");
        let server_first = std::str::from_utf8(challenge).map_err(|_| malformed)?;
        let mut parts = server_first.split(',');
        let mut part = |name: &str| parts.next()?.strip_prefix(name);
        let (nonce, salt, iterations) = part("r=")
            .zip(part("s="))
            .zip(part("i="))
            .map(|((nonce, salt), iterations)| (nonce, salt, iterations))
            .ok_or(malformed)?;
        let own = bare.rsplit_once(",r=").map_or("", |(_, nonce)| nonce);
        if !nonce.starts_with(own) || nonce.len() == own.len() {
            return Err(Unexpected("a nonce that is not ours"));
        }
        let salt = BASE64.decode(salt).map_err(|_| malformed)?;
        let iterations: u32 = iterations.parse().map_err(|_| malformed)?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(Unexpected(
                "fewer than 4,096 iterations, or more than 100,000",
            ));
        }
        let salted = self.login.salted(&salt, iterations);
        let without_proof = format!("c=biws,r={nonce}");
        let messages = format!("{bare},{server_first},{without_proof}");
        let client_key = Zeroizing::new(hmac(&*salted, b"Client Key"));
        let stored_key: [u8; 32] = Sha256::digest(*client_key).into();
        let mut proof = hmac(&stored_key, messages.as_bytes());
        proof
            .iter_mut()
            .zip(&*client_key)
            .for_each(|(a, b)| *a ^= b);
        let server_key = Zeroizing::new(hmac(&*salted, b"Server Key"));
        self.stage = Stage::ServerFinal(hmac(&*server_key, messages.as_bytes()));
        let response = format!("{without_proof},p={}", BASE64.encode(proof));
        Ok(Zeroizing::new(response.into_bytes()))
    }
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Arc<Login> {
        Arc::new(Login::new("gate", Zeroizing::new(b"open sesame".to_vec())))
    }

    fn begin(login: &Arc<Login>, mechanisms: &[Mechanism]) -> Option<Exchange> {
        login.begin(mechanisms.iter().copied().collect(), [7; 16])
    }

    #[test]
    fn the_best_mechanism_that_is_offered_is_taken() {
        let login = login();
        let taken = |mechanisms: &[Mechanism]| begin(&login, mechanisms).map(|it| it.mechanism());
        let (scram, plain) = (Mechanism::ScramSha256, Mechanism::Plain);
        assert_eq!(taken(&[Mechanism::Login, plain, scram]), Some(scram));
        assert_eq!(taken(&[Mechanism::Login, plain]), Some(plain));
        assert_eq!(taken(&[]), None);
    }

    #[test]
    fn a_password_that_was_left_out_of_the_command_answers_the_empty_challenge() {
        let mut plain = begin(&login(), &[Mechanism::Plain]).unwrap();
        let response = plain.respond(b"").unwrap();
        assert_eq!(*response, b"\0gate\0open sesame");
        assert!(plain.respond(b"").is_err(), "it is asked for once");
        let mut plain = begin(&login(), &[Mechanism::Plain]).unwrap();
        plain.sent_initial();
        assert!(plain.respond(b"").is_err(), "it was in the command");
    }

    #[test]
    fn login_says_the_user_and_then_the_password() {
        let mut login = begin(&login(), &[Mechanism::Login]).unwrap();
        assert!(login.initial().is_none());
        assert_eq!(*login.respond(b"Username:").unwrap(), b"gate");
        assert_eq!(*login.respond(b"Password:").unwrap(), b"open sesame");
        assert!(login.is_complete() && login.respond(b"Again:").is_err());
    }

    #[test]
    fn a_next_hop_that_wants_too_much_or_proves_nothing_is_left() {
        let begun = || {
            let mut scram = begin(&login(), &[Mechanism::ScramSha256]).unwrap();
            scram.sent_initial();
            scram
        };
        let nonce = BASE64.encode([7; 16]);
        for bad in [
            format!("r={nonce}x,s=c2FsdA==,i=1"),
            format!("r={nonce}x,s=c2FsdA==,i=100001"),
            format!("r={nonce},s=c2FsdA==,i=4096"),
            "r=other,s=c2FsdA==,i=4096".to_owned(),
            format!("r={nonce}x,i=4096"),
            String::new(),
        ] {
            assert!(begun().respond(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut scram = begun();
        let first = format!("r={nonce}x,s=c2FsdA==,i=4096");
        assert!(scram.respond(first.as_bytes()).is_ok());
        assert!(!scram.is_complete(), "235 alone proves nothing");
        assert!(scram.respond(b"v=AAAA").is_err());
    }

    /// RFC 7677 section 3.
    #[test]
    fn scram_says_what_the_example_of_its_rfc_says() {
        let login = Login::new("user", Zeroizing::new(b"pencil".to_vec()));
        let mut exchange = Exchange {
            login: Arc::new(login),
            mechanism: Mechanism::ScramSha256,
            stage: Stage::ServerFirst("n=user,r=rOprNGfwEbeRWgbNEkqO".to_owned()),
        };
        let response = exchange.respond(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        );
        assert_eq!(
            std::str::from_utf8(&response.unwrap()).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let last = exchange.respond(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(last.unwrap().as_slice(), b"");
        assert!(exchange.is_complete());
    }

    #[test]
    fn nothing_that_is_printed_shows_the_password() {
        let login = login();
        let exchange = begin(&login, &[Mechanism::Plain]);
        assert_eq!(
            format!("{login:?} {exchange:?}"),
            "Login(gate) Some(Exchange(PLAIN))"
        );
    }
}
