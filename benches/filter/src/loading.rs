//! How long the largest list takes to be in force, from its text and from a compiled snapshot; what
//! that weighs; and the system call that puts a snapshot in place of another.
//!
//! It is the gateway's own commands that are measured, as processes, from their start to their end:
//! reading the configuration and loading the program is part of it. The files are in the page
//! cache. The memory is all that was ever resident in the process, the kernel's maps, which the
//! process fills through a mapping, included.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use portcullis::filter;
use portcullis_benches::figures::Spread;
use portcullis_ebpf_common::layout::SNAPSHOT_SLOTS;
use portcullis_ebpf_common::snapshot::Block;
use serde::Serialize;

use crate::Options;
use crate::attached;
use crate::commands::Commands;
use crate::traffic::{Family, Sequence};

/// The value of the map, for its size: none is ever made.
type Bytes = [u8; size_of::<Block>()];

/// The swaps that are timed: each waits until no packet is checked against what was there before.
const SWAPS: usize = 100;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct LoadingResult {
    pub(crate) entries: u32,
    /// `filter attach` with a plain list, from text to in force.
    pub(crate) text: Loading,
    /// `lists compile`, from text to a snapshot file.
    pub(crate) compile: Loading,
    /// `filter attach` with a snapshot file.
    pub(crate) snapshot: Loading,
    /// Bytes of the kernel's maps.
    pub(crate) map_size: u64,
    /// Bytes of the snapshot file.
    pub(crate) file_size: u64,
    /// Microseconds of the system call that puts a snapshot in place.
    pub(crate) swap_us: Spread,
}

/// A command that was run in several rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Loading {
    pub(crate) seconds: Spread,
    /// Bytes that were resident in the process.
    pub(crate) memory_peak: Spread,
}

/// Measures it.
pub(crate) fn run(options: &Options, directory: &Path) -> Result<LoadingResult> {
    println!("loading, {} entries", options.entries());
    let scene = Scene::new(options, directory)?;
    let (mut text, mut compile, mut snapshot) = (Vec::new(), Vec::new(), Vec::new());
    let mut in_kernel = None;
    for round in 1..=options.rounds() {
        compile.push(scene.compile()?);
        text.push(scene.attach(&scene.from_text)?);
        scene.commands.detach()?;
        snapshot.push(scene.attach(&scene.from_snapshot)?);
        in_kernel = Some(scene.swap()?);
        scene.commands.detach()?;
        print!("  round {round} of {}:", options.rounds());
        for (name, runs) in [
            ("text", &text),
            ("compile", &compile),
            ("snapshot", &snapshot),
        ] {
            let last = runs.last().map_or(f64::NAN, |run| run.0);
            print!("  {name} {last:.2} s");
        }
        println!();
    }
    let (map_size, swaps) = in_kernel.context("no rounds")?;
    Ok(LoadingResult {
        entries: options.entries(),
        text: loading(&text)?,
        compile: loading(&compile)?,
        snapshot: loading(&snapshot)?,
        map_size,
        file_size: fs::metadata(&scene.snapshot)?.len(),
        swap_us: Spread::of(swaps).context("no swaps")?,
    })
}

fn loading(runs: &[(f64, u64)]) -> Result<Loading> {
    Ok(Loading {
        seconds: Spread::of(runs.iter().map(|run| run.0)).context("no runs")?,
        memory_peak: Spread::of(runs.iter().map(|run| run.1 as f64)).context("no runs")?,
    })
}

/// The list, two configurations with it, and the commands.
struct Scene {
    commands: Commands,
    from_text: PathBuf,
    from_snapshot: PathBuf,
    snapshot: PathBuf,
    entries: u32,
}

impl Scene {
    fn new(options: &Options, directory: &Path) -> Result<Self> {
        let commands = Commands::new(&options.portcullis, directory)?;
        let (list, snapshot) = (directory.join("list"), directory.join("snapshot"));
        let mut file = BufWriter::new(File::create(&list)?);
        for address in Sequence::listed(Family::Ipv4, options.entries()).ipv4() {
            writeln!(file, "{address}")?;
        }
        file.into_inner()?;
        let text = format!(
            "[[list]]\nname = \"bench\"\nfile = \"{}\"\naction = \"drop\"\n",
            list.display()
        );
        let compiled = format!("[lists]\nsnapshot = \"{}\"\n", snapshot.display());
        Ok(Self {
            from_text: commands.configuration("text.toml", &text)?,
            from_snapshot: commands.configuration("snapshot.toml", &compiled)?,
            commands,
            snapshot,
            entries: options.entries(),
        })
    }

    fn compile(&self) -> Result<(f64, u64)> {
        let (configuration, snapshot) = (&self.from_text, &self.snapshot);
        self.commands.run(&[
            "lists",
            "compile",
            "-c",
            &configuration.to_string_lossy(),
            "-o",
            &snapshot.to_string_lossy(),
        ])
    }

    /// Puts the lists of a configuration in force, and makes sure that they are.
    fn attach(&self, configuration: &Path) -> Result<(f64, u64)> {
        let run = self.commands.attach(configuration)?;
        let status = filter::status(&self.commands.pins)?;
        let entries = status.lists.first().map(|list| list.entries);
        ensure!(
            entries == Some(u64::from(self.entries)),
            "{entries:?} entries are in force"
        );
        Ok(run)
    }

    /// The size of the maps in force, and how long each of some swaps takes, in microseconds: the
    /// very call, on the very map, which is put in place of itself.
    fn swap(&self) -> Result<(u64, Vec<f64>)> {
        let pinned = attached::pinned(&self.commands.pins, SNAPSHOT)?;
        let mut outer: ArrayOfMaps<MapData, Array<MapData, Bytes>> =
            Map::from_map_data(pinned)?.try_into()?;
        let inner = outer.get(&0, 0)?;
        let mut swaps = Vec::with_capacity(SWAPS);
        for _ in 0..SWAPS {
            let begin = Instant::now();
            outer.set(0, &inner, 0)?;
            swaps.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let mut blocks = 0;
        for slot in 0..SNAPSHOT_SLOTS {
            match outer.get(&slot, 0) {
                Ok(_) => blocks += 1,
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((blocks * size_of::<Block>() as u64, swaps))
    }
}

/// The map of maps that the snapshot in force is in.
const SNAPSHOT: &str = "SNAPSHOT";
