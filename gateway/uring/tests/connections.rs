//! Accepting, connecting, closing: what a slot is before, during and after.

mod loopback;

use loopback::{A_WHILE, Loopback, PATIENCE, conn};
use portcullis_uring::{Listener, OperationResult, ReceiveEnd, Settings, listen};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

#[test]
fn full_table_leaves_clients_waiting_and_kills_none() {
    let mut loopback = Loopback::new(2);
    let first = loopback.accepted(conn(0, 1));
    let _second = loopback.accepted(conn(1, 1));
    let mut third = loopback.dial();
    third.write_all(b"EHLO early\r\n").unwrap();
    assert_eq!(loopback.meanwhile().len(), 0);

    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
    drop(first);
    loopback.ring.accept(Listener(0), conn(0, 2));
    loopback.expect_accepted(conn(0, 2), &third);
    loopback.ring.receive(conn(0, 2));
    assert_eq!(loopback.expect_received(conn(0, 2)), b"EHLO early\r\n");
}

#[test]
fn slot_taken_again_with_a_receive_still_armed_does_not_mix_two_connections_up() {
    let mut loopback = Loopback::new(1);
    let mut old = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    loopback.wait(A_WHILE);
    // What a worker must not do: the receive is still armed.
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
    let mut new = loopback.accepted(conn(0, 2));
    loopback.ring.receive(conn(0, 2));
    loopback.wait(A_WHILE);
    old.write_all(b"old").unwrap();
    assert_eq!(loopback.expect_received(conn(0, 1)), b"old");
    new.write_all(b"new").unwrap();
    assert_eq!(loopback.expect_received(conn(0, 2)), b"new");
}

#[test]
fn closing_after_the_receive_has_ended_sends_a_fin_and_not_a_reset() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    loopback
        .ring
        .send(conn(0, 1), b"221 2.0.0 Bye\r\n".to_vec());
    loopback.expect_sent(conn(0, 1)).1.unwrap();
    loopback.ring.shutdown(conn(0, 1), true);
    assert!(matches!(
        loopback.expect_end(conn(0, 1)),
        ReceiveEnd::EndOfStream
    ));
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "221 2.0.0 Bye\r\n");
}

#[test]
fn half_close_sends_a_fin_and_leaves_the_other_direction_open() {
    let mut loopback = Loopback::new(1);
    let mut client = loopback.accepted(conn(0, 1));
    loopback.ring.receive(conn(0, 1));
    loopback
        .ring
        .send(conn(0, 1), b"421 4.7.0 Enough\r\n".to_vec());
    loopback.ring.shutdown(conn(0, 1), false);
    loopback.expect_sent(conn(0, 1)).1.unwrap();
    let mut text = String::new();
    let reader = client.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut reader = reader;
        reader.read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(loopback.meanwhile().len(), 0);
    assert_eq!(reading.join().unwrap().unwrap(), "421 4.7.0 Enough\r\n");
    client.write_all(b"still talking").unwrap();
    assert_eq!(loopback.expect_received(conn(0, 1)), b"still talking");
    drop(client);
    assert!(matches!(
        loopback.expect_end(conn(0, 1)),
        ReceiveEnd::EndOfStream
    ));
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
}

#[test]
fn half_close_that_the_kernel_has_put_off_never_hits_the_next_connection_of_the_slot() {
    let mut loopback = Loopback::new(1);
    for generation in 0..200 {
        let now = conn(0, generation);
        let mut client = loopback.accepted(now);
        loopback.ring.send(now, b"220 ".to_vec());
        let (_, sent) = loopback.expect_sent(now);
        sent.unwrap();
        loopback.ring.shutdown(now, false);
        loopback.ring.close(now);
        loopback.expect_closed(now);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "220 ");
    }
}

