//! Beginnings of connections that may be anything, and clients that may be called anything, for
//! fuzzing and for properties.
//!
//! A script is bytes: the first says how the rest is cut, and which attributes of XCLIENT are
//! offered.

use std::net::SocketAddr;

use portcullis::fronts::proxy::{BadHeader, Header, Reader, write_v1, write_v2};
use portcullis::fronts::xclient::{self, ClientName, Offered};

/// What a reader says of the first octets of a connection: the header, and how many octets it has;
/// `None` if it waits for more.
pub type Read = Result<Option<(Header, usize)>, BadHeader>;

/// The longest header: the fixed part, and what its length field can say.
const HEADER_LENGTH_MAX: usize = 16 + u16::MAX as usize;

/// Reads the beginning of a connection in pieces of this many octets.
pub fn read_in_pieces(octets: &[u8], piece: usize) -> Read {
    let mut reader = Reader::default();
    let mut before = 0;
    for piece in octets.chunks(piece.max(1)) {
        if let Some((header, taken)) = reader.read(piece)? {
            return Ok(Some((header, before + taken)));
        }
        before += piece.len();
    }
    Ok(None)
}

/// Plays a script as the beginning of a connection.
///
/// # Errors
/// Something that must hold whatever comes in does not.
pub fn check_proxy(script: &[u8]) -> Result<(), String> {
    let [cut, octets @ ..] = script else {
        return Ok(());
    };
    let read = read_in_pieces(octets, octets.len());
    for piece in [1, usize::from(*cut)] {
        let other = read_in_pieces(octets, piece);
        hold(other == read, "pieces make a difference")?;
    }
    let Ok(Some((header, length))) = read else {
        // A beginning that is bad stays bad, and one that is not does not become so by waiting.
        let shorter = read_in_pieces(&octets[..octets.len() / 2], octets.len());
        let is_kept = shorter == read || shorter == Ok(None);
        return hold(is_kept, "a beginning is worse than the whole");
    };
    hold(length <= octets.len(), "more octets than there are")?;
    hold(length <= HEADER_LENGTH_MAX, "a header beyond its bound")?;
    let own = read_in_pieces(&octets[..length], length);
    hold(own == Ok(Some((header, length))), "the rest counts")?;
    let shorter = read_in_pieces(&octets[..length - 1], length);
    hold(shorter == Ok(None), "a header without its end")?;
    if let Header::Client(endpoints) = header {
        let ip = endpoints.client().ip();
        hold(ip == ip.to_canonical(), "an IPv4 client as IPv6")?;
        let nowhere = ip.is_unspecified() || ip.is_multicast();
        hold(!nowhere, "a client from nowhere")?;
    }
    is_read_as_it_is_written(header)
}

fn is_read_as_it_is_written(header: Header) -> Result<(), String> {
    let (mut text, mut binary) = (Vec::new(), Vec::new());
    write_v1(&header, &mut text);
    write_v2(&header, &mut binary);
    let client = |header: Header| match header {
        Header::Client(endpoints) => Some(endpoints.client()),
        Header::Local | Header::Unknown => None,
    };
    for written in [text, binary] {
        let read = read_in_pieces(&written, written.len());
        let Ok(Some((again, length))) = read else {
            return Err(format!("{read:?} for {header}"));
        };
        hold(length == written.len(), "another length")?;
        hold(client(again) == client(header), "another client")?;
    }
    Ok(())
}

/// Plays a script as the names of a client, one on each line: HELO, the user, the name in DNS.
///
/// # Errors
/// Something that must hold whatever they are does not.
pub fn check_xclient(script: &[u8]) -> Result<(), String> {
    let [offered, names @ ..] = script else {
        return Ok(());
    };
    let names = String::from_utf8_lossy(names);
    let mut names = names.splitn(3, '\n');
    let (helo, login) = (names.next(), names.next());
    let client = xclient::Client {
        address: SocketAddr::from(([192, 0, 2, 1], 50_000)),
        server: SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 25)),
        name: names
            .next()
            .map_or(ClientName::Unavailable, ClientName::Known),
        helo,
        is_esmtp: true,
        login,
    };
    let all = [
        "NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT",
    ];
    let is_offered = |at: usize| offered >> at & 1 == 1;
    let offered: Vec<&str> = (0..8)
        .filter(|at| is_offered(*at))
        .map(|at| all[at])
        .collect();
    let mut written = String::new();
    xclient::write_attributes(&client, Offered::new(&offered.join(" ")), &mut written);
    let is_short = written.len() <= xclient::ATTRIBUTES_LENGTH_MAX;
    hold(is_short, "a command that is too long")?;
    let is_printable = written.bytes().all(|octet| matches!(octet, b' '..=b'~'));
    hold(is_printable, "an octet that ends the command")?;
    let mut sent: Vec<&str> = Vec::new();
    for attribute in written.split(' ').skip(1) {
        let (name, value) = attribute.split_once('=').ok_or("no pair")?;
        hold(!value.is_empty() && !value.contains('='), "a value")?;
        sent.push(name);
    }
    sent.sort_unstable();
    let mut offered = offered;
    offered.sort_unstable();
    hold(sent == offered, "an attribute too many or too few")
}

fn hold(condition: bool, what: &str) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(what.to_owned())
    }
}
