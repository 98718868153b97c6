//! The client of a whole-system test: SMTP over a socket, one line at a time. Its errors say what
//! was expected and what came instead.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portcullis::netns::Namespace;
use socket2::{Domain, Socket, Type};

/// Connects from inside a namespace, from one of its own addresses.
///
/// # Errors
/// When the address is not the namespace's, or there is no answer within two seconds.
pub fn connect_from(namespace: &Namespace, source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    namespace.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .with_context(|| format!("from {source}"))?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        Ok(socket.into())
    })?
}

/// A reply of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// What follows the digits and the separator, line by line.
    pub lines: Vec<String>,
}

impl Reply {
    /// The reply in one line: `550 5.7.1 Relaying denied`; lines of a longer reply are joined by
    /// ` / `.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {}", self.code, self.lines.join(" / "))
    }

    /// The lines as they came, without their line ends.
    #[must_use]
    pub fn wire(&self) -> Vec<String> {
        let last = self.lines.len().saturating_sub(1);
        let separator = |position| if position == last { ' ' } else { '-' };
        let lines = self.lines.iter().enumerate();
        lines
            .map(|(position, text)| format!("{}{}{text}", self.code, separator(position)))
            .collect()
    }
}

/// A session, from the client's side. Every read has a limit of time
/// ([`patience`](Self::patience)).
#[derive(Debug)]
pub struct Dialogue {
    stream: BufReader<TcpStream>,
}

impl Dialogue {
    /// A dialogue on a connection; nothing is read yet.
    ///
    /// # Errors
    /// When the socket's options cannot be set.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let dialogue = Self {
            stream: BufReader::new(stream),
        };
        dialogue.patience(Duration::from_secs(15))?;
        Ok(dialogue)
    }

    /// A dialogue on a connection, after its greeting.
    ///
    /// # Errors
    /// When the greeting is not 220.
    pub fn greeted(stream: TcpStream) -> Result<Self> {
        let mut dialogue = Self::new(stream)?;
        let greeting = dialogue.reply().context("no greeting")?;
        if greeting.code != 220 {
            bail!("greeted with {}", greeting.text());
        }
        Ok(dialogue)
    }

    /// Connects from inside a namespace, and reads the greeting.
    ///
    /// # Errors
    /// When nothing listens there or the greeting is not 220.
    pub fn from_inside(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let limit = Duration::from_secs(5);
        Self::greeted(namespace.run(|| TcpStream::connect_timeout(&to, limit))??)
    }

    /// How long a read may take from now on.
    ///
    /// # Errors
    /// When the limit is zero.
    pub fn patience(&self, limit: Duration) -> Result<()> {
        Ok(self.stream.get_ref().set_read_timeout(Some(limit))?)
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends these octets as they are.
    ///
    /// # Errors
    /// When the gate has closed.
    pub fn raw(&mut self, octets: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(octets)?)
    }

    /// Sends a line (CRLF is added) and reads the reply.
    ///
    /// # Errors
    /// When the gate has closed or says nothing.
    pub fn say(&mut self, line: &str) -> Result<Reply> {
        self.raw(format!("{line}\r\n").as_bytes())?;
        self.reply().with_context(|| format!("after {line}"))
    }

    /// Sends a line and insists on the reply's code, or its beginning (`"550 5.7.1"`).
    ///
    /// # Errors
    /// When another reply comes, or none.
    pub fn expect(&mut self, line: &str, beginning: &str) -> Result<Reply> {
        let reply = self.say(line)?;
        check(&reply, beginning).with_context(|| format!("after {line}"))?;
        Ok(reply)
    }

    /// Reads a reply and insists on its beginning.
    ///
    /// # Errors
    /// When another reply comes, or none.
    pub fn expect_reply(&mut self, beginning: &str) -> Result<Reply> {
        let reply = self.reply()?;
        check(&reply, beginning)?;
        Ok(reply)
    }

    /// Reads one reply of any number of lines.
    ///
    /// # Errors
    /// When the connection ends, the time is over, or what comes is no reply.
    pub fn reply(&mut self) -> Result<Reply> {
        let mut reply = Reply {
            code: 0,
            lines: Vec::new(),
        };
        loop {
            let mut line = String::new();
            if self
                .stream
                .read_line(&mut line)
                .context("waiting for a reply")?
                == 0
            {
                bail!("the connection was closed instead of a reply");
            }
            let line = line
                .strip_suffix("\r\n")
                .with_context(|| format!("no CRLF after {line:?}"))?;
            let code = line.get(..3).and_then(|code| code.parse().ok());
            reply.code = code.with_context(|| format!("no reply code in {line:?}"))?;
            reply
                .lines
                .push(line.get(4..).unwrap_or_default().to_owned());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// Reads to the end of the connection: what still came.
    ///
    /// # Errors
    /// When the gate does not close in time. A reset is an end.
    pub fn closed(&mut self) -> Result<String> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                Err(error).context("waiting for the end of the connection")
            }
            _ => Ok(String::from_utf8_lossy(&rest).into_owned()),
        }
    }

    /// A whole message from EHLO to the final reply, which is given whatever it is. Earlier replies
    /// must be positive.
    ///
    /// # Errors
    /// When an earlier reply is not positive.
    pub fn message(&mut self, from: &str, to: &[&str], content: &[u8]) -> Result<Reply> {
        self.expect("EHLO client.example", "250")?;
        self.envelope(from, to)?;
        self.expect("DATA", "354")?;
        self.raw(content)?;
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            self.raw(b"\r\n")?;
        }
        self.say(".")
    }

    /// MAIL and RCPT, which must be accepted.
    ///
    /// # Errors
    /// When one of them is not.
    pub fn envelope(&mut self, from: &str, to: &[&str]) -> Result<()> {
        self.expect(&format!("MAIL FROM:<{from}>"), "250")?;
        for recipient in to {
            self.expect(&format!("RCPT TO:<{recipient}>"), "250")?;
        }
        Ok(())
    }
}

fn check(reply: &Reply, beginning: &str) -> Result<()> {
    let text = reply.text();
    if !text.starts_with(beginning) {
        bail!("expected {beginning}, got {text}");
    }
    Ok(())
}
