//! Peers that read slowly: steady ones are served to the end, however long that takes; those that
//! have stopped are left in time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::receiver::{Act, Receiver};
use socket2::{Domain, Socket, Type};

/// A receive buffer that fills at once.
const WINDOW: usize = 16 << 10;
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
const TIMES: &str = "[relay]\nnetworks = [\"127.0.0.0/8\"]\ndomains = [\"gate.example\"]\n\
    reply_timeout = \"2s\"\nsend_timeout = \"2s\"\nmessage_timeout = \"2s\"\n";

/// Reads `piece` octets every 100 ms.
struct Pace<R> {
    from: R,
    piece: usize,
}

impl<R: std::io::Read> Pace<R> {
    /// What it reads up to and with the end; at most so many octets.
    fn read_to(&mut self, end: &[u8], octets_max: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut piece = vec![0; self.piece];
        while !all.ends_with(end) && all.len() < octets_max {
            let read = self.from.read(&mut piece)?;
            ensure!(read > 0, "the gate closed after {} octets", all.len());
            all.extend_from_slice(&piece[..read]);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(all)
    }
}

fn small_window() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(WINDOW)?;
    Ok(socket)
}

/// A next hop for one message, of which it reads `piece` octets every 100 ms. Gives the octets of
/// the message.
fn slow_next_hop(piece: usize) -> Result<(SocketAddr, JoinHandle<Result<usize>>)> {
    let listener = small_window()?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(8)?;
    let address = listener.local_addr()?.as_socket().context("no address")?;
    let served = thread::spawn(move || {
        let stream: TcpStream = listener.accept()?.0.into();
        let mut say = stream.try_clone()?;
        let mut commands = BufReader::with_capacity(512, stream);
        say.write_all(b"220 slow.example ESMTP\r\n")?;
        loop {
            let mut line = String::new();
            commands.read_line(&mut line)?;
            match line.get(..4) {
                Some("DATA") => break,
                Some("EHLO") => say.write_all(b"250-slow.example\r\n250 8BITMIME\r\n")?,
                _ => say.write_all(b"250 2.0.0 Ok\r\n")?,
            }
        }
        say.write_all(b"354 Slowly\r\n")?;
        let mut paced = Pace {
            from: commands.into_inner(),
            piece,
        };
        let message = paced.read_to(b"\r\n.\r\n", usize::MAX)?;
        say.write_all(b"250 2.0.0 Ok\r\n")?;
        // Until the gate is gone.
        let _ = paced.from.read(&mut [0; 512]);
        Ok(message.len())
    });
    Ok((address, served))
}

fn message(octets: usize) -> Vec<u8> {
    let line = [&[b'x'; 62][..], b"\r\n"].concat();
    [
        b"Subject: long\r\n\r\n".to_vec(),
        line.repeat(octets / line.len()),
    ]
    .concat()
}

fn data(gate: &Process<'_>) -> Result<Dialogue> {
    let mut session = gate.dialogue()?;
    session.patience(Duration::from_secs(60))?;
    session.expect("EHLO client.example", "250")?;
    session.envelope("a@b.example", &["c@d.example"])?;
    session.expect("DATA", "354")?;
    Ok(session)
}

#[test]
fn a_next_hop_that_reads_slowly_but_steadily_gets_the_whole_message() -> Result<()> {
    slow_message(1_200_000)
}

#[test]
fn what_our_own_kernel_holds_has_not_been_read_by_the_next_hop() -> Result<()> {
    // The gate is rid of it at once, and only the final reply is to come.
    slow_message(300_000)
}

/// A message that takes its next hop ten seconds to read.
fn slow_message(octets: usize) -> Result<()> {
    let (address, served) = slow_next_hop(octets / 100)?;
    let gate = Process::start(&relay_to(&address.to_string(), TIMES)?)?;
    let mut session = data(&gate)?;
    session.raw(&message(octets))?;
    session.expect(".", "250")?;
    drop((session, gate));
    let read = served.join().expect("no panic")?;
    ensure!(read >= octets, "{read} of {octets} octets arrived");
    Ok(())
}

