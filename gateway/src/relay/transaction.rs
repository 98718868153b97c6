//! One mail transaction, passed on to a next hop while it happens (cut-through).
//!
//! The envelope is kept until the next hop has asked for the message. Up to then a connection that
//! breaks, or a pooled one that turns out to have been closed long ago, costs nothing: the envelope
//! is told again to another. From then on the message is the client's until the next hop's final
//! reply, which is passed to the client as its own; if that reply is lost, the client hears 451 and
//! sends again. Portcullis never owns the message.
//!
//! This is the agreement between two peers, with no I/O: what the client says comes in through
//! [`recipient`](Transaction::recipient), [`ask`](Transaction::ask),
//! [`content`](Transaction::content) and [`end`](Transaction::end), what the next hop says through
//! [`reply`](Transaction::reply). Commands for the next hop are written by
//! [`advance`](Transaction::advance), answers for the client come out of
//! [`next_answer`](Transaction::next_answer) in the order in which they are owed. The session of
//! the client and the one with the next hop each run on their own and meet only here.

use portcullis_smtp::client::{Client, MailCommand, Sent};
use portcullis_smtp::data::Stuffer;
use portcullis_smtp::envelope::{Mail, Rcpt};
use portcullis_smtp::reply::{EnhancedCode, Reply};
use smallvec::SmallVec;

use super::destination::{Destination, NextHops};
use super::envelope::{Envelope, Recipient, Span};
use super::received::Hops;
use super::replies::{
    CHANGED, DISCARDED, DONE, LOOP, LOST, NO_UTF8, NO_UTF8_HEADER, NOT_SEVEN_BIT, PROCEED,
    RECIPIENT_OK, RECIPIENTS, TOO_BIG, is_unknown_recipient, lost,
};
use super::submission::Submission;

/// What an answer answers, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTo {
    /// To the oldest unanswered RCPT: it is accepted.
    Recipient,
    /// To the oldest unanswered RCPT: it is refused.
    RecipientRefused,
    /// The same, and the next hop says that there is no such recipient.
    RecipientUnknown,
    /// To DATA or the first BDAT: the next hop is ready for the message.
    Proceed,
    /// To DATA or the first BDAT: a refusal. It ends the transaction.
    Refused,
    /// To the end of the message. It ends the transaction.
    Final,
}

/// An answer that the client is owed.
#[derive(Debug, PartialEq, Eq)]
pub struct OwedAnswer<'a> {
    /// What it answers.
    pub to: AnswerTo,
    /// The reply; for [`AnswerTo::Proceed`] the client's session has its own.
    pub reply: Reply<'a>,
    /// The recipient that is refused; empty otherwise.
    pub recipient: &'a str,
}

/// An answer whose texts lie in the envelope's arena.
#[derive(Debug)]
struct Kept {
    to: AnswerTo,
    code: u16,
    enhanced: Option<EnhancedCode>,
    text: Span,
    recipient: Span,
}

/// What is to be done about a connection to a next hop that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The envelope can be told to another one.
    Again,
    /// It is settled; the answers owed are there.
    Settled,
}

/// Why a message is not passed on, found in its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRefusal {
    /// Too many `Received:` lines.
    Loop,
    /// 8-bit content for a next hop without 8BITMIME (RFC 6152 section 3).
    EightBit,
    /// A header beyond ASCII for a next hop without SMTPUTF8 (RFC 6531 section 3.4).
    Utf8Header,
}

impl ContentRefusal {
    /// What the client hears at the end of the message.
    pub fn reply(self) -> Reply<'static> {
        match self {
            Self::Loop => LOOP,
            Self::EightBit => NOT_SEVEN_BIT,
            Self::Utf8Header => NO_UTF8_HEADER,
        }
    }
}

/// How far the transaction has come with its destination.
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
    /// The client has sent all of it; the end is to be told.
    Complete,
    /// The final reply is awaited.
    Ending,
    /// There is no next hop: the message is counted and thrown away.
    Discard,
    /// The next hop has nothing more to do with it; everything still asked gets this answer.
    Settled(Reply<'static>),
}

