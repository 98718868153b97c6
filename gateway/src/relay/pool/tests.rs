//! Which connection a transaction gets, by what is known of its next hops.

use super::*;

const NOW: Duration = Duration::from_secs(100);
const CLIENT: Conn = Conn {
    slot: 1,
    generation: 0,
};
const OTHER: Conn = Conn {
    slot: 2,
    generation: 0,
};
const HOP: Conn = Conn {
    slot: 9,
    generation: 0,
};

const WISH: Wish = Wish {
    fresh: false,
    hurried: false,
};
const FRESH: Wish = Wish {
    fresh: true,
    hurried: false,
};
const HURRIED: Wish = Wish {
    fresh: false,
    hurried: true,
};

fn address(port: u16) -> HopId {
    HopId {
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        demands: DemandsId::default(),
    }
}

fn pool() -> Pool {
    Pool::new(1, Duration::from_secs(10))
}

#[test]
fn a_released_connection_is_taken_again_before_a_new_one_is_opened() {
    let mut pool = pool();
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, NOW),
        Lease::Connect(address(1))
    );
    assert_eq!(pool.released(address(1), HOP), None);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, NOW),
        Lease::Pooled(HOP)
    );
}

#[test]
fn who_waits_longest_gets_the_connection() {
    let mut pool = pool();
    pool.lease(HOP, [address(1)], &[], WISH, NOW);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, NOW),
        Lease::Wait(address(1))
    );
    pool.lease(OTHER, [address(1)], &[], WISH, NOW);
    pool.gave_up(address(1), CLIENT);
    assert_eq!(pool.released(address(1), HOP), Some(OTHER));
}

#[test]
fn a_hop_that_is_down_is_passed_over_and_tried_again_later() {
    let (mut pool, both) = (pool(), [address(1), address(2)]);
    pool.lease(CLIENT, both, &[], WISH, NOW);
    pool.stalled(address(1), NOW);
    pool.closed(address(1), Some(HOP), false, NOW);
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, NOW),
        Lease::Connect(address(2))
    );
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, NOW),
        Lease::Unavailable
    );
    let later = NOW + Duration::from_secs(1);
    // It is tried again, but not by a transaction that has another.
    assert_eq!(pool.released(address(2), OTHER), None);
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, later),
        Lease::Pooled(OTHER)
    );
    assert_eq!(pool.take_probes(), [address(1)]);
    assert_eq!(
        pool.lease(CLIENT, both, &[], FRESH, later),
        Lease::Wait(address(2)),
        "nor by those that come during the probe"
    );
    assert_eq!(pool.take_probes(), []);
    pool.background_ended(address(1));
    pool.reached(address(1), NOW);
    assert_eq!(pool.released(address(1), HOP), None);
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, later),
        Lease::Pooled(HOP)
    );
}

#[test]
fn a_transaction_without_another_next_hop_waits_for_the_probe() {
    let (mut pool, both) = (
        Pool::new(5, Duration::from_secs(10)),
        [address(1), address(2)],
    );
    pool.stalled(address(1), NOW);
    pool.stalled(address(2), NOW);
    let later = NOW + RETRY_FIRST;
    let stranded = Lease::Stranded(address(1));
    assert_eq!(pool.lease(CLIENT, both, &[], WISH, later), stranded);
    assert_eq!(pool.lease(OTHER, both, &[], WISH, later), stranded);
    assert_eq!(pool.take_probes(), both, "one each");
    assert_eq!(pool.states()[0].waiting, 2);
    // The second one answers first: everybody asks again, and finds it.
    pool.background_ended(address(2));
    assert_eq!(pool.reached(address(2), NOW), [CLIENT, OTHER]);
    pool.released(address(2), HOP);
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, later),
        Lease::Pooled(HOP)
    );
    assert_eq!(
        pool.lease(OTHER, both, &[], WISH, later),
        Lease::Connect(address(2))
    );
}

#[test]
fn those_stranded_hear_of_a_probe_that_fails_too() {
    let mut pool = pool();
    pool.stalled(address(1), NOW);
    let later = NOW + RETRY_FIRST;
    pool.lease(CLIENT, [address(1)], &[], WISH, later);
    pool.lease(OTHER, [address(1)], &[], WISH, later);
    pool.gave_up(address(1), OTHER);
    pool.background_ended(address(1));
    pool.stalled(address(1), later);
    assert_eq!(pool.closed(address(1), Some(HOP), false, later), [CLIENT]);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, later),
        Lease::Unavailable
    );
}