#[test]
fn accept_that_is_not_wanted_any_more_completes_and_the_address_is_free_again() {
    let mut loopback = Loopback::new(64);
    for slot in 0..64 {
        loopback.ring.accept(Listener(0), conn(slot, 1));
    }
    loopback.wait(A_WHILE);
    loopback.ring.stop_accepting();
    for _ in 0..64 {
        let completion = loopback.next();
        match completion.outcome {
            OperationResult::Accepted(Err(error)) => {
                assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        TcpStream::connect(loopback.address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    loopback.ring.accept(Listener(0), conn(0, 2));
    assert!(matches!(
        loopback.next().outcome,
        OperationResult::Accepted(Err(_))
    ));
    TcpListener::bind(loopback.address).unwrap();
}

#[test]
fn next_hop_is_connected_and_talks() {
    let mut loopback = Loopback::new(1);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let next_hop = TcpListener::bind(address).unwrap();
        loopback
            .ring
            .connect(conn(0, 1), next_hop.local_addr().unwrap());
        loopback.expect_connected(conn(0, 1)).unwrap();
        let (mut there, _) = next_hop.accept().unwrap();
        there.write_all(b"220 next hop\r\n").unwrap();
        loopback.ring.receive(conn(0, 1));
        assert_eq!(loopback.expect_received(conn(0, 1)), b"220 next hop\r\n");
        loopback.ring.pause(conn(0, 1));
        assert!(matches!(
            loopback.expect_end(conn(0, 1)),
            ReceiveEnd::Paused
        ));
        loopback.ring.close(conn(0, 1));
        loopback.expect_closed(conn(0, 1));
        assert_eq!(there.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn next_hop_that_refuses_leaves_a_slot_that_can_be_closed_and_used_again() {
    let mut loopback = Loopback::new(1);
    let unbound = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for generation in 0..3 {
        loopback.ring.connect(conn(0, generation), unbound);
        let error = loopback.expect_connected(conn(0, generation)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        loopback.ring.close(conn(0, generation));
        loopback.expect_closed(conn(0, generation));
    }
    loopback.accepted(conn(0, 9));
}

#[test]
fn connects_through_a_queue_too_short_for_them_all_come_about() {
    const HOPS: u32 = 50;
    let mut loopback = Loopback::with(Settings {
        slots: HOPS,
        entries: 4,
        ..Settings::default()
    });
    let next_hop = listen("127.0.0.1:0".parse().unwrap(), 128).unwrap();
    let next_hop = TcpListener::from(next_hop);
    for slot in 0..HOPS {
        loopback
            .ring
            .connect(conn(slot, 1), next_hop.local_addr().unwrap());
        // Shifts the chain of the next one against the end of the queue.
        loopback.ring.pause(conn(slot, 1));
    }
    for _ in 0..HOPS {
        let completion = loopback.next();
        assert!(matches!(
            completion.outcome,
            OperationResult::Connected(Ok(()))
        ));
    }
    assert_eq!(loopback.meanwhile().len(), 0);
}

#[test]
fn next_hop_that_never_answers_can_be_given_up() {
    let mut loopback = Loopback::new(1);
    // A listener with a full backlog drops connection requests.
    let deaf = listen("127.0.0.1:0".parse().unwrap(), 0).unwrap();
    let address = TcpListener::from(deaf.try_clone().unwrap())
        .local_addr()
        .unwrap();
    let _backlog: Vec<_> = (0..4)
        .map(|_| TcpStream::connect_timeout(&address, A_WHILE))
        .collect();
    loopback.ring.connect(conn(0, 1), address);
    assert_eq!(loopback.meanwhile().len(), 0);
    loopback.ring.shutdown(conn(0, 1), true);
    let error = loopback.expect_connected(conn(0, 1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
}

#[test]
fn close_of_an_empty_slot_is_a_close() {
    let mut loopback = Loopback::new(1);
    loopback.ring.close(conn(0, 1));
    loopback.expect_closed(conn(0, 1));
    loopback.ring.close(conn(7, 1));
    loopback.expect_closed(conn(7, 1));
}

#[test]
fn slot_outside_the_table_fails_and_breaks_nothing() {
    let mut loopback = Loopback::new(1);
    let outside = conn(1, 1);
    loopback.ring.accept(Listener(0), outside);
    assert!(matches!(
        loopback.next().outcome,
        OperationResult::Accepted(Err(_))
    ));
    loopback.ring.connect(outside, loopback.address);
    loopback.expect_connected(outside).unwrap_err();
    loopback.ring.receive(outside);
    assert!(matches!(
        loopback.expect_end(outside),
        ReceiveEnd::Failed(_)
    ));
    loopback.ring.send(outside, vec![1]);
    let (buffer, result) = loopback.expect_sent(outside);
    assert!(buffer == [1] && result.is_err());
    loopback.ring.shutdown(outside, true);
    loopback.ring.shutdown(outside, false);
    loopback.ring.pause(conn(u32::MAX, 1));
    assert_eq!(loopback.meanwhile().len(), 0);
}

#[test]
fn accepted_connections_inherit_no_delay() {
    let listener = TcpListener::from(listen("[::1]:0".parse().unwrap(), 8).unwrap());
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(listener.accept().unwrap().0.nodelay().unwrap());
}

#[test]
fn rings_share_an_address_and_strangers_do_not() {
    let first = listen("127.0.0.1:0".parse().unwrap(), 8).unwrap();
    let address = TcpListener::from(first.try_clone().unwrap())
        .local_addr()
        .unwrap();
    let _second = listen(address, 8).unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = listen(stranger.local_addr().unwrap(), 8).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    let error = listen("192.0.2.1:2525".parse().unwrap(), 8).unwrap_err();
    assert!(error.to_string().contains("does not have"), "{error}");
}

#[test]
fn dropped_ring_ends_its_connections_and_loses_no_memory_to_the_kernel() {
    for round in 0..6 {
        let mut loopback = Loopback::with(Settings {
            slots: 40,
            entries: 8,
            buffers: 2,
            ..Settings::default()
        });
        let mut clients: Vec<_> = (0..10)
            .map(|slot| loopback.accepted(conn(slot, 1)))
            .collect();
        for slot in 0..10 {
            loopback.ring.receive(conn(slot, 1));
            loopback.ring.send(conn(slot, 1), vec![round; 8 << 20]);
        }
        for slot in 10..30 {
            loopback.ring.accept(Listener(0), conn(slot, 1));
        }
        if round % 2 == 0 {
            loopback.wait(A_WHILE / 10);
        }
        let waker = loopback.ring.waker();
        let began = std::time::Instant::now();
        drop(loopback);
        assert!(began.elapsed() < PATIENCE / 10, "{:?}", began.elapsed());
        waker.wake();
        for client in &mut clients {
            let mut bytes = Vec::new();
            // A FIN or a reset, what matters is that it ends, and that nothing but what was sent
            // came.
            let _ = client.read_to_end(&mut bytes);
            assert!(bytes.iter().all(|byte| *byte == round));
        }
    }
}
