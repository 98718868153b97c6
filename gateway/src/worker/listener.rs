//! What holds for the sessions of one listener: its service, what EHLO offers in which state, its
//! limits, and what the policy sees of it.
//!
//! It is made once per listener and configuration. A session keeps the one it came by, and gets
//! that of a new configuration before its next command. It does not keep the configuration itself:
//! the lists in it are large.

use std::rc::Rc;
use std::sync::Arc;

use portcullis_smtp::server::Settings;

use super::front::{Fronts, Peer};
use crate::config::{self, Config, Limits};
use crate::driver;
use crate::policy::pipeline;

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
}

impl Listener {
    /// Those of a configuration, in the order in which the driver numbers them.
    pub(super) fn all(config: &Arc<Config>) -> Vec<Rc<Self>> {
        let listeners = (0..).zip(&config.listeners);
        let listener = |(number, listener): (u16, &config::Listener)| {
            let offer = config.session_settings();
            Rc::new(Self {
                facts: listener.facts(),
                number: driver::Listener(number),
                limits: config.limits.clone(),
                fronts: Fronts::new(listener, &offer),
                offer,
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

    /// The rules of SMTP for a session in this state, and what its EHLO offers.
    pub(super) fn settings(&self, channel: Channel) -> &Settings {
        let fronts = self.fronts();
        let special = fronts.and_then(|fronts| fronts.settings(channel.peer));
        special.unwrap_or(&self.offer)
    }
}
