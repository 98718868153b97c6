//! What tests share: the gate as a process, peers for it to talk to, a simulation of its network,
//! and readers of the tables of cases. Fuzz targets use it too.
//!
//! For whole-system tests:
//! - [`process`]: the real binary with a configuration of its own;
//! - [`dialogue`]: their client, SMTP over a socket, line by line;
//! - [`receiver`], [`postfix`], [`name_server`]: their peers, which are a next hop that follows a
//!   script, `smtp-source` and `smtp-sink`, and a DNS server;
//! - [`dovecot`]: a real one, that knows users; [`users`]: a user file; [`mail_server`]: a Postfix
//!   as next hop;
//! - [`syn`]: single SYNs, made by hand;
//! - [`wait`], [`machine`]: waiting with a bound; free ports and open files.
//!
//! For tests of one part:
//! - [`simulation`]: a worker on a simulated network, on virtual time;
//! - [`checked_session`]: the SMTP engine alone, in memory, with what must hold after each step;
//! - [`random_frame`]: frames at random, for the comparison of the filter with tcpdump.
//!
//! For tables of cases and for fuzzing:
//! - [`transcript`], [`list_cases`], [`packet_cases`], [`policy_cases`], [`front_cases`]: readers
//!   of the tables in `transcripts`, `lists`, `packets`, `policy` and `fronts`;
//! - [`wild_client`], [`wild_next_hop`], [`wild_list`], [`wild_login`], [`wild_packet`],
//!   [`wild_front`], [`wild_tls`], [`wild_sasl`]: any octets as input, and what must hold, for fuzz
//!   targets and properties;
//! - [`fuzz_seeds`]: the tables as the beginning of a fuzzer's corpus.
//!
//! A whole-system test starts the real binary and looks at it from outside only: sockets, logs,
//! metrics, `/proc`. What needs root says so in one visible line where it cannot run ([`root`]).
//! Where a new case belongs is in `tests/README.md`.

pub mod checked_session;
pub mod dialogue;
pub mod dovecot;
pub mod front_cases;
pub mod fuzz_seeds;
pub mod list_cases;
pub mod machine;
pub mod mail_server;
pub mod name_server;
pub mod packet_cases;
pub mod pki;
pub mod policy_cases;
pub mod policy_sessions;
pub mod postfix;
pub mod process;
pub mod random_frame;
pub mod receiver;
pub mod simulation;
pub mod syn;
pub mod tls_client;
pub mod transcript;
pub mod users;
pub mod wait;
pub mod wild_client;
pub mod wild_front;
pub mod wild_list;
pub mod wild_login;
pub mod wild_next_hop;
pub mod wild_packet;
pub mod wild_sasl;
pub mod wild_tls;

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
