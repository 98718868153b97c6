//! The rules: what every decision is named after, in the log, in the metrics and in `explain`. The
//! names are stable; people have dashboards and scripts that hold them.
//!
//! A rule is one word of memory that names itself and knows its place among the counters, so that
//! to accept something allocates nothing. Most rules are fixed when the program is written. Those
//! of lists and of DNS lists bear a name of the configuration and are entered into a table of the
//! process when a configuration is compiled: once for each name, and never taken out, so that a
//! rule outlives the configuration that it comes from and a session can name it after a reload.
//! The table has a bound, [`RULES_MAX`]. A name beyond it gets the rule of its kind, `drop-list`
//! instead of `drop-list:NAME`: only a gate that has been given hundreds of ever new names without
//! a restart comes to that.
//!
//! Rejected: numbers that only the configuration can turn into names (a decision had to be turned
//! into a `String` before the configuration went), and names alone (every count was a lookup in a
//! map behind a lock).

use std::cmp::Ordering;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use portcullis_smtp::data::Fault;
use portcullis_smtp::server::{Abuse, CommandError};
use serde::{Serialize, Serializer};

use crate::lists::ListAction;

/// How many rules a process can have: the fixed ones, and one for each name of a list or zone that
/// it has ever been configured with.
pub const RULES_MAX: usize = 1024;

/// Which rule made a decision.
#[derive(Clone, Copy)]
pub struct Rule(&'static Entry);

struct Entry {
    index: u16,
    kind: RuleKind,
    name: &'static str,
    /// The reply that it is told with, for the documentation.
    reply: &'static str,
    meaning: &'static str,
}

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// The rule that has this name in every configuration.
    Fixed,
    /// A permit list.
    PermitList,
    /// A drop list.
    DropList,
    /// A reject list.
    RejectList,
    /// A DNS list.
    Dnsbl,
}

macro_rules! fixed_rules {
    ($($constant:ident $kind:ident $name:literal $reply:literal $meaning:literal;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($constant,)* End }

        static FIXED: [Entry; Place::End as usize] = [$(Entry {
            index: Place::$constant as u16,
            kind: RuleKind::$kind,
            name: $name,
            reply: $reply,
            meaning: $meaning,
        },)*];

        impl Rule {
            $(#[doc = $meaning] pub const $constant: Rule =
                Rule(&FIXED[Place::$constant as usize]);)*
        }
    };
}

