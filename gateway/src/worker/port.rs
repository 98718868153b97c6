//! The port between a worker and the control plane: what a worker cannot know by itself (what DNS
//! lists say of a client, who authenticates; later reverse DNS, greylisting, shared state) it asks
//! here, and what the control plane should hear of, it tells here.
//!
//! Neither end ever waits for the other. A question has an id, a deadline and a bound, and gets
//! exactly one answer: that of a service, [`Full`](LookupAnswer::Full) at once if too many are
//! outstanding, or [`Late`](LookupAnswer::Late) at its deadline. The id names a question and not a
//! connection: an answer that comes late, twice, or after its client has gone finds no question
//! and goes no further, so it cannot reach another session that has the same slot by then.
//!
//! A further kind of question is a variant of [`Question`] and of [`LookupAnswer`], and a service
//! in the control plane.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::bounded_queue::BoundedQueue;
use crate::auth::Credentials;
use crate::auth::dovecot::Secret;
use crate::auth::exchange::Mechanism;
use crate::driver::Conn;
use crate::policy::Rule;
use crate::policy::dnsbl::ZoneAnswer;

/// Names a question of one worker. No two questions of a worker have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(u64);

/// What a worker can ask.
#[derive(Clone, Debug)]
pub enum Question {
    /// What do all zones of the configuration say about this client?
    Dnsbl(IpAddr),
    /// Is this the password of a user? Wrong ones are counted, and their answer is held back.
    Password {
        /// Where the client comes from.
        client: IpAddr,
        /// What it said.
        credentials: Arc<Credentials>,
        /// It comes by a trusted front, whose packets the filter sees: it gets no verdict.
        is_behind_front: bool,
    },
    /// The worker itself has found wrong what the client said (SCRAM): it is to be counted, and
    /// held back, as a wrong password is. The answer is [`PasswordAnswer::Refused`].
    WrongProof {
        /// Where the client comes from.
        client: IpAddr,
        /// The name that it gave, in the form in which names are compared.
        name: Box<str>,
        /// As for a password.
        is_behind_front: bool,
    },
    /// What comes next in an exchange that Dovecot carries on?
    Sasl {
        /// Where the client comes from.
        client: IpAddr,
        /// Whether it speaks TLS.
        is_secured: bool,
        /// What it said.
        said: Said,
        /// As for a password.
        is_behind_front: bool,
    },
}

impl Question {
    /// Whether it is about a client that comes by a trusted front, and may lead to a verdict.
    pub fn is_behind_front(&self) -> bool {
        match self {
            Self::Password {
                is_behind_front, ..
            }
            | Self::WrongProof {
                is_behind_front, ..
            }
            | Self::Sasl {
                is_behind_front, ..
            } => *is_behind_front,
            Self::Dnsbl(_) => false,
        }
    }
}

/// What a client says in an exchange that another server carries on.
#[derive(Clone, Debug)]
pub enum Said {
    /// AUTH, with the initial response if there was one.
    Auth(Mechanism, Option<Secret>),
    /// The response to a challenge.
    Response(Conversation, Secret),
}

/// An exchange that another server carries on, as its service knows it. The worker hands it back
/// with what the client says next; when it is dropped, the exchange is given up.
#[derive(Clone)]
pub struct Conversation(Arc<dyn Any + Send + Sync>);

impl Conversation {
    /// What a service knows of one.
    pub fn new(of: impl Any + Send + Sync) -> Self {
        Self(Arc::new(of))
    }

