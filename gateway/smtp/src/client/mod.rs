//! The client's side of a session, toward a next hop: commands go out, replies come in, in the same
//! order.
//!
//! The client tracks which replies are owed and what the peer offers. It sends no parameter that
//! the peer does not offer. The relay decides what to send, when, and what a reply means for the
//! message. [`Client::may_send`] says whether the protocol allows another command now.
//! [`Client::takes_transaction`] and [`Client::takes_recipient`] say whether the peer's own limits
//! (RFC 9422) allow it.

mod extensions;
mod reply_reader;

use std::collections::VecDeque;

use memchr::memchr;

pub use extensions::{Extensions, offered_arguments};

use crate::data::Stuffer;
use crate::envelope::{Mail, Ret};
use crate::reply::{Reply, push_decimal};
use crate::sasl::{self, Mechanism};
use reply_reader::{ReplyLine, ReplyReader};

/// Octets of a line that are read; the rest is discarded. RFC 5321 allows 512.
const LINE_LENGTH_MAX: usize = 4096;

/// RFC 5321, 4.5.3.1.4: the command line, CRLF included.
const COMMAND_LENGTH_MAX: usize = 512;

/// What a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Connecting.
    Greeting,
    /// EHLO.
    Ehlo,
    /// HELO.
    Helo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// BDAT without LAST.
    Chunk,
    /// The end of a message: the dot, or BDAT with LAST.
    Message,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
    /// AUTH, or the response to a challenge.
    Auth,
    /// XCLIENT.
    Xclient,
}

impl Sent {
    /// Nothing may be sent before the reply, even with PIPELINING (RFC 2920, 3.1).
    const fn ends_group(self) -> bool {
        matches!(
            self,
            Self::Greeting
                | Self::Ehlo
                | Self::Helo
                | Self::Data
                | Self::Quit
                | Self::StartTls
                | Self::Auth
                | Self::Xclient
        )
    }

    /// The session is open: its replies may have enhanced codes, and their length has no limit.
    const fn is_within_session(self) -> bool {
        !matches!(self, Self::Greeting | Self::Ehlo | Self::Helo)
    }
}

/// What came from the next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// There is no complete reply. The caller passes what was not used again, with more.
    NeedInput,
    /// A reply to the oldest command that waits for one.
    Reply {
        /// What it belongs to.
        to: Sent,
        /// The reply.
        reply: Reply<'a>,
    },
    /// A reply to no command: usually a 421 before the peer closes the connection.
    Unsolicited(Reply<'a>),
    /// The input is not SMTP. The connection must be closed.
    Malformed,
}

/// The arguments of MAIL toward a next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailCommand<'a> {
    /// The text between `<` and `>`; empty for the null path.
    pub path: &'a str,
    /// The size of the message in octets, if it is known.
    pub size: Option<u64>,
    /// `BODY=8BITMIME`.
    pub body_8bit: bool,
    /// `SMTPUTF8`.
    pub smtputf8: bool,
    /// `RET`.
    pub ret: Option<Ret>,
    /// `ENVID`, in xtext.
    pub envelope_id: Option<&'a str>,
}

impl<'a> From<&Mail<'a>> for MailCommand<'a> {
    fn from(mail: &Mail<'a>) -> Self {
        Self {
            path: mail.path.map_or("", |path| path.without_route()),
            size: mail.size,
            body_8bit: mail.body_8bit,
            smtputf8: mail.smtputf8,
            ret: mail.ret,
            envelope_id: mail.envelope_id,
        }
    }
}

