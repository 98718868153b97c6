//! A certificate with its key, read from files in PEM and checked: what the start, a reload,
//! `check` and `doctor` say about them comes from here.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::load_error::LoadError;
use super::{Fingerprint, fingerprint, provider};

/// More than any chain of certificates or key has: a wrong path does not fill the memory.
const FILE_OCTETS_MAX: u64 = 1 << 20;
/// How long before its end a certificate is doubtful.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyFiles {
    /// The chain in PEM, the certificate itself first.
    pub certificate: PathBuf,
    /// Its private key in PEM. It may be the same file.
    pub key: PathBuf,
}

/// A certificate chain with its key, ready to be shown.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    /// The names that it is for, in lower case: `mx.isp.example`, `*.isp.example`.
    names: Vec<String>,
    doubts: Vec<Doubt>,
}

/// What is doubtful about a certificate, but no reason not to start: mail is better off with an
/// expired certificate than without TLS, for most clients do not look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is expired.
    Expired(PathBuf),
    /// It expires within a week.
    ExpiresSoon(PathBuf),
    /// It is not valid yet.
    NotYetValid(PathBuf),
    /// It names no host, so no client can verify it, and it is never chosen by name.
    NoNames(PathBuf),
    /// All users of this machine can read the key.
    KeyReadableByAll(PathBuf),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, text) = match self {
            Self::Expired(path) => (
                path,
                "the certificate is expired: clients that verify it refuse it (renew it, then \
                 reload)",
            ),
            Self::ExpiresSoon(path) => (
                path,
                "the certificate expires within a week (renew it, then reload)",
            ),
            Self::NotYetValid(path) => (
                path,
                "the certificate is not valid yet (check the clock of this machine)",
            ),
            Self::NoNames(path) => (
                path,
                "the certificate names no host (subjectAltName): clients that verify it refuse it",
            ),
            Self::KeyReadableByAll(path) => (
                path,
                "all users of this machine can read the key (chmod o-rwx)",
            ),
        };
        write!(f, "{}: {text}", path.display())
    }
}

impl Identity {
    /// Reads a certificate and its key, and checks that they belong together. `now` is what its
    /// validity is compared with.
    ///
    /// # Errors
    /// A file cannot be read or has nothing of the kind in it, or the two do not match.
    pub fn load(files: &KeyFiles, now: SystemTime) -> Result<Identity, LoadError> {
        let chain = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let parsed = parse(&chain[0]).map_err(|error| {
            LoadError::new(
                &files.certificate,
                format!("the certificate is not valid X.509: {error}"),
                "have it issued again",
            )
        })?;
        let certified = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| mismatch(files, &error))?;
        let names = names(&parsed);
        let mut doubts = Vec::new();
        doubts.extend(doubt_of_time(&files.certificate, &parsed, now));
        if names.is_empty() {
            doubts.push(Doubt::NoNames(files.certificate.clone()));
        }
        let mode = fs::metadata(&files.key).map(|metadata| metadata.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o004 != 0) {
            doubts.push(Doubt::KeyReadableByAll(files.key.clone()));
        }
        Ok(Identity {
            certified: Arc::new(certified),
            names,
            doubts,
        })
    }

    /// The host names that it is for.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is doubtful about it.
    #[must_use]
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// The fingerprint of the certificate, as it can be pinned.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.certified
            .cert
            .first()
            .map_or_else(Fingerprint::default, |certificate| fingerprint(certificate))
    }
}

/// Reads the authorities in a file.
///
/// # Errors
/// It cannot be read, or has no certificate of an authority in it.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, LoadError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(LoadError::new(
            path,
            "no certificate in it can be used as an authority",
            "it has to hold X.509 certificates of version 3",
        ));
    }
    Ok(store)
}

/// The subject of a certificate (RFC 4514).
pub(super) fn subject(certificate: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.subject.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let metadata = fs::metadata(path).map_err(|error| LoadError::unreadable(path, &error))?;
    // A FIFO would hang.
    if !metadata.is_file() || metadata.len() > FILE_OCTETS_MAX {
        return Err(LoadError::new(
            path,
            "is no file of certificates: it is no regular file, or larger than 1 MiB",
            "check the path",
        ));
    }
    fs::read(path).map_err(|error| LoadError::unreadable(path, &error))
}

/// The certificates of a file, in its order; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let text = read(path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| {
        LoadError::new(
            path,
            format!("is not valid PEM: {error}"),
            "copy the file again, whole",
        )
    })?;
    if found.is_empty() {
        return Err(LoadError::new(
            path,
            "has no certificate in it",
            "it has to hold the chain in PEM (-----BEGIN CERTIFICATE-----), the certificate of \
             this host first; openssl x509 -inform der turns DER into PEM",
        ));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text
            .windows(b"ENCRYPTED".len())
            .any(|part| part == b"ENCRYPTED");
        match error {
            _ if is_encrypted => LoadError::new(
                path,
                "the key is encrypted with a passphrase",
                "the gate starts without a terminal: write it without one (openssl pkey), \
                 readable for its user alone",
            ),
            pem::Error::NoItemsFound => LoadError::new(
                path,
                "has no private key in it",
                "it has to hold the key in PEM (-----BEGIN PRIVATE KEY-----)",
            ),
            error => LoadError::new(
                path,
                format!("is not valid PEM: {error}"),
                "copy the file again, whole",
            ),
        }
    })
}

fn mismatch(files: &KeyFiles, error: &Error) -> LoadError {
    let certificate = files.certificate.display();
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => LoadError::new(
            &files.key,
            format!("is not the key of the certificate in {certificate}"),
            "the certificate of this host has to be the first of its file, and the key the one \
             that it was issued for",
        ),
        error => LoadError::new(
            &files.key,
            format!("the key cannot be used: {error}"),
            "use an ECDSA key (P-256, P-384), Ed25519, or RSA of 2048 to 8192 bits",
        ),
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, x509_cert::der::Error> {
    Certificate::from_der(certificate)
}

/// The DNS names of subjectAltName. The subject's common name is none: RFC 9525 section 2.
fn names(certificate: &Certificate) -> Vec<String> {
    let extension = certificate.tbs_certificate.get::<SubjectAltName>();
    let Ok(Some((_, SubjectAltName(names)))) = extension else {
        return Vec::new();
    };
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    };
    names.iter().filter_map(name).collect()
}

fn doubt_of_time(path: &Path, certificate: &Certificate, now: SystemTime) -> Option<Doubt> {
    let validity = &certificate.tbs_certificate.validity;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = validity.not_before.to_unix_duration();
    let end = validity.not_after.to_unix_duration();
    if now > end {
        Some(Doubt::Expired(path.to_owned()))
    } else if now < begin {
        Some(Doubt::NotYetValid(path.to_owned()))
    } else if now + EXPIRES_SOON > end {
        Some(Doubt::ExpiresSoon(path.to_owned()))
    } else {
        None
    }
}