#[test]
fn an_attempt_that_takes_too_long_costs_the_next_transactions_nothing() {
    let (mut pool, both) = (
        Pool::new(5, Duration::from_secs(10)),
        [address(1), address(2)],
    );
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, NOW),
        Lease::Connect(address(1))
    );
    assert_eq!(pool.overdue(address(1)), []);
    assert_eq!(
        pool.lease(OTHER, both, &[], WISH, NOW),
        Lease::Connect(address(2))
    );
    // Who has waited once waits for no other in turn: both are tried at the same time.
    assert_eq!(
        pool.lease(CLIENT, both, &[], HURRIED, NOW),
        Lease::Stranded(address(1))
    );
    assert_eq!(pool.take_probes(), [address(2)]);
    assert_eq!(pool.reached(address(2), NOW), [CLIENT]);
}

#[test]
fn a_next_hop_that_has_failed_is_the_last_resort_while_it_has_an_idle_connection() {
    let (mut pool, both) = (pool(), [address(1), address(2)]);
    pool.lease(CLIENT, both, &[], WISH, NOW);
    pool.reached(address(1), NOW);
    pool.released(address(1), HOP);
    pool.stalled(address(1), NOW);
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, NOW),
        Lease::Connect(address(2))
    );
    assert_eq!(
        pool.lease(OTHER, [address(1)], &[], WISH, NOW),
        Lease::Pooled(HOP)
    );
    pool.released(address(1), HOP);
    assert!(pool.states()[0].up, "it has answered");
}

#[test]
fn the_pause_after_failures_grows_to_the_limit_and_ends_with_a_success() {
    let (mut pool, mut now) = (pool(), NOW);
    let lease = |pool: &mut Pool, now| pool.lease(CLIENT, [address(1)], &[], WISH, now);
    for expected in [1, 2, 4, 8, 10, 10] {
        pool.stalled(address(1), now);
        let pause = Duration::from_secs(expected);
        let early = now + pause - Duration::from_millis(1);
        assert_eq!(lease(&mut pool, early), Lease::Unavailable);
        let probed = Lease::Stranded(address(1));
        assert_eq!(lease(&mut pool, now + pause), probed);
        assert_eq!(pool.take_probes(), [address(1)]);
        assert!(
            !pool.states()[0].up,
            "it is not known yet whether it is back"
        );
        now += pause;
        pool.background_ended(address(1));
        pool.closed(address(1), Some(HOP), false, now);
    }
    pool.reached(address(1), NOW);
    assert!(pool.states()[0].up);
    pool.stalled(address(1), now);
    pool.closed(address(1), Some(HOP), true, now);
    let later = now + Duration::from_secs(1);
    assert_eq!(lease(&mut pool, now), Lease::Unavailable);
    assert_eq!(lease(&mut pool, later), Lease::Stranded(address(1)));
}

#[test]
fn clients_waiting_for_a_hop_that_fails_are_told_to_ask_again() {
    let mut pool = pool();
    pool.lease(HOP, [address(1)], &[], WISH, NOW);
    pool.lease(CLIENT, [address(1)], &[], WISH, NOW);
    pool.lease(OTHER, [address(1)], &[], WISH, NOW);
    pool.stalled(address(1), NOW);
    assert_eq!(
        pool.closed(address(1), Some(HOP), false, NOW),
        [CLIENT, OTHER]
    );
}

#[test]
fn no_client_waits_for_a_fresh_connection_while_one_is_idle() {
    let mut pool = pool();
    pool.lease(CLIENT, [address(1)], &[], WISH, NOW);
    pool.released(address(1), HOP);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], FRESH, NOW),
        Lease::Pooled(HOP)
    );
}

#[test]
fn a_next_hop_that_takes_no_more_connections_is_not_down() {
    let mut pool = Pool::new(3, Duration::from_secs(10));
    pool.lease(CLIENT, [address(1)], &[], WISH, NOW);
    pool.reached(address(1), NOW);
    pool.lease(OTHER, [address(1)], &[], WISH, NOW);
    assert!(pool.refused(address(1), NOW));
    pool.closed(address(1), Some(HOP), false, NOW);
    assert!(pool.states()[0].up);
    assert_eq!(
        pool.lease(OTHER, [address(1)], &[], WISH, NOW),
        Lease::Wait(address(1))
    );
    let later = NOW + RETRY_FIRST;
    assert_eq!(
        pool.lease(OTHER, [address(1)], &[], WISH, later),
        Lease::Connect(address(1))
    );
}

#[test]
fn connections_that_fail_together_are_one_failure() {
    let mut pool = Pool::new(8, Duration::from_secs(30));
    for _ in 0..8 {
        pool.stalled(address(1), NOW);
    }
    let later = NOW + RETRY_FIRST;
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], WISH, later),
        Lease::Stranded(address(1))
    );
    assert_eq!(pool.take_probes(), [address(1)]);
}

