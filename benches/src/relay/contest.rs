//! One comparison: all servers up, warmed up, then turns.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::load::Load;
use super::{Comparison, Options};
use crate::gateway::{Gateway, Server};
use crate::servers::{self, NextHop};

/// Messages to each contestant before anything is measured: pages are touched, tables grown, code
/// is in the cache.
const WARM_UP_MESSAGES: u32 = 2_000;

/// Sessions that a gateway has room for: as many as smtp-source can be told to hold, and some that
/// are about to end.
const SESSIONS_MAX: u32 = 10_000;

/// The name of another build of the gateway.
pub(crate) const OTHER: &str = "other build";

/// A contestant's turn.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Turn {
    /// User and system time of all its processes, per message.
    pub(crate) cpu_us_per_message: f64,
    /// User time alone; in steps of 10 ms a turn.
    pub(crate) user_us_per_message: f64,
    /// System time alone; in steps of 10 ms a turn.
    pub(crate) system_us_per_message: f64,
    /// Mostly a figure of smtp-source's.
    pub(crate) messages_per_second: f64,
}

/// All turns of a contestant.
#[derive(Debug, Serialize)]
pub(crate) struct Turns {
    pub(crate) name: &'static str,
    pub(crate) turns: Vec<Turn>,
}

/// What a comparison gave.
#[derive(Debug)]
pub(crate) struct ComparisonResult {
    pub(crate) comparison: Comparison,
    pub(crate) messages_per_turn: u32,
    pub(crate) peer: Turns,
    /// Missing if only the peers were asked for.
    pub(crate) gateway: Option<Turns>,
    /// Another build of the gateway, if one was named.
    pub(crate) other: Option<Turns>,
}

struct Contestant {
    name: &'static str,
    server: Server,
    turns: Vec<Turn>,
}

impl From<Contestant> for Turns {
    fn from(contestant: Contestant) -> Self {
        Self {
            name: contestant.name,
            turns: contestant.turns,
        }
    }
}

/// Runs one comparison; its files go below `directory`.
pub(crate) fn run(
    comparison: Comparison,
    options: &Options,
    directory: &Path,
) -> Result<ComparisonResult> {
    let load = Load {
        messages: options.messages(comparison),
        sessions: options.sessions,
        keep_connections: comparison.keeps_connections(),
    };
    println!("{}", comparison.title());
    let next_hop = if comparison.is_through() {
        Some(NextHop::start(directory)?)
    } else {
        None
    };
    let mut contestants = start(comparison, options, next_hop.as_ref(), directory)?;

    let warm_up = Load {
        messages: WARM_UP_MESSAGES.min(load.messages),
        ..load
    };
    for contestant in &mut contestants {
        turn(
            &mut contestant.server,
            warm_up,
            next_hop.as_ref(),
            directory,
        )
        .with_context(|| format!("{}, warming up", contestant.name))?;
    }
    for round in 1..=options.rounds() {
        print!("  round {round} of {}:", options.rounds());
        let mut in_turn: Vec<_> = contestants.iter_mut().collect();
        if round % 2 == 0 {
            in_turn.reverse();
        }
        for contestant in in_turn {
            let turn = turn(&mut contestant.server, load, next_hop.as_ref(), directory)
                .with_context(|| format!("{}, round {round}", contestant.name))?;
            print!("  {} {:.1} us", contestant.name, turn.cpu_us_per_message);
            contestant.turns.push(turn);
        }
        println!();
    }
    let mut contestants = contestants.into_iter();
    Ok(ComparisonResult {
        comparison,
        messages_per_turn: load.messages,
        peer: contestants.next().context("no peer")?.into(),
        gateway: contestants.next().map(Turns::from),
        other: contestants.next().map(Turns::from),
    })
}

/// Starts the contestants: the peer, the gateway, another build of it.
fn start(
    comparison: Comparison,
    options: &Options,
    next_hop: Option<&NextHop>,
    directory: &Path,
) -> Result<Vec<Contestant>> {
    let (name, server) = match next_hop {
        Some(next_hop) => (
            "nginx",
            servers::nginx(directory, options.workers, next_hop.address(), None)?,
        ),
        None => ("smtp-sink", servers::smtp_sink(directory)?),
    };
    let mut servers = vec![(name, server)];
    if !options.peers_only {
        let binary = options
            .portcullis
            .as_deref()
            .with_context(|| format!("no gateway to put beside {name} in {comparison:?}"))?;
        let builds = [("portcullis", binary)].into_iter();
        for (name, binary) in builds.chain(options.against.as_deref().map(|path| (OTHER, path))) {
            let gateway = Gateway {
                name,
                binary,
                workers: options.workers,
                next_hop: next_hop.map(NextHop::address),
                sessions: SESSIONS_MAX,
                certificate: None,
            };
            servers.push((name, gateway.start(directory)?));
        }
    }
    Ok(servers
        .into_iter()
        .map(|(name, server)| Contestant {
            name,
            server,
            turns: Vec::new(),
        })
        .collect())
}

/// One turn, and whether every message of it arrived.
fn turn(
    server: &mut Server,
    load: Load,
    next_hop: Option<&NextHop>,
    directory: &Path,
) -> Result<Turn> {
    let arrived_before = next_hop.map(NextHop::messages).transpose()?;
    let cpu_before = server.process.cpu_time()?;
    let elapsed = load.run(server.address, directory)?;
    let cpu = server.process.cpu_time()? - cpu_before;
    if let (Some(next_hop), Some(before)) = (next_hop, arrived_before) {
        next_hop.expect_messages(before + u64::from(load.messages))?;
    }
    let per_message =
        |time: std::time::Duration| time.as_secs_f64() * 1e6 / f64::from(load.messages);
    Ok(Turn {
        cpu_us_per_message: per_message(cpu.total),
        user_us_per_message: per_message(cpu.user),
        system_us_per_message: per_message(cpu.system),
        messages_per_second: f64::from(load.messages) / elapsed.as_secs_f64(),
    })
}
