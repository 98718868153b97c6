//! Every transcript in `tests/transcripts`, played against the sessions of `portcullis-smtp`.
//!
//! A server transcript is played many times: with its octets in one piece, one by one, and cut in
//! two at every place; with answers at once and as late as possible. The result must always be the
//! same.

mod client;
mod server;

use portcullis_tests::transcript::{self, Case};

/// Plays all cases and shows all that go wrong.
fn play(kind: &str, cases_min: usize, run: impl Fn(&Case) -> Result<(), String>) {
    let cases = transcript::read(kind).unwrap();
    assert!(
        cases.len() >= cases_min,
        "only {} {kind} transcripts were found",
        cases.len()
    );
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            run(case)
                .err()
                .map(|error| format!("{} {}\n{error}\n", case.origin, case.name))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} failed\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn server_sessions_go_as_written() {
    play("server", 60, server::play_every_way);
}

#[test]
fn client_sessions_go_as_written() {
    play("client", 10, client::play_every_way);
}

/// Splits one complete reply off the front of the output, and compares it with the expected one:
/// its lines or, with `...` at the end, the beginning of its first line.
fn expect_reply(written: &mut &str, expected: &str) -> Result<(), String> {
    let line = |text: &str| text.split_inclusive("\r\n").next().unwrap_or("").to_owned();
    let first = line(written);
    if let Some(begin) = expected.strip_suffix("...") {
        let mut spaced = first.clone();
        if spaced.as_bytes().get(3) == Some(&b'-') {
            spaced.replace_range(3..4, " ");
        }
        if !spaced.starts_with(begin) {
            return Err(format!("expected {expected:?}, found {first:?}"));
        }
        loop {
            let line = line(written);
            *written = &written[line.len()..];
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
    if first.strip_suffix("\r\n") != Some(expected) {
        return Err(format!("expected {expected:?}, found {first:?}"));
    }
    *written = &written[first.len()..];
    Ok(())
}
