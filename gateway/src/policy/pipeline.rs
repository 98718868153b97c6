//! The one order of decisions: [`decide`] runs the checks of a stage over the facts that are
//! known, and says what comes of it.
//!
//! The worker and `portcullis explain` call the same function over the same facts. Which checks
//! there are, and in which order, is the table [`CHECKS`]; a check is a function of the policy and
//! the facts to an [`Opinion`], and a new one (reverse DNS, greylisting, a limit) is one entry and
//! one function.
//!
//! There are three kinds. The checks that *admit* come first: the first of them that speaks
//! decides, and where none speaks the answer is no. Then come those that can only *restrict* what
//! was admitted; they never open anything. Those that *score* refuse nothing by themselves: the
//! points of neighbours in the table are added up, those for a client with those against it, and
//! the sum is compared with [`Policy::reject_at`] before the next check of another kind.
//!
//! What is still to be looked up is a value, [`Decision::Wait`]: the caller finds out and decides
//! again, over more facts. Checks that wait come late, so that no client that is refused anyway has
//! to wait for it. A caller can hold a command only where [`Stage::can_wait`] says so.
//!
//! Nothing here makes a system call or knows the time, and nothing is allocated for what is
//! accepted.

use std::net::SocketAddr;

use portcullis_smtp::envelope::Rcpt;
use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::server::Blame;

pub use super::checks::CHECKS;
use super::dnsbl::ZoneAnswer;
use super::{Client, Identity, Policy, Rule, Standing};

#[cfg(test)]
mod tests;

/// Where a session stands when something is to be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A connection was accepted; nothing is said yet.
    Connect,
    /// EHLO or HELO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, or the first BDAT: a message is about to come.
    Data,
    /// The message is there, and its last octets are not passed on yet.
    Message,
}

impl Stage {
    /// Its name in `explain` and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Message => "message",
        }
    }

    /// Whether a check may wait for a look-up here. A session holds a recipient until the answer
    /// comes; at the other stages it has no place to wait, and the table has no check that does.
    pub const fn can_wait(self) -> bool {
        matches!(self, Self::Rcpt)
    }
}

/// What is known when something is to be decided. What a stage cannot know yet is empty.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where the client has connected to.
    pub listener: Listener,
    /// What its address says of it.
    pub client: &'a Client,
    /// Whether its address has a grant at this moment.
    pub is_granted: bool,
    /// Who it has proved to be.
    pub identity: Option<&'a Identity>,
    /// The name that it gave with EHLO or HELO.
    pub helo: &'a str,
    /// The sender, as it stands in MAIL without the brackets: empty for the null sender.
    pub sender: &'a str,
    /// The recipient in question; at [`Stage::Rcpt`] only.
    pub recipient: Option<Recipient<'a>>,
    /// The [next hops](Recipient::next_hops) that the recipients before have given the transaction.
    pub next_hops: Option<&'a str>,
    /// What was looked up.
    pub answers: Answers<'a>,
    /// How much there is of what is limited.
    pub counts: Counts,
}

impl<'a> Facts<'a> {
    /// What is known of a client that has connected and has said nothing.
    pub fn new(listener: Listener, client: &'a Client) -> Facts<'a> {
        Facts {
            listener,
            client,
            is_granted: false,
            identity: None,
            helo: "",
            sender: "",
            recipient: None,
            next_hops: None,
            answers: Answers::default(),
            counts: Counts::default(),
        }
    }
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address to listen on.
    pub address: SocketAddr,
    /// What is spoken there.
    pub service: Service,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// SMTP between servers, as on port 25.
    Relay,
    /// Submission by users, with STARTTLS (RFC 6409), as on port 587.
    Submission,
    /// The same with TLS from the first octet (RFC 8314), as on port 465.
    Submissions,
}

impl Service {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Submission => "submission",
            Self::Submissions => "submissions",
        }
    }

    /// Whether messages are submitted here: by users who have to authenticate.
    pub const fn is_submission(self) -> bool {
        matches!(self, Self::Submission | Self::Submissions)
    }
}

