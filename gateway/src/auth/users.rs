//! The user file: who may authenticate, by which password, and as whom it may send.
//!
//! One user a line, so that it can be read, compared and kept in version control:
//!
//! ```text
//! # a comment
//! secret=BASE64
//! alice password=$argon2id$... scram=SCRAM-SHA-256$... senders=alice@isp.example,sales.example
//! ```
//!
//! `scram` is there for users who may use SCRAM (no argon2 hash can serve it), `senders` for those
//! who may not send as anyone. `secret` makes the salts that SCRAM tells for unknown users; without
//! it they change with each start. Rejected: TOML, where a user is several lines that a tool has to
//! find and take out whole; and the colons of passwd(5), which RFC 5803 has within its keys.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use portcullis_smtp::path::Mailbox;
use rustc_hash::FxHashMap;
use zeroize::Zeroizing;

use super::{Credentials, Memory, PasswordHash, ScramKeys, name_key, random_salt, scram};
use crate::policy::Senders;

/// The greatest file that is read.
const FILE_SIZE_MAX: u64 = 256 << 20;

/// One user.
#[derive(Clone, Debug)]
pub struct User {
    /// In the form in which names are compared.
    pub name: Box<str>,
    /// What its password is checked against.
    pub password: PasswordHash,
    /// For SCRAM-SHA-256; without them it is refused like a wrong password.
    pub scram: Option<ScramKeys>,
    /// As whom it may send; `None`: as anyone.
    pub senders: Option<Arc<Senders>>,
    /// The line of the file, counted from 1.
    pub line: usize,
}

impl User {
    /// Whether it may send with this reverse-path.
    pub fn may_send_as(&self, mailbox: &Mailbox<'_>) -> bool {
        self.senders
            .as_ref()
            .is_none_or(|senders| senders.include(mailbox))
    }
}

/// Why a file cannot be used. Holds nothing of its content but names of users.
#[derive(Debug, PartialEq, Eq)]
pub struct FileError {
    /// Counted from 1; `None` if it is the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl FileError {
    fn whole(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            line: None,
            message,
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for FileError {}

/// The users with what else a check takes.
pub(super) struct Verifiers {
    pub(super) users: FxHashMap<Box<str>, User>,
    pub(super) secret: Zeroizing<Vec<u8>>,
    /// As most users with keys have.
    pub(super) scram_iterations: u32,
    /// Costs what the hashes of most users cost.
    decoy: PasswordHash,
}

/// The users of a file. Immutable; shared, and swapped whole.
#[derive(Clone)]
pub struct Users(Arc<Verifiers>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.len())
    }
}

impl Users {
    /// Reads a file.
    ///
    /// # Errors
    /// Every fault that was found.
    pub fn read(path: &Path) -> Result<Self, Vec<FileError>> {
        Self::parse(&read_text(path).map_err(|error| vec![error])?)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Every fault that was found.
    pub fn parse(text: &str) -> Result<Self, Vec<FileError>> {
        let mut users: FxHashMap<Box<str>, User> = FxHashMap::default();
        let mut secret = None;
        let mut faults = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let parsed = Line::parse(text).and_then(|parsed| match parsed {
                Line::Nothing => Ok(()),
                Line::Secret(_) if secret.is_some() => Err("a second secret".to_owned()),
                Line::Secret(octets) => {
                    secret = Some(octets);
                    Ok(())
                }
                Line::User(user) => match users.get(&user.name) {
                    Some(other) => Err(format!("{} is in line {} already", user.name, other.line)),
                    None => {
                        users.insert(user.name.clone(), User { line, ..*user });
                        Ok(())
                    }
                },
            });
            if let Err(message) = parsed {
                let line = Some(line);
                faults.push(FileError { line, message });
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let secret = match secret {
            Some(secret) => secret,
            None => random_secret().map_err(|error| vec![FileError::whole(error.to_string())])?,
        };
        Ok(Self::new(users, secret))
    }

    fn new(users: FxHashMap<Box<str>, User>, secret: Zeroizing<Vec<u8>>) -> Self {
        let iterations = users.values().filter_map(|user| user.scram.as_ref());
        let iterations = most_common(iterations.map(|keys| keys.iterations));
        let cost = most_common(users.values().map(|user| user.password.cost()));
        let typical = users.values().map(|user| &user.password);
        let typical = typical.filter(|hash| Some(hash.cost()) == cost);
        let decoy = typical.min_by_key(|hash| hash.cost());
        let decoy = decoy.map_or_else(PasswordHash::decoy, PasswordHash::with_no_password);
        Self(Arc::new(Verifiers {
            scram_iterations: iterations.unwrap_or(scram::ITERATIONS),
            decoy,
            users,
            secret,
        }))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The user of this name, in whatever case it is written.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.0.users.get(&name_key(name)?)
    }

    /// All of them, in the order of the file.
    pub fn all(&self) -> Vec<&User> {
        let mut all: Vec<&User> = self.0.users.values().collect();
        all.sort_unstable_by_key(|user| user.line);
        all
    }

    /// Whether any may use SCRAM: else it need not be offered.
    pub fn have_scram(&self) -> bool {
        self.0.users.values().any(|user| user.scram.is_some())
    }

    /// Checks a password: the user that it is of. Takes as long as argon2 does, for an unknown name
    /// as well; not for a worker.
    pub fn check(&self, credentials: &Credentials, memory: &mut Memory) -> Option<&User> {
        let user = self.0.users.get(&credentials.name);
        let hash = user.map_or(&self.0.decoy, |user| &user.password);
        let is_right = hash.is_of(&credentials.password, memory);
        user.filter(|_| is_right)
    }

    pub(super) fn verifiers(&self) -> &Verifiers {
        &self.0
    }
}

/// The value that most have; of equal ones the least.
fn most_common<T: Copy + Ord + std::hash::Hash>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: HashMap<T, usize> = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|&(value, count)| (count, std::cmp::Reverse(value)));
    most.map(|(value, _)| value)
}

