//! `[[listener]]`: where sessions come in, and what is spoken there.

use std::net::SocketAddr;

use super::fronts;
use super::keys::{Absent, Form, Key, KeyTable, flag, text, word};
use super::section::Section;
use super::tls::{AskForCertificates, ListenerTls};
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
        Key::new(
            "tls",
            Form::Word {
                default: Absent::Varies(
                    "with a `[tls]` `\"starttls\"`, for submissions `\"implicit\"`; \
                     otherwise `\"off\"`",
                ),
                words: &[
                    ("off", "none"),
                    ("starttls", "the client may ask for it (RFC 3207)"),
                    (
                        "implicit",
                        "from the first octet, as on port 465 (RFC 8314); a client that is \
                         refused at the connect is closed without a word",
                    ),
                ],
                later: &[],
            },
            "Whether sessions can be, or have to be, under TLS.",
        )
        .see(&["tls.certificate"])
        .at_start(),
        Key::new(
            "client_certificates",
            word(
                "off",
                &[
                    ("off", "they are not asked for one"),
                    (
                        "ask",
                        "they are asked; one without is let in, one with a bad one is not",
                    ),
                    ("require", "without a good one the handshake fails"),
                ],
            ),
            "Whether clients are asked for a certificate, of one of `tls.client_authorities`. It \
             is logged with the session.",
        )
        .see(&["tls.client_authorities"])
        .at_start(),
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
    /// How it uses TLS.
    pub tls: ListenerTls,
    /// Whether its clients are asked for a certificate.
    pub client_certificates: AskForCertificates,
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
            tls: ListenerTls::Off,
            client_certificates: AskForCertificates::Off,
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
    pub(super) client_authorities: bool,
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
        let tls = read_tls(&mut s, given, service);
        let client_certificates = read_client_certificates(&mut s, given, tls);
        let auth = read_auth(&mut s, given.auth);
        let auth_without_tls = s.flag("auth_without_tls");
        if auth_without_tls {
            let message = "passwords of this listener can be read on the way: it takes them \
                           without TLS";
            s.document.warn(&s.span_of("auth_without_tls"), message);
        }
        if let Some(service) = service.filter(|service| service.is_submission()) {
            let is_clear = auth_without_tls && service == Service::Submission;
            check_submission(&s, given, (service, tls), auth != Some(false), is_clear);
        }
        if let (Some(address), Some(service)) = (address, service) {
            listeners.push(Listener {
                tls,
                client_certificates,
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

fn read_tls(s: &mut Section<'_, '_>, given: Given, service: Option<Service>) -> ListenerTls {
    if !s.has("tls") {
        let (word, tls) = match service {
            _ if !given.tls => ("off", ListenerTls::Off),
            Some(Service::Submissions) => ("implicit", ListenerTls::Implicit),
            _ => ("starttls", ListenerTls::StartTls),
        };
        let _ = s.value("tls");
        s.by_default("tls", format_args!("\"{word}\""));
        return tls;
    }
    let modes = [
        ("off", ListenerTls::Off),
        ("starttls", ListenerTls::StartTls),
        ("implicit", ListenerTls::Implicit),
    ];
    let tls = s.word("tls", &modes).unwrap_or(ListenerTls::Off);
    if tls != ListenerTls::Off && !given.tls {
        s.document.error_with(
            &s.span_of("tls"),
            "there is no [tls], so there is no certificate to show",
            "add a table [tls] with `certificate` and `key`",
        );
    }
    tls
}

fn read_client_certificates(
    s: &mut Section<'_, '_>,
    given: Given,
    tls: ListenerTls,
) -> AskForCertificates {
    let demands = [
        ("off", AskForCertificates::Off),
        ("ask", AskForCertificates::Ask),
        ("require", AskForCertificates::Require),
    ];
    let demand = s.word("client_certificates", &demands);
    let demand = demand.unwrap_or(AskForCertificates::Off);
    if demand == AskForCertificates::Off {
        return demand;
    }
    let span = s.span_of("client_certificates");
    if tls == ListenerTls::Off {
        let message = "certificates are shown under TLS, and this listener has none";
        s.document
            .error_with(&span, message, "set `tls` of this listener");
    } else if !given.client_authorities {
        s.document.error_with(
            &span,
            "it is not said which authorities the certificates may be of",
            "set `client_authorities` of [tls]",
        );
    }
    demand
}

/// What a listener for submission lacks: without it its clients could not authenticate, and so
/// never send. `is_clear`: it needs no TLS.
fn check_submission(
    s: &Section<'_, '_>,
    given: Given,
    (service, tls): (Service, ListenerTls),
    auth: bool,
    is_clear: bool,
) {
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
    } else if given.tls && service == Service::Submissions && tls != ListenerTls::Implicit {
        s.document.error_with(
            &s.span_of("tls"),
            "in `submissions` a session is under TLS from its first octet (RFC 8314)",
            "leave `tls` out, or say `service = \"submission\"`",
        );
    } else if given.tls && tls == ListenerTls::Off && !is_clear {
        s.document.error_with(
            &s.span_of("tls"),
            "clients have to authenticate here, which takes TLS, and it is off",
            "leave `tls` out",
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
