//! The limits, in one table. Every bound of the relay that an operator can move is here, with its
//! default and the range that makes sense; a value outside of it is an error, not a surprise at
//! night.

use std::time::Duration;

use super::keys::{Form, HOUR, Key, KeyTable, SECOND, count, duration, word};
use super::section::Section;

const HALF_A_MINUTE: Duration = Duration::from_secs(30);
const FIVE_MINUTES: Duration = Duration::from_secs(300);

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[limits]",
    about: "The limits of the gate. Each has its reply, and its rule in the log and in the \
            metrics.",
    keys: &[
        Key::new(
            "sessions",
            count("sessions", 200_000, 1..=10_000_000),
            "Sessions at a time, of all workers together. One more hears `421 4.3.2`. The gate \
             lowers it at the start where `LimitNOFILE=` leaves too few descriptors, and logs it.",
        )
        .see(&["limits.sessions_per_source"]),
        Key::new(
            "sessions_per_source",
            count("sessions", 50, 1..=10_000_000),
            "Sessions at a time from one source: an IPv4 address or an IPv6 /64. One more hears \
             `421 4.7.0`. Local networks and sources on permit lists are exempt.",
        )
        .see(&["relay.networks", "list.action"]),
        Key::new(
            "recipients_per_message",
            count("recipients", 1_000, 1..=100_000),
            "Recipients of one message; one more hears `452 4.5.3`. Announced in LIMITS. RFC 5321 \
             section 4.5.3.1.8 asks for at least 100.",
        ),
        Key::new(
            "message_size",
            Form::Size {
                default: "50MB",
                range: 1_024..=1 << 40,
            },
            "Size of one message as it is received; a bigger one hears `552 5.3.4`. Announced by \
             SIZE.",
        ),
        Key::new(
            "errors_per_session",
            count("errors", 20, 1..=100_000),
            "Errors of a client since its last accepted message; the last of them ends the \
             session with `421 4.7.0`. They are its own: syntax, sequence, faults of a message, \
             and what the policy refuses to a stranger. What a next hop refuses is no error.",
        )
        .see(&["limits.unknown_recipients_per_session"]),
        Key::new(
            "unknown_recipients_per_session",
            count("recipients", 100, 1..=100_000),
            "Recipients of a session that the next hop says do not exist; one more ends the \
             session with `421 4.7.0`. An accepted message subtracts one. Local networks and \
             sources on permit lists are exempt.",
        )
        .see(&["limits.errors_per_session", "relay.networks"]),
        Key::new(
            "transactions_per_session",
            count("MAIL commands", 100_000, 1..=1_000_000_000),
            "MAIL commands in one session; one more hears `421`, and the client connects again. \
             Announced in LIMITS, at most as 999999.",
        ),
        Key::new(
            "messages_per_user",
            count("messages an hour", 300, 1..=1_000_000_000),
            "Messages that one user may begin within an hour, over all sessions; one more hears \
             `450 4.7.1`. It holds for every client that has authenticated, also in a local \
             network: it bounds what a stolen password is good for. What was sent is forgotten \
             evenly over the hour that follows, and at a restart.",
        )
        .see(&["limits.recipients_per_user", "auth.users"]),
        Key::new(
            "recipients_per_user",
            count("recipients an hour", 1_000, 1..=1_000_000_000),
            "Recipients that one user may have within an hour, over all messages; one more hears \
             `450 4.7.1`.",
        )
        .see(&["limits.messages_per_user"]),
        Key::new(
            "command_timeout",
            duration(FIVE_MINUTES, SECOND..=HOUR),
            "The time from the moment the gate waits for a command to the end of its line; then \
             `421 4.4.2`. A part of a line does not extend it. It is also how long a client may \
             take none of its replies.",
        ),
        Key::new(
            "data_timeout",
            duration(FIVE_MINUTES, SECOND..=HOUR),
            "How far ahead the deadline for message data is after the 354. What arrives moves it \
             on, at the rate of `data_rate_min`, but never further ahead than this. Then \
             `421 4.4.2`.",
        )
        .see(&["limits.data_rate_min"]),
        Key::new(
            "data_rate_min",
            count("bytes per second", 500, 1..=1_000_000_000),
            "The rate of message data that a client has to keep up over time.",
        )
        .see(&["limits.data_timeout"]),
        Key::new(
            "greeting_delay",
            duration(Duration::ZERO, Duration::ZERO..=FIVE_MINUTES),
            "How long a stranger waits for the greeting; a client that talks before it hears \
             `554 5.5.0`, and the session ends. `\"0s\"`: no delay.",
        ),
        Key::new(
            "shutdown_timeout",
            duration(HALF_A_MINUTE, Duration::ZERO..=HOUR),
            "How long sessions may go on with a transaction after SIGTERM; then `421 4.3.2`. A \
             second SIGTERM stops at once.",
        ),
        Key::new(
            "line_length",
            word(
                "pass",
                &[
                    ("pass", "passed on as they are"),
                    ("refuse", "the message is refused"),
                ],
            ),
            "What the gate does with lines of message data over the 998 octets of RFC 5322 section \
             2.1.1. It never cuts them.",
        ),
    ],
    later: &[],
};

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once, of the whole gate. One more gets `421 4.3.2`.
    pub sessions: u32,
    /// Sessions at once from one source: an IPv4 address or an IPv6 /64. One more gets `421 4.7.0`.
    /// It holds for strangers only: the local networks and permit-listed sources are
    /// [exempt](crate::policy::Client::is_exempt).
    pub sessions_per_source: u32,
    /// Recipients of one message. One more gets `452 4.5.3`. RFC 5321 section 4.5.3.1.8 asks for at
    /// least 100.
    pub recipients_per_message: u32,
    /// Octets of one message as it is received; announced by SIZE. More gets `552 5.3.4`.
    pub message_size: u64,
    /// Errors of a client in one session since its last accepted message; then `421 4.7.0`. They
    /// are its own: syntax, sequence, faults of a message, and what the policy refuses to a
    /// stranger. What a next hop refuses is none.
    pub errors_per_session: u32,
    /// Recipients of one session that the next hop says do not exist; one more ends it with
    /// `421 4.7.0`. An accepted message takes one of them back. It holds for strangers only, as
    /// `sessions_per_source` does: guessing addresses is to cost something. Below 100 it cuts
    /// messages that RFC 5321 section 4.5.3.1.8 wants to be possible.
    pub unknown_recipients_per_session: u32,
    /// MAIL commands in one session; then `421`, and the client comes again.
    pub transactions_per_session: u32,
    /// Messages that one user may begin within an hour. One more gets `450 4.7.1`.
    pub messages_per_user: u32,
    /// Recipients that one user may have within an hour. One more gets `450 4.7.1`.
    pub recipients_per_user: u32,
    /// The time from the moment the gate waits for a command to the end of its line; then
    /// `421 4.4.2`. A part of a line does not extend it.
    pub command_timeout: Duration,
    /// How far ahead the deadline for message data is: that much after the 354, moved on by what
    /// arrives at the rate of `data_rate_min`, and never further ahead than this. Then `421 4.4.2`.
    pub data_timeout: Duration,
    /// Octets of message data a second that a client has to keep up over time.
    pub data_rate_min: u64,
    /// How long a stranger waits for the greeting. A client that talks before it is refused;
    /// zero: no delay.
    pub greeting_delay: Duration,
    /// How long sessions may go on with a transaction after the gate was asked to stop; then
    /// `421 4.3.2`.
    pub shutdown_timeout: Duration,
    /// What happens to lines of message data over the 998 octets of RFC 5322 section 2.1.1.
    pub line_length: LineLength,
}

