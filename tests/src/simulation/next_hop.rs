//! A next hop of the simulation: an honest SMTP server with a mood.

use std::time::Duration;

use portcullis_smtp::{EnhancedCode, Event, Reply, Session, Settings};

use super::driver::{Fate, Peer};
use super::{Message, Shelf};

/// How a next hop is today; probabilities in percent.
#[derive(Clone, Copy, Debug)]
pub struct Mood {
    /// It does not listen.
    pub refuses_connection: u8,
    refuses_greeting: u8,
    refuses_ehlo: u8,
    refuses_command: u8,
    refuses_message: u8,
    /// Breaks the connection instead of a reply.
    breaks: u8,
    /// Breaks the connection after it has taken a message, before its reply is out.
    breaks_after_message: u8,
    /// Says nothing more, ever.
    stalls: u8,
    /// Closes a connection that is idle.
    closes_idle: u8,
    /// MAIL and RCPT commands that it takes in a session and a transaction, announced with
    /// LIMITS.
    transactions_max: u32,
    recipients_max: u32,
}

impl Mood {
    /// Mostly well.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        // From numbers of their own, so that seeds which found something before there were limits
        // still find it.
        let mut own = rng.clone();
        let mut limit = |limit_max: u32| {
            if own.bool() {
                1_000
            } else {
                own.u32(1..=limit_max)
            }
        };
        let (transactions_max, recipients_max) = (limit(3), limit(4));
        let mut percent = |percent_max: u8| {
            if rng.u8(..3) > 0 {
                0
            } else {
                rng.u8(..=percent_max)
            }
        };
        Self {
            refuses_connection: percent(60),
            refuses_greeting: percent(30),
            refuses_ehlo: percent(100),
            refuses_command: percent(30),
            refuses_message: percent(40),
            breaks: percent(10),
            breaks_after_message: percent(30),
            stalls: percent(5),
            closes_idle: percent(100),
            transactions_max,
            recipients_max,
        }
    }
}

/// One connection to a next hop.
pub struct NextHop {
    mood: Mood,
    pace: Option<u32>,
    rng: fastrand::Rng,
    settings: Settings,
    smtp: Session,
    begun: bool,
    stalled: bool,
    input: Vec<u8>,
    sender: String,
    recipients: Vec<String>,
    content: Vec<u8>,
    shelf: Shelf,
}

static BUSY: Reply<'static> = Reply::fixed(450, EnhancedCode(4, 2, 0), "Busy");
static NO: Reply<'static> = Reply::fixed(550, EnhancedCode(5, 1, 1), "No");
static NOT_IMPLEMENTED: Reply<'static> =
    Reply::fixed(502, EnhancedCode(5, 5, 1), "Not implemented");

