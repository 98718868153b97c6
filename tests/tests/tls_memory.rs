//! What the TLS part of an idle session takes. A process of its own, because it is measured by what
//! the process has in memory.

use std::fs;

use portcullis_tests::{machine, wild_tls};

/// The bound, in octets.
const IDLE_MAX: usize = 4096;
/// Connections that are measured together.
const CONNECTIONS: usize = 3000;

/// What this process has in memory.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn an_idle_connection_takes_at_most_4_kib() {
    machine::forbid_huge_pages().unwrap();
    let (server, client) = wild_tls::ends();
    let connect = || {
        let (mut ours, mut theirs) = (
            server.accept().unwrap(),
            client.connect("mx.example").unwrap(),
        );
        wild_tls::shake_hands(&mut theirs, &mut ours).unwrap();
        assert_eq!(ours.octets_kept(), 0);
        ours
    };
    // What a first handshake leaves in the allocator.
    let mut kept: Vec<_> = (0..200).map(|_| connect()).collect();
    kept.reserve(CONNECTIONS);
    let before = resident();
    kept.extend((0..CONNECTIONS).map(|_| connect()));
    let each = (resident() - before) / CONNECTIONS;
    println!("an idle TLS connection takes {each} octets");
    assert!(each <= IDLE_MAX, "{each} octets");
    assert!(each > 256, "{each} octets: nothing was measured");
}
