//! `cargo xtask bench idle`: memory of the gateway per session that is idle.
//!
//! Many sessions are opened and then all say EHLO, and then MAIL; after each step the resident
//! memory of the process is compared with what it was before the first of them. Transparent huge
//! pages are off (prctl(2), `PR_SET_THP_DISABLE`, which the gateway inherits): with them memory
//! comes in steps of 2 MiB, 140 bytes a session, which hide what a session takes. The kernel's own
//! memory (sockets) is not in it. Each round has a process of its own, because a process keeps
//! memory for a while that it has used once.

use std::fs::File;
use std::io::{BufWriter, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::figures::Spread;
use crate::gateway::{Gateway, Server};
use crate::interrupt;
use crate::machine::{Machine, version_of};
use crate::results::{self, circumstances};
use crate::table::Table;

/// Bytes that an idle session may take.
const BYTES_MAX: f64 = 1024.0;
/// Sessions from one address of the loopback network, well within its ephemeral ports.
const SESSIONS_PER_ADDRESS: u32 = 4_000;
/// Descriptors that a process needs beyond those of its sessions, and slots that a worker keeps
/// beyond its sessions.
const DESCRIPTORS_BESIDES: u32 = 500;
/// How long the process may take to finish its work before its memory is measured.
const REST: Duration = Duration::from_millis(300);
/// How long a reply may take.
const REPLY_TIME_MAX: Duration = Duration::from_secs(10);

/// The options of `cargo xtask bench idle`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Sessions at a time; the limit of open files bounds them
    #[arg(long, value_name = "N", default_value_t = 15_000,
        value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub sessions: u32,
    /// Processes that are weighed, one after another
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Writes everything, each round of it, to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Puts the table into benches/RESULTS.md
    #[arg(long)]
    pub record: bool,
    /// The gateway's binary [default: a release build of this tree]
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
    /// Exits with 1 if a bar is missed
    #[arg(long)]
    pub enforce: bool,
}

/// What a session has got to.
#[derive(Clone, Copy, Debug, Serialize)]
struct Step {
    title: &'static str,
    command: &'static str,
    /// The code of the reply.
    code: &'static str,
    has_bar: bool,
}

const STEPS: [Step; 3] = [
    Step {
        title: "greeted",
        command: "",
        code: "220",
        has_bar: true,
    },
    Step {
        title: "after EHLO",
        command: "EHLO load.bench.example\r\n",
        code: "250",
        has_bar: true,
    },
    Step {
        title: "after MAIL",
        command: "MAIL FROM:<sender@bench.example>\r\n",
        code: "250",
        has_bar: false,
    },
];

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    versions: Vec<String>,
    sessions: u32,
    steps: Vec<Weight>,
}

/// Bytes per session after a step.
#[derive(Debug, Serialize)]
struct Weight {
    step: Step,
    bytes: Spread,
    rounds: Vec<f64>,
}

impl Weight {
    fn pass(&self) -> Option<bool> {
        self.step.has_bar.then_some(self.bytes.median <= BYTES_MAX)
    }
}

/// Opens sessions, weighs the process, prints the table. To be called before any other thread is
/// started.
///
/// # Errors
/// If the gateway does not start, the limit of open files is too low, or a reply is not the one
/// expected; a missed bar is not an error, but gives exit code 1 if the options say so.
pub fn run(options: &Options) -> Result<ExitCode> {
    interrupt::watch()?;
    let machine = Machine::describe();
    let binary = options.portcullis.as_deref().context("no gateway")?;
    allow_descriptors(options.sessions + DESCRIPTORS_BESIDES)?;
    prctl::set_thp_disable(true).context("turning huge pages off")?;
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        print!("  round {round} of {}:", options.rounds);
        let weights = weigh(options.sessions, binary)?;
        for (step, bytes) in STEPS.iter().zip(weights) {
            print!("  {} {bytes:.0}", step.title);
        }
        println!("  bytes a session");
        rounds.push(weights);
    }
    let steps = STEPS.iter().enumerate().filter_map(|(index, step)| {
        let rounds: Vec<f64> = rounds.iter().map(|weights| weights[index]).collect();
        Some(Weight {
            step: *step,
            bytes: Spread::of(rounds.iter().copied())?,
            rounds,
        })
    });
    let report = Report {
        machine,
        versions: vec![version_of(&binary.to_string_lossy(), &["--version"])],
        sessions: options.sessions,
        steps: steps.collect(),
    };
    print!("\n{report}");
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(BufWriter::new(file), &report)?;
        println!("\nwritten to {}", path.display());
    }
    if options.record {
        results::record(
            "Idle sessions (`cargo xtask bench idle`)",
            &report.to_string(),
        )?;
    }
    let missed = report
        .steps
        .iter()
        .any(|weight| weight.pass() == Some(false));
    Ok(ExitCode::from(u8::from(missed && options.enforce)))
}

