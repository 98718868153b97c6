//! Honest clients beside a flood of SYNs with forged sources: how many connect in a second, and how
//! long the unluckiest waits, behind the kernel's own SYN cookies and behind the filter's.
//!
//! Where sources are random, neither a list nor a budget per source helps: only an answer that
//! costs next to nothing does. Where they are the clients' own address, a thousand SYNs a second
//! would be enough to lock the clients out of a filter that drops what is beyond a budget. The
//! flood and the clients come over links of their own, and each has a core of its own, so that what
//! is measured is the defence and neither the queue of a link nor the scheduler. The rate of the
//! flood goes up until the generator has no more; what is said of it is what arrived.

mod scene;

use anyhow::{Context as _, Result};
use portcullis_benches::figures::Spread;
use portcullis_benches::interrupt;
use serde::Serialize;

use self::scene::Scene;
use crate::Options;

/// A flood that costs its sender and the machine nothing. It is compared with no flood in rounds of
/// their own, because what it may take from the clients is less than what moves between two turns.
pub(crate) const SLOW: u32 = 1_000;

/// In whose names, and packets per second that are asked for. 0: no flood; the largest: as many as
/// the generator makes.
const FLOODS: [(Names, u32); 9] = [
    (Names::Random, 0),
    (Names::Random, SLOW),
    (Names::Random, 100_000),
    (Names::Random, 300_000),
    (Names::Random, 600_000),
    (Names::Random, 1_000_000),
    (Names::Random, u32::MAX),
    (Names::Own, SLOW),
    (Names::Own, u32::MAX),
];

/// The source address that the SYNs of a flood claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Names {
    /// Any.
    Random,
    /// That of the honest clients.
    Own,
}

impl Names {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Own => "the clients'",
        }
    }
}

/// What answers the SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Defence {
    /// The kernel alone, with `net.ipv4.tcp_syncookies` at its default of 1.
    Kernel,
    /// The filter, over the same kernel.
    Portcullis,
}

impl Defence {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel alone",
            Self::Portcullis => "portcullis",
        }
    }
}

/// What the clients of one turn came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Turn {
    pub(crate) defence: Defence,
    /// In whose names the flood came.
    pub(crate) names: Names,
    /// SYNs of the flood that were asked for, per second.
    pub(crate) rate: u32,
    /// SYNs of the flood that arrived, per second.
    pub(crate) flood: f64,
    /// Honest connections per second.
    pub(crate) connects: f64,
    /// Seconds that the slowest of them took.
    pub(crate) worst: f64,
    /// Those that were given up after [`scene::PATIENCE`].
    pub(crate) failed: u64,
    /// Connections per second over those of the same defence with no flood; of several rounds, if
    /// there were.
    pub(crate) over_calm: Spread,
    /// SYN cookies that the filter sent.
    pub(crate) cookies: u64,
}

/// Every rate, with each defence in turn.
pub(crate) fn run(options: &Options) -> Result<Vec<Turn>> {
    println!(
        "SYN flood: honest clients beside it, {:?} a turn",
        options.syn_flood_time()
    );
    let mut scenes = Vec::new();
    for defence in [Defence::Kernel, Defence::Portcullis] {
        scenes.push((Scene::new(defence).context(defence.name())?, None));
    }
    let mut turns = Vec::new();
    for (names, rate) in FLOODS {
        for (scene, calm) in &mut scenes {
            if rate == SLOW {
                turns.push(beside_calm(scene, names, options)?);
                continue;
            }
            interrupt::check()?;
            let mut turn = scene.turn(names, rate, options.syn_flood_time())?;
            let ratio = turn.connects / *calm.get_or_insert(turn.connects);
            turn.over_calm = Spread::of([ratio]).context("one ratio")?;
            turns.push(turn);
        }
    }
    Ok(turns)
}

/// The last of some rounds of a slow flood, with the ratios of all to the calm before each.
fn beside_calm(scene: &mut Scene, names: Names, options: &Options) -> Result<Turn> {
    let time = options.syn_flood_time() / 3;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds() {
        interrupt::check()?;
        let calm = scene.turn(names, 0, time)?;
        rounds.push((calm, scene.turn(names, SLOW, time)?));
    }
    let ratios = rounds
        .iter()
        .map(|(calm, turn)| turn.connects / calm.connects);
    let over_calm = Spread::of(ratios).context("no rounds")?;
    let failed = rounds.iter().map(|(_, turn)| turn.failed).sum();
    let (_, last) = *rounds.last().context("no rounds")?;
    Ok(Turn {
        over_calm,
        failed,
        ..last
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    /// How fast it is belongs into a bench; that every client gets in has to hold on every machine.
    /// The table is for the log.
    #[test]
    fn honest_clients_connect_beside_a_spoofed_flood_and_the_filter_answers_it() {
        if !portcullis::netns::permitted() {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED (needs root): honest clients beside a SYN flood"
            );
            return;
        }
        let mut scene = Scene::new(Defence::Portcullis).unwrap();
        for (names, rate) in [
            (Names::Random, 0),
            (Names::Random, 50_000),
            (Names::Random, u32::MAX),
            (Names::Own, SLOW),
            (Names::Own, 50_000),
        ] {
            let turn = scene.turn(names, rate, Duration::from_millis(500)).unwrap();
            // Past the test runner's capture.
            let _ = writeln!(
                std::io::stderr(),
                "SYN flood {:.0}/s in {} names: {:.0} connects/s, worst {:.1} ms, {} cookies",
                turn.flood,
                names.name(),
                turn.connects,
                turn.worst * 1e3,
                turn.cookies
            );
            assert!(turn.connects > 0.0 && turn.failed == 0, "{turn:?}");
            if names == Names::Random {
                assert_eq!(turn.cookies > 0, rate > 0, "{turn:?}");
            }
        }
    }
}