fixed_rules! {
    UNLISTED Fixed "unlisted" "220"
        "The client is on no list and in no local network.";
    LOCAL_NETWORK Fixed "local-network" "220, 250"
        "The client is in one of the local networks, and may send to anywhere.";
    PERMIT_LIST PermitList "permit-list" "220"
        "The client is on this permit list: no other list and no limit for one source holds \
         for it.";
    GRANTED Fixed "granted" "220, 250"
        "The client's address has a grant, and may send to anywhere. At the filter: a packet that \
         passes for it.";
    AUTHENTICATED Fixed "authenticated" "250"
        "The client has authenticated, and may send to anywhere.";
    ANY_HELLO Fixed "any-hello" "250"
        "Every HELO or EHLO name is accepted, and none makes a client local.";
    ANY_SENDER Fixed "any-sender" "250"
        "Every sender is accepted, and none makes a client local.";
    ANY_CONTENT Fixed "any-content" "354, 250"
        "Content is not judged.";
    POSTMASTER Fixed "postmaster" "250"
        "The recipient is the postmaster of this gate, who can be reached from everywhere.";
    LOCAL_DOMAIN Fixed "local-domain" "250"
        "The recipient's domain is one of `relay.domains`.";
    OWN_LITERAL Fixed "own-literal" "250"
        "The recipient's domain is an address literal that names this gate.";

    DROP_LIST DropList "drop-list" "554"
        "The client is on this drop list.";
    REJECT_LIST RejectList "reject-list" "554"
        "The client is on this reject list.";
    STOPPING Fixed "stopping" "421"
        "The gate is about to stop.";
    SESSIONS Fixed "sessions" "421"
        "There are as many sessions as `limits.sessions` allows.";
    SESSIONS_PER_SOURCE Fixed "sessions-per-source" "421"
        "The source has as many sessions as `limits.sessions_per_source` allows.";

    CLOSED_RELAY Fixed "closed-relay" "550"
        "The client is a stranger and the recipient's domain is not one of `relay.domains`.";
    SOURCE_ROUTE Fixed "source-route" "550"
        "A stranger's recipient has a source route: `@a,@b:user@c`.";
    PERCENT_HACK Fixed "percent-hack" "550"
        "A stranger's recipient is to be sent on: `user%elsewhere@here`.";
    BANG_PATH Fixed "bang-path" "550"
        "A stranger's recipient is to be sent on: `elsewhere!user@here`.";
    SECOND_AT Fixed "second-at" "550"
        "A stranger's recipient has a second `@` outside of quotes.";
    QUOTED_LOCAL_PART Fixed "quoted-local-part" "550"
        "A stranger's recipient has a quoted local part that holds `@`, `%` or `!`.";
    ENCAPSULATED_ADDRESS Fixed "encapsulated-address" "550"
        "A stranger's recipient is encapsulated: `IMCEASMTP-user+40elsewhere@here`.";
    FOREIGN_LITERAL Fixed "foreign-literal" "550"
        "A stranger's recipient is at an address literal that is not one of this gate.";
    NO_ROUTE Fixed "no-route" "550"
        "No `[[route]]` covers the recipient's domain.";
    DNSBL Dnsbl "dnsbl" "554"
        "DNS lists give the client too high a score, and this zone the most of it.";
    OTHER_NEXT_HOP Fixed "other-next-hop" "451"
        "The recipient has another next hop than those before it in the transaction.";

    FOREIGN_SENDER Fixed "foreign-sender" "550"
        "The sender address is not one of the user's `senders`.";
    MESSAGES_PER_USER Fixed "messages-per-user" "450"
        "The user has sent as many messages in an hour as `limits.messages_per_user` allows.";
    RECIPIENTS_PER_USER Fixed "recipients-per-user" "450"
        "The user has had as many recipients in an hour as `limits.recipients_per_user` allows.";

    SYNTAX Fixed "syntax" "501"
        "An argument of the command is malformed or missing.";
    PARAMETER Fixed "parameter" "555"
        "MAIL or RCPT has a parameter that this gate does not offer.";
    UNKNOWN_COMMAND Fixed "unknown-command" "500"
        "The command is unknown.";
    COMMAND_LENGTH Fixed "command-length" "500"
        "The command line is too long.";
    NOT_IMPLEMENTED Fixed "not-implemented" "502"
        "The command is known and not offered.";
    SEQUENCE Fixed "sequence" "503"
        "The command came at a wrong time.";
    TLS_REQUIRED Fixed "tls-required" "530, 538"
        "The command needs TLS, and the session has none.";
    AUTH_REQUIRED Fixed "auth-required" "530"
        "MAIL needs an authenticated client.";
    AUTH_MECHANISM Fixed "auth-mechanism" "504"
        "AUTH names a mechanism that is not offered.";
    AUTH_LENGTH Fixed "auth-length" "500"
        "A line of an authentication has more than 12,288 octets.";
    AUTH_CANCELLED Fixed "auth-cancelled" "501"
        "The client cancelled its authentication.";
    XCLIENT Fixed "xclient" "550"
        "XCLIENT came from an address that is no trusted front.";
    UNKNOWN_CLIENT Fixed "unknown-client" "451"
        "A trusted front sent MAIL, and had not said which client it speaks for.";
    RECIPIENTS Fixed "recipients" "452"
        "The transaction has as many recipients as `limits.recipients_per_message` allows.";
    NO_RECIPIENTS Fixed "no-recipients" "554"
        "DATA or BDAT came and no recipient had been accepted.";
    MESSAGE_SIZE Fixed "message-size" "552"
        "The message is bigger than `limits.message_size`, or MAIL declares that it is.";

    BARE_CR Fixed "bare-cr" "554"
        "The message has a carriage return without a line feed.";
    BARE_LF Fixed "bare-lf" "554, 500"
        "The message, or a command line, has a line feed without a carriage return.";
    LINE_LENGTH Fixed "line-length" "554"
        "The message has a line of more than 998 octets, and `limits.line_length` refuses those.";
    MAIL_LOOP Fixed "mail-loop" "554"
        "The message has more than 50 `Received:` lines.";
    EIGHT_BIT Fixed "8-bit" "554"
        "The message has 8-bit content and the next hop does not offer 8BITMIME.";
    UTF8_HEADER Fixed "utf8-header" "550"
        "The message has a header beyond ASCII and the next hop does not offer SMTPUTF8.";

    EARLY_TALKER Fixed "early-talker" "554"
        "The client talked before the greeting.";
    PIPELINING Fixed "pipelining" "554"
        "The client did not wait for a reply that it had to wait for.";
    ERRORS Fixed "errors" "421"
        "The client made as many errors as `limits.errors_per_session` allows.";
    UNKNOWN_RECIPIENTS Fixed "unknown-recipients" "421"
        "The client named more recipients that do not exist than \
         `limits.unknown_recipients_per_session` allows.";
    TRANSACTIONS Fixed "transactions" "421"
        "The session had as many transactions as `limits.transactions_per_session` allows.";
    CHUNK_SIZE Fixed "chunk-size" "554"
        "BDAT came with a size that is no number.";
    HTTP Fixed "http" "none"
        "The client speaks HTTP.";
    TLS_HANDSHAKES Fixed "tls-handshakes" "454"
        "There are as many TLS handshakes as `tls.handshakes` allows.";
    TLS_HANDSHAKES_PER_SOURCE Fixed "tls-handshakes-per-source" "454"
        "The source begins more TLS handshakes than `tls.handshakes_per_source` allows.";
    TLS_HANDSHAKE Fixed "tls-handshake" "none"
        "The TLS handshake failed or took longer than `tls.handshake_timeout`.";
    TLS Fixed "tls" "none"
        "TLS broke after the handshake: an alert of the client, or records that are not its own.";
    TIMEOUT Fixed "timeout" "421"
        "The client took too long over a command or over the message.";
    CLIENT Fixed "client" "none"
        "The client gave the transaction up, or its connection broke.";
    NEXT_HOP Fixed "next-hop" "the next hop's"
        "The next hop refused the recipient or the message.";
    NEXT_HOP_UNAVAILABLE Fixed "next-hop-unavailable" "451"
        "There was no connection to a next hop, or it was lost before it answered.";

    NOT_FILTERED Fixed "not-filtered" "none"
        "The filter: the packet is not for one of `filter.ports`, and passes.";
    UNLISTED_DROP Fixed "unlisted-drop" "none"
        "The filter: the source is on no list and `filter.unlisted` drops those.";
    RECENT_VERDICT Fixed "recent-verdict" "none"
        "The filter: the source has a recent verdict, and is dropped.";
    CUSTOMER Fixed "customer" "none"
        "The filter: a customer's packet, and neither its source nor its destination is permitted.";
    SYN_BUDGET Fixed "syn-budget" "none"
        "The filter: the source opens more connections in a second than `filter.syn_budget` \
         allows. The packet passes, perhaps after a SYN cookie.";
}

