//! The cases. The name of each says what is broken if it fails.

use std::io;
use std::time::Duration;

use portcullis::driver::{Conn, Driver, Listener, OperationResult, ReceiveEnd};
use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Case, FIRST, Shape, WAIT, WAITS_MAX, WAITS_QUIET, World};

fn conn(slot: u32, generation: u32) -> Conn {
    Conn { slot, generation }
}

/// Octets that show where they belong.
fn numbered(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

pub(crate) fn accepted_connection_has_its_peers_address<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    for slot in 0..4 {
        case.accepted(conn(slot, 1));
    }
}

pub(crate) fn full_table_leaves_callers_waiting<W: World>() {
    let mut case = Case::<W>::new(Shape {
        slots: 1,
        ..Shape::default()
    });
    let _first = case.accepted(FIRST);
    let (mut second, address) = case.world.call();
    case.say(&mut second, b"EHLO early\r\n");
    case.quiet();
    case.close(FIRST);
    case.driver().accept(Listener(0), conn(0, 2));
    case.expect_accepted(conn(0, 2), address);
    case.driver().receive(conn(0, 2));
    assert_eq!(case.receive_exactly(conn(0, 2), 12), b"EHLO early\r\n");
}

pub(crate) fn accepts_that_are_stopped_all_complete<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    for slot in 0..8 {
        case.driver().accept(Listener(0), conn(slot, 1));
    }
    case.quiet();
    case.driver().stop_accepting();
    for _ in 0..WAITS_QUIET {
        case.wait();
    }
    assert_eq!(case.completions.len(), 8);
    for completion in &case.completions {
        match &completion.outcome {
            OperationResult::Accepted(Err(error)) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ECANCELED));
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn connected_next_hop_talks_and_listens<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let to = case.world.next_hop();
    case.driver().connect(FIRST, to);
    assert!(matches!(
        case.next(FIRST),
        OperationResult::Connected(Ok(()))
    ));
    let mut peer = case.world.called();
    case.say(&mut peer, b"220 ");
    case.driver().receive(FIRST);
    assert_eq!(case.receive_exactly(FIRST, 4), b"220 ");
    case.send_all(FIRST, b"QUIT\r\n".to_vec());
    case.world.finish(&mut peer);
    assert!(matches!(case.receive_end(FIRST), ReceiveEnd::EndOfStream));
    case.close(FIRST);
    assert_eq!(case.hear_to_the_end(&mut peer), b"QUIT\r\n");
}

pub(crate) fn refused_connect_leaves_a_slot_to_be_closed<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let to = case.world.unbound();
    for generation in 0..3 {
        let conn = conn(0, generation);
        case.driver().connect(conn, to);
        match case.next(conn) {
            OperationResult::Connected(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            other => panic!("{other:?}"),
        }
        case.close(conn);
    }
    case.accepted(conn(0, 3));
}

pub(crate) fn octets_come_in_order_and_then_the_end<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    case.driver().receive(FIRST);
    let mut received = Vec::new();
    for piece in numbered(20_000).chunks(3000) {
        case.say(&mut peer, piece);
        received.extend(case.receive_exactly(FIRST, piece.len()));
    }
    assert!(received == numbered(20_000));
    case.world.finish(&mut peer);
    assert!(matches!(case.receive_end(FIRST), ReceiveEnd::EndOfStream));
    case.close(FIRST);
}

