//! What holds for the sessions of one listener: its service, what EHLO offers in which state, its
//! limits, and what the policy sees of it.
//!
//! It is made once per listener and configuration. A session keeps the one it came by, and gets
//! that of a new configuration between transactions.

use std::rc::Rc;
use std::sync::Arc;

use portcullis_smtp::server::Settings;

use crate::config::{Config, Limits};
use crate::driver;
use crate::policy::pipeline;

/// See the [module](self).
pub(super) struct Listener {
    /// What decisions know of it.
    pub(super) facts: pipeline::Listener,
    /// The configuration that it is from. It is not kept by sessions that are between transactions:
    /// the lists of a configuration are large.
    number: driver::Listener,
    limits: Limits,
    /// What EHLO offers on a connection in the clear.
    in_the_clear: Settings,
}

impl Listener {
    /// Those of a configuration, in the order in which the driver numbers them.
    pub(super) fn all(config: &Arc<Config>) -> Vec<Rc<Self>> {
        let listeners = (0..).zip(&config.listeners);
        let listener = |(number, facts): (u16, &pipeline::Listener)| {
            Rc::new(Self {
                facts: *facts,
                number: driver::Listener(number),
                limits: config.limits.clone(),
                in_the_clear: config.session_settings(),
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

    /// The rules of SMTP for a session in this state, and what its EHLO offers.
    pub(super) fn settings(&self, is_encrypted: bool) -> &Settings {
        // Nothing is offered under TLS alone, as there is none.
        let _ = is_encrypted;
        &self.in_the_clear
    }
}
