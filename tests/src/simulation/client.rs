//! A client of the simulation: it follows a plan, checks that every command gets its reply, and
//! sometimes vanishes.

use std::collections::VecDeque;
use std::time::Duration;

use super::driver::{Fate, Peer};
use super::{Message, Shelf};

/// What a client is going to do.
#[derive(Clone, Debug)]
pub struct Plan {
    number: usize,
    extended: bool,
    pipelining: bool,
    transactions: VecDeque<Transaction>,
    /// Vanishes after this number of replies.
    vanishes_after: Option<usize>,
    /// By breaking the connection, not by closing it.
    by_reset: bool,
    /// Sends QUIT behind its last message, closes its side, and reads on.
    closes_early: bool,
    /// Says nothing more after this number of replies, and waits until a deadline of the gate
    /// fires.
    silent_after: Option<usize>,
    seed: u64,
}

#[derive(Clone, Debug)]
struct Transaction {
    sender: String,
    recipients: Vec<String>,
    chunks: bool,
    content: Vec<u8>,
    id: String,
    /// Gives it up with RSET after the envelope.
    reset: bool,
    discarded: bool,
}

const DOMAINS: [&str; 5] = [
    "a.example",
    "a.example",
    "b.example",
    "down.example",
    "elsewhere.example",
];

const POSTMASTER: &str = "postmaster@gate.example";

impl Plan {
    /// A plan for the client with this number.
    pub fn random(rng: &mut fastrand::Rng, number: usize) -> Self {
        let extended = rng.u8(..4) > 0;
        let count = rng.usize(..5);
        let transactions = (0..count)
            .map(|n| Transaction::random(rng, format!("{number}-{n}"), extended))
            .collect();
        let pipelining = extended && rng.bool();
        Self {
            number,
            extended,
            pipelining,
            transactions,
            // From numbers of its own, so that seeds which found something before still find it.
            closes_early: pipelining && rng.clone().bool(),
            vanishes_after: (rng.u8(..4) == 0).then(|| rng.usize(..12)),
            by_reset: rng.bool(),
            silent_after: (rng.u8(..8) == 0).then(|| rng.usize(..10)),
            seed: rng.u64(..),
        }
    }
}

impl Plan {
    /// Some write to the postmaster first, who can be reached whatever lists say.
    pub(super) fn write_to_postmaster(&mut self) {
        for transaction in self.transactions.iter_mut().step_by(3) {
            if !transaction.discarded
                && let Some(first) = transaction.recipients.first_mut()
            {
                POSTMASTER.clone_into(first);
            }
        }
    }
}

impl Transaction {
    fn random(rng: &mut fastrand::Rng, id: String, extended: bool) -> Self {
        let discarded = rng.u8(..8) == 0;
        let recipients = (0..rng.usize(1..6)).map(|n| {
            let domain = if discarded {
                "void.example"
            } else {
                DOMAINS[rng.usize(..DOMAINS.len())]
            };
            format!("user{n}@{domain}")
        });
        let recipients = recipients.collect();
        let sender = format!("sender-{id}@client.example");
        let mut content = format!("X-Id: {id}\r\nSubject: test\r\n\r\n").into_bytes();
        let lines = match rng.u8(..32) {
            0 => rng.usize(20_000..60_000),
            1..4 => rng.usize(..3_000),
            _ => rng.usize(..30),
        };
        for _ in 0..lines {
            let line = [
                "",
                ".",
                "..",
                ". x",
                "Received: not in the header",
                "a line of text",
            ][rng.usize(..6)];
            content.extend_from_slice(line.as_bytes());
            content.extend_from_slice(b"\r\n");
        }
        Self {
            sender,
            recipients,
            chunks: extended && rng.bool(),
            content,
            id,
            reset: rng.u8(..8) == 0,
            discarded,
        }
    }

    /// The content as DATA carries it.
    fn stuffed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.content.len() + 8);
        for line in self.content.split_inclusive(|octet| *octet == b'\n') {
            if line.starts_with(b".") {
                out.push(b'.');
            }
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b".\r\n");
        out
    }
}

/// A command whose reply is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Greeting,
    Hello,
    Mail,
    Rcpt,
    Data,
    Chunk,
    Message,
    Rset,
    Quit,
}