impl NextHop {
    /// A connection that was just made.
    pub fn new(mood: Mood, pace: Option<u32>, rng: fastrand::Rng, shelf: Shelf) -> Self {
        Self {
            mood,
            pace,
            rng,
            settings: Settings {
                transactions_max: mood.transactions_max,
                recipients_max: mood.recipients_max,
                ..Settings::new("hop.example")
            },
            smtp: Session::new(),
            begun: false,
            stalled: false,
            input: Vec::new(),
            sender: String::new(),
            recipients: Vec::new(),
            content: Vec::new(),
            shelf,
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    fn refusal(&mut self, percent: u8) -> Option<&'static Reply<'static>> {
        let refuses = self.chance(percent);
        let reply = if self.rng.bool() { &BUSY } else { &NO };
        refuses.then_some(reply)
    }

    fn greet(&mut self, send: &mut Vec<u8>) -> Fate {
        self.begun = true;
        if self.chance(self.mood.refuses_greeting) {
            send.extend_from_slice(b"421 4.3.2 Not now\r\n");
            return Fate::Close;
        }
        self.smtp.greet(&self.settings, send);
        self.smtp.flushed();
        Fate::Stay
    }

    /// Takes the next event; `None` when there is nothing more to do for now.
    fn step(&mut self, taken: &mut usize, input: &[u8], send: &mut Vec<u8>) -> Option<Fate> {
        let nested = self.smtp.in_transaction() && !self.smtp.is_receiving_content();
        if nested && input[*taken..].starts_with(b"MAIL ") {
            self.violation("the gate began a transaction within another".to_owned());
        }
        let step = self.smtp.handle(&self.settings, &input[*taken..], send);
        *taken += step.consumed;
        let path = match step.event {
            Event::Mail(mail) => mail.path.map(|path| path.raw.to_owned()),
            Event::Rcpt(rcpt) => Some(rcpt.path.raw.to_owned()),
            _ => None,
        };
        let begins = matches!(step.event, Event::Mail(_));
        if matches!(
            step.event,
            Event::Hello {
                extended: false,
                ..
            }
        ) {
            // It has not said what its limits are.
            (self.settings.transactions_max, self.settings.recipients_max) = (1_000, 1_000);
        }
        let refusal = match step.event {
            Event::NeedInput | Event::AwaitingAnswer => return Some(Fate::Stay),
            Event::Hello { extended, .. } => {
                (extended && self.chance(self.mood.refuses_ehlo)).then_some(&NOT_IMPLEMENTED)
            }
            Event::Mail(_) | Event::Rcpt(_) | Event::Message => {
                self.refusal(self.mood.refuses_command)
            }
            Event::Body(piece) => {
                self.content.extend_from_slice(piece);
                return None;
            }
            Event::MessageEnd { .. } => return self.message_end(send),
            Event::Reset | Event::Refused { .. } => return None,
            Event::StartTls
            | Event::Handshake
            | Event::Auth { .. }
            | Event::AuthResponse(_)
            | Event::Xclient(_) => {
                self.violation("the gate asked for what is not offered".to_owned());
                return None;
            }
            Event::Quit => return Some(Fate::Close),
            Event::MessageFault(fault) => {
                self.violation(format!("the gate sent a message that is broken: {fault:?}"));
                return None;
            }
            Event::Abort(abuse) => {
                self.violation(format!("the gate abused its next hop: {abuse}"));
                return Some(Fate::Close);
            }
        };
        if self.chance(self.mood.breaks) {
            return Some(Fate::Reset);
        }
        if self.chance(self.mood.stalls) {
            self.stalled = true;
            return Some(Fate::Stay);
        }
        match refusal {
            Some(reply) => self.smtp.answer(&self.settings, reply, send),
            None => {
                self.smtp.accept(&self.settings, send);
                if begins {
                    self.recipients.clear();
                    self.sender = path.unwrap_or_default();
                } else {
                    self.recipients.extend(path);
                }
            }
        }
        None
    }

    fn message_end(&mut self, send: &mut Vec<u8>) -> Option<Fate> {
        let content = std::mem::take(&mut self.content);
        if let Some(reply) = self.refusal(self.mood.refuses_message) {
            self.smtp.answer(&self.settings, reply, send);
            return None;
        }
        self.arrive(&content);
        self.recipients.clear();
        if self.chance(self.mood.breaks_after_message) {
            return Some(Fate::Reset);
        }
        self.smtp.accept(&self.settings, send);
        None
    }

    fn arrive(&mut self, content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        let Some(begin) = text.find("X-Id: ") else {
            self.violation("a message without its header arrived".to_owned());
            return;
        };
        if !text.starts_with("Received: from ") {
            self.violation("a message without a Received line arrived".to_owned());
        }
        let id = text[begin + 6..]
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        self.shelf
            .borrow_mut()
            .arrived
            .entry(id)
            .or_default()
            .push(Message {
                sender: self.sender.clone(),
                recipients: self.recipients.clone(),
                content: content[begin..].to_vec(),
            });
    }

    fn violation(&self, what: String) {
        self.shelf.borrow_mut().violations.push(what);
    }
}

impl Peer for NextHop {
    fn octets(&mut self, _now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        if !self.begun {
            return self.greet(send);
        }
        if self.stalled {
            return Fate::Stay;
        }
        if octets.is_empty() {
            // It was idle for a while.
            return if self.chance(self.mood.closes_idle) {
                Fate::Close
            } else {
                Fate::Stay
            };
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(octets);
        let mut taken = 0;
        let fate = loop {
            if let Some(fate) = self.step(&mut taken, &input, send) {
                break fate;
            }
        };
        self.input = input.split_off(taken);
        self.smtp.flushed();
        match fate {
            Fate::Stay if !self.smtp.in_transaction() => {
                Fate::Wake(Duration::from_millis(self.rng.u64(..20_000)))
            }
            fate => fate,
        }
    }

    fn ended(&mut self, _now: Duration, _send: &mut Vec<u8>) -> Fate {
        Fate::Close
    }

    fn reset(&mut self, _now: Duration) {}

    fn pace(&self) -> Option<u32> {
        self.pace
    }
}
