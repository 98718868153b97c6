//! `cargo xtask bench tls`: what STARTTLS costs beside nginx's mail proxy, what a flood of
//! handshakes does to the sessions that are there, and what an idle session under TLS holds.
//!
//! `smtp-source` speaks no TLS, so the load is of our own: threads that each carry on one session
//! after the other with rustls, whose handshakes are never resumed. As in `bench relay` it is the
//! CPU of the contestant's processes alone that is compared, in turns. Both have the same
//! certificate, made for the run.

mod idle;
mod load;
mod report;

use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::gateway::{Gateway, Server};
use crate::interrupt;
use crate::machine::Machine;
use crate::results;
use crate::servers::{self, NextHop};
use load::{Client, Session, Waits};
use report::{Flooded, Line, Report};

/// Sessions to each contestant before anything is measured.
const WARM_UP_SESSIONS: u32 = 200;
/// Sessions that a gateway has room for.
const SESSIONS_MAX: u32 = 20_000;
/// How long another session is watched during a flood.
const WATCHED: Duration = Duration::from_secs(4);
/// The name that the certificate has.
const NAME: &str = "gateway.bench.example";

/// The options of `cargo xtask bench tls`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Sessions in one contestant's turn
    #[arg(long, value_name = "N", default_value_t = 4_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub turn: u32,
    /// Sessions that the load holds at a time
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=500))]
    pub sessions: u32,
    /// Turns of each contestant
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Sessions that are idle at a time while memory is weighed; the limit of open files bounds
    /// them
    #[arg(long, value_name = "N", default_value_t = 5_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub idle: u32,
    /// Workers of the gateway, and worker processes of nginx
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// The key of the certificate, where handshakes and messages are compared
    #[arg(long, value_name = "KIND", default_value = "p256")]
    pub key: Key,
    /// The key where other sessions are watched: the slower it signs, the more they wait
    #[arg(long, value_name = "KIND", default_value = "rsa4096")]
    pub flood_key: Key,
    /// Writes everything to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Puts the tables into benches/RESULTS.md
    #[arg(long)]
    pub record: bool,
    /// The gateway's binary [default: a release build of this tree]
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
    /// Exits with 1 if a bar is missed
    #[arg(long)]
    pub enforce: bool,
}

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// ECDSA on the curve P-256
    P256,
    /// RSA, 2048 bits
    Rsa2048,
    /// RSA, 4096 bits
    Rsa4096,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::P256 => "ECDSA P-256",
            Self::Rsa2048 => "RSA-2048",
            Self::Rsa4096 => "RSA-4096",
        }
    }
}

/// A certificate that signs itself, and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    /// Has `openssl` make one.
    fn make(kind: Key, directory: &Path) -> Result<Self> {
        let certificate = Self {
            chain: directory.join(format!("{kind:?}.pem")),
            key: directory.join(format!("{kind:?}.key")),
        };
        let kind: &[&str] = match kind {
            Key::P256 => &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Key::Rsa2048 => &["rsa:2048"],
            Key::Rsa4096 => &["rsa:4096"],
        };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-sha256", "-days", "2"])
            .args(["-subj", &format!("/CN={NAME}")])
            .args(["-addext", &format!("subjectAltName=DNS:{NAME}")])
            // What is no authority may be shown by a server.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-newkey")
            .args(kind)
            .arg("-keyout")
            .arg(&certificate.key)
            .arg("-out")
            .arg(&certificate.chain)
            .output()
            .context("cannot start openssl (cargo xtask setup installs it)")?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "openssl req failed: {said}");
        Ok(certificate)
    }
}

/// The contestants behind one certificate, with the next hop of both.
struct Arena<'a> {
    next_hop: NextHop,
    servers: Vec<(&'static str, Server)>,
    client: Client,
    options: &'a Options,
}

impl<'a> Arena<'a> {
    fn start(options: &'a Options, key: Key, directory: &Path) -> Result<Self> {
        let directory = directory.join(format!("{key:?}"));
        std::fs::create_dir_all(&directory)?;
        let directory = std::fs::canonicalize(directory)?;
        let certificate = Certificate::make(key, &directory)?;
        let next_hop = NextHop::start(&directory)?;
        let binary = options.portcullis.as_deref().context("no gateway")?;
        let gateway = Gateway {
            name: "portcullis",
            binary,
            workers: options.workers,
            next_hop: Some(next_hop.address()),
            sessions: SESSIONS_MAX,
            certificate: Some(&certificate),
        };
        let to = next_hop.address();
        let nginx = servers::nginx(&directory, options.workers, to, Some(&certificate))?;
        let servers = vec![("nginx", nginx), ("portcullis", gateway.start(&directory)?)];
        let client = Client::trusting(&certificate.chain, NAME)?;
        let mut arena = Self {
            next_hop,
            servers,
            client,
            options,
        };
        for index in 0..arena.servers.len() {
            arena.turn(index, Session::Message, WARM_UP_SESSIONS)?;
        }
        Ok(arena)
    }