/// A transaction that goes to a next hop, or nowhere.
#[derive(Debug)]
pub struct Transaction {
    /// Sender and recipients.
    pub envelope: Envelope,
    /// Where it goes.
    pub destination: Destination,
    stage: Stage,
    mail_told: bool,
    /// The next hop did not offer 8BITMIME.
    seven_bit_only: bool,
    /// The client asked for SMTPUTF8 and the next hop did not offer it: it gets what needs none
    /// (RFC 6531, 3.4).
    ascii_only: bool,
    /// Recipients told to the present next hop.
    told: u32,
    /// Recipients that the present next hop has accepted.
    agreed: u32,
    /// Recipients whose acceptance the client knows of.
    answered: u32,
    answers: SmallVec<[Kept; 1]>,
    /// Answers at the front that were given already.
    given: u32,
    stuffer: Stuffer,
    hops: Hops,
    /// What a submitted message lacks.
    submission: Option<Box<Submission>>,
}

impl Transaction {
    /// A transaction that has no destination and no recipient yet.
    pub fn new(mail: &Mail<'_>) -> Self {
        Self {
            envelope: Envelope::new(mail),
            destination: Destination::Undecided,
            stage: Stage::Envelope,
            mail_told: false,
            seven_bit_only: false,
            ascii_only: false,
            told: 0,
            agreed: 0,
            answered: 0,
            answers: SmallVec::new(),
            given: 0,
            stuffer: Stuffer::new(),
            hops: Hops::default(),
            submission: None,
        }
    }

    /// Decides where it goes. Only before it has a recipient.
    pub fn direct(&mut self, destination: Destination) {
        debug_assert!(self.stage == Stage::Envelope && self.envelope.recipients.is_empty());
        if matches!(destination, Destination::Discard) {
            self.stage = Stage::Discard;
        }
        self.destination = destination;
    }

    /// Its next hops, if it goes to any.
    pub fn next_hops(&mut self) -> Option<&mut NextHops> {
        match &mut self.destination {
            Destination::NextHops(next_hops) => Some(next_hops),
            Destination::Undecided | Destination::Discard => None,
        }
    }

    /// The client names one more recipient, which the policy has accepted.
    pub fn recipient(&mut self, rcpt: &Rcpt<'_>) {
        if let Stage::Settled(reply) = &self.stage {
            let reply = reply.clone();
            let path = self.envelope.texts.push(rcpt.path.without_route());
            self.owe(AnswerTo::RecipientRefused, &reply, path);
            return;
        }
        self.envelope.push(rcpt);
        if self.stage == Stage::Discard {
            self.answered += 1;
            self.owe(AnswerTo::Recipient, &RECIPIENT_OK, Span::default());
        }
    }

    /// The client wants to send the message.
    pub fn ask(&mut self) {
        match &self.stage {
            Stage::Envelope => self.stage = Stage::Asked,
            Stage::Discard => self.owe(AnswerTo::Proceed, &PROCEED, Span::default()),
            Stage::Settled(reply) => {
                let reply = reply.clone();
                self.owe(AnswerTo::Refused, &reply, Span::default());
            }
            // The session allows DATA only once per transaction.
            Stage::Asked | Stage::Invited | Stage::Content | Stage::Complete | Stage::Ending => {}
        }
    }

    /// Tells the next hop what it can be told now. Called when the client has said something new
    /// and after each reply. Returns whether that began the transaction with it.
    pub fn advance(&mut self, hop: &mut Client, out: &mut Vec<u8>) -> bool {
        if self.stage == Stage::Complete {
            if let Some(mut submission) = self.submission.take() {
                submission.end(|part| self.stuffer.write(part, out));
            }
            hop.end_of_data(&mut self.stuffer, out);
            self.stage = Stage::Ending;
        }
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
        while let Some(recipient) = self.next_recipient(hop) {
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
            let texts = &self.envelope.texts;
            hop.rcpt(
                texts.get(recipient.path),
                recipient.notify.map(|span| texts.get(span)),
                recipient.original.map(|span| texts.get(span)),
                out,
            );
            self.told += 1;
        }
        let recipients = self.envelope.recipients.len() as u32;
        let all_agreed = self.mail_told && self.agreed == recipients && hop.replies_owed() == 0;
        if self.stage == Stage::Asked && all_agreed {
            hop.data(out);
            self.stage = Stage::Invited;
        }
        self.mail_told && !begun
    }