/// What happens to lines of message data over 998 octets. They are never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineLength {
    /// Passed on as they are.
    Pass,
    /// The message is refused.
    Refuse,
}

impl Limits {
    pub(super) fn read(s: &mut Section<'_, '_>) -> Limits {
        let lines = [("pass", LineLength::Pass), ("refuse", LineLength::Refuse)];
        Limits {
            sessions: s.count_u32("sessions"),
            sessions_per_source: s.count_u32("sessions_per_source"),
            recipients_per_message: s.count_u32("recipients_per_message"),
            message_size: s.size("message_size"),
            errors_per_session: s.count_u32("errors_per_session"),
            unknown_recipients_per_session: s.count_u32("unknown_recipients_per_session"),
            transactions_per_session: s.count_u32("transactions_per_session"),
            messages_per_user: s.count_u32("messages_per_user"),
            recipients_per_user: s.count_u32("recipients_per_user"),
            command_timeout: s.duration("command_timeout"),
            data_timeout: s.duration("data_timeout"),
            data_rate_min: s.count("data_rate_min"),
            greeting_delay: s.duration("greeting_delay"),
            shutdown_timeout: s.duration("shutdown_timeout"),
            line_length: s.word("line_length", &lines).unwrap_or(LineLength::Pass),
        }
    }
}
