//! The cases. Each is told what would be broken by its name.

use super::{Desk, FIRST, Shape, WAIT, WAITS_MAX, WAITS_QUIET, World};
use crate::driver::{Conn, Driver, Listener, Outcome, ReceiveEnd};
use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::io;
use std::time::Duration;

fn conn(slot: u32, generation: u32) -> Conn {
    Conn { slot, generation }
}

/// Octets that show where they belong.
fn numbered(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

pub(crate) fn accepted_connection_has_its_peers_address<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    for slot in 0..4 {
        desk.accepted(conn(slot, 1));
    }
}

pub(crate) fn full_table_leaves_callers_waiting<W: World>() {
    let mut desk = Desk::<W>::new(Shape {
        slots: 1,
        ..Shape::default()
    });
    let _first = desk.accepted(FIRST);
    let (mut second, address) = desk.world.call();
    desk.say(&mut second, b"EHLO early\r\n");
    desk.quiet();
    desk.close(FIRST);
    desk.driver().accept(Listener(0), conn(0, 2));
    desk.expect_accepted(conn(0, 2), address);
    desk.driver().receive(conn(0, 2));
    assert_eq!(desk.receive_exactly(conn(0, 2), 12), b"EHLO early\r\n");
}

pub(crate) fn accepts_that_are_stopped_all_complete<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    for slot in 0..8 {
        desk.driver().accept(Listener(0), conn(slot, 1));
    }
    desk.quiet();
    desk.driver().stop_accepting();
    for _ in 0..WAITS_QUIET {
        desk.wait();
    }
    assert_eq!(desk.completions.len(), 8);
    for completion in &desk.completions {
        match &completion.outcome {
            Outcome::Accepted(Err(error)) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ECANCELED));
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn connected_next_hop_talks_and_listens<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let to = desk.world.next_hop();
    desk.driver().connect(FIRST, to);
    assert!(matches!(desk.next(FIRST), Outcome::Connected(Ok(()))));
    let mut peer = desk.world.called();
    desk.say(&mut peer, b"220 ");
    desk.driver().receive(FIRST);
    assert_eq!(desk.receive_exactly(FIRST, 4), b"220 ");
    desk.send_all(FIRST, b"QUIT\r\n".to_vec());
    desk.world.finish(&mut peer);
    assert!(matches!(desk.receive_end(FIRST), ReceiveEnd::EndOfStream));
    desk.close(FIRST);
    assert_eq!(desk.hear_to_the_end(&mut peer), b"QUIT\r\n");
}

pub(crate) fn refused_connect_leaves_a_slot_to_be_closed<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let to = desk.world.nobody();
    for generation in 0..3 {
        let conn = conn(0, generation);
        desk.driver().connect(conn, to);
        match desk.next(conn) {
            Outcome::Connected(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            other => panic!("{other:?}"),
        }
        desk.close(conn);
    }
    desk.accepted(conn(0, 3));
}

pub(crate) fn octets_come_in_order_and_then_the_end<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    desk.driver().receive(FIRST);
    let mut received = Vec::new();
    for piece in numbered(20_000).chunks(3000) {
        desk.say(&mut peer, piece);
        received.extend(desk.receive_exactly(FIRST, piece.len()));
    }
    assert!(received == numbered(20_000));
    desk.world.finish(&mut peer);
    assert!(matches!(desk.receive_end(FIRST), ReceiveEnd::EndOfStream));
    desk.close(FIRST);
}