    /// That again, for a service of the same type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl PartialEq for Conversation {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Conversation {}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversation")
    }
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordAnswer {
    /// This user: `235`.
    Accepted(Box<str>),
    /// No user, or not the one it says it is: `535 5.7.8`.
    Refused,
    /// There is a challenge to it first: `334`. Only to [`Question::Sasl`].
    Challenge(Vec<u8>, Conversation),
    /// It cannot be known at the moment: `454 4.7.0`, as for [`Full`](LookupAnswer::Full) and
    /// [`Late`](LookupAnswer::Late).
    Unavailable,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupAnswer {
    /// To [`Question::Dnsbl`]. Zones that say nothing may be left out, and `None` is for all of
    /// them.
    Dnsbl(Option<Arc<[ZoneAnswer]>>),
    /// To the other questions: they are all about who a client is.
    Password(PasswordAnswer),
    /// It was not looked up: too many questions are outstanding.
    Full,
    /// No answer came before the deadline.
    Late,
}

/// What a worker tells without waiting for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A recipient of this client was refused for what DNS lists say: the first of its session.
    Refused(Refusal),
}

/// A client that was refused: it has completed a handshake and has spoken SMTP, so its address is
/// its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its address.
    pub client: IpAddr,
    /// The rule that refused it: `dnsbl:ZONE`.
    pub rule: Rule,
    /// It comes by a trusted front: the filter sees the front's packets, and gets no verdict.
    pub is_behind_front: bool,
}

/// What comes out at the control plane's end.
#[derive(Debug)]
pub enum Message {
    /// A question that is to be answered.
    Ask(Ask),
    /// There is no answer to it.
    Notice(Notice),
}

/// A question on its way to a service.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// The worker waits for so long, from the moment at which it asked.
    pub within: Duration,
    id: QuestionId,
    shared: Arc<Shared>,
}

impl Ask {
    /// Which question of its worker this is.
    pub fn id(&self) -> QuestionId {
        self.id
    }

    /// Answers the worker, and wakes it unless it is awake for another answer already. The first
    /// answer counts.
    pub fn answer(&self, answer: LookupAnswer) {
        // With no room for it the worker hears `Late` at the deadline.
        self.shared.answers.put((self.id, answer), 1);
    }
}

/// What both ends share.
struct Shared {
    messages: BoundedQueue<Message>,
    answers: BoundedQueue<(QuestionId, LookupAnswer)>,
    unasked: Unasked,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// Questions that were answered with [`Full`](LookupAnswer::Full) by the port, by kind.
#[derive(Debug, Default)]
struct Unasked {
    dnsbl: AtomicU64,
    passwords: AtomicU64,
}

impl Unasked {
    fn of(&self, question: &Question) -> &AtomicU64 {
        match question {
            Question::Dnsbl(_) => &self.dnsbl,
            Question::Password { .. } | Question::WrongProof { .. } | Question::Sasl { .. } => {
                &self.passwords
            }
        }
    }
}

/// A question without an answer so far.
struct Outstanding {
    /// `None` if it has gone. The question still counts: the control plane may be busy with it.
    asker: Option<Conn>,
    due: Duration,
}

/// An answer for a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// The connection that asked. It may have ended its session since.
    pub asker: Conn,
    /// The question.
    pub id: QuestionId,
    /// Its only answer.
    pub answer: LookupAnswer,
}

/// A worker's end. It is the worker's own: nothing here is shared but two queues.
pub struct Port {
    shared: Arc<Shared>,
    questions_max: usize,
    asked: u64,
    outstanding: FxHashMap<QuestionId, Outstanding>,
    deadlines: BTreeSet<(Duration, QuestionId)>,
}

/// Both ends of a port. `questions_max` bounds the questions that are outstanding, and what waits
/// in each direction. The wakes end the wait of the worker and of the control plane; they are
/// called from the other thread and must not block.
pub fn port(
    questions_max: usize,
    wake_worker: impl Fn() + Send + Sync + 'static,
    wake_control: impl Fn() + Send + Sync + 'static,
) -> (Port, ControlEnd) {
    let shared = Arc::new(Shared {
        messages: BoundedQueue::new(questions_max, wake_control),
        answers: BoundedQueue::new(questions_max, wake_worker),
        unasked: Unasked::default(),
    });
    let port = Port {
        shared: Arc::clone(&shared),
        questions_max,
        asked: 0,
        outstanding: FxHashMap::default(),
        deadlines: BTreeSet::new(),
    };
    (port, ControlEnd(shared))
}

