//! How many packets of a flood a core drops in a second, beside what else could stand in front of the interface.
//!
//! Twice: from 100,000 sources, all of them on the list; and from sources random over all of IPv4, none of them on the
//! list, with what is on no list dropped. The second has two passes over the same sources, because the first one pays for
//! pages that the kernel's mapping of a new table has never touched, and the second for the caches alone.

mod arena;
mod contestants;

use std::path::Path;

use anyhow::{Context as _, Result};
use portcullis::policy::lists::Compiled;
use portcullis_benches::figures::Spread;
use portcullis_benches::interrupt;
use serde::Serialize;

use self::arena::Amount;
pub(crate) use self::arena::received_packets;
use self::contestants::Contestant;
use crate::gate::{self, Unlisted};
use crate::traffic::{Family, Sequence};
use crate::{Options, Peer};

/// The program that everything is held against: an XDP program that drops whatever comes.
pub(crate) const BARE: &str = "bare XDP_DROP";
/// The kernel's own way.
pub(crate) const NFTABLES: &str = "nftables ingress set";

/// Sources of the first flood.
const SOURCES: u32 = 100_000;

/// Entries of nftables' set when the sources are random: with ten million it would be filling for minutes.
const NFTABLES_ENTRIES_MAX: u32 = 1_000_000;

/// Where the sources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Sources {
    /// 100,000 of those on the list.
    Listed,
    /// Random over all of IPv4, each once.
    Random,
}

/// What a kind of flood came to.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) sources: Sources,
    pub(crate) entries: u32,
    pub(crate) contestants: Vec<Figures>,
}

/// A contestant's packets per second.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    /// How many of the sources or entries it was given, if not all.
    pub(crate) limited_to: Option<u32>,
    /// Over sources that nobody has seen since the lists were put in force; only for random ones.
    pub(crate) first_pass: Option<Spread>,
    pub(crate) warm: Spread,
    /// The warm ones over those of [`BARE`] in the same round.
    pub(crate) over_bare: Spread,
    pub(crate) rounds: Vec<Turn>,
}

/// A contestant's turn, in packets per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Turn {
    pub(crate) first_pass: Option<f64>,
    pub(crate) warm: f64,
}

impl Outcome {
    pub(crate) fn of(&self, name: &str) -> Option<&Figures> {
        self.contestants.iter().find(|figures| figures.name == name)
    }
}

/// Both floods.
pub(crate) fn run(options: &Options, directory: &Path) -> Result<Vec<Outcome>> {
    let compiled = gate::compiled(Sequence::listed(options.entries()), Family::Ipv4);
    [Sources::Listed, Sources::Random]
        .into_iter()
        .map(|sources| {
            println!(
                "flood, {sources:?} sources, {} entries: filling",
                options.entries()
            );
            let mut contestants = contestants(options, sources, &compiled, directory)?;
            let mut rounds = Vec::new();
            for round in 1..=options.rounds() {
                print!("  round {round} of {}:", options.rounds());
                let mut turns = Vec::new();
                for contestant in &mut contestants {
                    let turn = turn(options, sources, contestant, &compiled)
                        .with_context(|| format!("{}, round {round}", contestant.name))?;
                    print!("  {} {:.2}", contestant.name, turn.warm / 1e6);
                    turns.push(turn);
                }
                println!(" million/s");
                rounds.push(turns);
            }
            Ok(Outcome {
                sources,
                entries: options.entries(),
                contestants: figures(&contestants, &rounds),
            })
        })
        .collect()
}

/// Those that were not left out, [`BARE`] first.
fn contestants(
    options: &Options,
    sources: Sources,
    compiled: &Compiled,
    directory: &Path,
) -> Result<Vec<Contestant>> {
    let entries = Sequence::listed(options.entries());
    let random = sources == Sources::Random;
    let unlisted = if random {
        Unlisted::Drop
    } else {
        Unlisted::Pass
    };
    let mut contestants = vec![
        contestants::program(BARE, "empty", entries, random)?,
        contestants::portcullis(compiled, unlisted)?,
        contestants::program("bare parse and drop", "bare", entries, random)?,
    ];
    interrupt::check()?;
    if options.has(Peer::Hash) {
        contestants.push(contestants::program("hash map", "hash", entries, random)?);
    }
    if options.has(Peer::Nftables) {
        let number = match sources {
            Sources::Listed => SOURCES.min(entries.number),
            Sources::Random => NFTABLES_ENTRIES_MAX.min(entries.number),
        };
        let set = Sequence::listed(number);
        contestants.push(contestants::nftables(set, random, directory)?);
    }
    if options.has(Peer::XdpFilter) {
        contestants.push(contestants::xdp_filter(entries, random)?);
    }
    Ok(contestants)
}

fn turn(
    options: &Options,
    sources: Sources,
    contestant: &mut Contestant,
    lists: &Compiled,
) -> Result<Turn> {
    match sources {
        Sources::Listed => {
            let number = contestant.limited_to.unwrap_or(SOURCES).min(SOURCES);
            let sequence = Sequence::listed(number.min(options.entries()));
            let arena = &mut contestant.arena;
            arena.flood(sequence, Amount::Packets(2 * sequence.number))?;
            let flooded = arena.flood(sequence, Amount::Time(options.flood_time()))?;
            Ok(Turn {
                first_pass: None,
                warm: flooded.per_second(),
            })
        }
        Sources::Random => {
            contestant.renew(lists)?;
            let sequence = Sequence::unlisted(options.pass());
            let mut pass = || {
                let flooded = contestant
                    .arena
                    .flood(sequence, Amount::Packets(sequence.number))?;
                anyhow::Ok(flooded.per_second())
            };
            Ok(Turn {
                first_pass: Some(pass()?),
                warm: pass()?,
            })
        }
    }
}

fn figures(contestants: &[Contestant], rounds: &[Vec<Turn>]) -> Vec<Figures> {
    let figures = contestants
        .iter()
        .enumerate()
        .filter_map(|(index, contestant)| {
            let turns: Vec<Turn> = rounds.iter().map(|turns| turns[index]).collect();
            Some(Figures {
                name: contestant.name,
                limited_to: contestant.limited_to,
                first_pass: Spread::of(turns.iter().filter_map(|turn| turn.first_pass)),
                warm: Spread::of(turns.iter().map(|turn| turn.warm))?,
                // The bare program has the first turn of each round.
                over_bare: Spread::of(
                    rounds.iter().map(|turns| turns[index].warm / turns[0].warm),
                )?,
                rounds: turns,
            })
        });
    figures.collect()
}
