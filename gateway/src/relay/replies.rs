//! What we say ourselves about a transaction with a next hop, and what a reply of one means.

use portcullis_smtp::reply::{EnhancedCode, Reply};

/// The next hop was lost, or never had, and the client may try again.
const UNAVAILABLE: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 1),
    "No answer from the next hop, please try again later",
);
/// The same when it said why.
const REFUSES: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 1),
    "The next hop takes no mail from this server now, please try again later",
);
/// The connection broke when it could no longer be replaced.
pub(super) const LOST: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 2),
    "Connection to the next hop lost, please try again later",
);
pub(super) const CHANGED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 4, 2),
    "The next hop changed, please send the message again",
);
/// There is no room for another connection.
pub const NO_CONNECTION: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 3, 2),
    "Too many connections, please try again later",
);
/// The route demands TLS, and the next hop does not offer it.
pub const TLS_NOT_OFFERED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 7, 4),
    "The next hop does not offer TLS, please try again later",
);
/// The route demands TLS, and that failed.
pub const TLS_FAILED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 7, 5),
    "TLS with the next hop failed, please try again later",
);
/// The next hop does not know the gate as the route says.
pub const AUTH_FAILED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 7, 0),
    "Authentication with the next hop failed, please try again later",
);
/// The route demands that the next hop be told of the client.
pub const CLIENT_UNNAMED: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 3, 5),
    "The next hop cannot be told of the client, please try again later",
);
pub(super) const DISCARDED: Reply<'static> =
    Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok, discarded");
/// The session of the client has words of its own for this.
pub(super) const PROCEED: Reply<'static> = Reply::fixed(354, EnhancedCode(2, 0, 0), "");
pub(super) const RECIPIENT_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 1, 5), "Ok");
pub(super) const LOOP: Reply<'static> = Reply::fixed(
    554,
    EnhancedCode(5, 4, 6),
    "Too many Received lines, this is a mail loop",
);
pub(super) const NOT_SEVEN_BIT: Reply<'static> = Reply::fixed(
    554,
    EnhancedCode(5, 6, 3),
    "The next hop does not take 8-bit messages",
);
pub(super) const NO_UTF8: Reply<'static> = Reply::fixed(
    550,
    EnhancedCode(5, 6, 7),
    "The next hop does not take internationalized addresses",
);
pub(super) const NO_UTF8_HEADER: Reply<'static> = Reply::fixed(
    550,
    EnhancedCode(5, 6, 9),
    "The next hop does not take internationalized headers",
);
pub(super) const TOO_BIG: Reply<'static> = Reply::fixed(
    552,
    EnhancedCode(5, 3, 4),
    "Message is bigger than the next hop takes",
);
pub(super) const RECIPIENTS: Reply<'static> = Reply::fixed(
    452,
    EnhancedCode(4, 5, 3),
    "Too many recipients for the next hop, please send the rest in another transaction",
);
pub(super) const DONE: Reply<'static> =
    Reply::fixed(503, EnhancedCode(5, 5, 1), "The transaction is over");
/// Characters of what the next hop said that the client hears of.
const REASON_MAX: usize = 400;

/// Why a next hop was of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What it said when it took no connection.
    Said(Reply<'static>),
    /// It does not meet what its route demands of it; this is what clients hear.
    Unfit(Reply<'static>),
}

/// The answer when no next hop takes the transaction; `refusal` is why one of them did not.
pub fn unavailable(refusal: Option<&Refusal>) -> Reply<'static> {
    match refusal {
        None => UNAVAILABLE,
        Some(Refusal::Said(said)) => quoting(&REFUSES, said),
        Some(Refusal::Unfit(reply)) => reply.clone(),
    }
}

/// A connection that broke, with what the next hop said when it did.
pub(super) fn lost(said: Option<&Reply<'_>>) -> Reply<'static> {
    said.map_or(LOST, |said| quoting(&LOST, said))
}

/// Our own reply with the words of the next hop, in one line of printable ASCII: they come from
/// elsewhere, and the client can only show them.
fn quoting(reply: &Reply<'static>, said: &Reply<'_>) -> Reply<'static> {
    let printable = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    let words: String = said
        .to_string()
        .chars()
        .map(printable)
        .take(REASON_MAX)
        .collect();
    let text = format!("{}; it said: {}", reply.text, words.trim_end());
    Reply::new(reply.code, reply.enhanced, text)
}

/// Whether a refusal of RCPT says that there is no such recipient, which is what guessing addresses
/// brings in.
///
/// RFC 3463 section 3.2 has X.1 for addresses, of which 7 and 8 are about the sender's; X.0 says
/// nothing, so the code does; and Exchange refuses unknown recipients with 5.4.1. Without an
/// enhanced code 550, 551 and 553 mean it (RFC 5321 section 4.2.3).
pub fn is_unknown_recipient(reply: &Reply<'_>) -> bool {
    let by_code = matches!(reply.code, 550 | 551 | 553);
    match reply.enhanced {
        Some(EnhancedCode(5, 1, detail)) => !matches!(detail, 7 | 8),
        Some(EnhancedCode(5, 4, 1)) => true,
        None | Some(EnhancedCode(5, 0, _)) => by_code,
        Some(_) => false,
    }
}
