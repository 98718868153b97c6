//! How sessions end: a connection with nothing more to say is closed at once, and no last reply
//! gets lost for it.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::process::{Process, relay_to};

/// Far less than the second for which a client that does not hang up was once waited for, and time
/// enough on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(500);

#[test]
fn after_221_the_connection_is_closed_at_once() -> Result<()> {
    let gate = Process::start(&relay_to("discard", "")?)?;
    // The best of some, for a machine that does other things as well.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let mut session = gate.dialogue()?;
        session.message("a@b.example", &["c@d.example"], b"text\r\n")?;
        session.expect("QUIT", "221")?;
        let begun = Instant::now();
        ensure!(session.closed()?.is_empty(), "something came after 221");
        best = best.min(begun.elapsed());
    }
    ensure!(best < AT_ONCE, "closed only after {best:?}");
    Ok(())
}

#[test]
fn a_client_that_talks_on_behind_quit_hears_its_221() -> Result<()> {
    let gate = Process::start(&relay_to("discard", "")?)?;
    for round in 0..20 {
        let session = gate.dialogue()?;
        let mut stream = session.stream();
        stream.write_all(b"NOOP\r\nQUIT\r\nNOOP\r\n")?;
        // More of it, while the gate says its last words and after that.
        for _ in 0..round {
            thread::sleep(Duration::from_millis(1));
            if stream.write_all(b"NOOP\r\n").is_err() {
                break;
            }
        }
        let mut heard = String::new();
        stream
            .read_to_string(&mut heard)
            .with_context(|| format!("round {round}, after {heard:?}"))?;
        ensure!(heard == "250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n", "{heard:?}");
    }
    Ok(())
}
