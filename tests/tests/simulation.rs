//! The worker in simulated hostile networks: a thousand seeds, and the seeds that found a fault.
//!
//! `PORTCULLIS_SEED=N` runs one seed; `PORTCULLIS_SEEDS=N` that many, from a random beginning, for
//! a longer search.

use std::time::Duration;

use portcullis_tests::simulation::{self, Lookups, Summary, slow};

/// Seeds that a run always holds.
const SEEDS: u64 = 1_500;
/// Seeds that once showed a fault; each stays for good.
const FOUND: [u64; 2] = [
    // RSET to a next hop without PIPELINING, before it had answered MAIL.
    3_434_956_627_783_802_442,
    // A client that took its last reply slowly when the gate stopped.
    7_018_507_497_011_792_898,
];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) -> Summary {
    match simulation::run(seed) {
        Ok(summary) => summary,
        Err(violations) => {
            panic!("seed {seed} (PORTCULLIS_SEED={seed} runs it alone):\n{violations}")
        }
    }
}

#[test]
fn whatever_breaks_no_reply_is_lost_no_message_is_lost_or_doubled_and_nothing_leaks() {
    if let Some(seed) = variable("PORTCULLIS_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let (first, count) = match variable("PORTCULLIS_SEEDS") {
        Some(count) => (fastrand::u64(..u64::MAX / 2), count),
        None => (0, SEEDS),
    };
    let (mut accepted, mut arrived, mut turns) = (0, 0, 0u64);
    let mut lookups = Lookups::default();
    for seed in FOUND.into_iter().chain(first..first + count) {
        let summary = run(seed);
        accepted += summary.accepted;
        arrived += summary.arrived;
        turns += u64::from(summary.turns);
        lookups.add(summary.lookups);
    }
    println!("{count} seeds: {accepted} messages accepted, {arrived} arrived, {turns} turns");
    println!("{lookups:?}");
    // If nothing succeeded, all invariants would hold.
    assert!(
        accepted as u64 > count && arrived as u64 > count / 2,
        "hardly any message got through"
    );
    let rarest = lookups.each().into_iter().min();
    assert!(
        rarest.is_some_and(|times| times >= count / 50),
        "lists hardly ever do one of the things that they may: {lookups:?}"
    );
}

#[test]
fn a_next_hop_that_reads_slowly_but_steadily_is_served_for_hours() {
    // Octets of the message, and octets a second that are read.
    let table = [
        (12_000_000, 8 << 10),
        (400_000, 8 << 10),
        (12_000_000, 2_000),
        (1_000_000, 100),
    ];
    for (octets, pace) in table {
        let (reply, after) = slow::message(octets, pace, usize::MAX).expect("a reply");
        assert!(
            reply.starts_with("250 "),
            "{octets} at {pace}: {reply} after {after:?}"
        );
        let least = octets as f64 / f64::from(pace);
        assert!(
            after.as_secs_f64() >= least - 1.0,
            "{octets} at {pace}: {after:?}"
        );
    }
}

#[test]
fn a_next_hop_that_stops_reading_is_left_after_three_minutes() {
    // At once, or after a while: the time counts from the last octet that it took.
    for (stops_after, before) in [(100, 0), (1_000_000, 120)] {
        let (reply, after) = slow::message(12_000_000, 8 << 10, stops_after).expect("a reply");
        let after = after.as_secs();
        assert!(reply.starts_with("451 4.4.2 "), "{reply}");
        assert!(
            (before + 170..before + 240 + 64).contains(&after),
            "stopped after {stops_after}: left after {after} seconds"
        );
    }
}

#[test]
fn a_client_that_reads_slowly_after_quit_is_held_for_half_a_minute_at_most() {
    // It does not count as a session any more, so its source can open others.
    let took = slow::farewell(20_000, 500).unwrap();
    assert!(
        took >= Duration::from_secs(30) && took < Duration::from_secs(90),
        "{took:?}"
    );
    // A client that finishes within that time gets everything.
    let took = slow::farewell(20_000, 20_000).unwrap();
    assert!(took < Duration::from_secs(30), "{took:?}");
}
