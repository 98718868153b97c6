//! Receiving and sending: nothing lost, nothing twice, whatever runs out.

mod desk;

use desk::{A_WHILE, Desk, conn};
use portcullis_uring::{Outcome, ReceiveEnd, Settings};
use std::io::{Read, Write};

fn numbered(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

#[test]
fn starved_receive_ends_and_goes_on_where_it_was_once_there_is_a_buffer() {
    let mut desk = Desk::with(Settings {
        slots: 2,
        buffers: 2,
        buffer_size: 8,
        ..Settings::default()
    });
    let mut client = desk.accepted(conn(0, 1));
    desk.ring.receive(conn(0, 1));
    client.write_all(b"0123456789abcdefrest").unwrap();
    let mut held = Vec::new();
    let end = loop {
        match desk.next().outcome {
            Outcome::Received { buffer, length } => held.push((buffer, length)),
            Outcome::ReceiveEnded(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(end, ReceiveEnd::Starved), "{end:?}");
    assert_eq!(held.len(), 2);
    // With no buffer at all, a receive fails as soon as it is armed.
    desk.ring.receive(conn(0, 1));
    assert!(matches!(desk.expect_end(conn(0, 1)), ReceiveEnd::Starved));

    let mut text = Vec::new();
    for (buffer, length) in held {
        text.extend_from_slice(desk.ring.bytes(buffer, 0, length));
        desk.ring.recycle(buffer);
    }
    desk.ring.receive(conn(0, 1));
    text.extend(desk.expect_received(conn(0, 1)));
    assert_eq!(text, b"0123456789abcdefrest");
}

#[test]
fn last_octets_come_before_the_end_of_the_stream() {
    let mut desk = Desk::new(1);
    let mut client = desk.accepted(conn(0, 1));
    client.write_all(b"QUIT\r\n").unwrap();
    drop(client);
    desk.ring.receive(conn(0, 1));
    assert_eq!(desk.expect_received(conn(0, 1)), b"QUIT\r\n");
    assert!(matches!(
        desk.expect_end(conn(0, 1)),
        ReceiveEnd::EndOfStream
    ));
}

#[test]
fn reset_connection_fails_and_its_slot_can_be_closed() {
    let mut desk = Desk::new(1);
    let client = desk.accepted(conn(0, 1));
    desk.ring.receive(conn(0, 1));
    desk.ring.send(conn(0, 1), b"220 \r\n".to_vec());
    desk.expect_sent(conn(0, 1)).1.unwrap();
    // A socket that is closed with unread bytes in it sends a reset.
    client.peek(&mut [0]).unwrap();
    drop(client);
    assert!(matches!(desk.expect_end(conn(0, 1)), ReceiveEnd::Failed(_)));
    desk.ring.send(conn(0, 1), b"250 \r\n".to_vec());
    desk.expect_sent(conn(0, 1)).1.unwrap_err();
    desk.ring.close(conn(0, 1));
    desk.expect_closed(conn(0, 1));
}

#[test]
fn buffer_of_a_connection_that_is_gone_can_be_recycled() {
    let mut desk = Desk::with(Settings {
        slots: 1,
        buffers: 1,
        ..Settings::default()
    });
    for generation in 0..10 {
        let now = conn(0, generation);
        let mut client = desk.accepted(now);
        client.write_all(b"x").unwrap();
        desk.ring.receive(now);
        let event = desk.next();
        let Outcome::Received { buffer, .. } = event.outcome else {
            panic!("{event:?}");
        };
        desk.ring.shutdown(now, true);
        assert!(matches!(desk.expect_end(now), ReceiveEnd::EndOfStream));
        desk.ring.close(now);
        desk.expect_closed(now);
        desk.ring.recycle(buffer);
    }
}

#[test]
#[should_panic(expected = "does not hold")]
fn recycled_buffer_cannot_be_read() {
    let mut desk = Desk::new(1);
    let mut client = desk.accepted(conn(0, 1));
    client.write_all(b"x").unwrap();
    desk.ring.receive(conn(0, 1));
    let event = desk.next();
    let Outcome::Received { buffer, length } = event.outcome else {
        panic!("{event:?}");
    };
    desk.ring.recycle(buffer);
    let _ = desk.ring.bytes(buffer, 0, length);
}

#[test]
fn slow_reader_gets_every_octet_of_a_large_send() {
    let mut desk = Desk::new(1);
    let mut client = desk.accepted(conn(0, 1));
    let body = numbered(24 << 20);
    let expected = body.clone();
    // Not sent before it is read.
    let (_, mut octets) = desk.send_until_stuck(conn(0, 1), body);
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        client.read_to_end(&mut text).map(|_| text)
    });
    while octets < expected.len() {
        let (mut buffer, sent) = desk.expect_sent(conn(0, 1));
        let sent = sent.unwrap();
        assert!(sent > 0);
        octets += sent;
        if sent < buffer.len() {
            buffer.drain(..sent);
            desk.ring.send(conn(0, 1), buffer);
        }
    }
    desk.ring.close(conn(0, 1));
    desk.expect_closed(conn(0, 1));
    assert!(reading.join().unwrap().unwrap() == expected);
}

#[test]
fn second_send_is_refused_and_its_buffer_comes_back() {
    let mut desk = Desk::new(1);
    let _client = desk.accepted(conn(0, 1));
    desk.ring.send(conn(0, 1), vec![0; 24 << 20]);
    desk.ring.send(conn(0, 1), b"second".to_vec());
    let (buffer, result) = desk.expect_sent(conn(0, 1));
    assert_eq!(buffer, b"second");
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EALREADY));
}

