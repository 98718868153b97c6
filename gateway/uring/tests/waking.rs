//! Waking a ring and waiting on it.

mod loopback;

use loopback::{A_WHILE, Loopback, PATIENCE};
use portcullis_uring::{OperationResult, PreparedRing, Settings};
use std::time::{Duration, Instant};

#[test]
fn wake_from_a_thread_without_a_ring_ends_a_wait() {
    let mut loopback = Loopback::new(1);
    let waker = loopback.ring.waker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(A_WHILE);
        waker.wake();
    });
    let began = Instant::now();
    loopback.wait(PATIENCE);
    assert!(matches!(loopback.next().outcome, OperationResult::Wake));
    assert!(began.elapsed() < PATIENCE / 2);
    thread.join().unwrap();
}

#[test]
fn many_wakes_make_one_event_until_it_was_seen() {
    let mut loopback = Loopback::new(1);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let waker = loopback.ring.waker();
                scope.spawn(move || (0..1000).for_each(|_| waker.wake()));
            }
        });
        let completions = loopback.meanwhile();
        assert_eq!(completions.len(), 1, "{completions:?}");
        assert!(matches!(completions[0].outcome, OperationResult::Wake));
    }
}

#[test]
fn no_wake_is_lost_between_looking_and_waiting() {
    let mut loopback = Loopback::new(1);
    let waker = loopback.ring.waker();
    let (sender, queue) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        for number in 0..20_000 {
            sender.send(number).unwrap();
            waker.wake();
        }
    });
    let mut expected = 0;
    while expected < 20_000 {
        assert!(matches!(loopback.next().outcome, OperationResult::Wake));
        while let Ok(number) = queue.try_recv() {
            assert_eq!(number, expected);
            expected += 1;
        }
    }
    thread.join().unwrap();
}

#[test]
fn wake_before_the_ring_was_started_is_seen_by_its_first_wait() {
    let prepared = PreparedRing::new(Settings::default()).unwrap();
    let waker = prepared.waker();
    waker.wake();
    waker.wake();
    std::thread::spawn(move || {
        let mut ring = prepared.start().unwrap();
        let mut wakes = Vec::new();
        ring.wait(PATIENCE, &mut wakes).unwrap();
        assert_eq!(wakes.len(), 1);
        waker.wake();
        ring.wait(PATIENCE, &mut wakes).unwrap();
        assert_eq!(wakes.len(), 2);
    })
    .join()
    .unwrap();
}

#[test]
fn waking_a_ring_that_is_gone_does_nothing() {
    let prepared = PreparedRing::new(Settings::default()).unwrap();
    let waker = prepared.waker();
    drop(prepared);
    waker.wake();
    let loopback = Loopback::new(1);
    let waker = loopback.ring.waker();
    drop(loopback);
    waker.wake();
}

#[test]
fn wait_ends_when_the_time_is_up_and_not_before() {
    let mut loopback = Loopback::new(1);
    let began = Instant::now();
    loopback.wait(A_WHILE);
    assert!(began.elapsed() >= A_WHILE);
    assert!(began.elapsed() < PATIENCE);
    let began = Instant::now();
    loopback.wait(Duration::ZERO);
    assert!(began.elapsed() < A_WHILE);
}
