//! How many packets of a flood a core drops in a second, compared with what else could be in front
//! of the interface.
//!
//! In three ways: from 100,000 listed sources of one /15, for which what a lookup reads fits the
//! caches; from 100,000 listed sources scattered over all of IPv4, for which it does not; and from
//! sources random over all of IPv4, none of them listed, with what is on no list dropped. The last
//! with two sizes of the list, because what a lookup reads of the larger one does not fit the
//! caches; and in two passes over the same sources, because the first one pays for pages that the
//! kernel's mapping of a new table has never touched, and the second for the caches alone.

mod arena;
mod contestants;

use std::path::Path;

use anyhow::{Context as _, Result};
use portcullis::lists::Compiled;
use portcullis_benches::figures::Spread;
use portcullis_benches::interrupt;
use serde::Serialize;

use self::arena::Amount;
pub(crate) use self::arena::received_packets;
use self::contestants::Contestant;
use crate::attached::{self, Unlisted};
use crate::traffic::{Family, Sequence};
use crate::{Options, Peer};

/// The program that everything is compared with: an XDP program that drops every packet.
pub(crate) const BARE: &str = "bare XDP_DROP";
/// The kernel's own way.
pub(crate) const NFTABLES: &str = "nftables ingress set";

/// Sources of the first flood.
const SOURCES: u32 = 100_000;

/// Entries of the smaller of the lists that random sources are checked against.
const FEWER: u32 = 1_000_000;
/// Entries of nftables' set when the sources are random: with ten million it would be filling for
/// minutes.
const NFTABLES_ENTRIES_MAX: u32 = 1_000_000;

/// Where the sources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Sources {
    /// 100,000 of one /15, all on the list.
    Near,
    /// 100,000 anywhere, all on the list.
    Scattered,
    /// Anywhere, each once in a pass, none on the list.
    Random,
}

impl Sources {
    /// Those of a pass, or of a circle.
    fn sequence(self, options: &Options) -> Sequence {
        let listed = SOURCES.min(options.entries());
        match self {
            Self::Near => Sequence::near(listed),
            Self::Scattered => Sequence::listed(Family::Ipv4, listed),
            Self::Random => Sequence::unlisted(Family::Ipv4, options.pass()),
        }
    }
}

/// What a kind of flood came to.
#[derive(Debug, Serialize)]
pub(crate) struct FloodResult {
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
    /// Over sources of which no packet has come since the lists were put in force; only for random
    /// ones.
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

impl FloodResult {
    pub(crate) fn of(&self, name: &str) -> Option<&Figures> {
        self.contestants.iter().find(|figures| figures.name == name)
    }
}

/// All floods.
pub(crate) fn run(options: &Options, directory: &Path) -> Result<Vec<FloodResult>> {
    let with = |entries| {
        let listed = [
            Sequence::listed(Family::Ipv4, entries),
            Sources::Near.sequence(options),
        ];
        (entries, listed, attached::compiled(&listed))
    };
    let scene = |sources, (entries, listed, lists): &(u32, [Sequence; 2], Compiled)| {
        println!("flood, sources {sources:?}, {entries} entries: filling");
        let scene = Scene {
            options,
            sources,
            entries: *entries,
            listed: *listed,
            lists,
            directory,
        };
        scene.run()
    };
    let all = with(options.entries());
    let mut outcomes = vec![
        scene(Sources::Near, &all)?,
        scene(Sources::Scattered, &all)?,
        scene(Sources::Random, &all)?,
    ];
    if options.entries() > FEWER {
        outcomes.push(scene(Sources::Random, &with(FEWER))?);
    }
    Ok(outcomes)
}

/// A kind of flood, and what the contestants are given.
struct Scene<'a> {
    options: &'a Options,
    sources: Sources,
    entries: u32,
    listed: [Sequence; 2],
    lists: &'a Compiled,
    directory: &'a Path,
}

impl Scene<'_> {
    fn run(&self) -> Result<FloodResult> {
        let mut contestants = self.contestants()?;
        let mut rounds = Vec::new();
        for round in 1..=self.options.rounds() {
            print!("  round {round} of {}:", self.options.rounds());
            let mut turns = Vec::new();
            for contestant in &mut contestants {
                let turn = self
                    .turn(contestant)
                    .with_context(|| format!("{}, round {round}", contestant.name))?;
                print!("  {} {:.2}", contestant.name, turn.warm / 1e6);
                turns.push(turn);
            }
            println!(" million/s");
            rounds.push(turns);
        }
        Ok(FloodResult {
            sources: self.sources,
            entries: self.entries,
            contestants: figures(&contestants, &rounds),
        })
    }

    /// Those that were not left out, [`BARE`] first.
    fn contestants(&self) -> Result<Vec<Contestant>> {
        let random = self.sources == Sources::Random;
        let unlisted = if random {
            Unlisted::Drop
        } else {
            Unlisted::Pass
        };
        // What has no room for all is given what it will be asked for.
        let asked_for = match self.sources {
            Sources::Near | Sources::Scattered => self.sources.sequence(self.options),
            Sources::Random => self.listed[0],
        };
        let mut contestants = vec![
            contestants::program(BARE, "empty", &[], random)?,
            contestants::portcullis(self.lists, unlisted, false)?,
            contestants::portcullis(self.lists, unlisted, true)?,
            contestants::program("bare parse and drop", "bare", &[], random)?,
        ];
        interrupt::check()?;
        if self.options.has(Peer::Hash) {
            contestants.push(contestants::program(
                "hash map",
                "hash",
                &self.listed,
                random,
            )?);
        }
        if self.options.has(Peer::Nftables) {
            let set = asked_for.at_most(NFTABLES_ENTRIES_MAX);
            contestants.push(contestants::nftables(set, random, self.directory)?);
        }
        if self.options.has(Peer::XdpFilter) {
            contestants.push(contestants::xdp_filter(asked_for, random)?);
        }
        Ok(contestants)
    }

    fn turn(&self, contestant: &mut Contestant) -> Result<Turn> {
        let sequence = self.sources.sequence(self.options);
        if self.sources == Sources::Random {
            contestant.renew(self.lists)?;
            let mut pass = || -> Result<f64> {
                let amount = Amount::Packets(sequence.number);
                Ok(contestant.arena.flood(sequence, amount)?.per_second())
            };
            return Ok(Turn {
                first_pass: Some(pass()?),
                warm: pass()?,
            });
        }
        let sequence = sequence.at_most(contestant.limited_to.unwrap_or(u32::MAX));
        let arena = &mut contestant.arena;
        arena.flood(sequence, Amount::Packets(2 * sequence.number))?;
        let flooded = arena.flood(sequence, Amount::Time(self.options.flood_time()))?;
        Ok(Turn {
            first_pass: None,
            warm: flooded.per_second(),
        })
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
