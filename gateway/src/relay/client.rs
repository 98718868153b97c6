//! The client of a message, as a next hop is told of it: by XCLIENT, or by a header of the PROXY
//! protocol.
//!
//! It is kept with a transaction only if a route wants its next hops to be told: the texts are
//! copies of what the session has, because a connection to a next hop may be opened when that has
//! gone on.

use std::net::SocketAddr;

use crate::fronts::SendClient;
use crate::fronts::proxy::{Endpoints, Header, write_v1, write_v2};
use crate::fronts::xclient::{self, ClientName, Offered, write_attributes};

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageClient {
    /// Its address and port.
    pub address: SocketAddr,
    /// The address and port of the gate that it connected to. A listener on all addresses of the
    /// machine knows the port alone.
    pub server: SocketAddr,
    /// The argument of its HELO or EHLO; empty without one.
    pub helo: Box<str>,
    /// It sent EHLO.
    pub is_esmtp: bool,
    /// The user as whom it authenticated.
    pub login: Option<Box<str>>,
}

impl MessageClient {
    /// What follows `XCLIENT`, for a next hop that offers these attributes.
    pub fn attributes(&self, offered: Offered) -> String {
        let client = xclient::Client {
            address: self.address,
            server: self.server,
            // The gate asks for no names of clients.
            name: ClientName::Unavailable,
            helo: Some(&self.helo),
            is_esmtp: self.is_esmtp,
            login: self.login.as_deref(),
        };
        let mut attributes = String::new();
        write_attributes(&client, offered, &mut attributes);
        attributes
    }
}

/// Appends the header with which a connection begins; nothing for a route that wants none. Without
/// a client the gate speaks for itself.
pub fn write_header(client: Option<&MessageClient>, as_: SendClient, out: &mut Vec<u8>) {
    let header = match client.map(|client| Endpoints::new(client.address, client.server)) {
        Some(Ok(endpoints)) => Header::Client(endpoints),
        // No client connects from an address that none can have.
        Some(Err(_)) => Header::Unknown,
        None => Header::Local,
    };
    match as_ {
        SendClient::No | SendClient::Xclient => {}
        SendClient::ProxyV1 => write_v1(&header, out),
        SendClient::ProxyV2 => write_v2(&header, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> MessageClient {
        MessageClient {
            address: "192.0.2.1:50000".parse().expect("an address"),
            server: "0.0.0.0:25".parse().expect("an address"),
            helo: "client.example".into(),
            is_esmtp: true,
            login: None,
        }
    }

    #[test]
    fn what_is_not_known_of_a_client_is_not_made_up() {
        let offered = Offered::new("ADDR PORT NAME HELO LOGIN DESTADDR DESTPORT");
        assert_eq!(
            client().attributes(offered),
            " ADDR=192.0.2.1 PORT=50000 DESTADDR=[UNAVAILABLE] DESTPORT=25 LOGIN=[UNAVAILABLE] \
             HELO=client.example NAME=[UNAVAILABLE]"
        );
    }

    #[test]
    fn a_connection_without_a_client_is_the_gates_own() {
        let written = |client, as_| {
            let mut out = Vec::new();
            write_header(client, as_, &mut out);
            out
        };
        let client = client();
        assert_eq!(
            written(Some(&client), SendClient::ProxyV1),
            b"PROXY TCP4 192.0.2.1 0.0.0.0 50000 25\r\n"
        );
        assert_eq!(written(None, SendClient::ProxyV1), b"PROXY UNKNOWN\r\n");
        // LOCAL, and no addresses.
        assert_eq!(written(None, SendClient::ProxyV2)[12..], [0x20, 0, 0, 0]);
        assert_eq!(written(Some(&client), SendClient::Xclient), b"");
    }
}
