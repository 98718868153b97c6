//! The records of a worker: one for each session and each transaction, at its end.
//!
//! They are facts, not text. The worker pushes them into a bounded queue of its own, and the
//! control plane hands them to its readers: the log, the memory of refusals, later a dashboard. So
//! a log that is written slowly costs records, which are counted, and holds up no mail.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};

use super::bounded_queue::BoundedQueue;
use super::counters::TransactionOutcome;
use crate::policy::Rule;
use crate::tls::{Cipher, Fingerprint};

/// The version of what a record holds, and so of the fields of its line in the log. It goes up when
/// a field is renamed, removed or gets another meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// Names a session or a transaction in the log and in the `Received:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u64);

impl TraceId {
    /// What `to_string` gives, without the formatter: it is written for every message.
    pub(super) fn to_text(self) -> String {
        let digits = (64 - self.0.leading_zeros()).div_ceil(4).max(1);
        let digit = |place| char::from_digit((self.0 >> (4 * place)) as u32 & 15, 16);
        let digits = (0..digits).rev().filter_map(digit);
        let mut text = String::with_capacity(16);
        text.extend(digits.map(|digit| digit.to_ascii_uppercase()));
        text
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0)
    }
}

/// What a worker records.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// The end of a session.
    Session(SessionRecord),
    /// The end of a transaction.
    Transaction(TransactionRecord),
}

/// The end of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: TraceId,
    /// The client's address.
    pub client: IpAddr,
    /// The name of the last HELO or EHLO; empty without one.
    pub helo: Box<str>,
    /// The user that the client has proved to be.
    pub user: Option<Arc<str>>,
    /// The gate refused or ended it, or refused recipients for what DNS lists say.
    pub is_refused: bool,
    /// The rule that did it, or the one that let it in.
    pub rule: Rule,
    /// Messages accepted.
    pub accepted: u32,
    /// Recipients refused, by the gate or by the next hop.
    pub refused: u32,
    /// The client's own errors.
    pub errors: u32,
    /// Octets of message content.
    pub octets: u64,
    /// How long it lasted.
    pub time: Duration,
    /// Its TLS; `None` if it had none.
    pub tls: Option<Box<TlsRecord>>,
}

/// The TLS of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct TlsRecord {
    /// Version and cipher suite; `None` if the handshake did not come to its end.
    pub cipher: Option<Cipher>,
    /// A session of before was resumed.
    pub is_resumed: bool,
    /// The certificate that the client has shown, and that is good.
    pub client: Option<ClientCertificate>,
    /// Why it failed.
    pub fault: Option<String>,
}

/// The certificate of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject (RFC 4514).
    pub subject: Box<str>,
    /// Of its DER.
    pub fingerprint: Fingerprint,
}

/// The end of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct TransactionRecord {
    /// Its id.
    pub id: TraceId,
    /// The client's address.
    pub client: IpAddr,
    /// The user that the client has proved to be.
    pub user: Option<Arc<str>>,
    /// How it ended.
    pub outcome: TransactionOutcome,
    /// The rule that decided.
    pub rule: Rule,
    /// The rule by which we refused MAIL or a recipient, the last one if there were several.
    pub refused_by: Option<Rule>,
    /// Recipients that were not refused.
    pub recipients: u32,
    /// Recipients that were.
    pub refused: u32,
    /// Where the message went.
    pub reached: Reached,
    /// The version of TLS under which it went there; empty in the clear.
    pub next_hop_tls: &'static str,
    /// Octets of message content.
    pub octets: u64,
    /// How long it took.
    pub time: Duration,
    /// The sender, a recipient and the last reply.
    pub texts: TransactionTexts,
}

/// Where a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It did not come to that.
    Nothing,
    /// It was thrown away.
    Discard,
    /// This next hop.
    NextHop(SocketAddr),
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Discard => f.write_str("discard"),
            Self::NextHop(address) => address.fmt(f),
        }
    }
}

/// The texts of a transaction, in one allocation.
#[derive(Debug, PartialEq, Eq)]
pub struct TransactionTexts {
    joined: Box<str>,
    sender_len: usize,
    recipient_len: usize,
    reply: Option<(u16, Option<EnhancedCode>)>,
}