/// The rules that bear a name of a configuration, in the order in which they came.
static NAMED: Mutex<Vec<Rule>> = Mutex::new(Vec::new());

impl Rule {
    /// The stable name, such as `closed-relay` or `drop-list:NAME`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// A dense number below [`RULES_MAX`] that stays as long as the process lives: the place of
    /// its counters.
    pub fn index(self) -> usize {
        usize::from(self.0.index)
    }

    /// What it speaks of.
    pub fn kind(self) -> RuleKind {
        self.0.kind
    }

    /// The name of the list or the zone, for a rule of one; otherwise nothing.
    pub fn subject(self) -> &'static str {
        match self.kind() {
            RuleKind::Fixed => "",
            _ => self
                .name()
                .split_once(':')
                .map_or("", |(_, subject)| subject),
        }
    }

    /// What it means, in one sentence.
    pub fn meaning(self) -> &'static str {
        self.0.meaning
    }

    /// The codes of the replies that it comes with, for the documentation.
    pub fn reply_codes(self) -> &'static str {
        self.0.reply
    }

    /// The name as the documentation has it: with a word in place of what a configuration names.
    pub fn documented_name(self) -> String {
        match self.kind() {
            RuleKind::Fixed => self.name().to_owned(),
            RuleKind::Dnsbl => "dnsbl:ZONE".to_owned(),
            _ => format!("{}:NAME", self.name()),
        }
    }

    /// The rules that every configuration has. Those of lists and zones are in it by their kind.
    pub fn fixed() -> impl Iterator<Item = Rule> {
        FIXED.iter().map(Rule)
    }

    /// All rules that there are at the moment, in the order of their [index](Rule::index).
    pub fn all() -> Vec<Rule> {
        let named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        Rule::fixed().chain(named.iter().copied()).collect()
    }

    /// The rule of a list: `drop-list:NAME`. Allocates the first time that the name is met.
    pub fn of_list(action: ListAction, name: &str) -> Rule {
        let kind = match action {
            ListAction::Permit => Rule::PERMIT_LIST,
            ListAction::Drop | ListAction::HardDrop => Rule::DROP_LIST,
            ListAction::Reject => Rule::REJECT_LIST,
        };
        named(kind, name, RULES_MAX)
    }

    /// The rule of a DNS list: `dnsbl:ZONE`. Allocates the first time that the name is met.
    pub fn of_zone(zone: &str) -> Rule {
        named(Rule::DNSBL, zone, RULES_MAX)
    }
}

/// The rule of this kind with this name, unless there are `rules_max` already: then that of the
/// kind.
fn named(kind: Rule, subject: &str, rules_max: usize) -> Rule {
    let is_it = |rule: &&Rule| rule.kind() == kind.kind() && rule.subject() == subject;
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = named.iter().find(is_it) {
        return *known;
    }
    let index = FIXED.len() + named.len();
    let Some(index) = u16::try_from(index).ok().filter(|_| index < rules_max) else {
        return kind;
    };
    let name = format!("{}:{subject}", kind.name());
    let entry = Box::leak(Box::new(Entry {
        index,
        name: Box::leak(name.into_boxed_str()),
        ..*kind.0
    }));
    named.push(Rule(entry));
    Rule(entry)
}

