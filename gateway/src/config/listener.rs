//! `[[listener]]`: where sessions come in, and what is spoken there.

use std::net::SocketAddr;

use super::fronts;
use super::keys::{Absent, Form, Key, KeyTable, text};
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
                words: &[("relay", "SMTP between servers, as on port 25")],
                later: &["submission", "submissions"],
            },
            "What is spoken there.",
        )
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
pub(super) fn read(tables: Vec<Section<'_, '_>>) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for mut s in tables {
        let address = s.text("address", |text| match value::socket_address(text)? {
            address if listeners.iter().any(|other| other.address == address) => {
                Err(format!("{address} is listened on already"))
            }
            address => Ok(address),
        });
        let service = s.word("service", &[("relay", Service::Relay)]);
        let [proxy_protocol_from, xclient_from] =
            ["proxy_protocol_from", "xclient_from"].map(|key| fronts::read(&mut s, key));
        if let (Some(address), Some(service)) = (address, service) {
            listeners.push(Listener {
                address: address.into_inner(),
                service,
                proxy_protocol_from,
                xclient_from,
            });
        }
        s.finish();
    }
    listeners
}
