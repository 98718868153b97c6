//! What the whole-system tests share: the gate as a process, peers for it to talk to, and data
//! tables to run.
//!
//! The tests start the real binary with a real configuration and look at it from outside only:
//! sockets, logs, metrics, `/proc`. What needs root says so in one visible line where it cannot run
//! ([`root`]).

pub mod conversation;
pub mod dialogue;
pub mod gate;
pub mod list_cases;
pub mod name_server;
pub mod packet_cases;
pub mod policy_cases;
pub mod policy_sessions;
pub mod postfix;
pub mod random_frame;
pub mod receiver;
pub mod simulation;
pub mod transcript;
pub mod watch;
pub mod wild_client;
pub mod wild_list;
pub mod wild_next_hop;
pub mod wild_packet;
pub mod wire;

use std::io::Write as _;

/// Whether this process may make namespaces and load programs; if not, says which test is left out.
///
/// The line goes past the test runner's capture on purpose: a test that did not run must not look
/// like one that did.
#[must_use]
pub fn root() -> bool {
    let permitted = portcullis::netns::permitted();
    if !permitted {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {test}");
    }
    permitted
}

/// Whether the long form of the tests was asked for (`PORTCULLIS_FULL=1`).
#[must_use]
pub fn full() -> bool {
    std::env::var_os("PORTCULLIS_FULL").is_some_and(|value| value == "1")
}