pub(crate) fn receive_without_a_buffer_is_starved_and_goes_on_after_a_recycle<W: World>() {
    let mut desk = Desk::<W>::new(Shape {
        slots: 1,
        buffers: 2,
        buffer_size: 64,
    });
    let mut peer = desk.accepted(FIRST);
    desk.say(&mut peer, &numbered(1000));
    desk.driver().receive(FIRST);
    let mut received = Vec::new();
    let mut held = Vec::new();
    let mut starved = 0;
    while received.len() < 1000 {
        match desk.next(FIRST) {
            Outcome::Received(buffer) => {
                received.extend_from_slice(desk.driver().bytes(&buffer));
                held.push(buffer);
                assert!(held.len() <= 2);
            }
            Outcome::ReceiveEnded(ReceiveEnd::Starved) => {
                starved += 1;
                assert_eq!(held.len(), 2, "starved with a buffer free");
                for buffer in held.drain(..) {
                    desk.driver().recycle(buffer);
                }
                desk.driver().receive(FIRST);
            }
            Outcome::ReceiveEnded(ReceiveEnd::Rearm) => desk.driver().receive(FIRST),
            other => panic!("{other:?}"),
        }
    }
    assert!(received == numbered(1000));
    assert!(starved > 0);
}

/// Chunks of random sizes, with a pause asked for after some of them.
pub(crate) fn pauses_lose_nothing<W: World>() {
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let chunks = vec((1..6000usize, proptest::bool::ANY), 1..40);
    let result = runner.run(&chunks, |chunks| pausing::<W>(&chunks));
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn pausing<W: World>(chunks: &[(usize, bool)]) -> Result<(), TestCaseError> {
    let mut desk = Desk::<W>::new(Shape {
        slots: 1,
        buffers: 8,
        buffer_size: 512,
    });
    let mut peer = desk.accepted(FIRST);
    let total = chunks.iter().map(|(length, _)| length).sum();
    let stream = numbered(total);
    let mut said = 0;
    let mut received = Vec::new();
    desk.driver().receive(FIRST);
    for &(length, pause) in chunks {
        let end = said + length;
        while said < end {
            said += desk.world.say(&mut peer, &stream[said..end]);
            if said < end {
                take(&mut desk, &mut received, said)?;
            }
        }
        if pause {
            desk.driver().pause(FIRST);
        } else {
            take(&mut desk, &mut received, said)?;
        }
    }
    take(&mut desk, &mut received, total)?;
    if received != stream {
        return Err(TestCaseError::fail("octets lost, doubled or out of order"));
    }
    Ok(())
}

/// Receives until there are this many octets, arming again whenever the receive ends.
fn take<W: World>(
    desk: &mut Desk<W>,
    received: &mut Vec<u8>,
    length: usize,
) -> Result<(), TestCaseError> {
    while received.len() < length {
        match desk.next(FIRST) {
            Outcome::Received(buffer) => {
                received.extend_from_slice(desk.driver().bytes(&buffer));
                desk.driver().recycle(buffer);
            }
            Outcome::ReceiveEnded(ReceiveEnd::Paused | ReceiveEnd::Starved | ReceiveEnd::Rearm) => {
                desk.driver().receive(FIRST);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }
    Ok(())
}

pub(crate) fn buffer_of_an_old_connection_can_still_be_recycled<W: World>() {
    let mut desk = Desk::<W>::new(Shape {
        slots: 1,
        buffers: 1,
        buffer_size: 64,
    });
    for generation in 0..4 {
        let conn = conn(0, generation);
        let mut peer = desk.accepted(conn);
        desk.say(&mut peer, b"x");
        desk.driver().receive(conn);
        let buffer = desk.buffer(conn);
        desk.driver().shutdown(conn, true);
        desk.receive_end(conn);
        desk.close(conn);
        assert_eq!(desk.driver().bytes(&buffer), b"x");
        desk.driver().recycle(buffer);
    }
}

pub(crate) fn sent_buffer_comes_back_and_every_octet_arrives<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    let body = numbered(300_000);
    let mut heard = Vec::new();
    for piece in body.chunks(30_000) {
        desk.send_all(FIRST, piece.to_vec());
        assert!(!desk.world.hear(&mut peer, &mut heard));
    }
    desk.close(FIRST);
    heard.extend(desk.hear_to_the_end(&mut peer));
    assert!(heard == body);
}

pub(crate) fn stuck_send_ends_when_both_directions_are_shut_down<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    desk.world.read_slowly(&mut peer);
    let stuck = desk.send_until_stuck(FIRST);
    desk.driver().shutdown(FIRST, true);
    let (buffer, result) = desk.sent(FIRST);
    assert_eq!(buffer.len(), stuck);
    assert!(result.map_or(true, |taken| taken < stuck));
    desk.close(FIRST);
}

pub(crate) fn unacknowledged_octets_become_fewer_as_the_peer_takes_them<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    desk.world.read_slowly(&mut peer);
    assert_eq!(desk.unacknowledged(FIRST), 0);
    desk.send_until_stuck(FIRST);
    let before = desk.unacknowledged(FIRST);
    assert!(before > 0, "a peer that reads nothing has taken everything");
    desk.quiet();
    assert_eq!(desk.unacknowledged(FIRST), before);
    let mut heard = Vec::new();
    for _ in 0..WAITS_MAX {
        desk.world.hear(&mut peer, &mut heard);
        desk.wait();
        desk.completions.clear();
        if desk.unacknowledged(FIRST) == 0 {
            desk.close(FIRST);
            return;
        }
    }
    panic!(
        "{} octets are still on their way",
        desk.unacknowledged(FIRST)
    );
}

