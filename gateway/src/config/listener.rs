//! `[[listener]]`: where sessions come in, and what is spoken there.

use std::net::SocketAddr;

use super::fronts;
use super::keys::{Absent, Form, Key, KeyTable, flag, text};
use super::section::Section;
use super::value;
use crate::fronts::TrustedFronts;
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
        Key::new(
            "auth",
            Form::Word {
                default: Absent::Varies(
                    "`\"off\"`; for submission `\"on\"` where there is `[auth]`",
                ),
                words: &[
                    ("off", "AUTH is not offered"),
                    ("on", "clients may authenticate, under TLS"),
                ],
                later: &[],
            },
            "Whether clients may authenticate with a user of `[auth]`. Who has may send to every \
             recipient.",
        )
        .see(&["auth.users", "auth.dovecot", "listener.auth_without_tls"])
        .at_start(),
        Key::new(
            "auth_without_tls",
            flag(false),
            "Offers AUTH also where nothing encrypts the connection: passwords can be read on the \
             way. For tests.",
        )
        .see(&["listener.auth"])
        .at_start(),
        fronts::PROXY,
        fronts::XCLIENT,
    ],
    later: &[],
};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address to listen on.
    pub address: SocketAddr,
    /// What is spoken there.
    pub service: Service,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol_from: TrustedFronts,
    /// Who may name a client with XCLIENT.
    pub xclient_from: TrustedFronts,
    /// Clients may authenticate.
    pub auth: bool,
    /// Also without TLS.
    pub auth_without_tls: bool,
}

impl Listener {
    /// One with nothing but these.
    pub const fn new(address: SocketAddr, service: Service) -> Self {
        Self {
            address,
            service,
            auth: false,
            auth_without_tls: false,
            proxy_protocol_from: TrustedFronts::none(),
            xclient_from: TrustedFronts::none(),
        }
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
        let [proxy_protocol_from, xclient_from] =
            ["proxy_protocol_from", "xclient_from"].map(|key| fronts::read(&mut s, key));
        let auth = read_auth(&mut s, given.auth);
        let auth_without_tls = s.flag("auth_without_tls");
        if auth_without_tls {
            let message = "passwords of this listener can be read on the way: it takes them \
                           without TLS";
            s.document.warn(&s.span_of("auth_without_tls"), message);
        }
        if let Some(service) = service.filter(|service| service.is_submission()) {
            let is_clear = auth_without_tls && service == Service::Submission;
            check_submission(&s, given, auth != Some(false), is_clear);
        }
        if let (Some(address), Some(service)) = (address, service) {
            listeners.push(Listener {
                auth: auth.unwrap_or(given.auth && service.is_submission()),
                auth_without_tls,
                proxy_protocol_from,
                xclient_from,
                ..Listener::new(address.into_inner(), service)
            });
        }
        s.finish();
    }
    listeners
}

/// What a listener for submission lacks: without it its clients could not authenticate, and so
/// never send. `is_clear`: it needs no TLS.
fn check_submission(s: &Section<'_, '_>, given: Given, auth: bool, is_clear: bool) {
    let span = s.span_of("service");
    if !given.auth {
        s.document.error_with(
            &span,
            "clients have to authenticate here, and there is no [auth] that says who may",
            "write [auth] with `users` or `dovecot`",
        );
    } else if !auth {
        s.document.error_with(
            &s.span_of("auth"),
            "clients have to authenticate here, and AUTH is off",
            "leave `auth` out",
        );
    }
    if !given.tls && !is_clear {
        s.document.error_with(
            &span,
            "clients have to authenticate here, which takes TLS, and there is no [tls]",
            "write [tls] with `certificate` and `key`",
        );
    }
}

/// Whether AUTH is offered, if the table says so.
fn read_auth(s: &mut Section<'_, '_>, has_users: bool) -> Option<bool> {
    let auth = s.word("auth", &[("off", false), ("on", true)]);
    if auth == Some(true) && !has_users {
        s.document.error_with(
            &s.span_of("auth"),
            "AUTH is on, and there is no [auth] that says who may authenticate",
            "write [auth] with `users` or `dovecot`",
        );
    }
    auth
}
