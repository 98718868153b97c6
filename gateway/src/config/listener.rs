//! `[[listener]]`: where sessions come in, and what is spoken there.

use std::net::SocketAddr;

use super::keys::{Absent, Form, Key, KeyTable, text, word};
use super::section::Section;
use super::tls::{AskForCertificates, ListenerTls};
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
                words: &[("relay", "SMTP between servers, as on port 25")],
                later: &["submission", "submissions"],
            },
            "What is spoken there.",
        )
        .at_start(),
        Key::new(
            "tls",
            Form::Word {
                default: Absent::Varies("`starttls` with a `[tls]`, otherwise `off`"),
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
    later: &["proxy_protocol_from"],
};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address to listen on.
    pub address: SocketAddr,
    /// What is spoken there.
    pub service: Service,
    /// How it uses TLS.
    pub tls: ListenerTls,
    /// Whether its clients are asked for a certificate.
    pub client_certificates: AskForCertificates,
}

/// What else there is in the configuration.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub(super) tls: bool,
    pub(super) client_authorities: bool,
}

impl Listener {
    /// What decisions know of it.
    pub fn facts(&self) -> pipeline::Listener {
        pipeline::Listener {
            address: self.address,
            service: self.service,
        }
    }
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
        let service = s.word("service", &[("relay", Service::Relay)]);
        let tls = read_tls(&mut s, given);
        let client_certificates = read_client_certificates(&mut s, given, tls);
        if let (Some(address), Some(service)) = (address, service) {
            listeners.push(Listener {
                address: address.into_inner(),
                service,
                tls,
                client_certificates,
            });
        }
        s.finish();
    }
    listeners
}

fn read_tls(s: &mut Section<'_, '_>, given: Given) -> ListenerTls {
    if !s.has("tls") {
        let (word, tls) = if given.tls {
            ("starttls", ListenerTls::StartTls)
        } else {
            ("off", ListenerTls::Off)
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