#[test]
fn a_next_hop_that_stops_reading_is_left_in_the_time_that_is_set() -> Result<()> {
    let receiver = Receiver::scripted(|at| match at {
        "DATA" => Act::Stall(Duration::from_secs(60)),
        _ => Act::Usual,
    })?;
    let gate = Process::start(&relay_to(&receiver.address().to_string(), TIMES)?)?;
    let mut session = data(&gate)?;
    // More than everything between here and there can hold.
    let begun = Instant::now();
    session.raw(&message(20_000_000))?;
    session.expect(".", "451 4.4.2")?;
    let took = begun.elapsed();
    ensure!(
        took >= SEND_TIMEOUT && took < SEND_TIMEOUT + Duration::from_secs(6),
        "after {took:?}"
    );
    Ok(())
}

/// A session whose client has a small window, pipelines commands, and reads nothing yet.
fn pipelined(gate: &Process<'_>, commands: usize, last: &'static [u8]) -> Result<TcpStream> {
    let socket = small_window()?;
    socket.connect(&gate.address().into())?;
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"EHLO client.example\r\n")?;
    thread::sleep(Duration::from_millis(300));
    let mut writing = stream.try_clone()?;
    // It is held up for as long as the replies are not read.
    thread::spawn(move || {
        let commands = b"RSET\r\n".repeat(commands);
        writing.write_all(&[&commands, last].concat())
    });
    Ok(stream)
}

const LIMITS: &str = "[limits]\ncommand_timeout = \"2s\"\n";

#[test]
fn a_client_that_reads_its_replies_slowly_hears_them_all() -> Result<()> {
    let gate = Process::start(&relay_to("discard", LIMITS)?)?;
    let commands = 20_000;
    let mut stream = pipelined(&gate, commands, b"")?;
    let reply = "250 2.0.0 Ok\r\n";
    let mut paced = Pace {
        from: stream.try_clone()?,
        piece: reply.len() * commands / 100,
    };
    let heard = paced.read_to(b"\r\n250 HELP\r\n", 1_000)?;
    let behind = String::from_utf8_lossy(&heard).matches(reply).count();
    let heard = paced.read_to(b"never", reply.len() * (commands - behind))?;
    let heard = String::from_utf8_lossy(&heard);
    ensure!(
        heard.matches(reply).count() + behind >= commands - 1,
        "{} replies, and then {:?}",
        heard.matches(reply).count(),
        &heard[heard.len().saturating_sub(80)..]
    );
    // It is still served.
    stream.write_all(b"QUIT\r\n")?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest)?;
    ensure!(rest.ends_with("221 2.0.0 Bye\r\n"), "{rest:?}");
    Ok(())
}

#[test]
fn a_client_that_reads_slowly_and_has_said_quit_hears_the_last_reply() -> Result<()> {
    let gate = Process::start(&relay_to("discard", LIMITS)?)?;
    let commands = 40_000;
    let mut paced = Pace {
        from: pipelined(&gate, commands, b"QUIT\r\n")?,
        piece: 14 * commands / 80,
    };
    let heard = paced.read_to(b"221 2.0.0 Bye\r\n", usize::MAX)?;
    let replies = String::from_utf8_lossy(&heard)
        .matches("250 2.0.0 Ok\r\n")
        .count();
    ensure!(replies == commands, "{replies} replies");
    Ok(())
}

#[test]
fn a_client_that_stops_reading_its_replies_is_sent_away() -> Result<()> {
    let gate = Process::start(&relay_to("discard", LIMITS)?)?;
    let begun = Instant::now();
    let _stream = pipelined(&gate, 200_000, b"")?;
    while gate.metric("portcullis_sessions_ended_total", "timeout")? < 1.0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "still there");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