/// One client on its connection.
pub struct Client {
    plan: Plan,
    rng: fastrand::Rng,
    asked: VecDeque<Asked>,
    /// Commands to be sent once the reply before is there.
    queued: VecDeque<(Asked, Vec<u8>)>,
    input: Vec<u8>,
    replies: usize,
    /// The recipients that RCPT named, in order, and when; and those of them that were accepted.
    named: VecDeque<(String, Duration)>,
    accepted_recipients: Vec<String>,
    mail_accepted: bool,
    after_envelope: bool,
    done: bool,
    /// Its side is to be closed.
    closes: bool,
    now: Duration,
    shelf: Shelf,
}

impl Client {
    /// A client that is about to connect.
    pub fn new(plan: Plan, shelf: Shelf) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(plan.seed),
            asked: VecDeque::from([Asked::Greeting]),
            queued: VecDeque::new(),
            input: Vec::new(),
            replies: 0,
            named: VecDeque::new(),
            accepted_recipients: Vec::new(),
            mail_accepted: false,
            after_envelope: false,
            done: false,
            closes: false,
            now: Duration::ZERO,
            shelf,
            plan,
        }
    }

    fn violation(&self, what: &str) {
        self.shelf
            .borrow_mut()
            .violations
            .push(format!("client {}: {what}", self.plan.number));
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            let mut record = self.shelf.borrow_mut();
            record.clients_done += 1;
            if let Some(listing) = record.listings.get_mut(&self.plan.number) {
                listing.is_gone = true;
            }
        }
    }

    /// The next whole reply in the input, as its code.
    fn next_reply(&mut self) -> Option<u16> {
        let mut end = 0;
        loop {
            let line = self.input[end..].iter().position(|octet| *octet == b'\n')?;
            let begin = end;
            end += line + 1;
            let text = String::from_utf8_lossy(&self.input[begin..end]).into_owned();
            if text.as_bytes().get(3) != Some(&b'-') {
                self.input.drain(..end);
                let code = text.get(..3).and_then(|code| code.parse().ok());
                if code.is_none() {
                    self.violation(&format!("not a reply: {text:?}"));
                }
                return Some(code.unwrap_or(0));
            }
        }
    }

    fn reply(&mut self, code: u16, send: &mut Vec<u8>) -> Fate {
        let Some(asked) = self.asked.pop_front() else {
            let was_silent = self
                .plan
                .silent_after
                .is_some_and(|after| self.replies > after);
            if code == 421 && was_silent {
                return self.leave();
            }
            if code != 421 || !self.shelf.borrow().stopping {
                self.violation(&format!("an unasked {code}"));
            }
            return self.leave();
        };
        self.replies += 1;
        let positive = (200..400).contains(&code);
        if code == 421 {
            let was_silent = self
                .plan
                .silent_after
                .is_some_and(|after| self.replies > after);
            if !was_silent && !self.shelf.borrow().stopping && asked != Asked::Greeting {
                self.violation(&format!("421 to {asked:?}"));
            }
            return self.leave();
        }
        match asked {
            Asked::Greeting | Asked::Hello | Asked::Rset if !positive => {
                self.violation(&format!("{code} to {asked:?}"));
            }
            // The last chunk is not sent after a refusal, unless it is on its way.
            Asked::Chunk if !positive && self.asked.is_empty() => {
                self.queued.clear();
                self.plan.transactions.pop_front();
                self.after_envelope = false;
            }
            Asked::Greeting | Asked::Hello | Asked::Rset | Asked::Chunk => {}
            Asked::Mail => self.mail_accepted = positive,
            Asked::Rcpt => {
                let (recipient, named_at) = self.named.pop_front().unwrap_or_default();
                self.check_listing(code, &recipient, named_at);
                if positive {
                    self.accepted_recipients.push(recipient);
                }
            }
            Asked::Data => self.data_reply(code),
            Asked::Message => self.message_reply(positive),
            Asked::Quit => return self.leave(),
        }
        if self
            .plan
            .vanishes_after
            .is_some_and(|after| self.replies > after)
        {
            self.finish();
            return if self.plan.by_reset {
                Fate::Reset
            } else {
                Fate::Close
            };
        }
        let silent = self
            .plan
            .silent_after
            .is_some_and(|after| self.replies > after);
        if self.asked.is_empty() && !silent {
            self.go_on(send);
        }
        if std::mem::take(&mut self.closes) {
            return Fate::Close;
        }
        Fate::Stay
    }

    /// Holds the answer to a recipient against what DNS lists know of this client.
    fn check_listing(&self, code: u16, recipient: &str, named_at: Duration) {
        let shelf = self.shelf.borrow();
        let listing = shelf.listings.get(&self.plan.number);
        let has_a_say = recipient != POSTMASTER && code != 550 && self.mail_accepted;
        let wrong = match listing {
            Some(listing) if has_a_say => listing.contradicts(code, named_at, self.now),
            _ if code == 554 => Some("refused, and lists have no say"),
            _ => None,
        };
        drop(shelf);
        if let Some(wrong) = wrong {
            self.violation(&format!("{code} to <{recipient}>: {wrong}"));
        }
    }

    fn data_reply(&mut self, code: u16) {
        match (code, self.plan.transactions.front()) {
            (354, Some(transaction)) => {
                let content = transaction.stuffed();
                self.queued.push_front((Asked::Message, content));
            }
            (354, None) => self.violation("354 with nothing to send"),
            _ => {
                self.plan.transactions.pop_front();
                self.after_envelope = false;
            }
        }
    }

    fn message_reply(&mut self, positive: bool) {
        self.after_envelope = false;
        let Some(transaction) = self.plan.transactions.pop_front() else {
            return;
        };
        if positive {
            let message = Message {
                sender: transaction.sender,
                recipients: std::mem::take(&mut self.accepted_recipients),
                content: transaction.content,
            };
            let message = (!transaction.discarded).then_some(message);
            self.shelf
                .borrow_mut()
                .accepted
                .insert(transaction.id, message);
        }
    }

    /// All that was sent is answered: what comes next?
    fn go_on(&mut self, send: &mut Vec<u8>) {
        if self.queued.is_empty() {
            self.plan_next();
        }
        while let Some((asked, octets)) = self.queued.pop_front() {
            send.extend_from_slice(&octets);
            self.asked.push_back(asked);
            if asked == Asked::Message
                && self.plan.closes_early
                && self.plan.transactions.len() == 1
            {
                send.extend_from_slice(b"QUIT\r\n");
                self.asked.push_back(Asked::Quit);
                self.closes = true;
            }
            let group = matches!(
                asked,
                Asked::Mail | Asked::Rcpt | Asked::Rset | Asked::Chunk
            );
            if !(self.plan.pipelining && group) {
                break;
            }
        }
    }

    fn plan_next(&mut self) {
        let mut queue = |asked, text: String| self.queued.push_back((asked, text.into_bytes()));
        if self.replies == 1 {
            queue(
                Asked::Hello,
                format!(
                    "{} client.example\r\n",
                    if self.plan.extended { "EHLO" } else { "HELO" }
                ),
            );
            return;
        }
        let Some(transaction) = self.plan.transactions.front() else {
            queue(Asked::Quit, "QUIT\r\n".to_owned());
            return;
        };
        if !self.after_envelope {
            self.after_envelope = true;
            self.accepted_recipients.clear();
            let named = transaction.recipients.iter();
            self.named = named.map(|name| (name.clone(), self.now)).collect();
            queue(
                Asked::Mail,
                format!("MAIL FROM:<{}>\r\n", transaction.sender),
            );
            for recipient in &transaction.recipients {
                queue(Asked::Rcpt, format!("RCPT TO:<{recipient}>\r\n"));
            }
        } else if self.accepted_recipients.is_empty() || transaction.reset || !self.mail_accepted {
            queue(Asked::Rset, "RSET\r\n".to_owned());
            self.plan.transactions.pop_front();
            self.after_envelope = false;
        } else if transaction.chunks {
            let cut = self.rng.usize(..=transaction.content.len());
            let (first, last) = transaction.content.split_at(cut);
            for (asked, piece, word) in [(Asked::Chunk, first, ""), (Asked::Message, last, " LAST")]
            {
                let mut octets = format!("BDAT {}{word}\r\n", piece.len()).into_bytes();
                octets.extend_from_slice(piece);
                self.queued.push_back((asked, octets));
            }
        } else {
            queue(Asked::Data, "DATA\r\n".to_owned());
        }
    }

    fn leave(&mut self) -> Fate {
        self.finish();
        Fate::Close
    }
}

impl Peer for Client {
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        self.now = now;
        if self.done {
            return Fate::Stay;
        }
        self.input.extend_from_slice(octets);
        while let Some(code) = self.next_reply() {
            let fate = self.reply(code, send);
            if fate != Fate::Stay {
                return fate;
            }
        }
        Fate::Stay
    }

    fn ended(&mut self, _now: Duration, _send: &mut Vec<u8>) -> Fate {
        if !self.done {
            self.violation(&format!(
                "the gate hung up with {:?} unanswered",
                self.asked
            ));
        }
        self.leave()
    }

    fn reset(&mut self, _now: Duration) {
        // Breaking connections is what the network of a simulation does; what was accepted before
        // still has to be there.
        self.finish();
    }
}