pub(crate) fn receive_without_a_buffer_is_starved_and_goes_on_after_a_recycle<W: World>() {
    let mut case = Case::<W>::new(Shape {
        slots: 1,
        buffers: 2,
        buffer_size: 64,
    });
    let mut peer = case.accepted(FIRST);
    case.say(&mut peer, &numbered(1000));
    case.driver().receive(FIRST);
    let mut received = Vec::new();
    let mut held = Vec::new();
    let mut starved = 0;
    while received.len() < 1000 {
        match case.next(FIRST) {
            OperationResult::Received(buffer) => {
                received.extend_from_slice(case.driver().bytes(&buffer));
                held.push(buffer);
                assert!(held.len() <= 2);
            }
            OperationResult::ReceiveEnded(ReceiveEnd::Starved) => {
                starved += 1;
                assert_eq!(held.len(), 2, "starved with a buffer free");
                for buffer in held.drain(..) {
                    case.driver().recycle(buffer);
                }
                case.driver().receive(FIRST);
            }
            OperationResult::ReceiveEnded(ReceiveEnd::Rearm) => case.driver().receive(FIRST),
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
    let mut case = Case::<W>::new(Shape {
        slots: 1,
        buffers: 8,
        buffer_size: 512,
    });
    let mut peer = case.accepted(FIRST);
    let total = chunks.iter().map(|(length, _)| length).sum();
    let stream = numbered(total);
    let mut said = 0;
    let mut received = Vec::new();
    case.driver().receive(FIRST);
    for &(length, pause) in chunks {
        let end = said + length;
        while said < end {
            said += case.world.say(&mut peer, &stream[said..end]);
            if said < end {
                take(&mut case, &mut received, said)?;
            }
        }
        if pause {
            case.driver().pause(FIRST);
        } else {
            take(&mut case, &mut received, said)?;
        }
    }
    take(&mut case, &mut received, total)?;
    if received != stream {
        return Err(TestCaseError::fail("octets lost, doubled or out of order"));
    }
    Ok(())
}

/// Receives until there are this many octets, arming again whenever the receive ends.
fn take<W: World>(
    case: &mut Case<W>,
    received: &mut Vec<u8>,
    length: usize,
) -> Result<(), TestCaseError> {
    while received.len() < length {
        match case.next(FIRST) {
            OperationResult::Received(buffer) => {
                received.extend_from_slice(case.driver().bytes(&buffer));
                case.driver().recycle(buffer);
            }
            OperationResult::ReceiveEnded(
                ReceiveEnd::Paused | ReceiveEnd::Starved | ReceiveEnd::Rearm,
            ) => {
                case.driver().receive(FIRST);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }
    Ok(())
}

pub(crate) fn buffer_of_an_old_connection_can_still_be_recycled<W: World>() {
    let mut case = Case::<W>::new(Shape {
        slots: 1,
        buffers: 1,
        buffer_size: 64,
    });
    for generation in 0..4 {
        let conn = conn(0, generation);
        let mut peer = case.accepted(conn);
        case.say(&mut peer, b"x");
        case.driver().receive(conn);
        let buffer = case.buffer(conn);
        case.driver().shutdown(conn, true);
        case.receive_end(conn);
        case.close(conn);
        assert_eq!(case.driver().bytes(&buffer), b"x");
        case.driver().recycle(buffer);
    }
}

pub(crate) fn sent_buffer_comes_back_and_every_octet_arrives<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    let body = numbered(300_000);
    let mut heard = Vec::new();
    for piece in body.chunks(30_000) {
        case.send_all(FIRST, piece.to_vec());
        assert!(!case.world.hear(&mut peer, &mut heard));
    }
    case.close(FIRST);
    heard.extend(case.hear_to_the_end(&mut peer));
    assert!(heard == body);
}

pub(crate) fn stuck_send_ends_when_both_directions_are_shut_down<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    case.world.read_slowly(&mut peer);
    let stuck = case.send_until_stuck(FIRST);
    case.driver().shutdown(FIRST, true);
    let (buffer, result) = case.sent(FIRST);
    assert_eq!(buffer.len(), stuck);
    assert!(result.map_or(true, |taken| taken < stuck));
    case.close(FIRST);
}

pub(crate) fn unacknowledged_octets_become_fewer_as_the_peer_takes_them<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    case.world.read_slowly(&mut peer);
    assert_eq!(case.unacknowledged(FIRST), 0);
    case.send_until_stuck(FIRST);
    let before = case.unacknowledged(FIRST);
    assert!(before > 0, "a peer that reads nothing has taken everything");
    case.quiet();
    assert_eq!(case.unacknowledged(FIRST), before);
    let mut heard = Vec::new();
    for _ in 0..WAITS_MAX {
        case.world.hear(&mut peer, &mut heard);
        case.wait();
        case.completions.clear();
        if case.unacknowledged(FIRST) == 0 {
            case.close(FIRST);
            return;
        }
    }
    panic!(
        "{} octets are still on their way",
        case.unacknowledged(FIRST)
    );
}

pub(crate) fn close_after_shutdown_ends_the_stream_of_the_peer<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    case.driver().receive(FIRST);
    case.send_all(FIRST, b"221 2.0.0 Bye\r\n".to_vec());
    case.driver().shutdown(FIRST, true);
    assert!(matches!(case.receive_end(FIRST), ReceiveEnd::EndOfStream));
    case.close(FIRST);
    assert_eq!(case.hear_to_the_end(&mut peer), b"221 2.0.0 Bye\r\n");
}

pub(crate) fn half_close_leaves_the_other_direction_open<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let mut peer = case.accepted(FIRST);
    case.driver().receive(FIRST);
    case.send_all(FIRST, b"421 4.7.0 Enough\r\n".to_vec());
    case.driver().shutdown(FIRST, false);
    assert_eq!(case.hear_to_the_end(&mut peer), b"421 4.7.0 Enough\r\n");
    case.say(&mut peer, b"still talking");
    assert_eq!(case.receive_exactly(FIRST, 13), b"still talking");
    case.world.finish(&mut peer);
    assert!(matches!(case.receive_end(FIRST), ReceiveEnd::EndOfStream));
    case.close(FIRST);
}

pub(crate) fn slot_can_be_used_again_and_again<W: World>() {
    let mut case = Case::<W>::new(Shape {
        slots: 1,
        ..Shape::default()
    });
    for generation in 0..50 {
        let conn = conn(0, generation);
        let mut peer = case.accepted(conn);
        case.driver().receive(conn);
        case.say(&mut peer, &generation.to_be_bytes());
        assert_eq!(case.receive_exactly(conn, 4), generation.to_be_bytes());
        // Half of them hang up first, the others are hung up on.
        if generation % 2 == 0 {
            case.world.finish(&mut peer);
        } else {
            case.driver().shutdown(conn, true);
        }
        assert!(matches!(case.receive_end(conn), ReceiveEnd::EndOfStream));
        case.close(conn);
    }
}

pub(crate) fn time_stands_still_between_waits_and_passes_in_them<W: World>() {
    let mut case = Case::<W>::new(Shape::default());
    let before = case.driver().now();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(2) {}
    assert_eq!(case.driver().now(), before);
    case.wait();
    assert!(case.driver().now() >= before + WAIT);
    let after = case.driver().now();
    case.driver().wait(Duration::ZERO, &mut Vec::new()).unwrap();
    assert!(case.driver().now() < after + WAIT);
    assert!(case.driver().unix_time() > 0);
}
