//! Reads a PROXY header from the first octets of a connection.
//!
//! A header may come in any number of pieces. What is kept of it is bounded: a line of 107 octets,
//! or a binary header up to its addresses. TLVs (section 2.2) are skipped as they come, at most the
//! 65,535 octets that the length field can say; their CRC32C is not checked, since TCP has a
//! checksum and a front is trusted. How long a header may take is for the caller's deadline.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use super::{Endpoints, Header, TEXT_LENGTH_MAX};

const TEXT_BEGINNING: &[u8] = b"PROXY ";
const TEXT_UNKNOWN: &[u8] = b"PROXY UNKNOWN";

/// Signature, version and command, family and protocol, length (section 2.2).
const BINARY_FIXED: usize = 16;
const COMMAND: usize = 12;
const FAMILY: usize = 13;
const LENGTH: std::ops::Range<usize> = 14..16;
const VERSION_2_LOCAL: u8 = 0x20;

/// A binary header with the addresses of UNIX sockets is the longest that is held.
const HELD_MAX: usize = BINARY_FIXED + 216;

/// Reads the header of one connection.
#[derive(Debug)]
pub struct Reader {
    /// The header so far, without TLVs.
    held: [u8; HELD_MAX],
    length: usize,
    /// What the header says, once that is known, and how many octets of it are still to skip.
    skipping: Option<(Header, usize)>,
}

/// Why a connection has no good header: it says nothing about who the client is, so the connection
/// can only be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// The first octets are those of something else.
    NoHeader,
    /// A text header without an end after 107 octets.
    LineTooLong,
    /// A text header that is not as section 2.1 has it.
    Line,
    /// A binary header of another version than 2; the octet.
    Version(u8),
    /// Neither LOCAL nor PROXY; the four bits.
    Command(u8),
    /// An unknown family of addresses; the four bits, shifted left.
    Family(u8),
    /// A transport protocol other than TCP; the four bits.
    Protocol(u8),
    /// A length field that is too short for the addresses of the family, in octets.
    Length(u16),
    /// An address from which no TCP connection can come.
    Client(IpAddr),
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            held: [0; HELD_MAX],
            length: 0,
            skipping: None,
        }
    }
}

impl Reader {
    /// Reads the next octets of the connection. `None`: all belong to the header, and it goes on.
    /// Otherwise what the header says, and how many of these octets belong to it; those that follow
    /// are the client's.
    ///
    /// # Errors
    /// [`BadHeader`], at the latest when the header is there up to its addresses.
    pub fn read(&mut self, octets: &[u8]) -> Result<Option<(Header, usize)>, BadHeader> {
        let mut taken = 0;
        loop {
            if let Some((header, left)) = &mut self.skipping {
                let skipped = (*left).min(octets.len() - taken);
                *left -= skipped;
                return Ok((*left == 0).then_some((*header, taken + skipped)));
            }
            let Some(&octet) = octets.get(taken) else {
                return Ok(None);
            };
            taken += 1;
            self.skipping = self.hold(octet)?;
        }
    }

    /// No octet of a header has come yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes one octet of a header whose meaning is not known yet.
    fn hold(&mut self, octet: u8) -> Result<Option<(Header, usize)>, BadHeader> {
        let at = self.length;
        self.held[at] = octet;
        self.length += 1;
        let is_text = self.held[0] == TEXT_BEGINNING[0];
        let beginning = if is_text {
            TEXT_BEGINNING
        } else {
            v2::PROTOCOL_PREFIX
        };
        if beginning.get(at).is_some_and(|&expected| expected != octet) {
            return Err(BadHeader::NoHeader);
        }
        if is_text { self.text() } else { self.binary() }
    }

    fn text(&self) -> Result<Option<(Header, usize)>, BadHeader> {
        let line = &self.held[..self.length];
        match line {
            [.., b'\r', b'\n'] => Ok(Some((text(line)?, 0))),
            // A CR or LF alone would be an end for one reader and none for another.
            [.., b'\n'] | [.., b'\r', _] => Err(BadHeader::Line),
            _ if line.len() == TEXT_LENGTH_MAX => Err(BadHeader::LineTooLong),
            _ => Ok(None),
        }
    }

