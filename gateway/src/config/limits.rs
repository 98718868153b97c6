//! The limits, in one table. Every bound of the relay that an operator can move is here, with its
//! default and the range that makes sense; a value outside of it is an error, not a surprise at
//! night.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::section::Section;

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
    /// From the moment we wait for a command to its last octet; then `421 4.4.2`. Octets that drip
    /// in do not move it.
    pub command_timeout: Duration,
    /// How far ahead the deadline for message data is: that much after the 354, moved on by what
    /// arrives at the rate of `data_rate_min`, and never further ahead than this. Then `421 4.4.2`.
    pub data_timeout: Duration,
    /// Octets of message data a second that a client has to keep up over time.
    pub data_rate_min: u64,
    /// How long a stranger waits for the greeting. Whoever talks before it is not honest; nought
    /// asks no patience.
    pub greeting_delay: Duration,
    /// How long sessions may go on with a transaction once the gate was told to stop; then
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
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        let lines = [("pass", LineLength::Pass), ("refuse", LineLength::Refuse)];
        Limits {
            sessions: count(s, "sessions", 200_000, 1..=10_000_000),
            sessions_per_source: count(s, "sessions_per_source", 50, 1..=10_000_000),
            recipients_per_message: count(s, "recipients_per_message", 1_000, 1..=100_000),
            message_size: s.size("message_size", "50MB", 1_024..=1 << 40),
            errors_per_session: count(s, "errors_per_session", 20, 1..=100_000),
            unknown_recipients_per_session: count(
                s,
                "unknown_recipients_per_session",
                100,
                1..=100_000,
            ),
            transactions_per_session: count(
                s,
                "transactions_per_session",
                100_000,
                1..=1_000_000_000,
            ),
            command_timeout: s.duration("command_timeout", 5 * MINUTE, SECOND..=HOUR),
            data_timeout: s.duration("data_timeout", 5 * MINUTE, SECOND..=HOUR),
            data_rate_min: s.count("data_rate_min", 500, 1..=1_000_000_000),
            greeting_delay: s.duration(
                "greeting_delay",
                Duration::ZERO,
                Duration::ZERO..=5 * MINUTE,
            ),
            shutdown_timeout: s.duration("shutdown_timeout", 30 * SECOND, Duration::ZERO..=HOUR),
            line_length: s
                .word("line_length", Some("pass"), &lines, &[])
                .unwrap_or(LineLength::Pass),
        }
    }
}

/// A number that fits into 32 bits because its range does.
pub(super) fn count(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: u32,
    range: RangeInclusive<u32>,
) -> u32 {
    let number = section.count(
        key,
        default.into(),
        u64::from(*range.start())..=u64::from(*range.end()),
    );
    u32::try_from(number).unwrap_or(default)
}
