//! XCLIENT of a trusted front (Postfix's XCLIENT_README): the session begins again, with the client
//! that the command names.
//!
//! One connection can serve one client after the other. Each has a session of its own: counts,
//! record and id begin anew, and nothing that the client before has said or proved is left.
//!
//! A command that names no address leaves the client that was named before. If none was, the client
//! is not known. Rejected: to take the front for it, as Postfix does. The front often stands in a
//! local network, and an attribute that got lost would open the relay.
//!
//! LOGIN gives no identity, so a front cannot open the relay to a client by it. NAME is not used:
//! the gate believes no name in DNS.

use std::net::{IpAddr, SocketAddr};

use portcullis_smtp::path::is_client_name;
use portcullis_smtp::xclient::{Attribute, Value, Xclient};

use super::super::connection::Connection;
use super::super::end::End;
use super::super::listener::Channel;
use super::super::lookup::Listings;
use super::super::session::Session;
use super::{Front, Peer, With};
use crate::fronts::proxy::Endpoints;

/// What a command says of the client.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    /// `Some(None)`: its address is not known.
    address: Option<Option<IpAddr>>,
    helo: Option<Option<String>>,
    is_extended: Option<bool>,
    port: Option<u16>,
}

impl Named {
    fn new(command: Xclient<'_>) -> Self {
        let mut named = Self::default();
        for attribute in command.attributes() {
            match attribute {
                Attribute::Address(Value::Known(address)) => {
                    named.address = Some(client(address));
                }
                Attribute::Address(_) => named.address = Some(None),
                Attribute::Hello(Value::Known(helo)) => {
                    // It goes into `Received:`, so it must be what EHLO could have said.
                    let helo = Some(helo.decode()).filter(|helo| is_client_name(helo));
                    named.helo = Some(helo);
                }
                Attribute::Hello(_) => named.helo = Some(None),
                Attribute::Extended(is_extended) => named.is_extended = Some(is_extended),
                Attribute::Port(Value::Known(port)) => named.port = Some(port),
                Attribute::Port(_) => named.port = Some(0),
                Attribute::Name(_)
                | Attribute::Login(_)
                | Attribute::ServerAddress(_)
                | Attribute::ServerPort(_) => {}
            }
        }
        named
    }
}

/// The address, if a client can have it.
fn client(address: IpAddr) -> Option<IpAddr> {
    let address = SocketAddr::new(address, 0);
    let endpoints = Endpoints::new(address, address).ok()?;
    Some(endpoints.client().ip())
}

impl Session {
    /// Answers XCLIENT. The end, if the client that it names is not let in.
    pub(in super::super) fn xclient(
        &mut self,
        command: Xclient<'_>,
        out: &mut Vec<u8>,
    ) -> Option<End> {
        let named = Named::new(command);
        let before = self.front.as_deref().copied().unwrap_or_default();
        self.end_client(before.with);
        let (with, address) = match named.address {
            Some(Some(address)) => (With::Client, address),
            None if before.with == With::Client => (With::Client, self.client.address),
            None | Some(None) => (With::Unknown, self.client.address),
        };
        let front = self.front.get_or_insert_default();
        **front = Front {
            with,
            has_helo: false,
            is_extended: named.is_extended,
            is_named_by_xclient: true,
        };
        match named.helo {
            Some(helo) => {
                front.has_helo = helo.is_some();
                self.helo = helo.unwrap_or_default();
            }
            None if named.address.is_none() && before.has_helo => front.has_helo = true,
            None => self.helo = String::new(),
        }
        // Of another client it is not known if the front does not tell it.
        if let Some(port) = named.port.or(named.address.map(|_| 0)) {
            let tell = |connection: &mut Connection| connection.peer_port = port;
            self.reactor.with(self.conn, tell);
        }
        self.reactor.counters.xclient(with == With::Client);
        self.begin_client(with, address);
        let refused = if with == With::Client {
            self.decide_connect().err()
        } else {
            None
        };
        let listener = self.listener();
        let settings = listener.settings(self.channel);
        if let Some((rule, reply)) = refused {
            self.smtp.answer(settings, &reply, out);
            return Some(End::Refused(rule));
        }
        self.smtp.accept(settings, out);
        self.ask_zones();
        None
    }

    /// Ends what there was of the session with the client before.
    fn end_client(&mut self, with: With) {
        let is_sender = self.smtp.transactions() > 0;
        match with {
            With::Front if !is_sender => {}
            With::Unknown => {}
            With::Front | With::Client => {
                self.record_session(None);
                self.reactor.counters.session_closed();
                self.reactor.counters.session_opened();
            }
        }
        self.leave_source();
        self.listings.forget(&self.reactor);
        self.break_off_auth();
    }

    /// The session begins again, with this client. Whether XCLIENT may come once more is a matter
    /// of this client, and no longer of the front: what follows can be the client's own octets, for
    /// a proxy of mail often only copies after the envelope.
    fn begin_client(&mut self, with: With, address: IpAddr) {
        let listener = self.listener();
        let peer = match with {
            With::Client => listener.fronts().map(|fronts| fronts.peer(address)),
            With::Front | With::Unknown => None,
        };
        let reactor = &self.reactor;
        self.client = reactor.config().policy.client(address);
        self.channel = Channel {
            is_identified: false,
            peer: peer.unwrap_or(Peer::Client),
            ..self.channel
        };
        self.id = reactor.next_id();
        self.since = reactor.now.get();
        self.listings = Listings::Known(None);
        self.listed = None;
        self.identity = None;
        (self.accepted, self.refused, self.octets) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(arguments: &str) -> Named {
        Named::new(Xclient::parse(arguments.as_bytes()).expect("attributes"))
    }

    #[test]
    fn an_address_that_no_client_can_have_is_not_known() {
        let address = |text: &str| named(&format!("ADDR={text}")).address;
        let known = |text: &str| Some(Some(text.parse().expect("an address")));
        assert_eq!(address("192.0.2.1"), known("192.0.2.1"));
        assert_eq!(address("IPV6:2001:db8::1"), known("2001:db8::1"));
        assert_eq!(address("IPV6:::ffff:192.0.2.1"), known("192.0.2.1"));
        for text in [
            "[UNAVAILABLE]",
            "[TEMPUNAVAIL]",
            "0.0.0.0",
            "224.0.0.1",
            "IPV6:::",
        ] {
            assert_eq!(address(text), Some(None), "{text}");
        }
        assert_eq!(named("LOGIN=me NAME=a.example PORT=5").address, None);
        assert_eq!(
            named("ADDR=192.0.2.1 ADDR=[UNAVAILABLE]").address,
            Some(None)
        );
    }

    #[test]
    fn a_greeting_name_that_ehlo_could_not_have_is_none() {
        let helo = |text: &str| named(&format!("HELO={text}")).helo;
        assert_eq!(helo("a.example"), Some(Some("a.example".to_owned())));
        assert_eq!(helo("+5B192.0.2.1]"), Some(Some("[192.0.2.1]".to_owned())));
        for text in ["a+20b", "(", "[UNAVAILABLE]", "a+C3+A9.example"] {
            assert_eq!(helo(text), Some(None), "{text}");
        }
    }
}
