//! An authority with certificates, in the files of a directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// See the [module](self).
#[derive(Debug)]
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// In PEM.
    pub certificate: PathBuf,
    /// In PEM.
    pub key: PathBuf,
}

impl Pki {
    /// A new authority; its certificate is [`authority`](Self::authority).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let name = format!("Test CA {:x?}", &key.public_key_raw()[1..9]);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key)?;
        let pki = Self {
            issuer: Issuer::new(params, key),
            directory: tempfile::tempdir()?,
        };
        fs::write(pki.authority(), certificate.pem())?;
        // The gate may have become another user when it reads them.
        fs::set_permissions(pki.directory.path(), fs::Permissions::from_mode(0o755))?;
        Ok(pki)
    }

    /// The authority's certificate, in PEM.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file of the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for these host names, in files called `file`; those of before are replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn issue(&self, file: &str, names: &[&str]) -> Result<Files> {
        self.issue_with(file, names, |_| {})
    }

    /// The same for one that expired years ago.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn issue_expired(&self, file: &str, names: &[&str]) -> Result<Files> {
        self.issue_with(file, names, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    fn issue_with(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Files> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, file);
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = Files {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        fs::write(&files.certificate, certificate.pem())?;
        write_secret(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

impl Files {
    /// `certificate = ...` and `key = ...`, as the configuration has them.
    #[must_use]
    pub fn keys(&self) -> String {
        format!(
            "certificate = \"{}\"\nkey = \"{}\"\n",
            self.certificate.display(),
            self.key.display()
        )
    }
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}
