//! A session of `portcullis-smtp` driven as a worker drives it, with everything checked that must
//! hold whatever a client sends.
//!
//! Transcripts, properties and fuzz targets all talk through this.

use std::collections::VecDeque;

use portcullis_smtp::reply::Reply;
use portcullis_smtp::sasl::Encoded;
use portcullis_smtp::server::{Blame, Event, Session, Settings};

/// RFC 5321, 4.5.3.1.5.
const REPLY_LINE_LENGTH_MAX: usize = 512;

/// How the policy answers an event, by its kind: `greeting`, `hello`, `mail`, `rcpt`, `message`,
/// `end`, `starttls`, `xclient`, `auth` (334: a challenge with this text); and what a refusal
/// counts against. `None` accepts.
pub type Policy<'a> = dyn FnMut(&'static str) -> Option<(Reply<'static>, Blame)> + 'a;

/// A session, and all that has come of it.
pub struct CheckedSession<'a> {
    settings: &'a Settings,
    policy: Box<Policy<'a>>,
    /// Answers are given only when nothing else can go on.
    late_answers: bool,
    session: Session,
    /// What the session has not used up.
    kept: Vec<u8>,
    /// Events that wait for an answer.
    waiting: VecDeque<&'static str>,
    /// STARTTLS was accepted: there is an event once the reply is sent.
    expects_handshake: bool,
    /// Content of the message that is being received.
    content: Vec<u8>,
    /// The connection is under TLS from the start.
    pub implicit_tls: bool,
    /// Replies since the last [`flushed`](Self::flushed).
    pub out: Vec<u8>,
    /// What happened besides replies, in the words of the transcripts.
    pub events: Vec<String>,
    /// The messages that got through.
    pub messages: Vec<Vec<u8>>,
}

impl<'a> CheckedSession<'a> {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(settings: &'a Settings, late_answers: bool, policy: Box<Policy<'a>>) -> Self {
        Self {
            settings,
            policy,
            late_answers,
            session: Session::new(),
            kept: Vec::new(),
            waiting: VecDeque::new(),
            expects_handshake: false,
            content: Vec::new(),
            implicit_tls: false,
            out: Vec::new(),
            events: Vec::new(),
            messages: Vec::new(),
        }
    }

