//! Clients that may say anything, for fuzzing and for properties.
//!
//! A script is octets: the first says how the policy answers, the second how the rest is cut; then
//! come groups of what the client sends, with [`FLUSH`] between them. Each script is played several
//! ways, and all must come out the same.

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::sasl::Mechanism;
use portcullis_smtp::server::{Blame, Settings};

use crate::checked_session::CheckedSession;

/// Ends a group: what follows is sent after the replies have gone out. (No UTF-8 text has this
/// octet.)
pub const FLUSH: u8 = 0xfe;

static REFUSALS: [Reply<'static>; 5] = [
    // To AUTH it is a challenge.
    Reply::fixed(334, EnhancedCode(2, 0, 0), "Go on"),
    Reply::fixed(550, EnhancedCode(5, 7, 1), "Not here"),
    Reply::fixed(451, EnhancedCode(4, 4, 1), "Not now,\nperhaps later"),
    Reply::fixed(250, EnhancedCode(2, 1, 5), "In other words\n\r\nyes"),
    Reply::fixed(421, EnhancedCode(4, 3, 2), "Closing"),
];

const BLAMES: [Blame; 3] = [Blame::Client, Blame::None, Blame::UnknownRecipient];

/// All that a session shows to the outside.
#[derive(Debug, PartialEq)]
struct Shown {
    replies: String,
    events: Vec<String>,
    messages: Vec<Vec<u8>>,
}

/// Plays a script in all ways.
///
/// # Errors
/// Something that must hold whatever a client says does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [pattern, cut, sent @ ..] = script else {
        return Ok(());
    };
    let groups: Vec<&[u8]> = sent.split(|&octet| octet == FLUSH).collect();
    let cut = usize::from(*cut % 16) + 1;
    let expected = play(*pattern, usize::MAX, false, &groups)?;
    for (cut, late_answers) in [(cut, false), (usize::MAX, true), (cut, true)] {
        let shown = play(*pattern, cut, late_answers, &groups)?;
        if shown != expected {
            return Err(format!(
                "cut {cut}, late answers {late_answers}:\n{shown:#?}\ninstead of\n{expected:#?}"
            ));
        }
    }
    // Each reply has its command, except the greeting and a last 421; each message has its MAIL.
    let lines = sent.iter().filter(|&&octet| octet == b'\n').count();
    let replies = expected
        .replies
        .lines()
        .filter(|line| line.as_bytes().get(3) != Some(&b'-'))
        .count();
    if replies > lines + 2 {
        return Err(format!("{replies} replies to {lines} lines: {expected:#?}"));
    }
    Ok(())
}

fn play(pattern: u8, cut: usize, late_answers: bool, groups: &[&[u8]]) -> Result<Shown, String> {
    let settings = Settings {
        message_size_max: 200,
        recipients_max: 3,
        transactions_max: 4,
        errors_max: 6,
        recipients_unknown_max: 2,
        command_length_max: 128,
        starttls: pattern & 1 == 0,
        mechanisms: Mechanism::ALL.into_iter().collect(),
        auth_without_tls: pattern & 2 == 0,
        xclient: pattern & 16 == 0,
        auth_required: pattern & 12 == 12,
        ..Settings::new("mx.example")
    };
    let mut answers = 0_u32;
    let policy = move |_| {
        let refuse = pattern.rotate_right(answers) & 1 == 1;
        answers += 1;
        let refusal = &REFUSALS[answers as usize / 3 % REFUSALS.len()];
        let blame = BLAMES[answers as usize % BLAMES.len()];
        refuse.then(|| (refusal.clone(), blame))
    };
    let mut session = CheckedSession::new(&settings, late_answers, Box::new(policy));
    session.greet()?;
    let mut replies = session.flushed()?;
    for group in groups {
        for piece in group.chunks(cut) {
            session.take(piece)?;
        }
        session.settle()?;
        replies += &session.flushed()?;
    }
    let CheckedSession {
        events, messages, ..
    } = session;
    Ok(Shown {
        replies,
        events,
        messages,
    })
}
