//! One mail transaction of a client, passed on to a next hop while it happens (cut-through).
//!
//! The envelope is kept until the next hop has asked for the message. Up to then a connection that
//! breaks, or a pooled one that turns out to have been closed long ago, costs nothing: the envelope
//! is told again to another. From then on the message is the client's until the next hop's final
//! reply, which is passed to the client as its own; if that reply is lost, the client hears 451 and
//! sends again. Portcullis never owns the message.
//!
//! Nothing here makes a system call or knows a connection: commands for the next hop are written to
//! the buffer that is handed in, answers for the client come out of [`Transaction::next_answer`] in
//! the order in which they are owed.

use std::collections::VecDeque;

use portcullis_smtp::client::{Client, MailCommand, Sent};
use portcullis_smtp::data::Stuffer;
use portcullis_smtp::envelope::{Mail, Rcpt, Ret};
use portcullis_smtp::reply::{EnhancedCode, Reply};

use super::received::{self, Hops};

/// An answer that the client is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To the oldest unanswered RCPT: it is accepted.
    Recipient(Reply<'static>),
    /// To the oldest unanswered RCPT: this path is refused.
    RecipientRefused(String, Reply<'static>),
    /// The same, and the next hop says that there is no such recipient.
    RecipientUnknown(String, Reply<'static>),
    /// To DATA or the first BDAT: the next hop is ready for the message.
    Proceed,
    /// To DATA or the first BDAT: a refusal.
    Refused(Reply<'static>),
    /// To the end of the message.
    Final(Reply<'static>),
}

/// What is to be done about a connection to a next hop that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The envelope can be told to another one.
    Again,
    /// It is settled; the answers owed are there.
    Settled,
}

/// What was agreed with MAIL and RCPT.
#[derive(Debug)]
pub struct Envelope {
    /// The reverse path without its brackets; empty for `<>`.
    pub sender: String,
    /// As the client declares it, and what our own line adds besides the recipient in it.
    size: Option<u64>,
    trace_length: u64,
    eight_bit: bool,
    utf8: bool,
    ret: Option<Ret>,
    envelope_id: Option<String>,
    /// A parameter of RFC 3461 was given.
    dsn: bool,
    recipients: Vec<Recipient>,
}

#[derive(Debug)]
struct Recipient {
    path: String,
    notify: Option<String>,
    original: Option<String>,
}

impl Envelope {
    /// The envelope as MAIL begins it.
    pub fn new(mail: &Mail<'_>) -> Self {
        Self {
            sender: mail
                .path
                .as_ref()
                .map_or_else(String::new, |path| path.without_route().to_owned()),
            size: mail.size,
            trace_length: 0,
            eight_bit: mail.body_8bit,
            utf8: mail.smtputf8,
            ret: mail.ret,
            envelope_id: mail.envelope_id.map(str::to_owned),
            dsn: mail.ret.is_some() || mail.envelope_id.is_some(),
            recipients: Vec::new(),
        }
    }

    /// The forward paths that are not refused so far.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = &str> {
        self.recipients
            .iter()
            .map(|recipient| recipient.path.as_str())
    }

    /// Whether SMTPUTF8 was asked for.
    pub fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// Whether a size was declared, so that what is added to the message matters.
    pub fn declares_size(&self) -> bool {
        self.size.is_some()
    }

    /// How long our own line is without a recipient in it.
    pub fn set_trace_length(&mut self, octets: usize) {
        self.trace_length = octets as u64;
    }

    /// The size as it is passed on: the message grows by our own line. It may name the recipient,
    /// or not if there will be several.
    fn size_with_trace(&self) -> Option<u64> {
        let size = self.size?;
        let first = self.recipients.first();
        let named = first.map_or(0, |first| received::recipient_length(&first.path) as u64);
        Some(size.saturating_add(self.trace_length + named))
    }

    /// Whether something was asked for that only a next hop with DSN can do (RFC 3461).
    pub fn asks_for_dsn(&self) -> bool {
        self.dsn
    }
}

/// How far the transaction has come with its next hop.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The envelope is being told.
    Envelope,
    /// The client wants to send the message; DATA goes out once the whole envelope is agreed.
    Asked,
    /// DATA is out.
    Invited,
    /// The message streams.
    Content,
    /// The final reply is awaited.
    Ending,
    /// There is no next hop: the message is counted and thrown away.
    Discard,
    /// The next hop has nothing more to do with it; everything still asked gets this answer.
    Settled(Reply<'static>),
}

/// A transaction that goes to a next hop.
#[derive(Debug)]
pub struct Transaction {
    /// Sender and recipients.
    pub envelope: Envelope,
    stage: Stage,
    mail_told: bool,
    /// Recipients told to the present next hop.
    told: usize,
    /// Recipients that the present next hop has accepted.
    agreed: usize,
    /// Recipients whose acceptance the client knows of.
    answered: usize,
    answers: VecDeque<Answer>,
    stuffer: Stuffer,
    hops: Hops,
    /// The next hop did not offer 8BITMIME.
    seven_bit_only: bool,
    /// The client asked for SMTPUTF8 and the next hop did not offer it: it gets what needs none
    /// (RFC 6531, 3.4).
    ascii_only: bool,
}

/// The next hop was lost, or never had, and the client may try again.
const UNAVAILABLE: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 1),
    "No answer from the next hop, please try again later",
);
/// The same when it said why.
const REFUSES: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 1),
    "The next hop takes no mail from this server now, please try again later",
);
/// The connection broke when it could no longer be replaced.
const LOST: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 2),
    "Connection to the next hop lost, please try again later",
);
const CHANGED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 2),
    "The next hop changed, please send the message again",
);
const DISCARDED: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok, discarded");
const RECIPIENT_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 1, 5), "Ok");
const LOOP: Reply<'static> = Reply::fixed(
    554,
    EnhancedCode(5, 4, 6),
    "Too many Received lines, this is a mail loop",
);
const NOT_SEVEN_BIT: Reply<'static> = Reply::fixed(
    554,
    EnhancedCode(5, 6, 3),
    "The next hop does not take 8-bit messages",
);
const NO_UTF8: Reply<'static> = Reply::fixed(
    550,
    EnhancedCode(5, 6, 7),
    "The next hop does not take internationalized addresses",
);
const NO_UTF8_HEADER: Reply<'static> = Reply::fixed(
    550,
    EnhancedCode(5, 6, 9),
    "The next hop does not take internationalized headers",
);
const TOO_BIG: Reply<'static> = Reply::fixed(
    552,
    EnhancedCode(5, 3, 4),
    "Message is bigger than the next hop takes",
);
const RECIPIENTS: Reply<'static> = Reply::fixed(
    452,
    EnhancedCode(4, 5, 3),
    "Too many recipients for the next hop, please send the rest in another transaction",
);
/// Octets of what the next hop said that the client hears of.
const REASON_MAX: usize = 400;

