//! Receiving and sending: nothing lost, nothing twice, whatever runs out.

mod loopback;

use loopback::{A_WHILE, Loopback, conn};
use portcullis_uring::{Buffer, Listener, OperationResult, ReceiveEnd, Settings};
use std::io::{Read, Write};

fn numbered(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

#[test]
fn starved_receive_ends_and_goes_on_where_it_was_once_there_is_a_buffer() {
    let mut loopback = Loopback::with(Settings {
        slots: 2,
        buffers: 2,
        buffer_size: 8,
        ..Settings::default()
    });
    let mut client = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    client.write_all(b"0123456789abcdefrest").unwrap();
    let mut held = Vec::new();
    let end = loop {
        match loopback.next().outcome {
            OperationResult::Received(buffer) => held.push(buffer),
            OperationResult::ReceiveEnded(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(end, ReceiveEnd::Starved), "{end:?}");
    assert_eq!(held.len(), 2);
    // With no buffer at all, a receive fails as soon as it is armed.
    loopback.ring.receive(conn(0, 1));
    assert!(matches!(
        loopback.expect_end(conn(0, 1)),
        ReceiveEnd::Starved
    ));

    let mut text = Vec::new();
    for buffer in held {
        text.extend(loopback.taken(buffer));
    }
    loopback.ring.receive(conn(0, 1));
    text.extend(loopback.expect_received(conn(0, 1)));
    assert_eq!(text, b"0123456789abcdefrest");
}

#[test]
fn last_octets_come_before_the_end_of_the_stream() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    client.write_all(b"QUIT\r\n").unwrap();
    drop(client);
    loopback.ring.receive(conn(0, 1));
    assert_eq!(loopback.expect_received(conn(0, 1)), b"QUIT\r\n");
    assert!(matches!(
        loopback.expect_end(conn(0, 1)),
        ReceiveEnd::EndOfStream
    ));
}

#[test]
fn reset_connection_fails_and_its_slot_can_be_closed() {
    let mut loopback = Loopback::new(1);
    let client = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    loopback.ring.send(conn(0, 1), b"220 \r\n".to_vec());
    loopback.expect_sent(conn(0, 1)).1.unwrap();
    // A socket that is closed with unread bytes in it sends a reset.
    client.peek(&mut [0]).unwrap();
    drop(client);
    assert!(matches!(
        loopback.expect_end(conn(0, 1)),
        ReceiveEnd::Failed(_)
    ));
    loopback.ring.send(conn(0, 1), b"250 \r\n".to_vec());
    loopback.expect_sent(conn(0, 1)).1.unwrap_err();
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
}

#[test]
fn buffer_of_a_connection_that_is_gone_can_be_recycled() {
    let mut loopback = Loopback::with(Settings {
        slots: 1,
        buffers: 1,
        ..Settings::default()
    });
    for generation in 0..10 {
        let now = conn(0, generation);
        let mut client = loopback.accepted(now);
        client.write_all(b"x").unwrap();
        loopback.ring.receive(now);
        let completion = loopback.next();
        let OperationResult::Received(buffer) = completion.outcome else {
            panic!("{completion:?}");
        };
        loopback.ring.shutdown(now, true);
        assert!(matches!(loopback.expect_end(now), ReceiveEnd::EndOfStream));
        loopback.ring.close(now);
        loopback.expect_closed(now);
        loopback.ring.recycle(buffer);
    }
}

#[test]
#[should_panic(expected = "has not lent")]
fn recycled_buffer_cannot_be_read() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    client.write_all(b"x").unwrap();
    loopback.ring.receive(conn(0, 1));
    let completion = loopback.next();
    let OperationResult::Received(Buffer { id, offset, len }) = completion.outcome else {
        panic!("{completion:?}");
    };
    loopback.ring.recycle(Buffer { id, offset, len });
    let _ = loopback.ring.bytes(&Buffer { id, offset, len });
}

#[test]
fn slow_reader_gets_every_octet_of_a_large_send() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    let body = numbered(24 << 20);
    let expected = body.clone();
    // Not sent before it is read.
    let (_, mut octets) = loopback.send_until_stuck(conn(0, 1), body);
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        client.read_to_end(&mut text).map(|_| text)
    });
    while octets < expected.len() {
        let (mut buffer, sent) = loopback.expect_sent(conn(0, 1));
        let sent = sent.unwrap();
        assert!(sent > 0);
        octets += sent;
        if sent < buffer.len() {
            buffer.drain(..sent);
            loopback.ring.send(conn(0, 1), buffer);
        }
    }
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
    assert!(reading.join().unwrap().unwrap() == expected);
}