    fn binary(&mut self) -> Result<Option<(Header, usize)>, BadHeader> {
        if self.length < BINARY_FIXED {
            return Ok(None);
        }
        let [high, low] = [self.held[LENGTH.start], self.held[LENGTH.start + 1]];
        let declared = u16::from_be_bytes([high, low]);
        // Section 2.2: of a LOCAL header everything behind the command is ignored, the family too.
        if self.held[COMMAND] == VERSION_2_LOCAL {
            return Ok(Some((Header::Local, declared.into())));
        }
        let addresses: u16 = match self.held[FAMILY] >> 4 {
            1 => 12,
            2 => 36,
            3 => 216,
            _ => 0,
        };
        if declared < addresses {
            return binary(&self.held[..BINARY_FIXED]).map(|header| Some((header, 0)));
        }
        let needed = BINARY_FIXED + usize::from(addresses);
        if self.length < needed {
            return Ok(None);
        }
        // The parser sees a header without TLVs: they are skipped as they come.
        let mut header = self.held;
        header[LENGTH].copy_from_slice(&addresses.to_be_bytes());
        let left = declared - addresses;
        Ok(Some((binary(&header[..needed])?, left.into())))
    }
}

/// A text header that is there in full.
fn text(line: &[u8]) -> Result<Header, BadHeader> {
    // Section 2.1: what follows UNKNOWN is ignored. (The parser expects no more words than five.)
    if let Some([b' ' | b'\r', ..]) = line.strip_prefix(TEXT_UNKNOWN) {
        return Ok(Header::Unknown);
    }
    // The parser takes numbers as Rust does, with a sign.
    if line.contains(&b'+') {
        return Err(BadHeader::Line);
    }
    let header = v1::Header::try_from(line).map_err(|_| BadHeader::Line)?;
    match header.addresses {
        v1::Addresses::Unknown => Ok(Header::Unknown),
        v1::Addresses::Tcp4(it) => endpoints(
            (it.source_address, it.source_port),
            (it.destination_address, it.destination_port),
        ),
        v1::Addresses::Tcp6(it) => endpoints(
            (it.source_address, it.source_port),
            (it.destination_address, it.destination_port),
        ),
    }
}

/// A binary header that is there in full, and has no TLVs.
fn binary(header: &[u8]) -> Result<Header, BadHeader> {
    let header = v2::Header::try_from(header).map_err(|error| match error {
        v2::ParseError::Version(version) => BadHeader::Version(version),
        v2::ParseError::Command(command) => BadHeader::Command(command),
        v2::ParseError::AddressFamily(family) => BadHeader::Family(family),
        v2::ParseError::Protocol(protocol) => BadHeader::Protocol(protocol),
        _ => {
            let length = header.get(LENGTH).and_then(|octets| octets.try_into().ok());
            BadHeader::Length(length.map_or(0, u16::from_be_bytes))
        }
    })?;
    match header.protocol {
        v2::Protocol::Datagram => return Err(BadHeader::Protocol(v2::Protocol::Datagram as u8)),
        v2::Protocol::Unspecified => return Ok(Header::Unknown),
        v2::Protocol::Stream => {}
    }
    match header.addresses {
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => Ok(Header::Unknown),
        v2::Addresses::IPv4(it) => endpoints(
            (it.source_address, it.source_port),
            (it.destination_address, it.destination_port),
        ),
        v2::Addresses::IPv6(it) => endpoints(
            (it.source_address, it.source_port),
            (it.destination_address, it.destination_port),
        ),
    }
}

fn endpoints<T: Into<IpAddr>>(client: (T, u16), server: (T, u16)) -> Result<Header, BadHeader> {
    let endpoints = Endpoints::new(SocketAddr::from(client), SocketAddr::from(server));
    endpoints.map(Header::Client).map_err(BadHeader::Client)
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("no PROXY header"),
            Self::LineTooLong => write!(f, "PROXY header over {TEXT_LENGTH_MAX} octets"),
            Self::Line => f.write_str("malformed PROXY header"),
            Self::Version(octet) => write!(f, "PROXY header of version {}", octet >> 4),
            Self::Command(command) => write!(f, "PROXY header with command {command}"),
            Self::Family(family) => write!(f, "PROXY header with address family {}", family >> 4),
            Self::Protocol(protocol) => {
                write!(f, "PROXY header with transport protocol {protocol}")
            }
            Self::Length(length) => {
                write!(
                    f,
                    "PROXY header of length {length}: too short for addresses"
                )
            }
            Self::Client(ip) => write!(f, "PROXY header with {ip} as the client"),
        }
    }
}

impl std::error::Error for BadHeader {}
