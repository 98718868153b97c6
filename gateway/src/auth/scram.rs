//! SCRAM-SHA-256 (RFC 5802, RFC 7677): what is stored for it, and the server's side.
//!
//! A user without keys, and one who does not exist, get keys that are made from the name and the
//! secret of the file: the same salt at each attempt, as a real user has, and a proof that never
//! fits. The messages are rsasl's; by itself it would give an unknown user a new salt each time.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechanisms::scram::SCRAM_SHA256;
use rsasl::mechanisms::scram::properties::ScramStoredPassword;
use rsasl::prelude::{Mechname, Registry, SASLServer, Session, SessionError, Validation};
use rsasl::property::{AuthId, AuthzId};
use rsasl::validate::{Validate, ValidationError};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::users::Verifiers;
use super::{Password, name_key};

/// Iterations of the keys that are made here. RFC 7677 section 4 asks for at least 4,096; the client
/// does the work, at each login.
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

/// What a finished exchange says: the user, or `None` if it asked to act as another.
struct Proven;

impl Validation for Proven {
    type Value = Option<Box<str>>;
}

/// Looks keys up for rsasl.
struct Lookup(Arc<Verifiers>);

impl SessionCallback for Lookup {
    fn callback(
        &self,
        _: &SessionData,
        context: &Context<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), SessionError> {
        if request.is::<ScramStoredPassword<'static>>() {
            let name = context.get_ref::<AuthId>().unwrap_or_default();
            let keys = self.0.scram_keys(name);
            let stored = ScramStoredPassword::new(
                keys.iterations,
                &keys.salt,
                &keys.stored_key,
                &keys.server_key,
            );
            request.satisfy::<ScramStoredPassword<'static>>(&stored)?;
        }
        Ok(())
    }

    fn validate(
        &self,
        _: &SessionData,
        context: &Context<'_>,
        validate: &mut Validate<'_>,
    ) -> Result<(), ValidationError> {
        validate.with::<Proven, _>(|| {
            let name = context.get_ref::<AuthId>().and_then(unescaped_key);
            let other = context
                .get_ref::<AuthzId>()
                .filter(|other| !other.is_empty());
            let is_own = other.is_none_or(|other| unescaped_key(other) == name);
            Ok(name.filter(|_| is_own))
        })?;
        Ok(())
    }
}

/// A name as SCRAM writes it (RFC 5802 section 5.1: `=2C` is a comma, `=3D` is `=`).
fn unescaped_key(name: &str) -> Option<Box<str>> {
    name_key(&name.replace("=2C", ",").replace("=3D", "="))
}

impl Verifiers {
    /// The keys of a user, or those that only look like some.
    fn scram_keys(&self, name: &str) -> ScramKeys {
        // What can be no name still gets a salt.
        let key = unescaped_key(name).unwrap_or_else(|| name.into());
        let stored = self.users.get(&key).and_then(|user| user.scram.clone());
        // Made for each name: a known one takes no less time.
        let decoy = ScramKeys::decoy(&self.secret, &key, self.scram_iterations);
        stored.unwrap_or(decoy)
    }
}

/// The mechanism over these users.
pub(super) fn config(verifiers: Arc<Verifiers>) -> Arc<SASLConfig> {
    SASLConfig::builder()
        .with_registry(Registry::with_mechanisms(std::slice::from_ref(
            &SCRAM_SHA256,
        )))
        .with_callback(Lookup(verifiers))
        .expect("the mechanism is there")
}

/// One exchange.
pub(super) struct ScramExchange {
    session: Session<Proven>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A message of the client is to come.
    Running,
    /// The client has to take note of the last one (an empty response).
    Proven,
    Over,
}

/// What comes of a message of the client.
pub(super) enum ScramStep {
    Challenge(Vec<u8>),
    Success(Box<str>),
    Malformed,
    Refused,
}

impl ScramExchange {
    pub(super) fn new(config: Arc<SASLConfig>) -> Self {
        let name = Mechname::parse(b"SCRAM-SHA-256").expect("it is a name");
        let session = SASLServer::<Proven>::new(config).start_suggested(name);
        Self {
            session: session.expect("the mechanism is there"),
            state: State::Running,
        }
    }

    pub(super) fn step(&mut self, response: &[u8]) -> ScramStep {
        match self.state {
            State::Running => self.message(response),
            State::Proven => {
                self.state = State::Over;
                match self.session.validation().flatten() {
                    Some(name) if response.is_empty() => ScramStep::Success(name),
                    Some(_) => ScramStep::Malformed,
                    None => ScramStep::Refused,
                }
            }
            State::Over => ScramStep::Malformed,
        }
    }

    fn message(&mut self, response: &[u8]) -> ScramStep {
        // After an error rsasl must not be called again: it panics.
        self.state = State::Over;
        let mut challenge = Vec::new();
        match self.session.step(Some(response), &mut challenge) {
            Ok(rsasl::prelude::State::Running) => {
                self.state = State::Running;
                ScramStep::Challenge(challenge)
            }
            // "v=" with the server's signature. An error ("e=...") is the refusal itself here.
            Ok(rsasl::prelude::State::Finished(_)) if challenge.starts_with(b"v=") => {
                self.state = State::Proven;
                ScramStep::Challenge(challenge)
            }
            Ok(rsasl::prelude::State::Finished(_)) => ScramStep::Refused,
            Err(_) => ScramStep::Malformed,
        }
    }
}
