//! Next hops that swallow what they are sent, where another one works: finding that out is not at
//! the cost of honest mail.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};
use portcullis_tests::wait;
use socket2::{Domain, Socket, Type};

/// Longer than anything here is allowed to take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// The second of patience, and what a busy machine adds.
const LONGEST: Duration = Duration::from_secs(4);

/// A listener whose queue is full: the kernel drops every further SYN.
struct Swallower {
    listener: Socket,
    address: SocketAddr,
    _queued: Vec<Socket>,
}

impl Swallower {
    fn new() -> Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        listener.listen(0)?;
        let address = listener.local_addr()?.as_socket().context("no address")?;
        let mut queued = Vec::new();
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            // In progress for ever, but for the first ones.
            let _ = socket.connect(&address.into());
            queued.push(socket);
        }
        let swallowed = TcpStream::connect_timeout(&address, Duration::from_millis(300));
        ensure!(swallowed.is_err(), "the listener still takes connections");
        Ok(Self {
            listener,
            address,
            _queued: queued,
        })
    }

    /// Becomes a next hop that works.
    fn recover(self) -> Result<Receiver> {
        let listener: TcpListener = self.listener.into();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(128)?)?;
        Receiver::start_on(listener, true, |_| Act::Usual)
    }
}

fn gate_to(next_hops: &[SocketAddr]) -> Result<Process<'static>> {
    let next_hops: Vec<_> = next_hops.iter().map(SocketAddr::to_string).collect();
    let relay = format!(
        "[relay]\nnetworks = [\"127.0.0.0/8\"]\ndomains = [\"gate.example\"]\n\
         connect_timeout = \"{}s\"\nretry_after = \"1s\"\n",
        CONNECT_TIMEOUT.as_secs()
    );
    // One worker, which knows what each message has shown.
    let configuration = relay_to(&next_hops.join("\", \""), &relay)?;
    Process::start(&configuration.replace("workers = 2", "workers = 1"))
}

/// A whole message; the code of its final reply, and how long it took.
fn offer(gate: &Process<'_>) -> Result<(u16, Duration)> {
    let begun = Instant::now();
    let mut session = gate.dialogue()?;
    session.patience(3 * CONNECT_TIMEOUT)?;
    session.expect("EHLO client.example", "250")?;
    session.expect("MAIL FROM:<a@b.example>", "250")?;
    let mut reply = session.say("RCPT TO:<c@d.example>")?;
    if reply.code == 250 {
        session.expect("DATA", "354")?;
        session.raw(b"Subject: onward\r\n\r\ntext\r\n")?;
        reply = session.say(".")?;
    }
    Ok((reply.code, begun.elapsed()))
}

/// Each of them without a wait for the first next hop.
fn three_offers_are_accepted(gate: &Process<'_>) -> Result<()> {
    for number in 0..3 {
        let (code, took) = offer(gate)?;
        ensure!(
            code == 250 && took < LONGEST,
            "message {number}: {code} after {took:?}"
        );
    }
    Ok(())
}

