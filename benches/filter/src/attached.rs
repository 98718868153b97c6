//! The filter as a contestant: put on an interface of a namespace as the gateway does it, pinned
//! under a path of its own.

use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramFd, loaded_programs};
use portcullis::config;
use portcullis::filter::{self, Filter};
use portcullis::lists::{Compiled, ListAction};
use portcullis::netns::Namespace;
use portcullis_ebpf_common::layout::Control;

use crate::traffic::Sequence;

/// What becomes of sources on no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unlisted {
    Pass,
    Drop,
}

/// A map under this pin path.
pub(crate) fn pinned(pins: &Path, name: &str) -> Result<MapData> {
    // The maps are below the version of their layout.
    let map = fs::read_dir(pins)?
        .filter_map(|entry| Some(entry.ok()?.path().join(name)))
        .find(|path| path.exists());
    Ok(MapData::from_pin(
        map.with_context(|| format!("no map {name}"))?,
    )?)
}

/// The filter on an interface; it goes with the value.
pub(crate) struct AttachedFilter {
    filter: Option<Filter>,
    pins: PathBuf,
}

impl AttachedFilter {
    /// Puts the filter on the interfaces, with these lists, in the driver.
    pub(crate) fn attach(
        namespace: &Namespace,
        interfaces: &[&str],
        lists: &Compiled,
        unlisted: Unlisted,
    ) -> Result<Self> {
        let pins = free_pin_path();
        let settings = settings(interfaces, &pins, unlisted)?;
        let filter = namespace.run(|| Filter::attach(&settings, lists))??;
        Ok(Self {
            filter: Some(filter),
            pins,
        })
    }

    /// Puts lists in place of those in force.
    pub(crate) fn update_lists(&mut self, lists: &Compiled) -> Result<()> {
        let filter = self.filter.as_mut().context("no filter")?;
        Ok(filter.update_lists(lists)?)
    }

    /// Has the program think that its events are read, for good. They are not: once the buffer is
    /// full, those of the sample are lost. All of the element is written, because no other process
    /// writes to it now.
    pub(crate) fn watch(&self) -> Result<()> {
        const WORDS: usize = size_of::<Control>() / size_of::<u64>();
        let mut control: Array<MapData, [u64; WORDS]> =
            Map::from_map_data(pinned(&self.pins, "CONTROL")?)?.try_into()?;
        let mut words = control.get(&0, 0)?;
        words[offset_of!(Control, reader_until_ns) / size_of::<u64>()] = u64::MAX;
        Ok(control.set(0, words, 0)?)
    }

    /// SYN cookies that the program has sent.
    pub(crate) fn syn_cookies(&self) -> Result<u64> {
        let status = self.filter.as_ref().context("no filter")?.status()?;
        Ok(status
            .interfaces
            .iter()
            .map(|interface| interface.syn_cookies)
            .sum())
    }
}

/// The very program that is on an interface, whichever process has put it there.
pub(crate) fn program_on(namespace: &Namespace, interface: &str) -> Result<ProgramFd> {
    let mut ip = namespace.command("ip");
    let output = ip.args(["-j", "link", "show", "dev", interface]).output()?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("what `ip link show` says of {interface}"))?;
    let number = said[0]["xdp"]["prog"]["id"].as_u64();
    for program in loaded_programs() {
        let program = program?;
        if Some(u64::from(program.id())) == number {
            return Ok(program.fd()?);
        }
    }
    bail!("no XDP program on {interface}")
}

impl Drop for AttachedFilter {
    fn drop(&mut self) {
        drop(self.filter.take());
        if let Err(error) = filter::detach(&self.pins, &[]) {
            eprintln!("{} has to be removed by hand: {error}", self.pins.display());
        }
    }
}

/// The list of all these sequences, compiled: what the filter is given.
pub(crate) fn compiled(sequences: &[Sequence]) -> Compiled {
    let networks = sequences.iter().flat_map(|sequence| sequence.list());
    Compiled::new([("bench".to_owned(), ListAction::Drop, networks.collect())])
}

/// Settings as an operator would write them.
fn settings(interfaces: &[&str], pins: &Path, unlisted: Unlisted) -> Result<config::Filter> {
    let unlisted = match unlisted {
        Unlisted::Pass => "pass",
        Unlisted::Drop => "drop",
    };
    let interfaces: Vec<String> = interfaces
        .iter()
        .map(|name| format!("{{ name = \"{name}\", role = \"edge\" }}"))
        .collect();
    let text = format!(
        "[filter]\ninterfaces = [{}]\nunlisted = \"{unlisted}\"\n\
         pin_path = \"{}\"\n",
        interfaces.join(", "),
        pins.display()
    );
    let config = config::parse(Path::new("(the bench's configuration)"), &text)
        .map_err(|errors| anyhow::anyhow!("{errors}"))?;
    config.filter.context("no [filter]")
}

/// Not where the filter of this machine is, nor that of another run.
pub(crate) fn free_pin_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!(
        "/sys/fs/bpf/portcullis-bench-{}-{number}",
        process::id()
    ))
}