/// Raises the limit of open files of this process, and so of the gateway.
pub(crate) fn allow_descriptors(needed: u32) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        u64::from(needed) <= hard,
        "this needs {needed} open files, and {hard} are allowed: raise the limit (`ulimit -Hn`), \
         or hold fewer --sessions"
    );
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Bytes per session of a new process, after each of the steps.
fn weigh(sessions: u32, binary: &Path) -> Result<[f64; STEPS.len()]> {
    let directory = tempfile::Builder::new()
        .prefix("portcullis-bench-")
        .tempdir()?;
    let gateway = Gateway {
        name: "portcullis",
        binary,
        workers: 1,
        next_hop: None,
        // The one that has warmed it up may still be there.
        sessions: sessions + 1,
        certificate: None,
    };
    let mut server = gateway.start(directory.path())?;
    warm_up(server.address)?;
    let before = resident(&mut server)?;
    let mut clients = Vec::with_capacity(sessions as usize);
    for number in 0..sessions {
        interrupt::check()?;
        clients.push(connect(number, server.address)?);
    }
    let mut weights = [0.0; STEPS.len()];
    for (step, weight) in STEPS.iter().zip(&mut weights) {
        take_step(step, &mut clients)?;
        let grown = resident(&mut server)?.saturating_sub(before);
        *weight = grown as f64 / f64::from(sessions);
    }
    Ok(weights)
}

/// One whole session, so that code and tables that all sessions share are there.
fn warm_up(server: SocketAddrV4) -> Result<()> {
    let mut clients = [connect(0, server)?];
    for step in &STEPS {
        take_step(step, &mut clients)?;
    }
    let [client] = &mut clients;
    client.write_all(b"QUIT\r\n")?;
    expect_reply(client, "221")
}

/// A client's connection, from one of the loopback network's addresses.
fn connect(number: u32, server: SocketAddrV4) -> Result<TcpStream> {
    let from =
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + number / SESSIONS_PER_ADDRESS);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket
        .connect(&SocketAddr::from(server).into())
        .with_context(|| format!("connection {number}"))?;
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(REPLY_TIME_MAX))?;
    Ok(client)
}

/// All clients send a command; then all read their replies.
fn take_step(step: &Step, clients: &mut [TcpStream]) -> Result<()> {
    for client in &mut *clients {
        client.write_all(step.command.as_bytes())?;
    }
    for client in clients {
        interrupt::check()?;
        expect_reply(client, step.code).with_context(|| step.title)?;
    }
    Ok(())
}

/// Reads one reply (RFC 5321 section 4.2), which has to have this code.
pub(crate) fn expect_reply(client: &mut impl Read, code: &str) -> Result<()> {
    let mut reply = Vec::new();
    let mut buffer = [0; 512];
    while !is_whole(&reply) {
        let len = client.read(&mut buffer).context("no reply")?;
        ensure!(len > 0, "the connection was closed before the reply");
        reply.extend_from_slice(&buffer[..len]);
    }
    let text = String::from_utf8_lossy(&reply);
    ensure!(text.starts_with(code), "the reply is not {code}: {text}");
    Ok(())
}

/// The last line of a reply has a blank behind its code.
fn is_whole(reply: &[u8]) -> bool {
    let lines = reply.strip_suffix(b"\r\n");
    let last = lines.and_then(|lines| lines.rsplit(|octet| *octet == b'\n').next());
    last.is_some_and(|line| line.get(3) == Some(&b' '))
}

/// Resident bytes of the process once it has finished its work.
fn resident(server: &mut Server) -> Result<u64> {
    thread::sleep(REST);
    let memory = server.process.memory()?;
    ensure!(
        memory.huge == 0,
        "{} bytes are in huge pages, which were to be off",
        memory.huge
    );
    Ok(memory.resident)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let notes = [
            ("sessions", self.sessions.to_string()),
            (
                "weighed",
                "growth of the resident memory (`/proc/PID/smaps_rollup`), transparent huge pages \
                 off, the kernel's sockets not counted"
                    .to_owned(),
            ),
        ];
        writeln!(
            f,
            "{}",
            circumstances(&self.machine, &self.versions, &notes)
        )?;
        let mut table = Table::new(1, ["an idle session", "bytes", "bar"]);
        for weight in &self.steps {
            let bar = weight.pass().map_or_else(
                || "none".to_owned(),
                |pass| format!("<= {BYTES_MAX} {}", if pass { "pass" } else { "MISSED" }),
            );
            table.row([weight.step.title, &weight.bytes.cell(0), &bar]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn a_reply_of_several_lines_is_read_to_its_last() {
        assert!(!is_whole(b""));
        assert!(!is_whole(b"250-mx.isp.example\r\n"));
        assert!(!is_whole(b"250-mx.isp.example\r\n250 SI"));
        assert!(is_whole(b"250-mx.isp.example\r\n250 SIZE\r\n"));
        assert!(is_whole(b"220 mx.isp.example ESMTP\r\n"));
    }
}
