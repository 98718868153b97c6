//! Honest clients beside a flood of SYNs with made-up sources: how many connect in a second, and how long the unluckiest
//! waits, behind the kernel's own SYN cookies and behind the filter's.
//!
//! Sources are random, so neither a list nor a budget per source helps: only an answer that costs next to nothing does.
//! The flood and the clients come over links of their own, and each has a core of its own, so that what is measured is the
//! defence and neither the queue of a link nor the scheduler. The rate of the flood goes up until the generator has no more;
//! what is said of it is what arrived.

mod scene;

use anyhow::{Context as _, Result};
use portcullis_benches::interrupt;
use serde::Serialize;

use self::scene::Scene;
use crate::Options;

/// Packets per second that are asked for; 0: no flood; the last: as many as the generator makes.
const RATES: [u32; 6] = [0, 100_000, 300_000, 600_000, 1_000_000, u32::MAX];

/// Who answers the SYNs.
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
    /// SYNs of the flood that arrived, per second.
    pub(crate) flood: f64,
    /// Honest connections per second.
    pub(crate) connects: f64,
    /// Seconds that the slowest of them took.
    pub(crate) worst: f64,
    /// Those that were given up after [`scene::PATIENCE`].
    pub(crate) failed: u64,
    /// Connections per second over those of the same defence with no flood.
    pub(crate) over_calm: f64,
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
    for rate in RATES {
        for (scene, calm) in &mut scenes {
            interrupt::check()?;
            let mut turn = scene.turn(rate, options.syn_flood_time())?;
            turn.over_calm = turn.connects / *calm.get_or_insert(turn.connects);
            turns.push(turn);
        }
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    /// How fast it is belongs into a bench; that everybody gets in has to hold on every machine. The table is for the log.
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
        for rate in [0, 50_000, u32::MAX] {
            let turn = scene.turn(rate, Duration::from_millis(500)).unwrap();
            // Past the test runner's capture.
            let _ = writeln!(
                std::io::stderr(),
                "SYN flood {:.0}/s: {:.0} connects/s, worst {:.1} ms, {} cookies",
                turn.flood,
                turn.connects,
                turn.worst * 1e3,
                turn.cookies
            );
            assert!(turn.connects > 0.0 && turn.failed == 0, "{turn:?}");
            assert_eq!(turn.cookies > 0, rate > 0, "{turn:?}");
        }
    }
}
