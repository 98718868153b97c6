//! Single SYNs, made by hand, for tests that count them one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

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
        // The port of a raw socket's address means nothing; the kernel wants it to be zero for
        // IPv6.
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
        // Five words of header, SYN, a window; the checksum stays wrong, so that no answer comes.
        header[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        self.socket.send_to(&header, &self.to)?;
        Ok(())
    }
}

/// Sends SYNs that claim to come from anywhere, and are good in all other ways.
#[derive(Debug)]
pub struct Spoofer {
    socket: Socket,
    to: SocketAddrV4,
}

impl Spoofer {
    /// From inside a namespace.
    ///
    /// # Errors
    /// When raw sockets are not permitted.
    pub fn new(namespace: &Namespace, to: SocketAddrV4) -> Result<Self> {
        // The header comes with the packet.
        let protocol = Protocol::from(nix::libc::IPPROTO_RAW);
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(protocol));
        let socket = namespace.run(open)??;
        socket.set_send_buffer_size(64 << 10)?;
        Ok(Self { socket, to })
    }

    /// Sends one in the name of this address.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, source: Ipv4Addr) -> Result<()> {
        let (source, to) = (source.octets(), self.to.ip().octets());
        let mut packet = [0; 40];
        // The kernel fills in the length and the checksum of this header.
        packet[..2].copy_from_slice(&[0x45, 0]);
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&to);
        packet[20..24].copy_from_slice(&[0xc0, source[3], 0, 0]);
        packet[22..24].copy_from_slice(&self.to.port().to_be_bytes());
        packet[24..28].copy_from_slice(&source);
        packet[32..36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        let checksum = checksum(&packet);
        packet[36..38].copy_from_slice(&checksum.to_be_bytes());
        self.socket.send_to(&packet, &self.to.into())?;
        Ok(())
    }
}

/// The checksum of the TCP header of such a packet (RFC 9293 section 3.1), whose addresses stand
/// before it as they do in the pseudo-header.
fn checksum(packet: &[u8; 40]) -> u16 {
    let words = packet[12..].chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>()
        + 6
        + 20;
    let folded = (sum >> 16) + (sum & 0xffff);
    !((folded + (folded >> 16)) as u16)
}