#[test]
fn a_first_next_hop_that_swallows_connections_costs_a_message_a_second_once() -> Result<()> {
    let (swallower, second) = (Swallower::new()?, Receiver::start(true)?);
    let gate = gate_to(&[swallower.address, second.address()])?;
    // Longer than the attempt, the pause after it, and the probe.
    let end = Instant::now() + CONNECT_TIMEOUT * 5 / 2;
    let (mut messages, mut slow) = (0, 0);
    while Instant::now() < end {
        let (code, took) = offer(&gate)?;
        messages += 1;
        ensure!(code == 250, "message {messages}: {code}");
        ensure!(took < LONGEST, "message {messages} took {took:?}");
        slow += u32::from(took > Duration::from_millis(700));
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(slow <= 2, "{slow} of {messages} messages waited");

    let first = swallower.recover()?;
    wait::until(
        "the first one to be used again",
        3 * CONNECT_TIMEOUT,
        || {
            let (code, took) = offer(&gate).ok()?;
            assert!(code == 250 && took < LONGEST, "{code} after {took:?}");
            std::thread::sleep(Duration::from_millis(100));
            (!first.arrived().is_empty()).then_some(())
        },
    )
}

#[test]
fn several_that_swallow_connections_cost_no_more_than_one() -> Result<()> {
    let swallowers = [Swallower::new()?, Swallower::new()?, Swallower::new()?];
    let last = Receiver::start(true)?;
    let mut next_hops: Vec<_> = swallowers
        .iter()
        .map(|swallower| swallower.address)
        .collect();
    next_hops.push(last.address());
    let gate = gate_to(&next_hops)?;
    three_offers_are_accepted(&gate)
}

#[test]
fn messages_that_come_at_once_wait_no_longer() -> Result<()> {
    let (swallower, second) = (Swallower::new()?, Receiver::start(true)?);
    let gate = gate_to(&[swallower.address, second.address()])?;
    let offers = std::thread::scope(|scope| {
        let offers: Vec<_> = (0..20).map(|_| scope.spawn(|| offer(&gate))).collect();
        let offers = offers
            .into_iter()
            .map(|offer| offer.join().expect("no panic"));
        offers.collect::<Result<Vec<_>>>()
    })?;
    for (code, took) in offers {
        ensure!(code == 250 && took < LONGEST, "{code} after {took:?}");
    }
    Ok(())
}

#[test]
fn a_next_hop_that_takes_connections_and_does_not_greet_is_no_better() -> Result<()> {
    let first = Receiver::scripted(|at| match at {
        "CONNECT" => Act::Wait(Duration::from_secs(20)),
        _ => Act::Usual,
    })?;
    let second = Receiver::start(true)?;
    let gate = gate_to(&[first.address(), second.address()])?;
    three_offers_are_accepted(&gate)
}

#[test]
fn a_slow_attempt_is_kept_and_used() -> Result<()> {
    let first = Receiver::scripted(|at| match at {
        "CONNECT" => Act::Wait(Duration::from_secs(3)),
        _ => Act::Usual,
    })?;
    let second = Receiver::start(true)?;
    let gate = gate_to(&[first.address(), second.address()])?;
    ensure!(offer(&gate)?.0 == 250);
    ensure!(second.arrived().len() == 1, "nobody waited for the first");
    wait::until("the first one to be used", CONNECT_TIMEOUT, || {
        let (code, _) = offer(&gate).ok()?;
        assert_eq!(code, 250);
        std::thread::sleep(Duration::from_millis(100));
        (!first.arrived().is_empty()).then_some(())
    })?;
    ensure!(first.sessions() == 1, "{} attempts", first.sessions());
    Ok(())
}

#[test]
fn an_only_next_hop_is_waited_for() -> Result<()> {
    let slow = Receiver::scripted(|at| match at {
        "CONNECT" => Act::Wait(Duration::from_secs(3)),
        _ => Act::Usual,
    })?;
    let gate = gate_to(&[slow.address()])?;
    let (code, took) = offer(&gate)?;
    ensure!(
        code == 250 && took >= Duration::from_secs(3),
        "{code} after {took:?}"
    );

    // And so is one that has failed, by those who come once it may be tried again.
    let swallower = Swallower::new()?;
    let gate = gate_to(&[swallower.address])?;
    let (code, took) = offer(&gate)?;
    ensure!(
        code == 451 && took >= CONNECT_TIMEOUT,
        "{code} after {took:?}"
    );
    ensure!(offer(&gate)?.1 < LONGEST, "it is left alone for a moment");
    std::thread::sleep(Duration::from_millis(2_100));
    let waiting = std::thread::scope(|scope| {
        let offers: Vec<_> = (0..3).map(|_| scope.spawn(|| offer(&gate))).collect();
        std::thread::sleep(Duration::from_secs(1));
        let _recovered = swallower.recover()?;
        let offers = offers
            .into_iter()
            .map(|offer| offer.join().expect("no panic"));
        offers.collect::<Result<Vec<_>>>()
    })?;
    ensure!(waiting.iter().all(|(code, _)| *code == 250), "{waiting:?}");
    Ok(())
}

#[test]
fn one_that_was_down_is_tried_again_while_another_swallows_connections() -> Result<()> {
    let (reserved, swallower) = (TcpListener::bind("127.0.0.1:0")?, Swallower::new()?);
    let first = reserved.local_addr()?;
    drop(reserved);
    let gate = gate_to(&[first, swallower.address])?;
    std::thread::scope(|scope| -> Result<()> {
        // Finds out that the first one is down, and waits for the other.
        scope.spawn(|| offer(&gate));
        std::thread::sleep(Duration::from_millis(1_400));
        // It is still down, by a probe for this one.
        let waiting = scope.spawn(|| offer(&gate));
        std::thread::sleep(Duration::from_millis(300));
        let _first = Receiver::start_on(TcpListener::bind(first)?, true, |_| Act::Usual)?;
        let (code, took) = waiting.join().expect("no panic")?;
        ensure!(code == 250 && took < LONGEST, "{code} after {took:?}");
        Ok(())
    })
}

#[test]
fn an_attempt_that_nobody_waits_for_does_not_keep_the_gate_from_stopping() -> Result<()> {
    let (swallower, second) = (Swallower::new()?, Receiver::start(true)?);
    let gate = gate_to(&[swallower.address, second.address()])?;
    ensure!(offer(&gate)?.0 == 250);
    let begun = Instant::now();
    gate.terminate()?;
    ensure!(begun.elapsed() < LONGEST, "it took {:?}", begun.elapsed());
    Ok(())
}
