//! What a command asks the gate that runs beside it, at its admin endpoints.
//!
//! A request of HTTP/1.0, whose answer ends with its connection: there is nothing to parse but a
//! status line, so no client library is needed. It blocks, as commands may.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// For the gate to take the connection, and to begin its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// For the gate to carry a command out. A reload reads all lists.
const COMMAND_MAX: Duration = Duration::from_secs(600);
/// Octets of the head of an answer, and of an error.
const HEAD_MAX: u64 = 16_384;
/// Octets of the answer to a command: a full map of verdicts with the longest notes takes less. It
/// is read as it comes.
const COMMAND_ANSWER_MAX: u64 = 256 << 20;

/// Asks for a path, and gives what is answered; an answer that goes on is read as it comes.
///
/// # Errors
/// When no gate answers, or it has no such resource: then with what it says.
pub fn get(admin: SocketAddr, path: &str) -> io::Result<impl BufRead + use<>> {
    let admin = reachable(admin);
    let stream = TcpStream::connect_timeout(&admin, ANSWER_MAX)
        .map_err(|error| with_next_step(admin, &error))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(&stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let status = head(&mut answer)?;
    if status != 200 {
        let said = what_it_says(&mut answer)?;
        return Err(io::Error::other(format!("{said} ({status})")));
    }
    answer.get_ref().set_read_timeout(None)?;
    Ok(answer)
}

/// Why a command was not carried out by a gate.
#[derive(Debug)]
pub enum NotDone {
    /// No gate listens at the socket.
    NoGate(io::Error),
    /// This user may not open the socket.
    NotPermitted,
    /// What listens there does not answer as a gate does.
    Broken(io::Error),
    /// The gate refuses.
    Refused {
        /// The status of its answer.
        status: u16,
        /// Why.
        why: String,
    },
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGate(error) => write!(f, "no gate listens there ({error})"),
            Self::NotPermitted => f.write_str(
                "this user may not open it: `admin_users` and `admin_groups` in the gate's \
                 configuration say who may",
            ),
            Self::Broken(error) => write!(f, "the gate does not answer: {error}"),
            Self::Refused { why, .. } => f.write_str(why),
        }
    }
}

/// Has the gate at a socket carry a command out, and gives its answer.
///
/// # Errors
/// When it was not carried out, or perhaps was and the answer got lost ([`NotDone::Broken`]).
pub fn command<A: DeserializeOwned>(
    socket: &Path,
    path: &str,
    request: &impl Serialize,
) -> Result<A, NotDone> {
    let body = serde_json::to_vec(request).map_err(|error| NotDone::Broken(error.into()))?;
    let head = format!(
        "POST {path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    exchange(socket, &[head.as_bytes(), &body])
}

/// Reads what is at a path of the gate at a socket.
///
/// # Errors
/// As [`command`].
pub fn read<A: DeserializeOwned>(socket: &Path, path: &str) -> Result<A, NotDone> {
    exchange(socket, &[format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()])
}

fn exchange<A: DeserializeOwned>(socket: &Path, request: &[&[u8]]) -> Result<A, NotDone> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NotDone::NoGate(error),
        io::ErrorKind::PermissionDenied => NotDone::NotPermitted,
        _ => NotDone::Broken(error),
    })?;
    stream
        .set_read_timeout(Some(COMMAND_MAX))
        .map_err(NotDone::Broken)?;
    stream
        .set_write_timeout(Some(ANSWER_MAX))
        .map_err(NotDone::Broken)?;
    // A gate that refuses does not read all of it, and has said why.
    let sent = request.iter().try_for_each(|part| stream.write_all(part));
    let mut answer = BufReader::new(stream);
    let status = match (head(&mut answer), sent) {
        (Ok(status), _) => status,
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(NotDone::Broken(error)),
    };
    if status != 200 {
        let why = what_it_says(&mut answer).map_err(NotDone::Broken)?;
        return Err(NotDone::Refused { status, why });
    }
    let mut answer = answer.take(COMMAND_ANSWER_MAX);
    let read = serde_json::from_reader(&mut answer);
    read.map_err(|error| NotDone::Broken(cut_or(answer.limit(), error.into())))
}

/// The error of an answer of which so many octets more would have been read.
fn cut_or(left: u64, error: io::Error) -> io::Error {
    match left {
        0 => io::Error::other(format!(
            "its answer is longer than {} MiB",
            COMMAND_ANSWER_MAX >> 20
        )),
        _ => error,
    }
}

/// The text of an error.
fn what_it_says(answer: &mut impl BufRead) -> io::Result<String> {
    let mut said = Vec::new();
    let read = answer.take(HEAD_MAX).read_to_end(&mut said);
    // A gate that has refused may close with some of the request unread.
    if said.is_empty() {
        read?;
    }
    Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// The loopback of another network namespace is the usual reason.
fn with_next_step(admin: SocketAddr, error: &io::Error) -> io::Error {
    let next_step = if admin.ip().is_loopback() {
        "; it is on the loopback: run this in the gate's network namespace \
         (`nsenter --net=/proc/PID/ns/net ...`)"
    } else {
        ""
    };
    io::Error::new(error.kind(), format!("{error}{next_step}"))
}

/// One that listens everywhere listens here.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let address = match admin.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, admin.port())
}

/// Reads the head of an answer; gives its status.
fn head(answer: &mut impl BufRead) -> io::Result<u16> {
    let strange = || io::Error::other("what answers there is no gate");
    let mut head = answer.take(HEAD_MAX);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.trim_end().parse().ok())
        .ok_or_else(strange)?;
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(strange());
        }
        if line.trim_end().is_empty() {
            return Ok(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Cause, VerdictStatus};

    #[test]
    fn a_gate_on_the_loopback_of_another_namespace_is_not_looked_for_in_vain() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = port.local_addr().unwrap();
        drop(port);
        let error = get(admin, "/api/events").err().unwrap().to_string();
        assert!(error.contains("nsenter --net="), "{error}");
    }

    #[test]
    fn a_full_map_of_verdicts_is_read_and_a_longer_answer_is_said_to_be_one() {
        let verdict = VerdictStatus {
            source: "2001:db8:1234:5678::/64".to_owned(),
            cause: Cause::Operator,
            note: "\u{1}".repeat(64),
            age_seconds: 31_536_000,
            expires_in_seconds: 31_536_000,
            packets: u64::MAX,
            last_packet_seconds_ago: Some(31_536_000),
            except: Vec::new(),
        };
        let octets = serde_json::to_string(&verdict).unwrap().len() + 1;
        assert!(octets as u64 * 262_144 < COMMAND_ANSWER_MAX, "{octets}");
        let error = cut_or(0, io::Error::other("EOF while parsing")).to_string();
        assert!(error.contains("longer than 256 MiB"), "{error}");
    }

    #[test]
    fn what_is_no_answer_of_a_gate_is_an_error_and_no_answer() {
        let status = |mut text: &[u8]| head(&mut text).ok();
        assert_eq!(status(b"HTTP/1.0 200 OK\r\ndate: x\r\n\r\nbody"), Some(200));
        assert_eq!(status(b"HTTP/1.1 503\r\n\r\n"), Some(503));
        for strange in [
            &b"220 mx.example ESMTP\r\n"[..],
            b"HTTP/1.0 OK\r\n\r\n",
            b"HTTP/1.0 200 OK\r\ndate: x",
            b"",
        ] {
            assert_eq!(status(strange), None);
        }
    }
}