/// The answer when no next hop takes the transaction; `said` is how one of them refused us.
pub fn unavailable(said: Option<&Reply<'_>>) -> Reply<'static> {
    said.map_or(UNAVAILABLE, |said| quoting(&REFUSES, said))
}

/// A connection that broke, with what the next hop said when it did.
fn lost(said: Option<&Reply<'_>>) -> Reply<'static> {
    said.map_or(LOST, |said| quoting(&LOST, said))
}

/// Our own reply with the words of the next hop, in one line of printable ASCII: they come from
/// elsewhere, and the client can only show them.
fn quoting(reply: &Reply<'static>, said: &Reply<'_>) -> Reply<'static> {
    let printable = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    let words: String = said
        .to_string()
        .chars()
        .map(printable)
        .take(REASON_MAX)
        .collect();
    let text = format!("{}; it said: {}", reply.text, words.trim_end());
    Reply::new(reply.code, reply.enhanced, text)
}

/// Why a message must not be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has too many `Received:` lines.
    MailLoop,
    /// It has 8-bit content, and the next hop takes none.
    EightBit,
    /// It has a header beyond ASCII, and the next hop takes none.
    Utf8Header,
}

const DONE: Reply<'static> = Reply::fixed(503, EnhancedCode(5, 5, 1), "The transaction is over");

