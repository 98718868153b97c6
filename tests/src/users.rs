//! Users for tests: a user file in a directory of its own, and what a client says to be one of
//! them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use portcullis::auth::edit::{self, Fields};
use portcullis::auth::{Password, PasswordHash, ScramKeys};
use portcullis_smtp::sasl;
use tempfile::TempDir;
use zeroize::Zeroizing;

/// A user file.
#[derive(Debug)]
pub struct UserFile {
    directory: TempDir,
}

impl UserFile {
    /// With these users, by name and password, who may use SCRAM as well.
    ///
    /// # Errors
    /// When it cannot be written, or a name can be none.
    pub fn new(users: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = Self { directory };
        file.write(users)?;
        Ok(file)
    }

    /// Writes these users in place of those that were there.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn write(&self, users: &[(&str, &str)]) -> Result<()> {
        let mut text = String::new();
        for (name, password) in users {
            let octets = Zeroizing::new(password.as_bytes().to_vec());
            let password = Password::new(octets).context("a password")?;
            let hash = PasswordHash::create(&password, &[1; 16]).map_err(|error| anyhow!(error))?;
            let fields = Fields {
                password: Some(hash),
                scram: Some(Some(ScramKeys::create(&password, &[2; 16]).to_text())),
                senders: None,
            };
            text = edit::add(&text, name, &fields).map_err(|error| anyhow!(error))?;
        }
        fs::write(self.path(), text)?;
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("users")
    }
}

/// Octets in base64.
#[must_use]
pub fn base64(octets: &str) -> String {
    let mut text = Vec::new();
    sasl::encode(octets.as_bytes(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// AUTH with PLAIN (RFC 4616), in one line.
#[must_use]
pub fn plain(name: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(&format!("\0{name}\0{password}")))
}