#[test]
fn a_dead_pooled_connection_is_followed_by_a_fresh_one() {
    let mut pool = Pool::new(3, Duration::from_secs(10));
    pool.lease(CLIENT, [address(1)], &[], WISH, NOW);
    pool.released(address(1), HOP);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], FRESH, NOW),
        Lease::Connect(address(1))
    );
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[address(1)], WISH, NOW),
        Lease::Unavailable
    );
}

#[test]
fn who_is_stranded_asks_again_when_a_hop_that_was_left_alone_may_be_tried() {
    let (mut pool, both) = (pool(), [address(1), address(2)]);
    // The first one refuses, the second swallows.
    pool.lease(OTHER, both, &[], WISH, NOW);
    pool.refused(address(1), NOW);
    pool.closed(address(1), None, false, NOW);
    pool.lease(OTHER, both, &[address(1)], WISH, NOW);
    pool.overdue(address(2));
    let stranded = Lease::Stranded(address(2));
    assert_eq!(pool.lease(CLIENT, both, &[], WISH, NOW), stranded);
    assert!(pool.has_stranded());
    assert_eq!(pool.take_stranded(NOW), []);
    let later = NOW + Duration::from_secs(1);
    assert_eq!(pool.take_stranded(later), [(CLIENT, address(2))]);
    assert!(!pool.has_stranded());
    assert_eq!(
        pool.lease(CLIENT, both, &[], WISH, later),
        Lease::Stranded(address(1))
    );
    assert_eq!(pool.take_probes(), [address(1)]);
    // It is being tried: there is no more to be done.
    assert_eq!(pool.take_stranded(later), []);
}

#[test]
fn who_is_stranded_asks_again_when_a_hop_that_was_silent_answers_on_another_connection() {
    let (mut pool, both) = (
        Pool::new(2, Duration::from_secs(10)),
        [address(1), address(2)],
    );
    pool.lease(OTHER, both, &[], WISH, NOW);
    pool.reached(address(1), NOW);
    pool.stalled(address(1), NOW);
    pool.lease(OTHER, both, &[address(1)], WISH, NOW);
    pool.overdue(address(2));
    let stranded = Lease::Stranded(address(2));
    assert_eq!(pool.lease(CLIENT, both, &[], WISH, NOW), stranded);
    assert_eq!(pool.take_stranded(NOW), []);
    assert_eq!(pool.released(address(1), HOP), None);
    assert_eq!(pool.take_stranded(NOW), [(CLIENT, address(2))]);
    assert_eq!(pool.lease(CLIENT, both, &[], WISH, NOW), Lease::Pooled(HOP));
}

#[test]
fn who_has_waited_in_vain_is_not_refused_while_others_open_all_connections_to_a_hop() {
    let mut pool = pool();
    pool.lease(OTHER, [address(1)], &[], WISH, NOW);
    let stranded = Lease::Stranded(address(1));
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], HURRIED, NOW),
        stranded
    );
    assert_eq!(pool.reached(address(1), NOW), [CLIENT]);
}

#[test]
fn a_hop_whose_probe_leaves_no_connection_is_not_probed_again_but_used() {
    let both = [address(1), address(2)];
    // After the answer of the probe; what the transaction gets then, and what is probed.
    let cases = [
        (Duration::ZERO, Lease::Connect(address(2)), &[][..]),
        (
            WELL_TIME - Duration::from_millis(1),
            Lease::Connect(address(2)),
            &[],
        ),
        // It may have gone since.
        (WELL_TIME, Lease::Stranded(address(1)), &[address(2)]),
    ];
    for (after, lease, probes) in cases {
        let mut pool = Pool::new(5, Duration::from_secs(10));
        pool.lease(CLIENT, both, &[], WISH, NOW);
        pool.overdue(address(1));
        pool.lease(CLIENT, both, &[], HURRIED, NOW);
        assert_eq!(pool.take_probes(), [address(2)]);
        pool.background_ended(address(2));
        assert_eq!(pool.reached(address(2), NOW), [CLIENT]);
        pool.closed(address(2), Some(HOP), true, NOW);
        let now = NOW + after;
        assert_eq!(pool.lease(CLIENT, both, &[], HURRIED, now), lease);
        assert_eq!(pool.take_probes(), probes, "{after:?}");
    }
}

#[test]
fn a_hop_that_was_reached_and_then_failed_is_left_alone() {
    let mut pool = Pool::new(5, Duration::from_secs(10));
    pool.lease(OTHER, [address(1)], &[], WISH, NOW);
    pool.reached(address(1), NOW);
    pool.closed(address(1), Some(HOP), true, NOW);
    pool.lease(CLIENT, [address(1)], &[], HURRIED, NOW);
    pool.refused(address(1), NOW);
    pool.closed(address(1), None, false, NOW);
    assert_eq!(
        pool.lease(CLIENT, [address(1)], &[], HURRIED, NOW),
        Lease::Unavailable
    );
    assert_eq!(pool.take_probes(), []);
}