/// A recipient that a client names.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// The command.
    pub rcpt: &'a Rcpt<'a>,
    /// The next hops of its route, in their order and as the configuration writes them; `None`: no
    /// route covers it.
    ///
    /// Two recipients go the same way if this is the same text. It is not a matter of addresses:
    /// what a name stands for changes with every look-up, which must not turn the second recipient
    /// of a transaction away, and a name says more than an address does (which certificate it has
    /// to show). Nor of the route's number, which a reload changes.
    pub next_hops: Option<&'a str>,
}

/// What was looked up; `None` where the answer is not there yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers<'a> {
    /// What DNS lists say of the client. Empty if they say nothing, do not answer, or cannot be
    /// asked.
    pub dnsbl: Option<&'a [ZoneAnswer]>,
}

/// Something to be looked up. The answer goes into [`Answers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// What DNS lists say of the client.
    Dnsbl,
}

impl Lookup {
    /// Its name in `explain`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dnsbl => "dnsbl",
        }
    }
}

/// How much there is of what is limited. By default nothing is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// The gate is about to stop.
    pub stopping: bool,
    /// Sessions of this worker, with this one.
    pub sessions: Count,
    /// Sessions of the client's source, with this one, over all workers.
    pub source_sessions: Count,
    /// Messages of the user in the last hour, with this one, over all workers.
    pub user_messages: Count,
    /// Recipients of the user in the last hour, with this one, over all workers.
    pub user_recipients: Count,
}

/// A number, and how large it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// How many there are.
    pub now: u32,
    /// How many there may be.
    pub max: u32,
}

impl Count {
    /// Whether there are more than there may be.
    pub const fn is_exceeded(self) -> bool {
        self.now > self.max
    }
}

impl Default for Count {
    /// None, and no limit.
    fn default() -> Count {
        Count {
            now: 0,
            max: u32::MAX,
        }
    }
}

/// What one check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It has nothing to say about this.
    Silent,
    /// It is admitted, by this rule.
    Accept(Rule),
    /// It is refused, by this rule and with this reply.
    Refuse(Rule, Reply<'static>),
    /// It counts for or against the client, together with what other checks find.
    Score(Score),
    /// This has to be looked up first.
    Wait(Lookup),
}

/// What a check that [scores](Effect::Scores) finds.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// Above zero against the client, below zero for it.
    pub points: i64,
    /// The rule that refuses it if the sum is too high and no check has given more.
    pub rule: Rule,
    /// What it is told then. Made only then, because most clients never hear it.
    pub reply: fn(&Policy, &Facts<'_>) -> Reply<'static>,
}

/// By what it comes to; how the reply is made is no part of it.
impl PartialEq for Score {
    fn eq(&self, other: &Score) -> bool {
        (self.points, self.rule) == (other.points, other.rule)
    }
}

impl Eq for Score {}

/// The sum of the scores of neighbours in the table.
#[derive(Default)]
struct Total {
    points: i64,
    /// The highest score, the first of equals, and whether its check counts.
    highest: Option<(Score, bool)>,
}

impl Total {
    fn add(&mut self, score: Score, counts: bool) {
        self.points = self.points.saturating_add(score.points);
        if self
            .highest
            .is_none_or(|(highest, _)| highest.points < score.points)
        {
            self.highest = Some((score, counts));
        }
    }

    /// Ends the sum; the refusal, if it is too high.
    fn settle(&mut self, policy: &Policy, facts: &Facts<'_>) -> Option<Decision> {
        let total = std::mem::take(self);
        let (score, counts) = total.highest?;
        if total.points < policy.reject_at() {
            return None;
        }
        let reply = (score.reply)(policy, facts);
        Some(refusal(facts, score.rule, reply, counts))
    }
}

/// Whether a check opens or closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The first that speaks decides whether it is admitted.
    Admits,
    /// It holds for what was admitted, and can only refuse.
    Restricts,
    /// It holds for what was admitted, and gives points for or against it.
    Scores,
}