    /// The recipient that the next hop can be told of now.
    fn next_recipient(&self, hop: &Client) -> Option<&Recipient> {
        let next = self.envelope.recipients.get(self.told as usize);
        next.filter(|_| self.mail_told && hop.may_send())
    }

    /// What this next hop could not take of the transaction as a whole, by what it says of itself.
    fn sender_refusal(&self, hop: &Client) -> Option<Reply<'static>> {
        let (size, offered) = (self.envelope.size_with_trace(), hop.extensions());
        let too_big = size
            .zip(offered.size_max)
            .is_some_and(|(size, most)| size > most);
        if too_big {
            Some(TOO_BIG)
        } else if !self.envelope.sender().is_ascii() && !offered.smtputf8 {
            Some(NO_UTF8)
        } else {
            None
        }
    }

    /// What speaks against this recipient at this next hop, by what it says of itself.
    fn recipient_refusal(&self, hop: &Client, recipient: &Recipient) -> Option<Reply<'static>> {
        let texts = &self.envelope.texts;
        let path = texts.get(recipient.path);
        let original = recipient.original.map(|span| texts.get(span));
        let original_is_told = hop.extensions().dsn && original.is_some_and(|o| !o.is_ascii());
        if self.ascii_only && (original_is_told || !path.is_ascii()) {
            Some(NO_UTF8)
        } else if !hop.takes_recipient(path) {
            Some(RECIPIENTS)
        } else {
            None
        }
    }

    fn tell_sender(&mut self, hop: &mut Client, out: &mut Vec<u8>) {
        let envelope = &self.envelope;
        self.seven_bit_only = envelope.eight_bit && !hop.extensions().eight_bit_mime;
        self.ascii_only = envelope.utf8 && !hop.extensions().smtputf8;
        let command = MailCommand {
            path: envelope.sender(),
            size: envelope.size_with_trace(),
            body_8bit: envelope.eight_bit,
            smtputf8: envelope.utf8,
            ret: envelope.ret,
            envelope_id: envelope.envelope_id.map(|span| envelope.texts.get(span)),
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
                    self.owe(AnswerTo::Proceed, reply, Span::default());
                } else {
                    self.settle(reply);
                }
            }
            (Stage::Ending, Sent::Message) => {
                self.owe(AnswerTo::Final, reply, Span::default());
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
                self.owe(AnswerTo::Recipient, reply, Span::default());
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
            let path = self.envelope.remove(self.agreed as usize);
            let to = if is_unknown_recipient(reply) {
                AnswerTo::RecipientUnknown
            } else {
                AnswerTo::RecipientRefused
            };
            self.owe(to, reply, path);
        }
    }

    /// The message is submitted, and gets the fields that it lacks. Before its first piece.
    pub fn submit(&mut self, submission: Box<Submission>) {
        self.submission = Some(submission);
    }

    /// The next piece of the message. With an error the next hop has to be left, without an end of
    /// data.
    ///
    /// # Errors
    /// When the message must not be passed on: a loop, or 8-bit content for a next hop that takes
    /// none (RFC 6152 section 3), or a header beyond ASCII for one without SMTPUTF8. The
    /// transaction is settled then.
    pub fn content(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ContentRefusal> {
        if !matches!(self.stage, Stage::Content | Stage::Discard) {
            return Ok(());
        }
        let header = self.hops.update(piece);
        let refusal = if self.hops.is_loop() {
            ContentRefusal::Loop
        } else if self.seven_bit_only && !piece.is_ascii() {
            ContentRefusal::EightBit
        } else if self.ascii_only && !piece[..header].is_ascii() {
            // The headers within a body of several parts are not looked for: that would be to parse
            // MIME.
            ContentRefusal::Utf8Header
        } else {
            if self.stage == Stage::Content {
                match &mut self.submission {
                    None => self.stuffer.write(piece, out),
                    Some(submission) => submission.pass(piece, |part| {
                        self.stuffer.write(part, out);
                    }),
                }
            }
            return Ok(());
        };
        self.stage = Stage::Settled(refusal.reply());
        Err(refusal)
    }

    /// The client has sent the whole message.
    pub fn end(&mut self) {
        match &self.stage {
            Stage::Content => self.stage = Stage::Complete,
            Stage::Discard => {
                self.owe(AnswerTo::Final, &DISCARDED, Span::default());
                self.stage = Stage::Settled(DONE);
            }
            Stage::Settled(reply) => {
                let reply = reply.clone();
                self.owe(AnswerTo::Final, &reply, Span::default());
            }
            _ => {
                self.settle(&LOST);
                self.owe(AnswerTo::Final, &LOST, Span::default());
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
            Stage::Complete | Stage::Ending => {
                self.owe(AnswerTo::Final, &lost(last), Span::default());
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
        while self.envelope.recipients.len() > self.answered as usize {
            let path = self.envelope.remove(self.answered as usize);
            self.owe(AnswerTo::RecipientRefused, reply, path);
        }
        if asked {
            self.owe(AnswerTo::Refused, reply, Span::default());
        }
        self.stage = Stage::Settled(reply.clone().into_owned());
    }

    fn owe(&mut self, to: AnswerTo, reply: &Reply<'_>, recipient: Span) {
        let text = self.envelope.texts.push(&reply.text);
        self.answers.push(Kept {
            to,
            code: reply.code,
            enhanced: reply.enhanced,
            text,
            recipient,
        });
    }

    /// Whether there is an answer for the client.
    pub fn has_answer(&self) -> bool {
        self.answers.len() > self.given as usize
    }

    /// Gives the next answer for the client to `give`, if one is ready.
    pub fn next_answer<T>(&mut self, give: impl FnOnce(OwedAnswer<'_>) -> T) -> Option<T> {
        let kept = self.answers.get(self.given as usize)?;
        let (text, recipient) = (kept.text, kept.recipient);
        let texts = &self.envelope.texts;
        let given = give(OwedAnswer {
            to: kept.to,
            reply: Reply::new(kept.code, kept.enhanced, texts.get(text)),
            recipient: texts.get(recipient),
        });
        self.given += 1;
        if !self.has_answer() {
            self.answers.clear();
            self.given = 0;
        }
        self.envelope.texts.free(text);
        self.envelope.texts.free(recipient);
        if self.envelope.texts.wants_compacting() {
            self.compact();
        }
        Some(given)
    }

    fn compact(&mut self) {
        let mut texts = std::mem::take(&mut self.envelope.texts);
        let answers = self.answers.iter_mut().skip(self.given as usize);
        let answers = answers.flat_map(|kept| [&mut kept.text, &mut kept.recipient]);
        let spans = self.envelope.spans().chain(answers);
        texts.compact(|each| spans.for_each(each));
        self.envelope.texts = texts;
    }

    /// Recipients whose RCPT has no answer yet.
    pub fn unanswered(&self) -> usize {
        self.envelope.recipients.len() - self.answered as usize
    }

    /// Whether the client waits for an answer to DATA, or to the end of the message, or to a RCPT.
    pub fn owes_answer(&self) -> bool {
        matches!(
            self.stage,
            Stage::Asked | Stage::Invited | Stage::Complete | Stage::Ending
        ) || self.unanswered() > 0
            || self.has_answer()
    }

    /// Whether the next hop has nothing more to do with the transaction.
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Settled(_))
    }

    /// Whether a piece of the message, or DATA, may have reached the next hop: it can then only be
    /// left by closing.
    pub fn is_past_envelope(&self) -> bool {
        matches!(
            self.stage,
            Stage::Invited | Stage::Content | Stage::Complete
        )
    }

    /// Whether only the final reply is still to come.
    pub fn is_ending(&self) -> bool {
        self.stage == Stage::Ending
    }
}
