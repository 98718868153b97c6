//! What the file has in place of a password: an argon2 hash (RFC 9106) in the PHC format,
//! `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`.
//!
//! A check takes 19 MiB and tens of milliseconds by default. The memory is a parameter, [`Memory`],
//! which a thread keeps from one check to the next: fresh memory would have to be zeroed by the
//! kernel each time.

use std::fmt;

use argon2::password_hash::{self, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq as _;

use super::Password;

/// The greatest memory of one hash. A file with more would let a few clients take all of it.
const MEMORY_KIB_MAX: u32 = 64 * 1_024;
const PASSES_MAX: u32 = 10;
const LANES_MAX: u32 = 4;

/// Octets of a salt: what the PHC format recommends.
pub(super) const SALT_LENGTH: usize = 16;

/// Fresh random octets for a salt or a secret, from the kernel.
///
/// # Errors
/// The kernel has none to give.
pub fn random_salt() -> Result<[u8; SALT_LENGTH], std::io::Error> {
    password_hash::try_generate_salt().map_err(|error| std::io::Error::other(error.to_string()))
}

/// The memory of one check at a time.
#[derive(Default)]
pub struct Memory(Vec<Block>);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} KiB)", self.0.len())
    }
}

/// An argon2 hash of a password.
#[derive(Clone)]
pub struct PasswordHash {
    algorithm: Algorithm,
    version: Version,
    params: Params,
    salt: Box<[u8]>,
    hash: Box<[u8]>,
}

/// Without salt and hash: what is printed may end in a log.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasswordHash({})", self.algorithm)
    }
}

impl PasswordHash {
    /// Reads one in the PHC format.
    ///
    /// # Errors
    /// What is wrong with it, without its content.
    pub fn parse(text: &str) -> Result<Self, String> {
        let not = |what: &str| format!("the password is no argon2 hash ({what})");
        let phc = phc::PasswordHash::new(text).map_err(|error| not(&error.to_string()))?;
        let algorithm = Algorithm::new(phc.algorithm.as_str());
        let algorithm = algorithm.map_err(|_| not("expected $argon2id$..."))?;
        let version = phc
            .version
            .map_or(Ok(Version::default()), Version::try_from);
        let version = version.map_err(|_| not("unknown version"))?;
        let params = Params::try_from(&phc).map_err(|_| not("bad parameters"))?;
        if params.m_cost() > MEMORY_KIB_MAX
            || params.t_cost() > PASSES_MAX
            || params.p_cost() > LANES_MAX
        {
            return Err(format!(
                "the hash takes too much: at most m={MEMORY_KIB_MAX}, t={PASSES_MAX}, \
                 p={LANES_MAX}"
            ));
        }
        let (Some(salt), Some(hash)) = (phc.salt, phc.hash) else {
            return Err(not("no salt or no hash"));
        };
        if salt.len() < argon2::MIN_SALT_LEN || hash.len() < 16 {
            return Err(not("the salt or the hash is too short"));
        }
        Ok(Self {
            algorithm,
            version,
            params,
            salt: salt.as_ref().into(),
            hash: hash.as_bytes().into(),
        })
    }

    /// The hash of a password with this salt, by the parameters of RFC 9106 that OWASP recommends
    /// (argon2id, 19 MiB, 2 passes, 1 lane), in the PHC format.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn create(password: &Password, salt: &[u8; SALT_LENGTH]) -> Result<String, String> {
        use password_hash::PasswordHasher as _;
        let hash: Result<phc::PasswordHash, _> =
            Argon2::default().hash_password_with_salt(password.octets(), salt);
        hash.map(|hash| hash.to_string())
            .map_err(|error| format!("cannot hash the password: {error}"))
    }

    /// One that no password is known for: an unknown user is checked against it.
    pub(super) fn decoy() -> Self {
        Self {
            algorithm: Algorithm::default(),
            version: Version::default(),
            params: Params::DEFAULT,
            salt: [0; SALT_LENGTH].into(),
            hash: [0; Params::DEFAULT_OUTPUT_LEN].into(),
        }
    }

    /// One that costs the same, and that no password is known for.
    pub(super) fn with_no_password(&self) -> Self {
        Self {
            salt: vec![0; self.salt.len()].into(),
            hash: vec![0; self.hash.len()].into(),
            ..self.clone()
        }
    }

    /// What a check costs: memory in KiB, passes, lanes.
    pub(super) fn cost(&self) -> (u32, u32, u32) {
        let params = &self.params;
        (params.m_cost(), params.t_cost(), params.p_cost())
    }

    /// Whether this is the password. Takes the time of the hash whatever the answer is, but for
    /// lack of memory, which no password can bring about.
    pub fn is_of(&self, password: &Password, memory: &mut Memory) -> bool {
        let blocks = self.params.block_count();
        if memory.0.len() < blocks {
            memory.0.resize(blocks, Block::new());
        }
        let mut hash = zeroize::Zeroizing::new(vec![0; self.hash.len()]);
        let argon2 = Argon2::new(self.algorithm, self.version, self.params.clone());
        let done = argon2.hash_password_into_with_memory(
            password.octets(),
            &self.salt,
            &mut hash,
            &mut memory.0,
        );
        done.is_ok() && bool::from(hash.ct_eq(&self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(zeroize::Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn a_hash_is_of_one_password_alone_and_memory_is_used_again() {
        let salt = [7; SALT_LENGTH];
        let text = PasswordHash::create(&password("secret"), &salt).unwrap();
        assert!(
            text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{text}"
        );
        let hash = PasswordHash::parse(&text).unwrap();
        let mut memory = Memory::default();
        assert!(hash.is_of(&password("secret"), &mut memory));
        let first = memory.0.as_ptr();
        assert!(!hash.is_of(&password("Secret"), &mut memory));
        assert!(hash.is_of(&password("secret"), &mut memory));
        assert_eq!(memory.0.as_ptr(), first);
        assert!(!PasswordHash::decoy().is_of(&password("secret"), &mut memory));
    }

    #[test]
    fn a_hash_that_would_take_too_much_or_is_none_is_refused_without_its_content() {
        let tail = "c2FsdHNhbHRzYWx0$U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3";
        for (text, part) in [
            (
                format!("$argon2id$v=19$m=4294967295,t=2,p=1${tail}"),
                "takes too much",
            ),
            (
                format!("$argon2id$v=19$m=65536,t=11,p=1${tail}"),
                "takes too much",
            ),
            (
                format!("$argon2id$v=19$m=65536,t=2,p=64${tail}"),
                "takes too much",
            ),
            (
                format!("$argon2x$v=19$m=65536,t=2,p=1${tail}"),
                "no argon2 hash",
            ),
            (
                format!("$argon2id$v=18$m=65536,t=2,p=1${tail}"),
                "no argon2 hash",
            ),
            (
                "$argon2id$v=19$m=65536,t=2,p=1".to_owned(),
                "no argon2 hash",
            ),
            ("$6$salt$hash".to_owned(), "no argon2 hash"),
            ("sesame".to_owned(), "no argon2 hash"),
        ] {
            let error = PasswordHash::parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(
                !error.contains("c2Fsd") && !error.contains("sesame"),
                "{error}"
            );
        }
    }
}