    /// One turn of a contestant: microseconds of CPU a session, and sessions a second.
    fn turn(&mut self, index: usize, session: Session, number: u32) -> Result<(f64, f64)> {
        let (name, server) = &mut self.servers[index];
        let arrived = self.next_hop.messages()?;
        let before = server.process.cpu_time()?;
        let client = &self.client;
        let elapsed = load::run(
            client,
            server.address,
            session,
            number,
            self.options.sessions,
        )
        .with_context(|| format!("{name}: {}", server.process.log_tail()))?;
        let used = (server.process.cpu_time()? - before).total;
        if session == Session::Message {
            self.next_hop.expect_messages(arrived + u64::from(number))?;
        }
        let cpu = used.as_secs_f64() * 1e6 / f64::from(number);
        Ok((cpu, f64::from(number) / elapsed.as_secs_f64()))
    }

    /// All rounds of one kind of session.
    fn contest(&mut self, session: Session) -> Result<Line> {
        println!("{}", session.title());
        let names = self.servers.iter().map(|(name, _)| *name).collect();
        let mut line = Line::new(session, names);
        for round in 1..=self.options.rounds {
            print!("  round {round} of {}:", self.options.rounds);
            let mut order: Vec<_> = (0..self.servers.len()).collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for index in order {
                interrupt::check()?;
                let turn = self.turn(index, session, self.options.turn)?;
                print!("  {} {:.1} us", self.servers[index].0, turn.0);
                line.add(index, turn);
            }
            println!();
        }
        Ok(line)
    }

    /// How long NOOP takes in another session, without and with a flood of handshakes.
    fn watch(&self, index: usize) -> Result<Flooded> {
        let (name, server) = &self.servers[index];
        let address = server.address;
        let calm = load::watch(address, WATCHED)?;
        let over = AtomicBool::new(false);
        let (flooded, handshakes) = thread::scope(|scope| -> Result<(Waits, u64)> {
            let flood = scope.spawn(|| self.flood(address, &over));
            let watched = load::watch(address, WATCHED);
            over.store(true, Ordering::Relaxed);
            let handshakes = flood
                .join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))??;
            Ok((watched?, handshakes))
        })
        .with_context(|| format!("{name}: {}", server.process.log_tail()))?;
        Ok(Flooded {
            name,
            calm,
            flooded,
            handshakes_per_second: handshakes as f64 / WATCHED.as_secs_f64(),
        })
    }

    fn flood(&self, address: SocketAddrV4, over: &AtomicBool) -> Result<u64> {
        load::flood(&self.client, address, self.options.sessions, over)
    }
}

/// Runs it all, prints the tables. To be called before any other thread is started.
///
/// # Errors
/// If something is not installed, does not start, or a message was lost; a missed bar is not an
/// error, but gives exit code 1 if the options say so.
pub fn run(options: &Options) -> Result<ExitCode> {
    interrupt::watch()?;
    let machine = Machine::describe();
    let directory = tempfile::Builder::new()
        .prefix("portcullis-bench-")
        .tempdir()?;
    // nginx reads its files as another user.
    let for_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), for_all)?;
    let directory = directory.path();
    let lines = {
        let mut arena = Arena::start(options, options.key, directory)?;
        vec![
            arena.contest(Session::Handshake)?,
            arena.contest(Session::Message)?,
        ]
    };
    println!(
        "NOOP of another session, {} handshakes",
        options.flood_key.name()
    );
    let floods = {
        let arena = Arena::start(options, options.flood_key, &directory.join("flood"))?;
        let floods = (0..arena.servers.len()).map(|index| arena.watch(index));
        floods.collect::<Result<_>>()?
    };
    let idle = idle::weigh(options, directory)?;
    let report = Report::new(options, machine, lines, floods, idle);
    print!("\n{report}");
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(BufWriter::new(file), &report)?;
        println!("\nwritten to {}", path.display());
    }
    if options.record {
        results::record("TLS (`cargo xtask bench tls`)", &report.to_string())?;
    }
    let missed = options.enforce && report.misses_a_bar();
    Ok(ExitCode::from(u8::from(missed)))
}
