//! Name servers for the tests: rbldnsd with zones of its own, and a tap in front of it.
//!
//! The tap is what the gate is told to ask. It keeps every question, so that a test can say who was *not* asked about, passes most
//! of them on to rbldnsd and its answers back, and answers for the zones of its own moods as those do that make
//! operators wish they had a timeout: never, or late.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis::netns::Namespace;
use tempfile::TempDir;

use crate::watch;

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

/// A dataset of a zone: the zone, the type that rbldnsd has for it (`ip4set`, `ip6trie`), and the lines of its file.
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
        watch::until("rbldnsd to answer", Duration::from_secs(10), || {
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

/// A name server that keeps what it is asked, and has most of it answered by another.
#[derive(Debug)]
pub struct Tap {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
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
        let inside = namespace.path();
        let (asked, stop) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (kept, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        // Sockets of its own threads belong to the namespace if they are made in a thread that is in it.
        let handle = fs::File::open(inside)?;
        let thread = thread::spawn(move || {
            let entered = nix::sched::setns(&handle, nix::sched::CloneFlags::CLONE_NEWNET);
            assert!(entered.is_ok(), "the tap enters its namespace");
            while !stopped.load(Ordering::Relaxed) {
                let mut question = vec![0; 1_500];
                match socket.recv_from(&mut question) {
                    Ok((length, from)) => {
                        question.truncate(length);
                        let name = name_of(&question);
                        kept.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(name.clone());
                        if !name.contains(SILENT) {
                            let late = name.contains(LATE);
                            let (socket, question) = (socket.try_clone(), question);
                            thread::spawn(move || pass_on(socket, &question, from, behind, late));
                        }
                    }
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self {
            asked,
            stop,
            thread: Some(thread),
        })
    }

    /// Every name that was asked for so far, in lower case, with its dot at the end; as often as it was asked for.
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Threads are in the namespace of the one that started them.
fn pass_on(
    socket: std::io::Result<UdpSocket>,
    question: &[u8],
    from: SocketAddr,
    behind: SocketAddr,
    late: bool,
) {
    let mut answer = [0; 1_500];
    let passed = socket.and_then(|socket| {
        let upstream = UdpSocket::bind("127.0.0.1:0")?;
        upstream.set_read_timeout(Some(Duration::from_secs(2)))?;
        upstream.send_to(question, behind)?;
        let length = upstream.recv(&mut answer)?;
        if late {
            thread::sleep(LATENESS);
        }
        socket.send_to(&answer[..length], from)
    });
    // Whoever asked notices that there is no answer.
    drop(passed);
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
