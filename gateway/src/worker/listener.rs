//! What holds for the sessions of one listener: its service, what EHLO offers in which state, its
//! limits, and what the policy sees of it.
//!
//! It is made once per listener and configuration. A session keeps the one it came by, and gets
//! that of a new configuration before its next command. It does not keep the configuration itself:
//! the lists in it are large.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::server::Settings;

use super::front::{Fronts, Peer};
use crate::config::{self, AskForCertificates, Config, Limits, ListenerTls};
use crate::driver;
use crate::policy::pipeline;
use crate::tls::ServerTls;

/// The state of a session on which it depends what EHLO offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Channel {
    /// Nothing on the way can read or change what is said.
    pub(super) is_encrypted: bool,
    /// The client has proved who it is.
    pub(super) is_identified: bool,
    /// Who is at the other end.
    pub(super) peer: Peer,
}

/// See the [module](self).
pub(super) struct Listener {
    /// What decisions know of it.
    pub(super) facts: pipeline::Listener,
    /// Which of the driver's it is.
    number: driver::Listener,
    limits: Limits,
    /// What EHLO offers.
    offer: Settings,
    /// Who may speak for clients; most listeners have none.
    fronts: Option<Box<Fronts>>,
    /// What handshakes are made with, and may cost.
    tls: Option<TlsTerms>,
    /// A session begins with a handshake.
    is_implicit: bool,
}

/// What holds for the handshakes of a listener.
pub(super) struct TlsTerms {
    pub(super) server: ServerTls,
    /// Handshakes at a time of this worker.
    pub(super) handshakes_max: u32,
    /// Handshakes in a minute from one source.
    pub(super) per_source_max: u32,
    /// How long one may take.
    pub(super) timeout: Duration,
}

impl TlsTerms {
    fn new(config: &Config, demand: AskForCertificates) -> Option<Self> {
        let tls = config.tls.as_ref()?;
        Some(Self {
            server: tls.server(demand)?.clone(),
            handshakes_max: tls.handshakes.div_ceil(config.workers as u32),
            per_source_max: tls.handshakes_per_source,
            timeout: tls.handshake_timeout,
        })
    }
}

impl Listener {
    /// Those of a configuration, in the order in which the driver numbers them.
    pub(super) fn all(config: &Arc<Config>) -> Vec<Rc<Self>> {
        let listeners = (0..).zip(&config.listeners);
        let listener = |(number, listener): (u16, &config::Listener)| {
            let tls = match listener.tls {
                ListenerTls::Off => None,
                ListenerTls::StartTls | ListenerTls::Implicit => {
                    TlsTerms::new(config, listener.client_certificates)
                }
            };
            let is_implicit = listener.tls == ListenerTls::Implicit;
            let offer = Settings {
                starttls: tls.is_some() && !is_implicit,
                ..config.session_settings(listener)
            };
            Rc::new(Self {
                facts: listener.facts(),
                number: driver::Listener(number),
                limits: config.limits.clone(),
                fronts: Fronts::new(listener, &offer),
                offer,
                tls,
                is_implicit,
            })
        };
        listeners.map(listener).collect()
    }

    /// Which of the driver's it is.
    pub(super) fn number(&self) -> driver::Listener {
        self.number
    }

    /// The limits of its sessions.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its trusted fronts, if it has any.
    pub(super) fn fronts(&self) -> Option<&Fronts> {
        self.fronts.as_deref()
    }

    /// What holds for its handshakes; `None` if it has no TLS.
    pub(super) fn tls(&self) -> Option<&TlsTerms> {
        self.tls.as_ref()
    }

    /// Whether its sessions begin with a handshake.
    pub(super) fn is_implicit(&self) -> bool {
        self.is_implicit
    }

    /// The rules of SMTP for a session in this state, and what its EHLO offers.
    pub(super) fn settings(&self, channel: Channel) -> &Settings {
        let fronts = self.fronts();
        let special = fronts.and_then(|fronts| fronts.settings(channel.peer));
        special.unwrap_or(&self.offer)
    }
}