impl Port {
    /// Asks for a connection; the answer comes with [`take`](Self::take), at `due` at the latest.
    /// Both times are the worker's.
    ///
    /// # Errors
    /// The answer itself, [`Full`](LookupAnswer::Full), if too many questions are outstanding.
    pub fn ask(
        &mut self,
        asker: Conn,
        question: Question,
        now: Duration,
        due: Duration,
    ) -> Result<QuestionId, LookupAnswer> {
        let unasked = self.shared.unasked.of(&question);
        let id = QuestionId(self.asked);
        let ask = Ask {
            question,
            within: due.saturating_sub(now),
            id,
            shared: Arc::clone(&self.shared),
        };
        let has_room = self.outstanding.len() < self.questions_max;
        if !has_room || !self.shared.messages.put(Message::Ask(ask), 1) {
            unasked.fetch_add(1, Ordering::Relaxed);
            return Err(LookupAnswer::Full);
        }
        self.asked += 1;
        let asker = Some(asker);
        self.outstanding.insert(id, Outstanding { asker, due });
        self.deadlines.insert((due, id));
        Ok(id)
    }

    /// The connection that asked does not wait any more, and will hear nothing.
    pub fn forget(&mut self, id: QuestionId) {
        if let Some(outstanding) = self.outstanding.get_mut(&id) {
            outstanding.asker = None;
        }
    }

    /// Tells the control plane something. What there is no room for is lost.
    pub fn notify(&self, notice: Notice) {
        self.shared.messages.put(Message::Notice(notice), 1);
    }

    /// The answers that have come since the last call, and [`Late`](LookupAnswer::Late) for the
    /// questions whose deadline has passed. To be called at each batch.
    pub fn take(&mut self, now: Duration) -> Vec<Answered> {
        let mut answered = Vec::new();
        for (id, answer) in self.shared.answers.take() {
            answered.extend(self.settle(id, answer));
        }
        while let Some(&(due, id)) = self.deadlines.first()
            && due <= now
        {
            answered.extend(self.settle(id, LookupAnswer::Late));
        }
        answered
    }

    /// When the earliest question is late: the worker may not sleep longer.
    pub fn next_due(&self) -> Option<Duration> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    fn settle(&mut self, id: QuestionId, answer: LookupAnswer) -> Option<Answered> {
        let Outstanding { asker, due } = self.outstanding.remove(&id)?;
        self.deadlines.remove(&(due, id));
        let asker = asker?;
        Some(Answered { asker, id, answer })
    }
}

/// The control plane's end of a worker's port.
#[derive(Clone, Debug)]
pub struct ControlEnd(Arc<Shared>);

impl ControlEnd {
    /// What the worker has asked and told since the last call, in that order.
    pub fn take(&self) -> Vec<Message> {
        self.0.messages.take()
    }

    /// Questions about DNS lists that the port answered with [`Full`](LookupAnswer::Full).
    pub fn dnsbl_unasked(&self) -> u64 {
        self.0.unasked.dnsbl.load(Ordering::Relaxed)
    }

