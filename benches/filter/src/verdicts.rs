//! What a verdict costs, in the kernel, packet by packet: `BPF_PROG_TEST_RUN`.
//!
//! That call repeats one frame, and one source repeated flatters every cache. So a program of the
//! bench puts the next source of a sequence into the frame and hands it on by a tail call, the same
//! for every contestant; what that costs is measured with a contestant that does nothing, in the
//! same round, and taken off. What is left is what the kernel would say of the contestant alone,
//! the price of the call itself included, which the line "empty" shows.
//!
//! From 250 sources in turn, what a lookup reads stays in the core's caches, those of its address
//! translation included (each source has its own page or two in tables that are spread over all of
//! IPv4); from 100,000 it does not. Where there are 1,000 entries only, there are no more sources
//! that hit.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use portcullis::netns::Namespace;
use portcullis_benches::figures::Spread;
use portcullis_benches::interrupt;
use serde::Serialize;

use crate::Options;
use crate::attached::{self, AttachedFilter, Unlisted, program_on};
use crate::commands::OtherBuild;
use crate::peers::{Peers, Room, XDP_DROP, XDP_PASS};
use crate::traffic::{Family, Sequence};

/// Sources of which everything that is read for them fits the caches of a core.
const WARM: u32 = 250;
/// Sources of which it does not.
const MANY: u32 = 100_000;

/// The filter, another build of it, and the programs of benches.o.
pub(crate) const CONTESTANTS: [&str; 6] =
    [PORTCULLIS, OTHER, BARE, "hash map", "LPM trie", EMPTY.0];

/// The filter.
pub(crate) const PORTCULLIS: &str = "portcullis";
/// Another build's filter.
pub(crate) const OTHER: &str = "other build";
/// What the filter is compared with.
pub(crate) const BARE: &str = "bare";
/// The part of a figure that remains with an empty program.
const EMPTY: (&str, &str) = ("empty", "empty");
/// The program that hands packets on.
const GENERATOR: &str = "next_source";

/// Lists of one size.
#[derive(Clone, Copy, Debug)]
struct Stage {
    family: Family,
    entries: u32,
}

/// The contestants' costs with one list and one kind of source.
#[derive(Debug, Serialize)]
pub(crate) struct VerdictResult {
    pub(crate) family: Family,
    pub(crate) entries: u32,
    pub(crate) sources: u32,
    /// Whether the sources are on the list.
    pub(crate) hit: bool,
    pub(crate) contestants: Vec<Cost>,
}

/// What a verdict of a contestant costs.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) name: &'static str,
    pub(crate) nanoseconds: Spread,
    /// Over the bare program's in the same round.
    pub(crate) over_bare: Spread,
    pub(crate) rounds: Vec<f64>,
}

impl VerdictResult {
    pub(crate) fn of(&self, name: &str) -> Option<&Cost> {
        self.contestants.iter().find(|cost| cost.name == name)
    }

    /// What this build costs over another build in the same round, if there is one.
    pub(crate) fn over_other(&self) -> Option<Spread> {
        let (this, other) = (self.of(PORTCULLIS)?, self.of(OTHER)?);
        let rounds = this.rounds.iter().zip(&other.rounds);
        Spread::of(rounds.map(|(this, other)| this / other))
    }

    /// Whether the caches are warm, which is what the bar is about.
    pub(crate) fn is_warm(&self) -> bool {
        self.sources == WARM
    }
}

/// Measures all of it.
pub(crate) fn run(options: &Options, directory: &Path) -> Result<Vec<VerdictResult>> {
    let mut results = Vec::new();
    for stage in stages(options) {
        results.extend(run_stage(options, stage, directory)?);
    }
    Ok(results)
}

fn stages(options: &Options) -> Vec<Stage> {
    let mut stages: Vec<Stage> = [1_000, 1_000_000, options.entries()]
        .into_iter()
        .filter(|entries| *entries <= options.entries())
        .map(|entries| Stage {
            family: Family::Ipv4,
            entries,
        })
        .collect();
    stages.dedup_by_key(|stage| stage.entries);
    stages.push(Stage {
        family: Family::Ipv6,
        entries: options.entries().min(1_000_000),
    });
    stages
}

fn run_stage(options: &Options, stage: Stage, directory: &Path) -> Result<Vec<VerdictResult>> {
    let Stage { family, entries } = stage;
    println!("verdicts, {entries} entries, {family:?}: filling");
    let listed = Sequence::listed(family, entries);
    // A trie of ten million takes a minute to fill, and says nothing that one of a million has not
    // said.
    let with_trie = entries <= 1_000_000 || options.full;
    let room = Room {
        hash: entries,
        trie: if with_trie { entries } else { 0 },
    };
    let mut peers = Peers::load(family, room, false)?;
    peers.fill("fill_hash", listed)?;
    if with_trie {
        peers.fill("fill_trie", listed)?;
    }
    let (inside, outside) = (Namespace::create("inside")?, Namespace::create("world")?);
    inside.veth("in", &outside, "out")?;
    let lists = attached::compiled(&[listed]);
    let _filter = AttachedFilter::attach(&inside, &["in"], &lists, Unlisted::Pass)?;
    let other = options.against.as_deref();
    let other = other
        .map(|binary| OtherBuild::attach(binary, listed, directory))
        .transpose()
        .context("the other build")?;

    let mut contestants = vec![(PORTCULLIS, program_on(&inside, "in")?)];
    if let Some(other) = &other {
        contestants.push((OTHER, other.program()?));
    }
    contestants.push((BARE, peers.handle("bare")?));
    contestants.push(("hash map", peers.handle("hash")?));
    if with_trie {
        contestants.push(("LPM trie", peers.handle("trie")?));
    }
    contestants.push((EMPTY.0, peers.handle(EMPTY.1)?));
    measure_all(options, stage, &mut peers, &contestants)
}