/// A secret for the salts of unknown users.
pub(super) fn random_secret() -> std::io::Result<Zeroizing<Vec<u8>>> {
    Ok(Zeroizing::new([random_salt()?, random_salt()?].concat()))
}

/// The text of a user file.
///
/// # Errors
/// It cannot be read, is too big, or is no text.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let cannot =
        |error: std::io::Error| FileError::whole(format!("cannot read the users: {error}"));
    let file = std::fs::File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.len() > FILE_SIZE_MAX {
        return Err(FileError::whole("the user file is over 256 MiB"));
    }
    std::io::read_to_string(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => FileError::whole("the user file is not UTF-8"),
        _ => cannot(error),
    })
}

/// One line of the file.
pub(super) enum Line {
    Nothing,
    Secret(Zeroizing<Vec<u8>>),
    User(Box<User>),
}

impl Line {
    /// Reads a line. What it says of a fault never has a hash or a key in it.
    pub(super) fn parse(text: &str) -> Result<Line, String> {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return Ok(Line::Nothing);
        }
        if let Some(secret) = text.strip_prefix("secret=") {
            let octets = BASE64.decode(secret).map(Zeroizing::new).ok();
            let octets = octets.filter(|octets| octets.len() >= 16);
            let octets = octets.ok_or("the secret is at least 16 octets in base64")?;
            return Ok(Line::Secret(octets));
        }
        let mut words = text.split_ascii_whitespace();
        let name = checked_name(words.next().unwrap_or_default())?;
        let (mut password, mut scram, mut senders) = (None, None, None);
        for word in words {
            let form = "after the name come password=, scram= and senders=";
            let (key, value) = word.split_once('=').ok_or(form)?;
            let is_second = match key {
                "password" => password.replace(PasswordHash::parse(value)?).is_some(),
                "scram" => scram.replace(ScramKeys::parse(value)?).is_some(),
                "senders" => senders.replace(Arc::new(Senders::parse(value)?)).is_some(),
                _ => return Err(form.to_owned()),
            };
            if is_second {
                return Err(format!("{name} has two {key}="));
            }
        }
        let password = password.ok_or_else(|| format!("{name} has no password="))?;
        Ok(Line::User(Box::new(User {
            name,
            password,
            scram,
            senders,
            line: 0,
        })))
    }
}

/// The form of a name in which it is compared, if a line of the file can begin with it.
///
/// # Errors
/// What is wrong with it.
pub fn checked_name(name: &str) -> Result<Box<str>, String> {
    let key = name_key(name)
        .ok_or_else(|| "a name has from 1 to 255 octets, and no control characters".to_owned())?;
    // Those that SCRAM would have to escape, and those that the file has for itself.
    if key.starts_with('#') || key.contains(|c: char| c.is_whitespace() || matches!(c, '=' | ',')) {
        return Err("a name has no `=`, no `,`, no space, and no `#` at its beginning".to_owned());
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