    /// Questions about passwords that the port answered with [`Full`](LookupAnswer::Full).
    pub fn passwords_unasked(&self) -> u64 {
        self.0.unasked.passwords.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn conn(slot: u32) -> Conn {
        Conn {
            slot,
            generation: 0,
        }
    }

    fn about(host: u8) -> Question {
        Question::Dnsbl([192, 0, 2, host].into())
    }

    /// A port whose wakes are counted: of the worker, of the control plane.
    fn counted(questions_max: usize) -> (Port, ControlEnd, [Arc<AtomicUsize>; 2]) {
        let wakes: [Arc<AtomicUsize>; 2] = Default::default();
        let [worker, control] = wakes.clone().map(|wakes| {
            move || {
                wakes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (port, end) = port(questions_max, worker, control);
        (port, end, wakes)
    }

    fn asks(end: &ControlEnd) -> Vec<Ask> {
        let asks = end.take().into_iter().map(|message| match message {
            Message::Ask(ask) => ask,
            Message::Notice(notice) => panic!("{notice:?}"),
        });
        asks.collect()
    }

    #[test]
    fn a_question_has_one_answer_however_often_and_late_the_service_answers() {
        let (mut port, end, _) = counted(8);
        let due = 5 * SECOND;
        let first = port.ask(conn(1), about(1), SECOND, due).unwrap();
        let second = port.ask(conn(1), about(2), SECOND, due).unwrap();
        let asked = asks(&end);
        assert_eq!((asked[0].id(), asked[0].within), (first, 4 * SECOND));
        asked[0].answer(LookupAnswer::Dnsbl(None));
        asked[0].answer(LookupAnswer::Full);
        let answered = |id, answer| Answered {
            asker: conn(1),
            id,
            answer,
        };
        let answers = port.take(2 * SECOND);
        assert_eq!(answers, [answered(first, LookupAnswer::Dnsbl(None))]);
        assert_eq!(port.take(due - Duration::from_nanos(1)), []);
        assert_eq!(port.next_due(), Some(due));
        assert_eq!(port.take(due), [answered(second, LookupAnswer::Late)]);
        asked[1].answer(LookupAnswer::Dnsbl(None));
        assert_eq!((port.take(due), port.next_due()), (vec![], None));
    }

    #[test]
    fn an_answer_in_the_batch_of_its_deadline_still_counts() {
        let (mut port, end, _) = counted(8);
        port.ask(conn(1), about(1), SECOND, SECOND).unwrap();
        asks(&end)[0].answer(LookupAnswer::Dnsbl(None));
        assert_eq!(port.take(SECOND)[0].answer, LookupAnswer::Dnsbl(None));
    }

    #[test]
    fn a_question_beyond_the_bound_is_answered_at_once_and_a_gone_asker_still_counts() {
        let (mut port, end, _) = counted(2);
        let first = port.ask(conn(1), about(1), SECOND, 2 * SECOND).unwrap();
        assert!(port.ask(conn(2), about(2), SECOND, 3 * SECOND).is_ok());
        let asked = asks(&end);
        port.forget(first);
        let full = port.ask(conn(3), about(3), SECOND, 2 * SECOND);
        assert_eq!((full, end.dnsbl_unasked()), (Err(LookupAnswer::Full), 1));
        // It is over for the control plane as well, and its asker hears nothing.
        assert_eq!(port.take(2 * SECOND), []);
        assert!(port.ask(conn(3), about(3), SECOND, 9 * SECOND).is_ok());
        asked[0].answer(LookupAnswer::Dnsbl(None));
        assert_eq!(
            port.take(2 * SECOND),
            [],
            "not to the one that has the slot now"
        );
    }

    #[test]
    fn each_end_is_woken_once_a_batch() {
        let (mut port, end, [worker, control]) = counted(8);
        for batch in 1..=2 {
            for host in 0..4 {
                assert!(port.ask(conn(1), about(host), SECOND, 2 * SECOND).is_ok());
            }
            let refusal = Refusal {
                client: [192, 0, 2, 1].into(),
                rule: Rule::of_zone("a"),
                is_behind_front: false,
            };
            port.notify(Notice::Refused(refusal));
            assert_eq!(control.load(Ordering::Relaxed), batch);
            for message in end.take() {
                if let Message::Ask(ask) = message {
                    ask.answer(LookupAnswer::Dnsbl(None));
                }
            }
            assert_eq!(worker.load(Ordering::Relaxed), batch);
            assert_eq!(port.take(SECOND).len(), 4);
        }
    }
}