#[test]
fn second_send_is_refused_and_its_buffer_comes_back() {
    let mut loopback = Loopback::new(1);
    let _client = loopback.accepted(conn(0, 1));
    loopback.ring.send(conn(0, 1), vec![0; 24 << 20]);
    loopback.ring.send(conn(0, 1), b"second".to_vec());
    let (buffer, result) = loopback.expect_sent(conn(0, 1));
    assert_eq!(buffer, b"second");
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EALREADY));
}

#[test]
fn stuck_send_can_be_given_up() {
    let mut loopback = Loopback::new(1);
    let _client = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    let (stuck, _) = loopback.send_until_stuck(conn(0, 1), vec![0; 24 << 20]);
    loopback.ring.shutdown(conn(0, 1), true);
    let (mut sent, mut ended) = (false, false);
    for _ in 0..2 {
        match loopback.next().outcome {
            OperationResult::Sent { buffer, result } => {
                assert_eq!(buffer.len(), stuck);
                assert!(result.is_err() || result.is_ok_and(|octets| octets < stuck));
                sent = true;
            }
            OperationResult::ReceiveEnded(ReceiveEnd::EndOfStream) => ended = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(sent && ended);
}

#[test]
fn what_a_peer_has_not_taken_is_known_and_bounded() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    assert_eq!(loopback.expect_unacknowledged(conn(0, 1)), 0);
    let (stuck, taken) = loopback.send_until_stuck(conn(0, 1), vec![0; 24 << 20]);
    assert!(stuck > 0);
    let before = loopback.expect_unacknowledged(conn(0, 1));
    // The rest lies in the client's own kernel.
    assert!(before > 0 && before as usize <= taken);
    assert!(before < 1 << 20, "{before} octets wait in a socket");
    let mut piece = vec![0; taken];
    client.read_exact(&mut piece).unwrap();
    let (_, sent) = loopback.expect_sent(conn(0, 1));
    let acknowledged = taken + sent.unwrap() - loopback.expect_unacknowledged(conn(0, 1)) as usize;
    assert!(acknowledged > taken - before as usize);
    // An old use of the slot has nothing to tell.
    loopback.ring.unacknowledged(conn(0, 0));
    assert!(matches!(
        loopback.next().outcome,
        OperationResult::Unacknowledged(Err(_))
    ));
}

#[test]
fn more_completions_than_the_queue_has_room_for_all_come() {
    const CLOSES: u32 = 1000;
    let mut loopback = Loopback::with(Settings {
        slots: CLOSES,
        entries: 4,
        ..Settings::default()
    });
    // Submitted four at a time, because the queue is full, and completions are not looked at
    // meanwhile.
    for slot in 0..CLOSES {
        loopback.ring.close(conn(slot, 1));
    }
    for slot in 0..CLOSES {
        loopback.expect_closed(conn(slot, 1));
    }
}

#[test]
fn receives_that_complete_faster_than_they_are_taken_lose_nothing() {
    const CLIENTS: u32 = 200;
    let mut loopback = Loopback::with(Settings {
        slots: CLIENTS,
        entries: 1,
        buffers: 1024,
        buffer_size: 16,
        ..Settings::default()
    });
    for slot in 0..CLIENTS {
        loopback.ring.accept(Listener(0), conn(slot, 1));
    }
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| loopback.dial()).collect();
    for _ in 0..CLIENTS {
        let completion = loopback.next();
        assert!(matches!(
            completion.outcome,
            OperationResult::Accepted(Ok(_))
        ));
    }
    for slot in 0..CLIENTS {
        loopback.ring.receive(conn(slot, 1));
    }
    loopback.wait(A_WHILE);
    for client in &mut clients {
        client.write_all(&[b'x'; 64]).unwrap();
    }
    let mut octets = 0;
    while octets < CLIENTS * 64 {
        let completion = loopback.next();
        match completion.outcome {
            OperationResult::Received(buffer) => {
                octets += buffer.len;
                loopback.ring.recycle(buffer);
            }
            OperationResult::ReceiveEnded(ReceiveEnd::Rearm | ReceiveEnd::Starved) => {
                loopback.ring.receive(completion.conn);
            }
            other => panic!("{other:?}"),
        }
    }
}
