//! Authorities, certificates and keys for tests, made on the spot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use super::{Certificates, Identity, KeyFiles, ServerSettings, ServerTls, Tickets, provider};

/// An authority with a directory for its files.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // No two have the same name, as it is in the world.
        let name = format!("Test CA {:x?}", &key.public_key_raw()[1..9]);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let authority = Authority {
            issuer: Issuer::new(params, key),
            certificate,
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write(authority.file(), authority.certificate.pem()).unwrap();
        authority
    }

    /// A file of it in PEM.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for these names, changed as `change` says, in files called `file`.
    pub(crate) fn issue_with(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> KeyFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = KeyFiles {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        write_secret(&files.key, &key.serialize_pem());
        files
    }

    pub(crate) fn issue(&self, file: &str, names: &[&str]) -> KeyFiles {
        self.issue_with(file, names, |_| {})
    }

    pub(crate) fn issue_expired(&self, file: &str, names: &[&str]) -> KeyFiles {
        self.issue_with(file, names, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    /// A certificate for these names, read.
    pub(crate) fn identity(&self, file: &str, names: &[&str]) -> Identity {
        load(&self.issue(file, names)).unwrap()
    }

    /// A listener with a certificate for `mx.example`.
    pub(crate) fn listener(&self, settings: &ServerSettings) -> ServerTls {
        let identity = self.identity("mx", &["mx.example"]);
        let certificates = Arc::new(Certificates::new(identity, Vec::new()));
        ServerTls::new(settings, &certificates, &Tickets::default()).unwrap()
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }

    /// What rustls' own client trusts this authority with.
    pub(crate) fn client_config(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    /// The same, with a certificate that it shows.
    pub(crate) fn client_config_with(&self, files: &KeyFiles) -> ClientConfig {
        let certified = load(files).unwrap().certified;
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
    }
}

pub(crate) fn load(files: &KeyFiles) -> Result<Identity, super::LoadError> {
    Identity::load(files, SystemTime::now())
}

/// The certificate that a file begins with.
pub(crate) fn certificate_of(identity: &Identity) -> CertificateDer<'static> {
    identity.certified.cert[0].clone()
}

fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
