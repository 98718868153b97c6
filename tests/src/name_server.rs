//! Name servers for the tests: rbldnsd with zones of its own, and a tap in front of it.
//!
//! The gate sends its queries to the tap. The tap keeps every one, so that a test can say which
//! address was *not* looked up. It passes most of them on to rbldnsd, and the answers back; where a
//! test wants it, it behaves like a name server that is broken or slow ([`Mood`]).

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis::netns::Namespace;
use tempfile::TempDir;

use crate::wait;

/// Part of the name of a zone that the tap never answers for.
pub const SILENT: &str = "silent.";
/// Part of the name of a zone for which the tap passes answers on late.
pub const LATE: &str = "late.";
/// How late.
pub const LATENESS: Duration = Duration::from_millis(700);

/// A running rbldnsd; killed when dropped.
#[derive(Debug)]
pub struct Rbldnsd {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

/// A dataset of a zone: the zone, the type that rbldnsd has for it (`ip4set`, `ip6trie`), and the
/// lines of its file.
pub type Dataset<'a> = (&'a str, &'a str, &'a str);

impl Rbldnsd {
    /// Starts it at an address inside of a namespace. Several datasets of one zone are one zone.
    ///
    /// # Errors
    /// When it is missing (`cargo xtask setup` installs it), or does not take the data.
    pub fn start_in(
        namespace: &Namespace,
        address: SocketAddr,
        datasets: &[Dataset<'_>],
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-rbldnsd-")
            .tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let mut command = namespace.command("/usr/sbin/rbldnsd");
        command
            .args(["-n", "-u", "nobody", "-b"])
            .arg(format!("{}/{}", address.ip(), address.port()))
            .arg("-w")
            .arg(directory.path());
        for (number, (zone, kind, lines)) in datasets.iter().enumerate() {
            let file = format!("data-{number}");
            let mut data = fs::File::create(directory.path().join(&file))?;
            // A lifetime of a minute for all answers, also for those that there is no such name.
            writeln!(
                data,
                "$SOA 60 ns.{zone} admin.{zone} 0 600 300 86400 60\n$TTL 60\n{lines}"
            )?;
            command.arg(format!("{zone}:{kind}:{file}"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("rbldnsd")?;
        let mut server = Self {
            child,
            address,
            _directory: directory,
        };
        let probe = namespace.run(|| UdpSocket::bind("127.0.0.1:0"))??;
        probe.set_read_timeout(Some(Duration::from_millis(100)))?;
        wait::until("rbldnsd to answer", Duration::from_secs(10), || {
            // The root's name servers: refused, which is an answer.
            let question = b"\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";
            let ended = server.child.try_wait().ok().flatten().is_some();
            let answers = probe.send_to(question, server.address).is_ok()
                && probe.recv(&mut [0; 512]).is_ok();
            (answers || ended).then_some(())
        })?;
        match server.child.try_wait()? {
            Some(status) => anyhow::bail!("rbldnsd ended: {status}"),
            None => Ok(server),
        }
    }
}

impl Drop for Rbldnsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a tap does instead of passing a question on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It passes the question on after all.
    Well,
    /// It never answers.
    Silent,
    /// It answers late.
    Late,
    /// It answers with this code: 1 FORMERR, 2 SERVFAIL, 4 NOTIMP, 5 REFUSED.
    Code(u8),
    /// The same without repeating the question, as servers do that could not read it.
    BareCode(u8),
    /// It answers with the question's number, and then with what is no DNS message.
    Garbage,
    /// It sends the question back.
    Echo,
    /// It has no records and is no authority, but names servers that are.
    Referral,
    /// It lists everything, by 127.0.0.2.
    ListsAll,
    /// Its answers do not fit into a packet; over TCP they are passed on.
    Truncates,
    /// Its answers do not fit into a packet, and over TCP it does not answer.
    TruncatesOnly,
    /// The answer to another question comes first, with the number of this one, and then a real
    /// one.
    Forged,
}

/// Part of a name, and what is done with questions for such names.
type Moods = Arc<Mutex<Vec<(String, Mood)>>>;

/// A name server that keeps what it is asked, and has most of it answered by another.
#[derive(Debug)]
pub struct Tap {
    asked: Arc<Mutex<Vec<String>>>,
    moods: Moods,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tap {
    /// Listens at an address inside of a namespace; `behind` is the server that answers.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start_in(
        namespace: &Namespace,
        address: SocketAddr,
        behind: SocketAddr,
    ) -> Result<Self> {
        let socket = namespace.run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let listener = namespace.run(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let moods: Moods = Arc::new(Mutex::new(vec![
            (SILENT.to_owned(), Mood::Silent),
            (LATE.to_owned(), Mood::Late),
        ]));
        let (asked, stop) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let packets = {
            let (asked, moods, stop) = (Arc::clone(&asked), Arc::clone(&moods), Arc::clone(&stop));
            // Sockets of its own threads belong to the namespace if they are made in a thread that
            // is in it.
            let handle = fs::File::open(namespace.path())?;
            thread::spawn(move || {
                enter(&handle);
                answer_packets(&socket, behind, &asked, &moods, &stop);
            })
        };
        let streams = {
            let (moods, stop) = (Arc::clone(&moods), Arc::clone(&stop));
            let handle = fs::File::open(namespace.path())?;
            thread::spawn(move || {
                enter(&handle);
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // One that ends early has its reasons.
                        Ok((stream, _)) => drop(answer_stream(stream, behind, &moods)),
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        };
        Ok(Self {
            asked,
            moods,
            stop,
            threads: vec![packets, streams],
        })
    }

    /// What is done from now on with questions for names that hold this; what was said last counts.
    pub fn turn(&self, part_of_name: &str, mood: Mood) {
        let mut moods = self.moods.lock().unwrap_or_else(PoisonError::into_inner);
        moods.push((part_of_name.to_owned(), mood));
    }

    /// Every name that was asked for so far, in lower case, with its dot at the end; as often as it
    /// was asked for.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn enter(namespace: &fs::File) {
    let entered = nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET);
    assert!(entered.is_ok(), "the tap enters its namespace");
}

fn mood_for(moods: &Moods, name: &str) -> Mood {
    let moods = moods.lock().unwrap_or_else(PoisonError::into_inner);
    let last = moods.iter().rev().find(|(part, _)| name.contains(part));
    last.map_or(Mood::Well, |(_, mood)| *mood)
}

fn answer_packets(
    socket: &UdpSocket,
    behind: SocketAddr,
    asked: &Mutex<Vec<String>>,
    moods: &Moods,
    stop: &AtomicBool,
) {
    let mut answering: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // Joined and not let go: glibc's pthread_detach reads a thread that may have ended and
        // freed itself (its bug 19951).
        for ended in answering.extract_if(.., |thread| thread.is_finished()) {
            let _ = ended.join();
        }
        let mut question = vec![0; 1_500];
        match socket.recv_from(&mut question) {
            Ok((length, from)) => {
                question.truncate(length);
                let name = name_of(&question);
                let mood = mood_for(moods, &name);
                asked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(name);
                if mood == Mood::Silent {
                    continue;
                }
                let socket = socket.try_clone();
                // Threads are in the namespace of the one that started them. The client notices
                // that there is no answer.
                answering.push(thread::spawn(move || {
                    drop(socket.and_then(|socket| answer(&socket, &question, from, behind, mood)));
                }));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    for thread in answering {
        let _ = thread.join();
    }
}

fn answer(
    socket: &UdpSocket,
    question: &[u8],
    from: SocketAddr,
    behind: SocketAddr,
    mood: Mood,
) -> std::io::Result<()> {
    let packet = match mood {
        Mood::Silent => return Ok(()),
        Mood::Well => pass_on(question, behind)?,
        Mood::Late => {
            let packet = pass_on(question, behind)?;
            thread::sleep(LATENESS);
            packet
        }
        Mood::Code(code) => response(question, 0, code),
        Mood::BareCode(code) => {
            let mut packet = response(question, 0, code);
            packet.truncate(HEADER);
            packet[5] = 0;
            packet
        }
        Mood::Garbage => [&question[..2], &[0xff; 40]].concat(),
        Mood::Echo => question.to_vec(),
        Mood::Referral => {
            let mut packet = response(question, 0, 0);
            // One record of authority: the root's name server is the root.
            packet[9] = 1;
            packet.extend([0, 0, 2, 0, 1, 0, 0, 0, 60, 0, 1, 0]);
            packet
        }
        Mood::ListsAll => listing(question),
        Mood::Truncates | Mood::TruncatesOnly => response(question, TRUNCATED, 0),
        Mood::Forged => {
            let mut other = question.to_vec();
            // The first letter of the name.
            other[HEADER + 1] ^= 1;
            socket.send_to(&listing(&other), from)?;
            pass_on(question, behind)?
        }
    };
    socket.send_to(&packet, from).map(drop)
}

/// Octets of the header (RFC 1035 section 4.1.1).
const HEADER: usize = 12;
/// The flag in the header's third octet.
const TRUNCATED: u8 = 0x02;

/// The question as a response with no records.
fn response(question: &[u8], flags: u8, code: u8) -> Vec<u8> {
    let mut packet = question.to_vec();
    packet[2] |= 0x80 | flags;
    packet[3] = code;
    packet
}

/// A response with one answer: the name of the question has the address 127.0.0.2, for a minute.
fn listing(question: &[u8]) -> Vec<u8> {
    let mut packet = response(question, 0, 0);
    packet[7] = 1;
    packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 2]);
    packet
}

fn pass_on(question: &[u8], behind: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut answer = vec![0; 1_500];
    let upstream = UdpSocket::bind("127.0.0.1:0")?;
    upstream.set_read_timeout(Some(Duration::from_secs(2)))?;
    upstream.send_to(question, behind)?;
    let length = upstream.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// One question over TCP.
fn answer_stream(mut stream: TcpStream, behind: SocketAddr, moods: &Moods) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut question)?;
    if mood_for(moods, &name_of(&question)) == Mood::TruncatesOnly {
        return Ok(());
    }
    let answer = pass_on(&question, behind)?;
    let length = u16::try_from(answer.len()).unwrap_or(0);
    stream.write_all(&length.to_be_bytes())?;
    // In two writes, as some do.
    stream.write_all(&answer)
}

/// The name of the first question.
fn name_of(question: &[u8]) -> String {
    let mut name = String::new();
    let mut rest = question.get(12..).unwrap_or_default();
    while let Some((&length, tail)) = rest.split_first() {
        let Some((label, tail)) = tail.split_at_checked(usize::from(length)) else {
            break;
        };
        if label.is_empty() {
            break;
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        name.push('.');
        rest = tail;
    }
    name
}
