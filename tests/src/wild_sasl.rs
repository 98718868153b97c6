//! Responses of AUTH, lines of Dovecot and user files that may be anything, for fuzzing and for
//! properties.
//!
//! A script is bytes. The first says what the rest is: the responses of a mechanism, each ended by
//! [`END`]; lines of Dovecot; a user file.

use std::sync::OnceLock;

use portcullis::auth::Users;
use portcullis::auth::dovecot::ServerLine;
use portcullis::auth::exchange::{Exchange, Mechanism, Step};
use zeroize::Zeroizing;

/// Between two responses.
pub const END: u8 = 0xff;

/// The responses of a client until the server has no more to ask: SCRAM has three.
const RESPONSES_MAX: usize = 3;

/// alice, with SCRAM keys of a password that no script has.
const USERS: &str = "secret=AAAAAAAAAAAAAAAAAAAAAA==\n\
    alice password=$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
    U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM \
    scram=SCRAM-SHA-256$4096:AAAAAAAAAAA=$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";

/// Scripts that get far, as the beginning of a corpus.
pub const SEEDS: &[&[u8]] = &[
    b"\x00\0alice\0sesame",
    b"\x01alice\xffsesame",
    b"\x02n,,n=alice,r=abc\xffc=biws,r=abcAwMDAwMDAwMDAwMDAwMDAw==,p=\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\xff",
    b"\x03VERSION\t1\t2\nOK\t1\tuser=a\nFAIL\t2\ttemp\nCONT\t3\tAA==\nMECH\tPLAIN\n",
    b"\x04# users\nalice password=$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$AAAA senders=a@b\n",
];

/// Plays a script.
///
/// # Errors
/// Something that must hold whatever comes in does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [what, rest @ ..] = script else {
        return Ok(());
    };
    match what % 5 {
        0 => exchange(Mechanism::Plain, rest),
        1 => exchange(Mechanism::Login, rest),
        2 => exchange(Mechanism::ScramSha256, rest),
        3 => {
            // That it ends is what is asked for.
            rest.split(|&octet| octet == b'\n').for_each(|line| {
                let _ = ServerLine::parse(line);
            });
            Ok(())
        }
        _ => user_file(&String::from_utf8_lossy(rest)),
    }
}

fn users() -> &'static Users {
    static PARSED: OnceLock<Users> = OnceLock::new();
    PARSED.get_or_init(|| Users::parse(USERS).unwrap_or_else(|faults| panic!("{faults:?}")))
}

fn exchange(mechanism: Mechanism, script: &[u8]) -> Result<(), String> {
    let mut responses = script.split(|&octet| octet == END);
    let mut response = || Zeroizing::new(responses.next().unwrap_or_default().to_vec());
    let mut exchange = Exchange::new(mechanism, users(), [3; 16]);
    let mut step = exchange.begin(Some(response()));
    let mut said = 1;
    while let Step::Challenge(challenge) = &step {
        hold(said < RESPONSES_MAX, "it asks on and on")?;
        hold(
            challenge.len() <= script.len() + 128,
            "a challenge out of bounds",
        )?;
        step = exchange.step(response());
        said += 1;
    }
    match step {
        Step::Success(name) => Err(format!("{name} without a password")),
        Step::Check(credentials) => {
            let name = &credentials.name;
            let is_key = name.is_empty() || users().get(name).is_none_or(|user| user.name == *name);
            hold(is_key, "a name that is not in its form")?;
            hold(
                mechanism != Mechanism::ScramSha256,
                "SCRAM has no password to check",
            )
        }
        Step::Wrong(_) | Step::Malformed | Step::Challenge(_) => {
            let after = exchange.step(response());
            let is_over = matches!(after, Step::Malformed);
            hold(is_over, "it goes on after its end")
        }
    }
}

/// A file is either refused with its faults, or its users can be found.
fn user_file(text: &str) -> Result<(), String> {
    match Users::parse(text) {
        Err(faults) => {
            let lines = text.lines().count();
            let is_there = |line: usize| (1..=lines).contains(&line);
            let have_place = faults.iter().all(|fault| fault.line.is_some_and(is_there));
            hold(!faults.is_empty() && have_place, "a fault without a place")
        }
        Ok(users) => {
            let all = users.all();
            let are_found = all.iter().all(|user| {
                let found = users.get(&user.name);
                found.is_some_and(|found| found.line == user.line)
            });
            hold(
                are_found && all.len() == users.len(),
                "a user that is not found",
            )
        }
    }
}

fn hold(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}
