//! Packets made by hand, for tests that count them one by one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use portcullis::netns::Namespace;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Sends single SYNs that no TCP stack retransmits or answers for.
#[derive(Debug)]
pub struct SynSender {
    socket: Socket,
    to: SockAddr,
    port: u16,
}

impl SynSender {
    /// From an address of a namespace to an address and port. The kernel makes the IP header.
    ///
    /// # Errors
    /// When the source is not the namespace's own, or raw sockets are not permitted.
    pub fn new(namespace: &Namespace, source: IpAddr, to: SocketAddr) -> Result<Self> {
        let open = || Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP));
        let socket = namespace.run(open)??;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .with_context(|| format!("from {source}"))?;
        // Fewer under way than a link's ring has room for: a packet that was sent has arrived.
        socket.set_send_buffer_size(64 << 10)?;
        // The port of a raw socket's address means nothing; the kernel wants it to be zero for IPv6.
        Ok(Self {
            socket,
            to: SocketAddr::new(to.ip(), 0).into(),
            port: to.port(),
        })
    }

    /// Sends one; `number` becomes its source port and sequence number.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, number: u32) -> Result<()> {
        let mut header = [0; 20];
        let number = number.to_be_bytes();
        header[..2].copy_from_slice(&[0x80 | number[2], number[3]]);
        header[2..4].copy_from_slice(&self.port.to_be_bytes());
        header[4..8].copy_from_slice(&number);
        // Five words of header, SYN, a window; the checksum stays wrong, for nobody is to answer.
        header[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        self.socket.send_to(&header, &self.to)?;
        Ok(())
    }
}
