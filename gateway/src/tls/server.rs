//! TLS of one listener: what its handshakes are made with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig,
    UnbufferedServerConnection, WebPkiClientVerifier,
};

use super::certificates::Certificates;
use super::connection::Tls;
use super::fault::{Fault, FaultKind};
use super::load_error::LoadError;
use super::{Fingerprint, MinVersion, identity, provider, sha256};

/// Whether clients have to show a certificate, and of which authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    Off,
    /// They are asked; one without a certificate is let in, one with a bad certificate is not.
    Ask(PathBuf),
    /// Without a good certificate the handshake fails.
    Require(PathBuf),
}

/// What a listener wants of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// The least version.
    pub min_version: MinVersion,
    /// Whether clients get tickets to resume their session with (RFC 8446 section 4.6.1).
    pub tickets: bool,
    /// Whether clients show certificates. The path is a file of authorities in PEM.
    pub client_certificates: ClientCertificates,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            min_version: MinVersion::default(),
            tickets: true,
            client_certificates: ClientCertificates::default(),
        }
    }
}

/// What tickets are sealed with. It outlives a reload, so that clients can resume across it.
///
/// A resumed session skips the check of the client's certificate, and rustls does not see whether
/// the listener that sealed the ticket made that check. So each demand on client certificates has
/// keys of its own: a ticket from a listener that asks nothing is void at one that does, and so is
/// every ticket after the file of authorities has changed.
#[derive(Debug, Default)]
pub struct Tickets {
    by_demand: Mutex<HashMap<Demand, Arc<dyn ProducesTickets>>>,
}

/// What is asked of a client, as far as a ticket stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Demand {
    None,
    Ask(Fingerprint),
    Require(Fingerprint),
}

/// TLS of one listener. Immutable; a reload makes another with the same [`Tickets`].
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl Tickets {
    /// Forgets the keys of all demands but these listeners'. Once after a reload.
    pub fn keep_only(&self, listeners: &[&ServerTls]) {
        let mut by_demand = self.lock();
        by_demand.retain(|_, ticketer| {
            let mut in_use = listeners.iter().map(|listener| &listener.config.ticketer);
            in_use.any(|used| Arc::ptr_eq(used, ticketer))
        });
    }

    fn of(&self, demand: Demand) -> Result<Arc<dyn ProducesTickets>, Fault> {
        let mut by_demand = self.lock();
        if let Some(ticketer) = by_demand.get(&demand) {
            return Ok(Arc::clone(ticketer));
        }
        let ticketer = rustls::crypto::ring::Ticketer::new()?;
        by_demand.insert(demand, Arc::clone(&ticketer));
        Ok(ticketer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Demand, Arc<dyn ProducesTickets>>> {
        self.by_demand
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerTls {
    /// TLS with these settings. The file of authorities is read here, so a reload reads it again.
    ///
    /// # Errors
    /// The file of authorities cannot be used, or there are no random octets for ticket keys.
    pub fn new(
        settings: &ServerSettings,
        certificates: &Arc<Certificates>,
        tickets: &Tickets,
    ) -> Result<ServerTls, LoadError> {
        let (demand, verifier) = client_verifier(&settings.client_certificates)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(settings.min_version.versions())
            .expect("the provider has suites for both versions: a test holds it");
        let resolver = Arc::clone(certificates) as Arc<dyn ResolvesServerCert>;
        let mut config = builder
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        // Tickets alone: a store of sessions would grow, and each worker would need the others'.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if settings.tickets {
            config.ticketer = tickets.of(demand).map_err(|fault| {
                let problem = format!("no keys for session tickets: {fault}");
                LoadError::new("(tickets)".as_ref(), problem, "start again")
            })?;
            // A mail client comes one at a time; a second ticket is work for nothing.
            config.send_tls13_tickets = 1;
        }
        config.max_early_data_size = 0;
        Ok(ServerTls {
            config: Arc::new(config),
        })
    }

    /// A connection that awaits a ClientHello.
    ///
    /// # Errors
    /// There are no random octets.
    pub fn accept(&self) -> Result<Tls, Fault> {
        let connection = UnbufferedServerConnection::new(Arc::clone(&self.config));
        connection
            .map(Tls::server)
            .map_err(|error| Fault::new(FaultKind::Internal, error.to_string()))
    }
}

fn client_verifier(
    wanted: &ClientCertificates,
) -> Result<(Demand, Arc<dyn ClientCertVerifier>), LoadError> {
    let (path, is_required) = match wanted {
        ClientCertificates::Off => {
            return Ok((Demand::None, WebPkiClientVerifier::no_client_auth()));
        }
        ClientCertificates::Ask(path) => (path, false),
        ClientCertificates::Require(path) => (path, true),
    };
    let authorities = identity::authorities(path)?;
    let print = print_of(&authorities);
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider());
    let (demand, builder) = if is_required {
        (Demand::Require(print), builder)
    } else {
        (Demand::Ask(print), builder.allow_unauthenticated())
    };
    let verifier = builder
        .build()
        .map_err(|error| LoadError::new(path, error.to_string(), "check the authorities in it"))?;
    Ok((demand, verifier))
}

/// A hash over the authorities, with their keys.
fn print_of(authorities: &RootCertStore) -> Fingerprint {
    let mut octets = Vec::new();
    for authority in &authorities.roots {
        let subject = authority.subject.as_ref();
        let key = authority.subject_public_key_info.as_ref();
        let constraints = authority.name_constraints.as_ref();
        let constraints = constraints.map_or(&[][..], AsRef::as_ref);
        for part in [subject, key, constraints] {
            octets.extend_from_slice(&part.len().to_be_bytes());
            octets.extend_from_slice(part);
        }
    }
    sha256(&octets)
}