/// What the SMTP session refuses by itself.
impl From<CommandError> for Rule {
    fn from(error: CommandError) -> Rule {
        match error {
            CommandError::Syntax => Rule::SYNTAX,
            CommandError::Parameter => Rule::PARAMETER,
            CommandError::UnknownCommand => Rule::UNKNOWN_COMMAND,
            CommandError::CommandLength => Rule::COMMAND_LENGTH,
            CommandError::BareLineFeed => Rule::BARE_LF,
            CommandError::NotImplemented => Rule::NOT_IMPLEMENTED,
            CommandError::Sequence => Rule::SEQUENCE,
            CommandError::Recipients => Rule::RECIPIENTS,
            CommandError::NoRecipients => Rule::NO_RECIPIENTS,
            CommandError::TlsRequired => Rule::TLS_REQUIRED,
            CommandError::AuthRequired => Rule::AUTH_REQUIRED,
            CommandError::AuthMechanism => Rule::AUTH_MECHANISM,
            CommandError::AuthLength => Rule::AUTH_LENGTH,
            CommandError::AuthCancelled => Rule::AUTH_CANCELLED,
            CommandError::Xclient => Rule::XCLIENT,
            CommandError::MessageSize => Rule::MESSAGE_SIZE,
        }
    }
}

/// What a message is given up for.
impl From<Fault> for Rule {
    fn from(fault: Fault) -> Rule {
        match fault {
            Fault::BareCarriageReturn => Rule::BARE_CR,
            Fault::BareLineFeed => Rule::BARE_LF,
            Fault::TooBig => Rule::MESSAGE_SIZE,
            Fault::LineTooLong => Rule::LINE_LENGTH,
        }
    }
}

/// What the SMTP session ends itself for.
impl From<Abuse> for Rule {
    fn from(abuse: Abuse) -> Rule {
        match abuse {
            Abuse::EarlyTalker => Rule::EARLY_TALKER,
            Abuse::PipeliningViolation => Rule::PIPELINING,
            Abuse::TooManyErrors => Rule::ERRORS,
            Abuse::TooManyUnknownRecipients => Rule::UNKNOWN_RECIPIENTS,
            Abuse::TooManyTransactions => Rule::TRANSACTIONS,
            Abuse::ChunkSize => Rule::CHUNK_SIZE,
            Abuse::Http => Rule::HTTP,
        }
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        self.0.index == other.0.index
    }
}

impl Eq for Rule {}

impl std::hash::Hash for Rule {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.index.hash(state);
    }
}

/// By name, which is the order of reports.
impl Ord for Rule {
    fn cmp(&self, other: &Rule) -> Ordering {
        self.name().cmp(other.name())
    }
}

impl PartialOrd for Rule {
    fn partial_cmp(&self, other: &Rule) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// By its name.
impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rules_share_a_counter_or_a_name() {
        let all = Rule::all();
        for (index, rule) in all.iter().enumerate() {
            assert_eq!(rule.index(), index, "{rule}");
            assert_eq!(
                all.iter()
                    .filter(|other| other.name() == rule.name())
                    .count(),
                1,
                "{rule}"
            );
        }
    }

    #[test]
    fn a_list_has_the_same_rule_in_every_configuration_and_another_action_another_rule() {
        let rule = Rule::of_list(ListAction::Drop, "spam");
        assert_eq!(rule, Rule::of_list(ListAction::Drop, "spam"));
        assert_eq!((rule.name(), rule.subject()), ("drop-list:spam", "spam"));
        assert_ne!(rule, Rule::of_list(ListAction::Reject, "spam"));
        assert_eq!(Rule::of_zone("bl.example").name(), "dnsbl:bl.example");
        assert_eq!(Rule::all()[rule.index()], rule);
    }

    #[test]
    fn a_name_beyond_the_bound_gets_the_rule_of_its_kind() {
        let full = FIXED.len();
        assert_eq!(
            named(Rule::DNSBL, "one-too-many.example", full),
            Rule::DNSBL
        );
        let known = Rule::of_zone("known.example");
        assert_eq!(named(Rule::DNSBL, "known.example", full), known);
    }

    #[test]
    fn what_smtp_names_by_itself_has_that_name_here() {
        for abuse in Abuse::ALL {
            assert_eq!(Rule::from(abuse).name(), abuse.rule());
        }
        for fault in Fault::ALL {
            assert_eq!(Rule::from(fault).name(), fault.rule());
        }
        for error in CommandError::ALL {
            assert_eq!(Rule::from(error).name(), error.rule());
        }
    }
}