impl TransactionTexts {
    /// `recipient` is the first that was not refused, or the one that was; `reply` is the last to
    /// the client, `None` if it went away before there was one.
    pub fn new(sender: &str, recipient: &str, reply: Option<&Reply<'_>>) -> Self {
        let text = reply.map_or("", |reply| &*reply.text);
        Self {
            joined: [sender, recipient, text].concat().into(),
            sender_len: sender.len(),
            recipient_len: recipient.len(),
            reply: reply.map(|reply| (reply.code, reply.enhanced)),
        }
    }

    /// The reverse path; empty for `<>`.
    pub fn sender(&self) -> &str {
        &self.joined[..self.sender_len]
    }

    /// The recipient, without its brackets.
    pub fn recipient(&self) -> &str {
        &self.joined[self.sender_len..][..self.recipient_len]
    }

    /// The last reply to the client.
    pub fn reply(&self) -> Option<Reply<'_>> {
        let (code, enhanced) = self.reply?;
        let text = &self.joined[self.sender_len + self.recipient_len..];
        Some(Reply::new(code, enhanced, text))
    }
}

impl Record {
    /// The memory that it takes, in bytes.
    pub fn size(&self) -> usize {
        let texts = match self {
            Self::Session(record) => {
                record.helo.len() + record.user.as_ref().map_or(0, |user| user.len())
            }
            Self::Transaction(record) => record.texts.joined.len(),
        };
        size_of::<Self>() + texts
    }
}

/// The queue of one worker's records.
pub struct RecordQueue {
    queue: BoundedQueue<Record>,
    lost: AtomicU64,
}

impl RecordQueue {
    /// An empty queue. `bytes_max` bounds the memory of what is in it; `wake` ends the wait of the
    /// thread that takes the records and must not block.
    pub fn new(bytes_max: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queue: BoundedQueue::new(bytes_max, wake),
            lost: AtomicU64::new(0),
        }
    }

    /// Puts a record in. One for which there is no room is counted and lost.
    pub fn push(&self, record: Record) {
        let size = record.size();
        if !self.queue.put(record, size) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes all records, the oldest first.
    pub fn take(&self) -> Vec<Record> {
        self.queue.take()
    }

    /// Records that were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for RecordQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordQueue")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_in_a_message_is_that_of_the_log() {
        for id in [0, 0xF, 0x10, 0x67AB_CDEF, 0x6A2B_3C4D_0000_0100, u64::MAX] {
            assert_eq!(TraceId(id).to_text(), TraceId(id).to_string());
        }
    }

    #[test]
    fn the_texts_of_a_transaction_come_out_as_they_went_in() {
        let reply = Reply::new(250, Some(EnhancedCode(2, 1, 5)), "2 lines\nof it");
        let recorded = TransactionTexts::new("a@é.example", "b@c.example", Some(&reply));
        assert_eq!(
            (recorded.sender(), recorded.recipient(), recorded.reply()),
            ("a@é.example", "b@c.example", Some(reply))
        );
        let nothing = TransactionTexts::new("", "", None);
        assert_eq!(
            (nothing.sender(), nothing.recipient(), nothing.reply()),
            ("", "", None)
        );
    }

    #[test]
    fn records_beyond_the_bound_in_bytes_are_lost_and_counted() {
        let record = |helo: &str| {
            Record::Session(SessionRecord {
                id: TraceId(1),
                client: [192, 0, 2, 1].into(),
                helo: helo.into(),
                user: None,
                is_refused: false,
                rule: Rule::UNLISTED,
                accepted: 0,
                refused: 0,
                errors: 0,
                octets: 0,
                time: Duration::ZERO,
                tls: None,
            })
        };
        let (small, large) = (record(""), record(&"x".repeat(1_000)));
        let queue = RecordQueue::new(2 * small.size() + large.size(), || ());
        queue.push(small);
        queue.push(large);
        queue.push(record(&"x".repeat(1_000)));
        queue.push(record("y"));
        queue.push(record(""));
        assert_eq!(queue.lost(), 2);
        let taken = queue.take();
        assert_eq!((taken.len(), &taken[2]), (3, &record("")));
    }
}