/// One session with a next hop. See the [module](self).
#[derive(Debug)]
pub struct Client {
    owed: VecDeque<Sent>,
    reader: ReplyReader,
    extensions: Extensions,
    malformed: bool,
    /// STARTTLS was accepted: what comes next belongs to TLS.
    handshake: bool,
    /// The rest of a line that is too long is discarded. The value: it is the last line of its
    /// reply.
    skipping: Option<bool>,
    /// MAIL commands so far.
    transactions: u32,
    /// RCPT commands since the latest MAIL.
    recipients: u32,
    /// The domains of the recipients, in lower case; kept only if the peer limits them.
    domains: Vec<String>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A session on a new connection: the greeting is owed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            owed: VecDeque::from([Sent::Greeting]),
            reader: ReplyReader::default(),
            extensions: Extensions::default(),
            malformed: false,
            handshake: false,
            skipping: None,
            transactions: 0,
            recipients: 0,
            domains: Vec::new(),
        }
    }

    /// Consumes input up to the next event. Returns the number of octets used, and the event.
    pub fn handle<'a>(&'a mut self, input: &[u8]) -> (usize, ClientEvent<'a>) {
        // RFC 3207, 4.2: what the peer says before the handshake is not part of what follows.
        self.malformed |= self.handshake && !input.is_empty();
        let mut used = 0;
        while !self.malformed {
            let rest = &input[used..];
            if let Some(last) = self.skipping {
                let Some(lf) = memchr(b'\n', rest) else {
                    return (input.len(), ClientEvent::NeedInput);
                };
                used += lf + 1;
                self.skipping = None;
                if last {
                    return (used, self.complete());
                }
                continue;
            }
            let front = &rest[..rest.len().min(LINE_LENGTH_MAX)];
            match memchr(b'\n', front) {
                Some(lf) => {
                    used += lf + 1;
                    let line = front[..lf].strip_suffix(b"\r").unwrap_or(&front[..lf]);
                    if self.line(line) {
                        return (used, self.complete());
                    }
                }
                None if rest.len() < LINE_LENGTH_MAX => return (used, ClientEvent::NeedInput),
                None if self.is_within_session() => {
                    used += front.len();
                    self.skipping = Some(self.line(front));
                }
                None => self.malformed = true,
            }
        }
        (input.len(), ClientEvent::Malformed)
    }

    /// Whether the next reply belongs to a command within the session.
    fn is_within_session(&self) -> bool {
        self.owed
            .front()
            .is_some_and(|sent| sent.is_within_session())
    }

    /// Adds a line to the reply. Returns whether the reply is complete.
    fn line(&mut self, line: &[u8]) -> bool {
        let to = self.owed.front().copied();
        let first = self.reader.is_at_start();
        let within_session = to.is_none_or(Sent::is_within_session);
        let taken = ReplyLine::parse(line).and_then(|line| {
            self.reader.take(&line, within_session)?;
            Ok(line)
        });
        let Ok(line) = taken else {
            self.malformed = true;
            return false;
        };
        match to {
            Some(Sent::Ehlo | Sent::Helo) if first => self.extensions = Extensions::default(),
            Some(Sent::Ehlo) if line.code == 250 => {
                self.extensions.offer(&String::from_utf8_lossy(line.text));
            }
            _ => {}
        }
        line.last
    }

    fn complete(&mut self) -> ClientEvent<'_> {
        let to = self.owed.pop_front();
        let reply = self.reader.reply();
        match to {
            Some(Sent::StartTls) => self.handshake = reply.code == 220,
            // The next client of the connection begins with EHLO.
            Some(Sent::Xclient) if reply.is_positive() => self.extensions = Extensions::default(),
            _ => {}
        }
        match to {
            Some(to) => ClientEvent::Reply { to, reply },
            None => ClientEvent::Unsolicited(reply),
        }
    }

    /// The extensions that the peer offers; none before the reply to EHLO.
    #[must_use]
    pub const fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// How many replies the peer still owes.
    #[must_use]
    pub fn replies_owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether the protocol allows another command before the next reply.
    #[must_use]
    pub fn may_send(&self) -> bool {
        match self.owed.back() {
            None => !self.handshake,
            Some(last) => self.extensions.pipelining && !last.ends_group(),
        }
    }

    /// Transactions begun so far.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Whether the peer's own limits allow one more transaction in this session.
    ///
    /// A peer that limits the domains of a session gets one transaction: the domains of the next
    /// one are not known yet when the caller decides to keep the connection.
    #[must_use]
    pub fn takes_transaction(&self) -> bool {
        let limits = &self.extensions;
        let has_room = limits
            .transactions_max
            .is_none_or(|most| self.transactions < most);
        has_room && (limits.recipient_domains_max.is_none() || self.transactions == 0)
    }

    /// Whether the peer's own limits allow this recipient in the current transaction.
    #[must_use]
    pub fn takes_recipient(&self, path: &str) -> bool {
        let limits = &self.extensions;
        let has_room = limits
            .recipients_max
            .is_none_or(|most| self.recipients < most);
        has_room
            && limits.recipient_domains_max.is_none_or(|most| {
                self.domains.len() < most as usize || self.domains.contains(&domain_of(path))
            })
    }

    /// EHLO with our own name.
    pub fn ehlo(&mut self, hostname: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"EHLO ");
        self.end_command(Sent::Ehlo, hostname, out);
    }

    /// HELO with our own name, for a next hop that does not know EHLO.
    pub fn helo(&mut self, hostname: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HELO ");
        self.end_command(Sent::Helo, hostname, out);
    }

    /// MAIL, with the parameters that the peer offers.
    pub fn mail(&mut self, mail: &MailCommand<'_>, out: &mut Vec<u8>) {
        let offered = self.extensions;
        push_path(b"MAIL FROM:<", mail.path, out);
        if let Some(size) = mail.size.filter(|_| offered.size) {
            out.extend_from_slice(b" SIZE=");
            push_decimal(out, size, 1);
        }
        if mail.body_8bit && offered.eight_bit_mime {
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if mail.smtputf8 && offered.smtputf8 {
            out.extend_from_slice(b" SMTPUTF8");
        }
        if offered.dsn {
            let ret = mail.ret.map(|ret| match ret {
                Ret::Full => "FULL",
                Ret::Headers => "HDRS",
            });
            push_parameter(b" RET=", ret, out);
            push_parameter(b" ENVID=", mail.envelope_id, out);
        }
        self.transactions = self.transactions.saturating_add(1);
        self.recipients = 0;
        self.end_command(Sent::Mail, "", out);
    }

    /// RCPT, with the parameters that the peer offers. `path` is the text between `<` and `>`.
    pub fn rcpt(
        &mut self,
        path: &str,
        notify: Option<&str>,
        original_recipient: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        push_path(b"RCPT TO:<", path, out);
        if self.extensions.dsn {
            push_parameter(b" NOTIFY=", notify, out);
            push_parameter(b" ORCPT=", original_recipient, out);
        }
        self.recipients = self.recipients.saturating_add(1);
        if self.extensions.recipient_domains_max.is_some() {
            let domain = domain_of(path);
            if !self.domains.contains(&domain) {
                self.domains.push(domain);
            }
        }
        self.end_command(Sent::Rcpt, "", out);
    }

    /// DATA. After the 354 the caller sends the content through a [`Stuffer`] and ends it with
    /// [`end_of_data`](Self::end_of_data).
    pub fn data(&mut self, out: &mut Vec<u8>) {
        self.end_command(Sent::Data, "DATA", out);
    }

    /// Ends the content of DATA.
    pub fn end_of_data(&mut self, stuffer: &mut Stuffer, out: &mut Vec<u8>) {
        stuffer.finish(out);
        self.owed.push_back(Sent::Message);
    }

    /// BDAT. The caller must append exactly `length` octets of content to `out` after it.
    pub fn bdat(&mut self, length: u64, last: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"BDAT ");
        push_decimal(out, length, 1);
        if last {
            self.end_command(Sent::Message, " LAST", out);
        } else {
            self.end_command(Sent::Chunk, "", out);
        }
    }

    /// STARTTLS (RFC 3207), if the peer offers it.
    ///
    /// After a 220 the caller passes what it has read beyond that reply to
    /// [`handle`](Self::handle) once more: anything there is [`ClientEvent::Malformed`], for it was
    /// not protected. Then it does the handshake and calls [`secured`](Self::secured).
    pub fn starttls(&mut self, out: &mut Vec<u8>) {
        self.end_command(Sent::StartTls, "STARTTLS", out);
    }

    /// The connection is under TLS. EHLO comes next: what was offered in the clear does not count.
    pub fn secured(&mut self) {
        self.handshake = false;
        self.extensions = Extensions::default();
    }

    /// AUTH (RFC 4954). The reply is 235, a refusal, or 334 with a challenge: its text is base64,
    /// for [`Encoded::parse`](crate::sasl::Encoded::parse).
    ///
    /// Returns whether the initial response is in the command. One that makes the line too long is
    /// left out (RFC 4954, 4): the peer asks for it with an empty challenge.
    pub fn auth(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> bool {
        let name = mechanism.name();
        out.extend_from_slice(b"AUTH ");
        out.extend_from_slice(name.as_bytes());
        let room = COMMAND_LENGTH_MAX - "AUTH  \r\n".len() - name.len();
        let initial = initial.filter(|initial| initial.len().div_ceil(3) * 4 <= room);
        if let Some(initial) = initial {
            out.push(b' ');
            if initial.is_empty() {
                out.push(b'=');
            }
            sasl::encode(initial, out);
        }
        self.end_command(Sent::Auth, "", out);
        initial.is_some()
    }

    /// The response to a challenge.
    pub fn auth_response(&mut self, response: &[u8], out: &mut Vec<u8>) {
        sasl::encode(response, out);
        self.end_command(Sent::Auth, "", out);
    }

    /// Cancels the authentication instead of a response. The reply is a 501.
    pub fn auth_cancel(&mut self, out: &mut Vec<u8>) {
        self.end_command(Sent::Auth, "*", out);
    }

    /// XCLIENT, with these attributes: each of them has a space before it. After a positive reply,
    /// which is the greeting to that client, EHLO comes next.
    pub fn xclient(&mut self, attributes: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"XCLIENT");
        self.end_command(Sent::Xclient, attributes, out);
    }

    /// RSET.
    pub fn rset(&mut self, out: &mut Vec<u8>) {
        self.end_command(Sent::Rset, "RSET", out);
    }

    /// QUIT.
    pub fn quit(&mut self, out: &mut Vec<u8>) {
        self.end_command(Sent::Quit, "QUIT", out);
    }

    fn end_command(&mut self, sent: Sent, rest: &str, out: &mut Vec<u8>) {
        push_safe(rest, out);
        out.extend_from_slice(b"\r\n");
        self.owed.push_back(sent);
    }
}

/// The domain after the last `@`, in lower case for comparison. A quoted local part may hold other
/// `@`s before it.
fn domain_of(path: &str) -> String {
    let domain = path.rsplit_once('@').map_or("", |(_, domain)| domain);
    domain.to_ascii_lowercase()
}

fn push_path(begin: &[u8], path: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(begin);
    push_safe(path, out);
    out.push(b'>');
}

fn push_parameter(begin: &[u8], value: Option<&str>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        out.extend_from_slice(begin);
        push_safe(value, out);
    }
}

/// Writes no control character. The parts of commands were checked when they came in; this makes
/// sure once more that none of them can end a line.
fn push_safe(text: &str, out: &mut Vec<u8>) {
    out.extend(text.bytes().filter(|byte| !byte.is_ascii_control()));
}