/// Listed and unlisted sources, few and many.
fn measure_all(
    options: &Options,
    stage: Stage,
    peers: &mut Peers,
    contestants: &Contestants,
) -> Result<Vec<VerdictResult>> {
    let Stage { family, entries } = stage;
    let mut results = Vec::new();
    for hit in [true, false] {
        for sources in [WARM, MANY] {
            if hit && sources > entries {
                continue;
            }
            let sequence = if hit {
                Sequence::listed(family, sources)
            } else {
                Sequence::unlisted(family, sources)
            };
            let rounds = measure(options, peers, contestants, sequence, hit)?;
            let result = VerdictResult {
                family,
                entries,
                sources,
                hit,
                contestants: costs(contestants, &rounds),
            };
            print!("  {sources} sources, {}:", if hit { "hit" } else { "miss" });
            for cost in &result.contestants {
                print!("  {} {:.1} ns", cost.name, cost.nanoseconds.median);
            }
            println!();
            results.push(result);
        }
    }
    Ok(results)
}

/// Names and programs; [`EMPTY`] is the last.
type Contestants = Vec<(&'static str, ProgramFd)>;

/// The contestants' costs in nanoseconds, round by round. They take turns, in the opposite order in
/// every second round.
fn measure(
    options: &Options,
    peers: &mut Peers,
    contestants: &Contestants,
    sequence: Sequence,
    hit: bool,
) -> Result<Vec<Vec<f64>>> {
    let packets = options.verdict_packets();
    let mut rounds = Vec::new();
    for round in 1..=options.rounds() {
        interrupt::check()?;
        let (alone, _) = nanoseconds(peers, EMPTY.1, packets)?;
        let mut in_turn: Vec<_> = contestants.iter().enumerate().collect();
        if round % 2 == 0 {
            in_turn.reverse();
        }
        let mut costs = vec![0.0; contestants.len()];
        for (index, (name, program)) in in_turn {
            peers.set_contestant(program).with_context(|| {
                format!("the bench's generator cannot hand packets on to {name}")
            })?;
            peers.begin(sequence)?;
            nanoseconds(peers, GENERATOR, 2 * sequence.number)?;
            peers.begin(sequence)?;
            let (cost, verdict) = nanoseconds(peers, GENERATOR, packets)?;
            let drops = hit || [EMPTY.0, BARE].contains(name);
            let expected = if drops { XDP_DROP } else { XDP_PASS };
            ensure!(
                verdict == expected,
                "{name}: the verdict is {verdict}, and should be {expected}"
            );
            costs[index] = cost;
        }
        let generator = costs.last().context("no contestants")? - alone;
        rounds.push(costs.iter().map(|cost| cost - generator).collect());
    }
    Ok(rounds)
}

/// What a run of a program takes, and the last verdict.
fn nanoseconds(peers: &mut Peers, program: &str, packets: u32) -> Result<(f64, u32)> {
    let (result, time) = peers.run(program, packets)?;
    Ok((
        time.as_secs_f64() * 1e9 / f64::from(packets),
        result.return_value,
    ))
}

/// A contestant's costs out of all rounds, beside the bare program's of the same round.
fn costs(contestants: &Contestants, rounds: &[Vec<f64>]) -> Vec<Cost> {
    let of = |index: usize| rounds.iter().map(move |costs| costs[index]);
    let bare = contestants.iter().position(|(name, _)| *name == BARE);
    let figures = contestants
        .iter()
        .enumerate()
        .filter_map(|(index, (name, _))| {
            let over_bare = of(index).zip(of(bare?)).map(|(cost, bare)| cost / bare);
            Some(Cost {
                name,
                nanoseconds: Spread::of(of(index))?,
                over_bare: Spread::of(over_bare)?,
                rounds: of(index).collect(),
            })
        });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_are_compared_round_by_round_and_only_where_there_are_two() {
        let cost = |name, rounds: [f64; 2]| Cost {
            name,
            nanoseconds: Spread::of(rounds).unwrap(),
            over_bare: Spread::of(rounds).unwrap(),
            rounds: rounds.into(),
        };
        let mut result = VerdictResult {
            family: Family::Ipv4,
            entries: 1,
            sources: 1,
            hit: true,
            contestants: vec![cost(PORTCULLIS, [20.0, 40.0])],
        };
        assert_eq!(result.over_other(), None);
        result.contestants.push(cost(OTHER, [40.0, 80.0]));
        assert_eq!(result.over_other(), Spread::of([0.5]));
    }
}