#[test]
fn stuck_send_can_be_given_up() {
    let mut desk = Desk::new(1);
    let _client = desk.accepted(conn(0, 1));
    desk.ring.receive(conn(0, 1));
    let (stuck, _) = desk.send_until_stuck(conn(0, 1), vec![0; 24 << 20]);
    desk.ring.shutdown(conn(0, 1), true);
    let (mut sent, mut ended) = (false, false);
    for _ in 0..2 {
        match desk.next().outcome {
            Outcome::Sent(buffer, result) => {
                assert_eq!(buffer.len(), stuck);
                assert!(result.is_err() || result.is_ok_and(|octets| octets < stuck));
                sent = true;
            }
            Outcome::ReceiveEnded(ReceiveEnd::EndOfStream) => ended = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(sent && ended);
}

#[test]
fn what_a_peer_has_not_taken_is_known_and_bounded() {
    let mut desk = Desk::new(1);
    let mut client = desk.accepted(conn(0, 1));
    assert_eq!(desk.expect_unacknowledged(conn(0, 1)), 0);
    let (stuck, taken) = desk.send_until_stuck(conn(0, 1), vec![0; 24 << 20]);
    assert!(stuck > 0);
    let before = desk.expect_unacknowledged(conn(0, 1));
    // The rest lies in the client's own kernel.
    assert!(before > 0 && before as usize <= taken);
    assert!(before < 1 << 20, "{before} octets wait in a socket");
    let mut piece = vec![0; taken];
    client.read_exact(&mut piece).unwrap();
    let (_, sent) = desk.expect_sent(conn(0, 1));
    let acknowledged = taken + sent.unwrap() - desk.expect_unacknowledged(conn(0, 1)) as usize;
    assert!(acknowledged > taken - before as usize);
    // An old use of the slot has nothing to tell.
    desk.ring.unacknowledged(conn(0, 0));
    assert!(matches!(
        desk.next().outcome,
        Outcome::Unacknowledged(Err(_))
    ));
}

#[test]
fn more_completions_than_the_queue_has_room_for_all_come() {
    const CLOSES: u32 = 1000;
    let mut desk = Desk::with(Settings {
        slots: CLOSES,
        entries: 4,
        ..Settings::default()
    });
    // Submitted four at a time, because the queue is full, and with nobody looking at completions
    // meanwhile.
    for slot in 0..CLOSES {
        desk.ring.close(conn(slot, 1));
    }
    for slot in 0..CLOSES {
        desk.expect_closed(conn(slot, 1));
    }
}

#[test]
fn receives_that_complete_faster_than_they_are_taken_lose_nothing() {
    const CLIENTS: u32 = 200;
    let mut desk = Desk::with(Settings {
        slots: CLIENTS,
        entries: 1,
        buffers: 1024,
        buffer_size: 16,
        ..Settings::default()
    });
    for slot in 0..CLIENTS {
        desk.ring.accept(0, conn(slot, 1));
    }
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| desk.dial()).collect();
    for _ in 0..CLIENTS {
        let event = desk.next();
        assert!(matches!(event.outcome, Outcome::Accepted(Ok(_))));
    }
    for slot in 0..CLIENTS {
        desk.ring.receive(conn(slot, 1));
    }
    desk.wait(A_WHILE);
    for client in &mut clients {
        client.write_all(&[b'x'; 64]).unwrap();
    }
    let mut octets = 0;
    while octets < CLIENTS * 64 {
        let event = desk.next();
        match event.outcome {
            Outcome::Received { buffer, length } => {
                octets += length;
                desk.ring.recycle(buffer);
            }
            Outcome::ReceiveEnded(ReceiveEnd::Rearm | ReceiveEnd::Starved) => {
                desk.ring.receive(event.conn);
            }
            other => panic!("{other:?}"),
        }
    }
}
