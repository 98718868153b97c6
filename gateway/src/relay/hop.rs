//! A next hop as its connections are told apart: an address, and what a route demands of a
//! connection to it.
//!
//! Two routes may lead to one address and demand different things of it. A connection that one of
//! them has made is never given to the other: it may not be encrypted, or act as another user. So
//! demands have an id, which is made of everything that they hold, and what is kept of a next hop
//! is kept by address and id. A reload that changes nothing of them changes no id, and connections
//! in the pool are used on.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use super::login::Login;
use crate::fronts::SendClient;
use crate::tls::ClientTls;

/// Tells demands apart. That two which differ have the same id has a chance of 2^-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DemandsId(u64);

/// What a route demands of a connection to one of its next hops.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    id: DemandsId,
    /// How the next hop hears which client a message comes from.
    pub send_client: SendClient,
    /// Whether no mail goes to a next hop that cannot be told.
    pub send_client_required: bool,
    /// Whether it is encrypted, and how.
    pub tls: HopTls,
    /// The name that its certificate is verified against; empty without TLS.
    pub tls_name: Box<str>,
    /// As whom the gate authenticates.
    pub login: Option<Arc<Login>>,
}

/// Whether a connection to a next hop is encrypted.
#[derive(Clone, Debug, Default)]
pub enum HopTls {
    /// Never.
    #[default]
    Off,
    /// Where the next hop offers STARTTLS, whatever its certificate.
    Opportunistic {
        /// What it is encrypted with.
        tls: ClientTls,
        /// A connection whose STARTTLS fails is replaced by one in the clear.
        falls_back: bool,
    },
    /// Always, and the next hop is verified.
    Required(ClientTls),
}

impl Demands {
    /// These demands with their id, which is made when nothing of them is changed any more.
    /// `tls_content` is everything that TLS was made of: settings, and what is in their files.
    #[must_use]
    pub fn sealed(mut self, tls_content: &[u8]) -> Arc<Self> {
        let mut hasher = DefaultHasher::new();
        (self.send_client, self.send_client_required).hash(&mut hasher);
        let tls = match self.tls {
            HopTls::Off => 0,
            HopTls::Opportunistic { falls_back, .. } => 1 + u8::from(falls_back),
            HopTls::Required(_) => 3,
        };
        (tls, tls_content, &self.tls_name).hash(&mut hasher);
        let login = self.login.as_ref();
        login
            .map(|login| (login.user(), login.password()))
            .hash(&mut hasher);
        self.id = DemandsId(hasher.finish());
        Arc::new(self)
    }

    /// What tells them from others.
    pub fn id(&self) -> DemandsId {
        self.id
    }
}

/// Those with the same id are the same.
impl PartialEq for Demands {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Demands {}

/// A next hop with what is demanded of a connection to it.
#[derive(Clone)]
pub struct Hop {
    address: SocketAddr,
    demands: Arc<Demands>,
}

impl Hop {
    /// The next hop at an address.
    pub fn new(address: SocketAddr, demands: Arc<Demands>) -> Self {
        Self { address, demands }
    }

    /// What is kept of it is kept by this.
    pub fn id(&self) -> HopId {
        HopId {
            address: self.address,
            demands: self.demands.id,
        }
    }

    /// What is demanded of a connection to it.
    pub fn demands(&self) -> &Demands {
        &self.demands
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// A next hop with the id of what is demanded of a connection to it. It is shown as its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HopId {
    /// Where it is.
    pub address: SocketAddr,
    /// What is demanded.
    pub demands: DemandsId,
}

impl fmt::Display for HopId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Something about a next hop that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopEvent {
    /// A connection is under TLS, by a whole handshake.
    TlsFull,
    /// A connection is under TLS, by a session of before.
    TlsResumed,
    /// It does not offer STARTTLS.
    TlsNotOffered,
    /// It refused STARTTLS.
    TlsRefused,
    /// The handshake failed.
    TlsFailed,
    /// The gate has authenticated.
    AuthAccepted,
    /// It does not offer AUTH with a mechanism that is known.
    AuthNotOffered,
    /// It does not accept user and password.
    AuthRefused,
    /// It could not check them, or broke the mechanism.
    AuthFailed,
    /// A transaction went to it without its client being named, although the route asks for that.
    ClientUnnamed,
}

impl HopEvent {
    /// All of them, in their order.
    pub const ALL: [Self; 10] = [
        Self::TlsFull,
        Self::TlsResumed,
        Self::TlsNotOffered,
        Self::TlsRefused,
        Self::TlsFailed,
        Self::AuthAccepted,
        Self::AuthNotOffered,
        Self::AuthRefused,
        Self::AuthFailed,
        Self::ClientUnnamed,
    ];

    /// Those of TLS, with the results that they are.
    pub const TLS: [(Self, &'static str); 5] = [
        (Self::TlsFull, "full"),
        (Self::TlsResumed, "resumed"),
        (Self::TlsNotOffered, "not_offered"),
        (Self::TlsRefused, "refused"),
        (Self::TlsFailed, "failed"),
    ];

    /// Those of AUTH, with the results that they are.
    pub const AUTH: [(Self, &'static str); 4] = [
        (Self::AuthAccepted, "accepted"),
        (Self::AuthNotOffered, "not_offered"),
        (Self::AuthRefused, "refused"),
        (Self::AuthFailed, "failed"),
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TlsFull => "tls_full",
            Self::TlsResumed => "tls_resumed",
            Self::TlsNotOffered => "tls_not_offered",
            Self::TlsRefused => "tls_refused",
            Self::TlsFailed => "tls_failed",
            Self::AuthAccepted => "auth_accepted",
            Self::AuthNotOffered => "auth_not_offered",
            Self::AuthRefused => "auth_refused",
            Self::AuthFailed => "auth_failed",
            Self::ClientUnnamed => "client_unnamed",
        }
    }
}

/// How often each [`HopEvent`] has happened, in their order.
pub type HopEvents = [u64; HopEvent::ALL.len()];
