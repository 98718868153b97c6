//! What an idle session under TLS holds beyond one in the clear.

use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use serde::Serialize;

use super::load::{Client, Secured, connect, expect};
use super::{Certificate, NAME, Options};
use crate::gateway::{Gateway, Server};
use crate::idle::allow_descriptors;
use crate::interrupt;

/// Bytes that TLS may take of an idle session.
pub(super) const BYTES_MAX: f64 = 4096.0;
/// Descriptors that a process needs beyond those of its sessions.
const DESCRIPTORS_BESIDES: u32 = 500;
/// How long the process may take to finish its work before its memory is measured.
const REST: Duration = Duration::from_millis(300);

/// Bytes of an idle session after EHLO.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) sessions: u32,
    pub(super) in_the_clear: f64,
    pub(super) under_tls: f64,
}

impl Idle {
    /// What TLS takes.
    pub(super) fn of_tls(self) -> f64 {
        self.under_tls - self.in_the_clear
    }
}

/// A session of the load.
enum Held {
    Plain(#[expect(dead_code, reason = "it is held")] TcpStream),
    Secured(#[expect(dead_code, reason = "it is held")] Box<Secured>),
}

/// Weighs a gateway with sessions in the clear, and another one with sessions under TLS. Huge pages
/// are off, as in `bench idle`.
pub(super) fn weigh(options: &Options, directory: &Path) -> Result<Idle> {
    allow_descriptors(options.idle + DESCRIPTORS_BESIDES)?;
    prctl::set_thp_disable(true).context("turning huge pages off")?;
    let [in_the_clear, under_tls] = [false, true].map(|is_secured| {
        let kind = if is_secured { "idle-tls" } else { "idle-plain" };
        let directory = directory.join(kind);
        std::fs::create_dir_all(&directory)?;
        of_one(options, is_secured, &std::fs::canonicalize(directory)?)
    });
    let idle = Idle {
        sessions: options.idle,
        in_the_clear: in_the_clear?,
        under_tls: under_tls?,
    };
    println!(
        "idle after EHLO: {:.0} bytes in the clear, {:.0} under TLS",
        idle.in_the_clear, idle.under_tls
    );
    Ok(idle)
}

/// Bytes per session of a new process.
fn of_one(options: &Options, is_secured: bool, directory: &Path) -> Result<f64> {
    let certificate = Certificate::make(options.key, directory)?;
    let gateway = Gateway {
        name: "portcullis",
        binary: options.portcullis.as_deref().context("no gateway")?,
        workers: 1,
        next_hop: None,
        sessions: options.idle + 10,
        certificate: Some(&certificate),
    };
    let mut server = gateway.start(directory)?;
    let client = Client::trusting(&certificate.chain, NAME)?;
    let address = server.address;
    let open = || -> Result<Held> {
        let mut stream = connect(address)?;
        if is_secured {
            return client.secure(stream).map(Box::new).map(Held::Secured);
        }
        expect(&mut stream, "", "220")?;
        expect(&mut stream, "EHLO load.bench.example\r\n", "250")?;
        Ok(Held::Plain(stream))
    };
    // One session first: code and tables that all share are there then.
    drop(open()?);
    let mut held = Vec::with_capacity(options.idle as usize);
    let before = resident(&mut server)?;
    for _ in 0..options.idle {
        interrupt::check()?;
        held.push(open()?);
    }
    let grown = resident(&mut server)?.saturating_sub(before);
    Ok(grown as f64 / f64::from(options.idle))
}

/// Resident bytes of the process once it has finished its work.
fn resident(server: &mut Server) -> Result<u64> {
    thread::sleep(REST);
    Ok(server.process.memory()?.resident)
}