/// One entry of [`CHECKS`].
pub struct Check {
    /// A short name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub does: &'static str,
    /// Whether it opens or closes.
    pub effect: Effect,
    /// Whether its refusals count as errors of a stranger. They do not where it is the
    /// configuration, or the moment, that makes them.
    pub counts: bool,
    /// The rules that it names.
    pub rules: &'static [Rule],
    /// What it may wait for. Only at a stage that [can wait](Stage::can_wait).
    pub waits_for: Option<Lookup>,
    /// The check.
    pub decide: fn(&Policy, &Facts<'_>) -> Opinion,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on. The rule is the one that admits.
    Accept(Rule),
    /// Answer this.
    Refuse {
        /// The rule that refuses.
        rule: Rule,
        /// What the client is told.
        reply: Reply<'static>,
        /// What it counts against.
        blame: Blame,
    },
    /// Look this up, and decide again.
    Wait(Lookup),
}

impl Decision {
    /// Whether to go on.
    pub const fn is_accept(&self) -> bool {
        matches!(self, Self::Accept(_))
    }

    /// The rule that has decided, unless it is still to be looked up.
    pub const fn rule(&self) -> Option<Rule> {
        match self {
            Self::Accept(rule) | Self::Refuse { rule, .. } => Some(*rule),
            Self::Wait(_) => None,
        }
    }
}

/// What the policy does at this stage with what is known.
pub fn decide(stage: Stage, policy: &Policy, facts: &Facts<'_>) -> Decision {
    decide_by(checks(stage), policy, facts)
}

/// What these checks come to, in this order. [`decide`] is for all but those who want to know what
/// the order is good for.
pub fn decide_by<'c>(
    checks: impl IntoIterator<Item = &'c Check>,
    policy: &Policy,
    facts: &Facts<'_>,
) -> Decision {
    let mut admitted = None;
    let mut total = Total::default();
    for check in checks {
        if check.effect == Effect::Admits && admitted.is_some() {
            continue;
        }
        if check.effect != Effect::Scores
            && let Some(refused) = total.settle(policy, facts)
        {
            return refused;
        }
        match (check.decide)(policy, facts) {
            Opinion::Silent => {}
            Opinion::Accept(rule) => admitted = admitted.or(Some(rule)),
            Opinion::Refuse(rule, reply) => return refusal(facts, rule, reply, check.counts),
            Opinion::Score(score) => {
                debug_assert_eq!(check.effect, Effect::Scores, "{}", check.name);
                total.add(score, check.counts);
            }
            Opinion::Wait(lookup) => {
                debug_assert_eq!(check.waits_for, Some(lookup), "{}", check.name);
                return Decision::Wait(lookup);
            }
        }
    }
    if let Some(refused) = total.settle(policy, facts) {
        return refused;
    }
    admitted.map_or_else(not_admitted, Decision::Accept)
}

/// A refusal by a check. `counts`: it is an error of a stranger.
fn refusal(facts: &Facts<'_>, rule: Rule, reply: Reply<'static>, counts: bool) -> Decision {
    let blame = match facts.client.standing {
        Standing::Stranger if counts => Blame::Client,
        Standing::Stranger | Standing::Local => Blame::None,
    };
    Decision::Refuse { rule, reply, blame }
}

/// The checks of a stage, in their order.
pub fn checks(stage: Stage) -> &'static [Check] {
    // The table has the stages in their order.
    CHECKS.get(stage as usize).map_or(&[], |(_, checks)| checks)
}

/// No check has admitted it. The table leaves nothing open, which a test holds; should an entry
/// ever be lost from it, the relay is closed and not open.
fn not_admitted() -> Decision {
    Decision::Refuse {
        rule: Rule::CLOSED_RELAY,
        reply: Reply::fixed(550, EnhancedCode(5, 7, 1), "Not permitted"),
        blame: Blame::None,
    }
}