pub(crate) fn close_after_shutdown_ends_the_stream_of_the_peer<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    desk.driver().receive(FIRST);
    desk.send_all(FIRST, b"221 2.0.0 Bye\r\n".to_vec());
    desk.driver().shutdown(FIRST, true);
    assert!(matches!(desk.receive_end(FIRST), ReceiveEnd::EndOfStream));
    desk.close(FIRST);
    assert_eq!(desk.hear_to_the_end(&mut peer), b"221 2.0.0 Bye\r\n");
}

pub(crate) fn half_close_leaves_the_other_direction_open<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let mut peer = desk.accepted(FIRST);
    desk.driver().receive(FIRST);
    desk.send_all(FIRST, b"421 4.7.0 Enough\r\n".to_vec());
    desk.driver().shutdown(FIRST, false);
    assert_eq!(desk.hear_to_the_end(&mut peer), b"421 4.7.0 Enough\r\n");
    desk.say(&mut peer, b"still talking");
    assert_eq!(desk.receive_exactly(FIRST, 13), b"still talking");
    desk.world.finish(&mut peer);
    assert!(matches!(desk.receive_end(FIRST), ReceiveEnd::EndOfStream));
    desk.close(FIRST);
}

pub(crate) fn slot_can_be_used_again_and_again<W: World>() {
    let mut desk = Desk::<W>::new(Shape {
        slots: 1,
        ..Shape::default()
    });
    for generation in 0..50 {
        let conn = conn(0, generation);
        let mut peer = desk.accepted(conn);
        desk.driver().receive(conn);
        desk.say(&mut peer, &generation.to_be_bytes());
        assert_eq!(desk.receive_exactly(conn, 4), generation.to_be_bytes());
        // Half of them hang up first, the others are hung up on.
        if generation % 2 == 0 {
            desk.world.finish(&mut peer);
        } else {
            desk.driver().shutdown(conn, true);
        }
        assert!(matches!(desk.receive_end(conn), ReceiveEnd::EndOfStream));
        desk.close(conn);
    }
}

pub(crate) fn time_stands_still_between_waits_and_passes_in_them<W: World>() {
    let mut desk = Desk::<W>::new(Shape::default());
    let before = desk.driver().now();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(2) {}
    assert_eq!(desk.driver().now(), before);
    desk.wait();
    assert!(desk.driver().now() >= before + WAIT);
    let after = desk.driver().now();
    desk.driver().wait(Duration::ZERO, &mut Vec::new()).unwrap();
    assert!(desk.driver().now() < after + WAIT);
    assert!(desk.driver().unix_time() > 0);
}
