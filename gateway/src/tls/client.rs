//! TLS to next hops: what the connections of one route are made with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore};
use rustls::{ConfigBuilder, SignatureScheme, WantsVerifier};

use super::connection::Tls;
use super::fault::{Fault, FaultKind};
use super::identity::{self, Identity, KeyFiles};
use super::load_error::LoadError;
use super::{Fingerprint, MinVersion, fingerprint, provider};

/// Sessions that a route keeps to resume: one for each of its next hops, with room to spare.
const SESSIONS_MAX: usize = 64;

/// Whether connections to the next hops of a route are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NextHopTls {
    /// Never.
    Off,
    /// Where the next hop offers STARTTLS. Its certificate is not verified (RFC 7435): that would
    /// leave the mail in the clear, which is worse.
    #[default]
    Opportunistic,
    /// Always, and verified; without it no mail goes out.
    Required,
}

/// How the certificate of a next hop is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Not at all: encryption against those who listen, and no more.
    None,
    /// It is valid for the name of the next hop, by an authority that is trusted.
    Name(Trust),
    /// It is one of these, whatever its names, its authority and its end.
    Pinned(Vec<Fingerprint>),
}

/// Which authorities are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of this system.
    System,
    /// Those in a file, in PEM.
    File(PathBuf),
}

/// What a route wants of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// The least version.
    pub min_version: MinVersion,
    /// How next hops are verified.
    pub verification: Verification,
    /// What the gate shows of itself to a next hop that asks.
    pub certificate: Option<KeyFiles>,
}

/// TLS of one route, with the sessions that it can resume. Each route has its own: resumption
/// skips verification, so routes with different demands must not share sessions.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// TLS with these settings. Files and the system's store are read here, so a reload reads them
    /// again.
    ///
    /// # Errors
    /// A file cannot be used, or the system trusts no authority at all.
    pub fn new(settings: &ClientSettings, now: SystemTime) -> Result<ClientTls, LoadError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(settings.min_version.versions())
            .expect("the provider has suites for both versions: a test holds it");
        let builder = verified(builder, &settings.verification)?;
        let mut config = match &settings.certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let certified = Identity::load(files, now)?.certified;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                    certified,
                )))
            }
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(ClientTls {
            config: Arc::new(config),
        })
    }

    /// A connection that begins a handshake; the first [`step`](Tls::step) gives the ClientHello.
    /// `name` is the host name or the address of the next hop, as the configuration has it.
    ///
    /// # Errors
    /// The name is no host name and no address, or there are no random octets.
    pub fn connect(&self, name: &str) -> Result<Tls, Fault> {
        let server = ServerName::try_from(name.trim_end_matches('.').to_owned());
        let server = server.map_err(|_| {
            let detail = format!("{name} is no host name that a certificate can be for");
            Fault::new(FaultKind::Certificate, detail)
        })?;
        UnbufferedClientConnection::new(Arc::clone(&self.config), server)
            .map(Tls::client)
            .map_err(|error| Fault::new(FaultKind::Internal, error.to_string()))
    }
}

type Unverified = ConfigBuilder<ClientConfig, WantsVerifier>;
type Verified = ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn verified(builder: Unverified, wanted: &Verification) -> Result<Verified, LoadError> {
    let authorities = match wanted {
        Verification::Name(Trust::System) => of_system()?,
        Verification::Name(Trust::File(path)) => identity::authorities(path)?,
        Verification::None | Verification::Pinned(_) => {
            let pins = match wanted {
                Verification::Pinned(pins) => Some(pins.clone()),
                _ => None,
            };
            let verifier = PinVerifier {
                pins,
                provider: provider(),
            };
            let verifier = Arc::new(verifier);
            return Ok(builder
                .dangerous()
                .with_custom_certificate_verifier(verifier));
        }
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), provider())
        .build()
        .expect("there is an authority, and no list of revoked certificates");
    Ok(builder.with_webpki_verifier(verifier))
}

fn of_system() -> Result<RootCertStore, LoadError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(store);
    }
    let problem = match found.errors.first() {
        Some(error) => format!("no authority is trusted: {error}"),
        None => "no authority is trusted".to_owned(),
    };
    Err(LoadError::new(
        "(the system's store)".as_ref(),
        problem,
        "install the package ca-certificates, or name a file of authorities",
    ))
}

/// Takes the certificates that are pinned, or all. That the next hop has the key of its certificate
/// is verified in either case.
#[derive(Debug)]
struct PinVerifier {
    /// `None`: every certificate is taken.
    pins: Option<Vec<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pins = self.pins.as_ref();
        if pins.is_some_and(|pins| !pins.contains(&fingerprint(end_entity))) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
