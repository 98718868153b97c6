//! Properties of sessions that hold whatever a client sends, checked with what real and hostile
//! clients send.

use portcullis_smtp::Settings;
use portcullis_tests::checked_session::CheckedSession;
use portcullis_tests::wild_client::{self, FLUSH};
use portcullis_tests::wild_next_hop;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SAYINGS: &[&str] = &[
    "EHLO client.example\r\n",
    "HELO client.example\r\n",
    "EHLO\r\n",
    "MAIL FROM:<a@b.example>\r\n",
    "MAIL FROM:<a@b.example> SIZE=150 BODY=8BITMIME SMTPUTF8\r\n",
    "MAIL FROM:<> SIZE=300\r\n",
    "RCPT TO:<c@d.example>\r\n",
    "RCPT TO:<ü@d.example>\r\n",
    "RCPT TO:<c@d.example> NOTIFY=NEVER\r\n",
    "RCPT TO:c@d.example\r\n",
    "DATA\r\n",
    "BDAT 6 LAST\r\n",
    "BDAT 6\r\n",
    "BDAT 0\r\n",
    "BDAT 0 LAST\r\n",
    "BDAT x\r\n",
    "BDAT 300 LAST\r\n",
    "RSET\r\n",
    "NOOP\r\n",
    "VRFY a\r\n",
    "STARTTLS\r\n",
    "AUTH PLAIN AGEAYg==\r\n",
    "AUTH LOGIN\r\n",
    "YWFh\r\n",
    "*\r\n",
    "XCLIENT ADDR=192.0.2.1\r\n",
    "QUIT\r\n",
    "GET / HTTP/1.0\r\n",
    "text\r\n",
    "\r\n",
    ".\r\n",
    "..\r\n",
    ".",
    "\r",
    "\n",
    "\0",
    "a line that is longer than a command may be in this test, because it repeats itself again \
     and again: it repeats itself again and again\r\n",
];

/// Good lines, so that not every script ends with its first mistake.
const COURTESIES: &[&str] = &[
    "MAIL FROM:<a@b.example>\r\n",
    "RCPT TO:<c@d.example>\r\n",
    "RCPT TO:<d@d.example>\r\n",
    "BDAT 6\r\ntext\r\n",
    "RSET\r\n",
];
const BEGIN: &str = "EHLO client.example\r\n";
const ENVELOPE: &str = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";

fn script() -> impl Strategy<Value = Vec<u8>> {
    let saying = prop_oneof![3 => select(COURTESIES), 2 => select(SAYINGS)];
    let group = vec(saying, 0..10).prop_map(|sayings| sayings.concat().into_bytes());
    let beginnings = select(vec![
        vec![],
        vec![BEGIN],
        vec![BEGIN, ENVELOPE],
        vec![BEGIN, ENVELOPE, "DATA\r\n"],
    ]);
    let groups = (beginnings, vec(group, 0..5)).prop_map(|(beginning, groups)| {
        let beginning = beginning.into_iter().map(|group| group.as_bytes().to_vec());
        beginning.chain(groups).collect::<Vec<_>>()
    });
    (prop_oneof![Just(0), any::<u8>()], any::<u8>(), groups)
        .prop_map(|(pattern, cut, groups)| [vec![pattern, cut], groups.join(&FLUSH)].concat())
}

/// Replies of next hops, and pieces of replies.
const ANSWERS: &[&str] = &[
    "220 next.example ESMTP\r\n",
    "250 2.0.0 Ok\r\n",
    "250-next.example\r\n250-LIMITS MAILMAX=2 RCPTMAX=1\r\n250 SIZE 1000\r\n",
    "250-2.0.0 one\r\n",
    "250\r\n",
    "354 Go on\r\n",
    "421 4.3.2 Later\r\n",
    "550 5.1.1 No\n",
    "250",
    "-",
    "\r",
    "\n",
    "x",
];

fn answers() -> impl Strategy<Value = Vec<u8>> {
    let said = select(ANSWERS).prop_map(|said| said.as_bytes().to_vec());
    let long = (0..9_000usize, select(vec!["", "\n", "\r\n"]))
        .prop_map(|(length, end)| ["250 ", &"x".repeat(length), end].concat().into_bytes());
    let command = any::<u8>().prop_map(|command| vec![wild_next_hop::COMMAND, command]);
    let greeting = Just(b"220 next.example\r\n".to_vec());
    let more = vec(prop_oneof![3 => said, 1 => long, 3 => command], 0..14);
    (greeting, more).prop_map(|(greeting, more)| [greeting, more.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_session_does_not_depend_on_cuts_or_on_late_answers(script in script()) {
        wild_client::check(&script)
            .map_err(|error| TestCaseError::fail(format!("{}\n{error}", script.escape_ascii())))?;
    }
}

proptest! {
    // Octet by octet through lines of thousands takes its time.
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_a_next_hop_says_does_not_depend_on_cuts(script in answers()) {
        wild_next_hop::check(&script)
            .map_err(|error| TestCaseError::fail(format!("{}\n{error}", script.escape_ascii())))?;
    }
}

/// Sends this number of NOOPs in one write with something after them. Returns the replies and the
/// events.
fn noops(count: usize) -> Result<(usize, Vec<String>), String> {
    let settings = Settings::new("mx.example");
    let mut session = CheckedSession::new(&settings, false, Box::new(|_| None));
    session.greet()?;
    session.flushed()?;
    for _ in 0..2 {
        session.take(format!("{}HELP\r\n", "NOOP\r\n".repeat(count)).as_bytes())?;
        let replies = session.flushed()?;
        if !session.events.is_empty() {
            return Ok((replies.lines().count(), session.events));
        }
    }
    Ok((0, Vec::new()))
}

#[test]
fn noops_by_the_hundred_are_written_without_reading() {
    assert_eq!(noops(150), Ok((0, Vec::new())), "each group by itself");
    let abort = vec!["abort pipelining".to_owned()];
    assert_eq!(noops(10_000), Ok((201, abort)));
}
