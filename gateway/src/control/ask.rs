//! What a command asks the gate that runs beside it, at its admin endpoint.
//!
//! A request of HTTP/1.0, whose answer ends with its connection: there is nothing to parse but a
//! status line, so no client library is needed. It blocks, as commands may.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// For the gate to take the connection, and to begin its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Octets of the head of an answer, and of an error.
const HEAD_MAX: u64 = 16_384;

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
        let mut said = String::new();
        answer.take(HEAD_MAX).read_to_string(&mut said)?;
        return Err(io::Error::other(format!("{} ({status})", said.trim_end())));
    }
    answer.get_ref().set_read_timeout(None)?;
    Ok(answer)
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

    #[test]
    fn a_gate_on_the_loopback_of_another_namespace_is_not_looked_for_in_vain() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = port.local_addr().unwrap();
        drop(port);
        let error = get(admin, "/api/events").err().unwrap().to_string();
        assert!(error.contains("nsenter --net="), "{error}");
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
