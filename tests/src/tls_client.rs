//! A client under TLS, for tests that have to do what no real client does. Its own side of TLS is
//! the gate's; that real clients understand it is tested with those.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use portcullis::tls::{
    Cipher, ClientSettings, ClientTls, KeyFiles, MinVersion, Step, Tls, Trust, Verification,
};

use crate::dialogue::Dialogue;
use crate::pki::Files;

/// See the [module](self).
#[derive(Debug)]
pub struct TlsClient {
    stream: TcpStream,
    tls: Tls,
    /// What was read and not taken yet.
    plain: Vec<u8>,
    is_closed: bool,
}

/// What clients are made with; sessions are resumed among them.
///
/// # Errors
/// When a file cannot be used.
pub fn settings(authority: &Path, certificate: Option<&Files>) -> Result<ClientTls> {
    let settings = ClientSettings {
        min_version: MinVersion::Tls12,
        verification: Verification::Name(Trust::File(authority.to_owned())),
        certificate: certificate.map(|files| KeyFiles {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
        }),
    };
    Ok(ClientTls::new(&settings, SystemTime::now())?)
}

impl TlsClient {
    /// A handshake on a connection, for a host of this name.
    ///
    /// # Errors
    /// When it fails.
    pub fn connect(stream: TcpStream, settings: &ClientTls, name: &str) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let mut client = Self {
            stream,
            tls: settings.connect(name)?,
            plain: Vec::new(),
            is_closed: false,
        };
        while !client.tls.is_ready() {
            client.step()?;
            if !client.tls.is_ready() {
                client.receive()?;
            }
        }
        client.step()?;
        Ok(client)
    }

    /// EHLO, STARTTLS, and the handshake.
    ///
    /// # Errors
    /// When a reply is not positive or the handshake fails.
    pub fn upgrade(mut dialogue: Dialogue, settings: &ClientTls, name: &str) -> Result<Self> {
        dialogue.expect("EHLO client.example", "250")?;
        dialogue.expect("STARTTLS", "220")?;
        Self::connect(dialogue.stream().try_clone()?, settings, name)
    }

    /// The first octets of a handshake, for a client that does not go on with it.
    ///
    /// # Errors
    /// When the name is none.
    pub fn hello(settings: &ClientTls, name: &str) -> Result<Vec<u8>> {
        let mut hello = Vec::new();
        let mut tls = settings.connect(name)?;
        while tls.step(&mut Vec::new(), &mut hello)? != Step::Blocked {}
        Ok(hello)
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What was agreed on.
    #[must_use]
    pub fn cipher(&self) -> Option<Cipher> {
        self.tls.cipher()
    }

    /// Whether a session of before was resumed.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.tls.is_resumed()
    }

    /// The records for these octets, not sent.
    ///
    /// # Errors
    /// When the connection has failed.
    pub fn sealed(&mut self, octets: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = Vec::new();
        self.tls.seal(octets, &mut sealed)?;
        Ok(sealed)
    }

    /// Sends these octets under TLS.
    ///
    /// # Errors
    /// When the gate has closed.
    pub fn send(&mut self, octets: &[u8]) -> Result<()> {
        let sealed = self.sealed(octets)?;
        Ok(self.stream.write_all(&sealed)?)
    }

    /// Sends these octets as they are, past TLS.
    ///
    /// # Errors
    /// When the gate has closed.
    pub fn send_raw(&mut self, octets: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(octets)?)
    }

    /// Says close_notify.
    ///
    /// # Errors
    /// When the gate has closed.
    pub fn close_notify(&mut self) -> Result<()> {
        let mut sealed = Vec::new();
        self.tls.close(&mut sealed);
        Ok(self.stream.write_all(&sealed)?)
    }

    /// Sends a line (CRLF is added), and insists on the beginning of the reply; all of its lines.
    ///
    /// # Errors
    /// When another reply comes, or none.
    pub fn expect(&mut self, line: &str, beginning: &str) -> Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        let reply = self.reply().with_context(|| format!("after {line}"))?;
        ensure!(reply.starts_with(beginning), "after {line}: {reply}");
        Ok(reply)
    }

    /// Reads one reply: its lines, with CRLF.
    ///
    /// # Errors
    /// When the connection ends or the time is over.
    pub fn reply(&mut self) -> Result<String> {
        loop {
            let text = String::from_utf8_lossy(&self.plain).into_owned();
            let mut length = 0;
            for line in text.split_inclusive("\r\n") {
                length += line.len();
                if line.ends_with("\r\n") && line.as_bytes().get(3) == Some(&b' ') {
                    self.plain.drain(..length);
                    return Ok(text[..length].to_owned());
                }
            }
            if self.is_closed {
                bail!("closed by the gate; what came is {text:?}");
            }
            self.receive()?;
            self.step()?;
        }
    }

    /// Reads to the end: what still came, and whether close_notify was said.
    ///
    /// # Errors
    /// When the time is over.
    pub fn end(&mut self) -> Result<(String, bool)> {
        let mut failed = false;
        while !self.is_closed && !failed {
            failed = self.receive().is_err() || self.step().is_err();
        }
        Ok((
            String::from_utf8_lossy(&std::mem::take(&mut self.plain)).into_owned(),
            self.is_closed,
        ))
    }

    fn receive(&mut self) -> Result<()> {
        let mut octets = [0; 16 << 10];
        let count = match self.stream.read(&mut octets) {
            Ok(0) => bail!("the connection was closed without close_notify"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                bail!("the connection was reset")
            }
            Err(error) => return Err(error).context("waiting for octets under TLS"),
        };
        self.tls.feed(&octets[..count]);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let mut out = Vec::new();
        let stepped = loop {
            match self.tls.step(&mut self.plain, &mut out) {
                Ok(Step::Blocked) => break Ok(()),
                Ok(Step::Closed) => self.is_closed = true,
                Ok(_) => {}
                Err(fault) => break Err(fault),
            }
        };
        if !out.is_empty() {
            self.stream.write_all(&out)?;
        }
        Ok(stepped?)
    }
}
