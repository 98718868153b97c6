//! `[[listener]]`: where sessions come in, and what is spoken there.

use std::net::SocketAddr;

use super::keys::{Absent, Form, Key, KeyTable, text};
use super::section::Section;
use super::value;
use crate::policy::Service;
use crate::policy::pipeline;

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[[listener]]",
    about: "A socket on which sessions come in. Without one the gate runs the filter alone. With \
            one there has to be a `[[route]]`.",
    keys: &[
        Key::new(
            "address",
            text("an IP address and a port", Absent::Required),
            "The address to listen on. Recipients in an address literal of it are local.",
        )
        .see(&["filter.ports", "relay.addresses"])
        .at_start(),
        Key::new(
            "service",
            Form::Word {
                default: Absent::Is("relay"),
                words: &[
                    ("relay", "SMTP between servers, as on port 25"),
                    (
                        "submission",
                        "messages of users, who have to authenticate, as on port 587 (RFC 6409)",
                    ),
                    (
                        "submissions",
                        "the same under TLS from the first octet, as on port 465 (RFC 8314)",
                    ),
                ],
                later: &[],
            },
            "What is spoken there. In submission DNS lists, drop and reject lists and the \
             `greeting_delay` do not hold, and `Date` and `Message-ID` are added to messages that \
             lack them. `filter.ports` decides what the filter drops: leave 587 and 465 out of \
             it.",
        )
        .see(&["auth.users", "filter.ports"])
        .at_start(),
    ],
    later: &["proxy_protocol_from"],
};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address to listen on.
    pub address: SocketAddr,
    /// What is spoken there.
    pub service: Service,
}

impl Listener {
    /// One with nothing but these.
    pub const fn new(address: SocketAddr, service: Service) -> Self {
        Self { address, service }
    }

    /// What decisions know of it.
    pub fn facts(&self) -> pipeline::Listener {
        pipeline::Listener {
            address: self.address,
            service: self.service,
        }
    }
}

/// What else there is in the configuration.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub(super) auth: bool,
    pub(super) tls: bool,
}

/// Reads the tables.
pub(super) fn read(tables: Vec<Section<'_, '_>>, given: Given) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for mut s in tables {
        let address = s.text("address", |text| match value::socket_address(text)? {
            address if listeners.iter().any(|other| other.address == address) => {
                Err(format!("{address} is listened on already"))
            }
            address => Ok(address),
        });
        let services = [Service::Relay, Service::Submission, Service::Submissions];
        let service = s.word(
            "service",
            &services.map(|service| (service.name(), service)),
        );
        if service.is_some_and(Service::is_submission) {
            check_submission(&s, given);
        }
        if let (Some(address), Some(service)) = (address, service) {
            listeners.push(Listener::new(address.into_inner(), service));
        }
        s.finish();
    }
    listeners
}

/// What a listener for submission lacks: without it its clients could not authenticate, and so
/// never send.
fn check_submission(s: &Section<'_, '_>, given: Given) {
    let span = s.span_of("service");
    if !given.auth {
        s.document.error_with(
            &span,
            "clients have to authenticate here, and there is no [auth] that says who may",
            "[auth]\nusers = \"users\"",
        );
    }
    if !given.tls {
        s.document.error_with(
            &span,
            "clients have to authenticate here, which takes TLS, and there is no [tls]",
            "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"",
        );
    }
}