/// Whether a refusal of RCPT says that there is no such recipient, which is what guessing addresses
/// brings in.
///
/// RFC 3463 section 3.2 has X.1 for addresses, of which 7 and 8 are about the sender's; X.0 says
/// nothing, so the code does; and Exchange refuses unknown recipients with 5.4.1. Without an
/// enhanced code 550, 551 and 553 mean it (RFC 5321 section 4.2.3).
fn is_unknown_recipient(reply: &Reply<'_>) -> bool {
    let by_code = matches!(reply.code, 550 | 551 | 553);
    match reply.enhanced {
        Some(EnhancedCode(5, 1, detail)) => !matches!(detail, 7 | 8),
        Some(EnhancedCode(5, 4, 1)) => true,
        None | Some(EnhancedCode(5, 0, _)) => by_code,
        Some(_) => false,
    }
}

impl Transaction {
    /// A transaction that has no next hop and no recipient yet.
    pub fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            stage: Stage::Envelope,
            mail_told: false,
            told: 0,
            agreed: 0,
            answered: 0,
            answers: VecDeque::new(),
            stuffer: Stuffer::new(),
            hops: Hops::default(),
            seven_bit_only: false,
            ascii_only: false,
        }
    }

    /// Makes it one whose message is thrown away, for load tests. Only before it has a recipient.
    pub fn discard(&mut self) {
        debug_assert!(self.stage == Stage::Envelope && self.envelope.recipients.is_empty());
        self.stage = Stage::Discard;
    }

    /// The client names one more recipient, which the policy has accepted.
    pub fn recipient(&mut self, rcpt: &Rcpt<'_>) {
        let path = rcpt.path.without_route().to_owned();
        if let Stage::Settled(reply) = &self.stage {
            let refused = Answer::RecipientRefused(path, reply.clone());
            self.answers.push_back(refused);
            return;
        }
        if self.stage == Stage::Discard {
            self.answered += 1;
            self.answers.push_back(Answer::Recipient(RECIPIENT_OK));
        }
        self.envelope.dsn |= rcpt.notify.is_some() || rcpt.original_recipient.is_some();
        self.envelope.recipients.push(Recipient {
            path,
            notify: rcpt.notify.map(str::to_owned),
            original: rcpt.original_recipient.map(str::to_owned),
        });
    }

    /// The client wants to send the message.
    pub fn ask(&mut self) {
        match &self.stage {
            Stage::Envelope => self.stage = Stage::Asked,
            Stage::Discard => self.answers.push_back(Answer::Proceed),
            Stage::Settled(reply) => self.answers.push_back(Answer::Refused(reply.clone())),
            // The session allows DATA only once per transaction.
            Stage::Asked | Stage::Invited | Stage::Content | Stage::Ending => {}
        }
    }

    /// Tells the next hop what it can be told now. Called with each new recipient and after each
    /// reply. Returns whether that began the transaction with it.
    pub fn advance(&mut self, hop: &mut Client, out: &mut Vec<u8>) -> bool {
        if !matches!(self.stage, Stage::Envelope | Stage::Asked) {
            return false;
        }
        let begun = self.mail_told;
        if !self.mail_told && hop.may_send() && !self.envelope.recipients.is_empty() {
            if let Some(refusal) = self.sender_refusal(hop) {
                self.settle(&refusal);
                return false;
            }
            self.tell_sender(hop, out);
        }
        while self.mail_told && hop.may_send() && self.told < self.envelope.recipients.len() {
            let recipient = &self.envelope.recipients[self.told];
            if let Some(refusal) = self.recipient_refusal(hop, recipient) {
                if self.agreed < self.told {
                    // Those before it are answered first.
                    break;
                }
                self.refuse_next(&refusal);
                if self.is_settled() {
                    return !begun;
                }
                continue;
            }
            hop.rcpt(
                &recipient.path,
                recipient.notify.as_deref(),
                recipient.original.as_deref(),
                out,
            );
            self.told += 1;
        }
        let all_agreed =
            self.mail_told && self.agreed == self.envelope.recipients.len() && hop.owed() == 0;
        if self.stage == Stage::Asked && all_agreed {
            hop.data(out);
            self.stage = Stage::Invited;
        }
        self.mail_told && !begun
    }

    /// What this next hop could not take of the transaction as a whole, by what it says of itself.
    fn sender_refusal(&self, hop: &Client) -> Option<Reply<'static>> {
        let (size, offered) = (self.envelope.size_with_trace(), hop.extensions());
        let too_big = size
            .zip(offered.size_max)
            .is_some_and(|(size, most)| size > most);
        if too_big {
            Some(TOO_BIG)
        } else if !self.envelope.sender.is_ascii() && !offered.smtputf8 {
            Some(NO_UTF8)
        } else {
            None
        }
    }

    /// What speaks against this recipient at this next hop, by what it says of itself.
    fn recipient_refusal(&self, hop: &Client, recipient: &Recipient) -> Option<Reply<'static>> {
        let original = recipient.original.as_deref();
        let original_is_told = hop.extensions().dsn && original.is_some_and(|o| !o.is_ascii());
        if self.ascii_only && (original_is_told || !recipient.path.is_ascii()) {
            Some(NO_UTF8)
        } else if !hop.takes_recipient(&recipient.path) {
            Some(RECIPIENTS)
        } else {
            None
        }
    }

    fn tell_sender(&mut self, hop: &mut Client, out: &mut Vec<u8>) {
        self.seven_bit_only = self.envelope.eight_bit && !hop.extensions().eight_bit_mime;
        self.ascii_only = self.envelope.utf8 && !hop.extensions().smtputf8;
        let command = MailCommand {
            path: &self.envelope.sender,
            size: self.envelope.size_with_trace(),
            body_8bit: self.envelope.eight_bit,
            smtputf8: self.envelope.utf8,
            ret: self.envelope.ret,
            envelope_id: self.envelope.envelope_id.as_deref(),
        };
        hop.mail(&command, out);
        self.mail_told = true;
    }

    /// Takes a reply of the next hop.
    pub fn reply(&mut self, to: Sent, reply: &Reply<'_>) {
        match (&self.stage, to) {
            (Stage::Envelope | Stage::Asked, Sent::Mail) if !reply.is_positive() => {
                self.settle(reply);
            }
            (Stage::Envelope | Stage::Asked, Sent::Rcpt) => self.recipient_reply(reply),
            (Stage::Invited, Sent::Data) => {
                if reply.code == 354 {
                    self.stage = Stage::Content;
                    self.answers.push_back(Answer::Proceed);
                } else {
                    self.settle(reply);
                }
            }
            (Stage::Ending, Sent::Message) => {
                self.answers
                    .push_back(Answer::Final(reply.clone().into_owned()));
                self.stage = Stage::Settled(DONE);
            }
            // Replies to commands that were pipelined behind a refusal.
            _ => {}
        }
    }

    fn recipient_reply(&mut self, reply: &Reply<'_>) {
        if self.agreed >= self.told {
            return;
        }
        if reply.is_positive() {
            self.agreed += 1;
            if self.agreed > self.answered {
                self.answered = self.agreed;
                self.answers
                    .push_back(Answer::Recipient(reply.clone().into_owned()));
            }
        } else {
            self.told -= 1;
            self.refuse_next(reply);
        }
    }

    /// Refuses the recipient behind those that are agreed.
    fn refuse_next(&mut self, reply: &Reply<'_>) {
        if self.agreed < self.answered {
            // Another next hop had accepted this one, and the client was told so.
            self.settle(&CHANGED);
        } else {
            let path = self.envelope.recipients.remove(self.agreed).path;
            let unknown = is_unknown_recipient(reply);
            let reply = reply.clone().into_owned();
            self.answers.push_back(if unknown {
                Answer::RecipientUnknown(path, reply)
            } else {
                Answer::RecipientRefused(path, reply)
            });
        }
    }

    /// The next piece of the message. With an error the next hop has to be left, without an end of
    /// data.
    ///
    /// # Errors
    /// Why, and the reply, when the message must not be passed on: a loop, or 8-bit content for
    /// a next hop that takes none (RFC 6152 section 3), or a header beyond ASCII for one without
    /// SMTPUTF8. The transaction is settled then.
    pub fn content(
        &mut self,
        piece: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), (Unfit, Reply<'static>)> {
        if !matches!(self.stage, Stage::Content | Stage::Discard) {
            return Ok(());
        }
        let header = self.hops.update(piece);
        let refusal = if self.hops.is_loop() {
            (Unfit::MailLoop, LOOP)
        } else if self.seven_bit_only && !piece.is_ascii() {
            (Unfit::EightBit, NOT_SEVEN_BIT)
        } else if self.ascii_only && !piece[..header].is_ascii() {
            // The headers within a body of several parts are not looked for: that would be to parse
            // MIME.
            (Unfit::Utf8Header, NO_UTF8_HEADER)
        } else {
            if self.stage == Stage::Content {
                self.stuffer.write(piece, out);
            }
            return Ok(());
        };
        self.stage = Stage::Settled(refusal.1.clone());
        Err(refusal)
    }

    /// The client has sent the whole message.
    pub fn end(&mut self, hop: Option<&mut Client>, out: &mut Vec<u8>) {
        match (&self.stage, hop) {
            (Stage::Content, Some(hop)) => {
                hop.end_of_data(&mut self.stuffer, out);
                self.stage = Stage::Ending;
            }
            (Stage::Discard, _) => {
                self.answers.push_back(Answer::Final(DISCARDED));
                self.stage = Stage::Settled(DONE);
            }
            (Stage::Settled(reply), _) => self.answers.push_back(Answer::Final(reply.clone())),
            _ => {
                self.settle(&LOST);
                self.answers.push_back(Answer::Final(LOST));
            }
        }
    }

    /// The next hop has refused the message before its end, and is about to be left.
    pub fn interrupted(&mut self, reply: &Reply<'_>) {
        if self.stage == Stage::Content && (reply.is_permanent() || reply.is_transient()) {
            self.stage = Stage::Settled(reply.clone().into_owned());
        }
    }

    /// The connection to the next hop is gone; `last` is what it said last, if that has to do with
    /// it.
    pub fn lost(&mut self, last: Option<&Reply<'_>>) -> Lost {
        match self.stage {
            Stage::Envelope | Stage::Asked | Stage::Invited => {
                if self.stage == Stage::Invited {
                    self.stage = Stage::Asked;
                }
                self.mail_told = false;
                self.told = 0;
                self.agreed = 0;
                return Lost::Again;
            }
            Stage::Content => self.stage = Stage::Settled(lost(last)),
            Stage::Ending => {
                self.answers.push_back(Answer::Final(lost(last)));
                self.stage = Stage::Settled(DONE);
            }
            Stage::Discard | Stage::Settled(_) => {}
        }
        Lost::Settled
    }

    /// Ends the part of the next hop before the message: everything that the client is owed now, or
    /// asks later, gets this reply.
    pub fn settle(&mut self, reply: &Reply<'_>) {
        let asked = matches!(self.stage, Stage::Asked | Stage::Invited);
        for recipient in self.envelope.recipients.drain(self.answered..) {
            let refused = Answer::RecipientRefused(recipient.path, reply.clone().into_owned());
            self.answers.push_back(refused);
        }
        if asked {
            self.answers
                .push_back(Answer::Refused(reply.clone().into_owned()));
        }
        self.stage = Stage::Settled(reply.clone().into_owned());
    }

    /// The next answer for the client, if one is ready.
    pub fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// Recipients whose RCPT has no answer yet.
    pub fn unanswered(&self) -> usize {
        self.envelope.recipients.len() - self.answered
    }

    /// Whether the next hop has nothing more to do with the transaction.
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Settled(_))
    }

    /// Whether a piece of the message, or DATA, may have reached the next hop: it can then only be
    /// left by closing.
    pub fn is_past_envelope(&self) -> bool {
        matches!(self.stage, Stage::Invited | Stage::Content)
    }

    /// Whether only the final reply is still to come.
    pub fn is_ending(&self) -> bool {
        self.stage == Stage::Ending
    }
}