    /// Greets the client, as the policy wants it.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub fn greet(&mut self) -> Result<(), String> {
        if self.implicit_tls {
            self.session.secured();
        }
        self.waiting.push_back("greeting");
        self.answer_oldest();
        self.take(b"")
    }

    /// Takes what the client sent.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), String> {
        self.steps(piece, false)
    }

    /// Gives all answers that still wait.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub fn settle(&mut self) -> Result<(), String> {
        self.steps(b"", true)
    }

    /// Takes the replies that were written, checked for their form, and says to the session that
    /// they are on their way.
    ///
    /// # Errors
    /// They are no well-formed replies.
    pub fn flushed(&mut self) -> Result<String, String> {
        let replies = self.replies()?;
        self.session.flushed();
        if self.expects_handshake {
            self.steps(b"", false)?;
        }
        Ok(replies)
    }

    /// Takes the replies that were written, which do not leave the machine yet.
    ///
    /// # Errors
    /// They are no well-formed replies.
    pub fn replies(&mut self) -> Result<String, String> {
        let text =
            String::from_utf8(std::mem::take(&mut self.out)).map_err(|error| error.to_string())?;
        let mut ended = true;
        for line in text.split_inclusive('\n') {
            let words = line
                .strip_suffix("\r\n")
                .ok_or_else(|| format!("bare LF: {line:?}"))?;
            let digits = words.len() >= 3 && words.as_bytes()[..3].iter().all(u8::is_ascii_digit);
            let separator = words.as_bytes().get(3);
            ended = separator != Some(&b'-');
            if !digits
                || !matches!(separator, None | Some(b' ' | b'-'))
                || words.contains(char::is_control)
                || line.len() > REPLY_LINE_LENGTH_MAX
            {
                return Err(format!("no reply: {line:?}"));
            }
        }
        if ended {
            Ok(text)
        } else {
            Err(format!("a reply without end: {text:?}"))
        }
    }

    /// Steps until nothing can be done without more input, or without an answer that comes late.
    fn steps(&mut self, piece: &[u8], late: bool) -> Result<(), String> {
        let mut input = std::mem::take(&mut self.kept);
        input.extend_from_slice(piece);
        let mut used = 0;
        // No octet, and no answer, brings about more than a few steps.
        let mut steps_left = 8 * (input.len() + self.waiting.len() + 2);
        loop {
            let step = self
                .session
                .handle(self.settings, &input[used..], &mut self.out);
            used += step.consumed;
            if used > input.len() {
                return Err("more is consumed than there was".to_owned());
            }
            let stuck = matches!(step.event, Event::NeedInput | Event::AwaitingAnswer);
            if step.event == Event::Handshake {
                self.handshake(step.consumed)?;
            }
            self.event(&step.event)?;
            let answer_now = !self.late_answers || stuck && late;
            if answer_now && !self.waiting.is_empty() {
                self.answer_oldest();
            } else if stuck {
                break;
            }
            steps_left -= 1;
            if steps_left == 0 {
                return Err(format!(
                    "the session goes round in circles: {:?}",
                    step.event
                ));
            }
        }
        self.kept = input[used..].to_vec();
        let unbounded = self.session.is_awaiting_answer()
            || self.kept.len() < self.session.line_length_max(self.settings);
        if unbounded {
            Ok(())
        } else {
            Err(format!("{} octets are kept", self.kept.len()))
        }
    }

    /// The handshake succeeds at once. The reply to STARTTLS must be on its way, and nothing of the
    /// state before may be left.
    fn handshake(&mut self, consumed: usize) -> Result<(), String> {
        if !self.expects_handshake || !self.out.is_empty() || consumed > 0 {
            return Err("a handshake before the reply to STARTTLS is sent".to_owned());
        }
        self.expects_handshake = false;
        self.session.secured();
        self.events.push("tls".to_owned());
        let session = &self.session;
        if session.is_extended()
            || session.is_authenticated()
            || session.in_transaction()
            || session.recipients() > 0
        {
            return Err(format!("state is left after the handshake: {session:?}"));
        }
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Hello { .. } => self.waiting.push_back("hello"),
            Event::Mail(_) => self.waiting.push_back("mail"),
            Event::Rcpt(_) => self.waiting.push_back("rcpt"),
            Event::Message => self.waiting.push_back("message"),
            Event::Body(piece) => self.body(piece)?,
            Event::MessageFault(fault) => self.events.push(format!("fault {}", fault.rule())),
            Event::MessageEnd { size } => {
                if *size != self.content.len() as u64 || *size > self.settings.message_size_max {
                    return Err(format!("size {size} for {} octets", self.content.len()));
                }
                self.messages.push(std::mem::take(&mut self.content));
                self.waiting.push_back("end");
            }
            Event::Reset => self.events.push("reset".to_owned()),
            Event::Quit => self.events.push("quit".to_owned()),
            Event::Abort(abuse) => {
                self.waiting.clear();
                self.events.push(format!("abort {}", abuse.rule()));
            }
            Event::StartTls => self.waiting.push_back("starttls"),
            Event::Handshake => {}
            Event::Auth { mechanism, initial } => {
                let initial = initial.map_or("-".to_owned(), decoded);
                self.events
                    .push(format!("auth {} {initial}", mechanism.name()));
                self.waiting.push_back("auth");
            }
            Event::AuthResponse(response) => {
                self.events.push(format!("response {}", decoded(*response)));
                self.waiting.push_back("auth");
            }
            Event::Xclient(xclient) => {
                let attributes: Vec<_> = xclient.attributes().collect();
                self.events.push(format!("xclient {attributes:?}"));
                self.waiting.push_back("xclient");
            }
            Event::Refused { reply, .. } => self.refusal(reply)?,
            Event::NeedInput | Event::AwaitingAnswer => {}
        }
        if matches!(event, Event::MessageFault(_) | Event::Reset) {
            self.content.clear();
        }
        Ok(())
    }

    /// What the session says that it has refused, it has answered.
    fn refusal(&self, reply: &Reply<'_>) -> Result<(), String> {
        let mut written = Vec::new();
        reply.write(&mut written);
        // With one error too many the last words follow.
        let recent = self.out.len().saturating_sub(2 * REPLY_LINE_LENGTH_MAX);
        let mut replies = self.out[recent..].windows(written.len());
        if replies.any(|reply| reply == written) {
            Ok(())
        } else {
            Err(format!("refused without the reply {reply}"))
        }
    }

    /// Every piece by itself, and so all of them together, have CRLF and no other CR or LF.
    fn body(&mut self, piece: &[u8]) -> Result<(), String> {
        let text = piece.escape_ascii();
        for (at, &octet) in piece.iter().enumerate() {
            let bare = match octet {
                b'\r' => piece.get(at + 1) != Some(&b'\n'),
                b'\n' => at == 0 || piece[at - 1] != b'\r',
                _ => false,
            };
            if bare {
                return Err(format!("bare CR or LF in {text}"));
            }
        }
        if piece.is_empty() {
            return Err("an empty piece of content".to_owned());
        }
        self.content.extend_from_slice(piece);
        Ok(())
    }

    fn answer_oldest(&mut self) {
        let Some(kind) = self.waiting.pop_front() else {
            return;
        };
        match (self.policy)(kind) {
            Some((reply, _)) if kind == "auth" && reply.code == 334 => {
                self.session.challenge(reply.text.as_bytes(), &mut self.out);
            }
            Some((reply, blame)) => {
                self.session
                    .refuse(self.settings, &reply, blame, &mut self.out);
            }
            None if kind == "greeting" => self.session.greet(self.settings, &mut self.out),
            None => self.session.accept(self.settings, &mut self.out),
        }
        if kind == "starttls" {
            self.expects_handshake = true;
        }
    }
}

/// What the client sent, as the transcripts have it.
fn decoded(response: Encoded<'_>) -> String {
    if response.is_empty() {
        return "=".to_owned();
    }
    let mut octets = Vec::new();
    response.decode(&mut octets);
    if octets.len() > 100 {
        return format!("({} octets)", octets.len());
    }
    octets.escape_ascii().to_string()
}
