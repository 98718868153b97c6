//! The PROXY protocol, versions 1 (a line of text) and 2 (binary), as HAProxy specifies it in
//! `doc/proxy-protocol.txt`: what a header says. [`Reader`] reads it, octet by octet if it comes
//! so, and [`write_v1`] and [`write_v2`] write it.
//!
//! The crate `ppp` parses a header that is there in full. What it leaves to its caller is here:
//! where a header ends, how long it may be, and what it must not say. (On part of a text header
//! `ppp` may answer that it is bad: a line that ends behind the space before the last port.)

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use read::{BadHeader, Reader};
pub use write::{write_v1, write_v2};

/// The longest text header, with CRLF (section 2.1).
pub const TEXT_LENGTH_MAX: usize = 107;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The front passes on a client.
    Client(Endpoints),
    /// The front speaks for itself, as a health check does (`LOCAL`).
    Local,
    /// There is a client, but the header does not say at which address: `UNKNOWN` and `UNSPEC`, or
    /// a UNIX socket.
    ///
    /// The specification would have the front's own address used. A gate that did so would open
    /// the relay to strangers wherever the front stands in a local network.
    Unknown,
}

/// The two ends of the connection that a front accepted. IPv4 is written as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    client: SocketAddr,
    server: SocketAddr,
}

impl Endpoints {
    /// The client, and the address and port that it connected to. IPv4 that is written as IPv6
    /// (`::ffff:192.0.2.1`) becomes IPv4: a list of IPv4 prefixes must cover it.
    ///
    /// # Errors
    /// The client's address, if no TCP connection can come from it.
    pub fn new(client: SocketAddr, server: SocketAddr) -> Result<Self, IpAddr> {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (client, server) = (canonical(client), canonical(server));
        let ip = client.ip();
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
            return Err(ip);
        }
        Ok(Self { client, server })
    }

    /// The client's address and port.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The address and port that the client connected to.
    pub fn server(&self) -> SocketAddr {
        self.server
    }
}

/// `client 192.0.2.1:50000 to 198.51.100.1:25`, `local`, `unknown client`.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(Endpoints { client, server }) => write!(f, "client {client} to {server}"),
            Self::Local => f.write_str("local"),
            Self::Unknown => f.write_str("unknown client"),
        }
    }
}
