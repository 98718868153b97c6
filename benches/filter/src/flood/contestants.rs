//! The contestants: what filters the packets of the interface. Each has an arena of its own, so
//! that all are ready when their turn comes.

use std::any::Any;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use portcullis::lists::Compiled;

use super::arena::{Arena, INTERFACE};
use crate::attached::{AttachedFilter, Unlisted};
use crate::peers::{Peers, Room};
use crate::traffic::{Family, Sequence};
use crate::verdicts::PORTCULLIS;

/// A contestant and where it stands. Dropping it takes all of it down.
pub(super) struct Contestant {
    pub(super) name: &'static str,
    /// How many entries it has, if not all.
    pub(super) limited_to: Option<u32>,
    /// What holds it in place goes before the namespaces do.
    hold: Hold,
    pub(super) arena: Arena,
}

enum Hold {
    Filter(Box<AttachedFilter>),
    Other(#[expect(dead_code, reason = "held for as long as it is to be in place")] Box<dyn Any>),
}

impl Contestant {
    fn new(name: &'static str, arena: Arena, hold: impl Any) -> Self {
        Self {
            name,
            limited_to: None,
            hold: Hold::Other(Box::new(hold)),
            arena,
        }
    }

    /// Puts lists in force that no packet has been checked against; nothing for the peers, whose
    /// maps stay as they are.
    pub(super) fn renew(&mut self, lists: &Compiled) -> Result<()> {
        match &mut self.hold {
            Hold::Filter(filter) => filter.update_lists(lists),
            Hold::Other(_) => Ok(()),
        }
    }
}

/// The filter; `watched`: while its events are read.
pub(super) fn portcullis(
    lists: &Compiled,
    unlisted: Unlisted,
    watched: bool,
) -> Result<Contestant> {
    let arena = Arena::new()?;
    let filter = AttachedFilter::attach(&arena.inside, &[INTERFACE], lists, unlisted)?;
    if watched {
        filter.watch()?;
    }
    Ok(Contestant {
        name: if watched {
            "portcullis, watched"
        } else {
            PORTCULLIS
        },
        limited_to: None,
        hold: Hold::Filter(Box::new(filter)),
        arena,
    })
}

/// A program of benches.o.
pub(super) fn program(
    name: &'static str,
    program: &str,
    listed: &[Sequence],
    drop_unlisted: bool,
) -> Result<Contestant> {
    let arena = Arena::new()?;
    let room = Room {
        hash: listed.iter().map(|sequence| sequence.number).sum(),
        trie: 0,
    };
    let mut peers = Peers::load(Family::Ipv4, room, drop_unlisted)?;
    for sequence in listed {
        peers.fill("fill_hash", *sequence)?;
    }
    arena.inside.run(|| peers.attach(program, INTERFACE))??;
    Ok(Contestant::new(name, arena, peers))
}

/// nftables: a set in a chain at the interface's ingress, the earliest place it has. Its best case:
/// it looks at no port, and the size of the set is given in advance, so that nftables takes the
/// fastest kind of set.
pub(super) fn nftables(
    listed: Sequence,
    drop_unlisted: bool,
    directory: &Path,
) -> Result<Contestant> {
    let arena = Arena::new()?;
    // Without an XDP program of its own an interface takes such frames only if it batches them.
    succeed(
        arena
            .inside
            .command("ethtool")
            .args(["-K", INTERFACE, "gro", "on"]),
    )?;
    let path = directory.join("nftables");
    let mut file = BufWriter::new(File::create(&path)?);
    let policy = if drop_unlisted { "drop" } else { "accept" };
    write!(
        file,
        "table netdev bench {{\n set listed {{\n  type ipv4_addr\n  size {}\n  elements = {{",
        listed.number
    )?;
    for address in listed.ipv4() {
        write!(file, " {address},")?;
    }
    write!(
        file,
        " }}\n }}\n chain ingress {{\n  \
         type filter hook ingress device \"{INTERFACE}\" priority 0; \
         policy {policy};\n  \
         ip saddr @listed drop\n }}\n}}\n"
    )?;
    file.into_inner()?;
    succeed(arena.inside.command("nft").arg("-f").arg(&path))?;
    fs::remove_file(path)?;
    Ok(Contestant {
        limited_to: Some(listed.number),
        ..Contestant::new(super::NFTABLES, arena, ())
    })
}

/// xdp-filter of the xdp-tools, which takes 10,000 addresses. With `drop_unlisted` its policy is to
/// drop what it does not know.
pub(super) fn xdp_filter(listed: Sequence, drop_unlisted: bool) -> Result<Contestant> {
    let arena = Arena::new()?;
    let loaded = XdpFilter::load(&arena, listed, drop_unlisted)?;
    Ok(Contestant {
        limited_to: Some(XDP_FILTER_MAX),
        ..Contestant::new("xdp-filter", arena, loaded)
    })
}

/// The most addresses that xdp-filter takes.
const XDP_FILTER_MAX: u32 = 10_000;
/// Where it pins its maps; there is one such place on a machine.
const XDP_FILTER_PINS: &str = "/sys/fs/bpf/xdp-filter";

/// Where the library that it loads programs with makes a directory.
const LIBXDP_PINS: &str = "/sys/fs/bpf/xdp";

/// While it lives, xdp-filter is on the interface.
struct XdpFilter {
    namespace: PathBuf,
}

impl XdpFilter {
    fn load(arena: &Arena, listed: Sequence, drop_unlisted: bool) -> Result<Self> {
        if Path::new(XDP_FILTER_PINS).exists() {
            bail!(
                "xdp-filter is in use on this machine ({XDP_FILTER_PINS} exists): leave it out \
                 (--without xdp-filter)"
            );
        }
        let command = || arena.inside.command("xdp-filter");
        let policy = if drop_unlisted { "deny" } else { "allow" };
        succeed(command().args([
            "load", "-m", "native", "-f", "ipv4", "-p", policy, INTERFACE,
        ]))?;
        let loaded = Self {
            namespace: arena.inside.path(),
        };
        let mut addresses = listed.ipv4().take(XDP_FILTER_MAX as usize);
        let first = addresses.next().context("no addresses")?;
        succeed(command().args(["ip", "-m", "src", &first.to_string()]))?;
        // One process for each of the others would take half a minute: they get the value that its
        // own command wrote.
        let pinned = MapData::from_pin(Path::new(XDP_FILTER_PINS).join("filter_ipv4"))?;
        let mut map: PerCpuHashMap<_, u32, u64> = Map::from_map_data(pinned)?.try_into()?;
        let key = |address: std::net::Ipv4Addr| address.to_bits().to_be();
        let value = map.get(&key(first), 0)?;
        for address in addresses {
            map.insert(key(address), PerCpuValues::try_from(value.to_vec())?, 0)?;
        }
        Ok(loaded)
    }
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        let mut unload = Command::new("nsenter");
        unload.arg(format!("--net={}", self.namespace.display()));
        let unloaded = succeed(unload.args(["--", "xdp-filter", "unload", INTERFACE]));
        if let Err(error) = unloaded {
            eprintln!("xdp-filter was not unloaded: {error:#}");
        }
        // What it leaves behind: an empty directory, or one that another program needs, which then
        // stays.
        let _ = fs::remove_dir(LIBXDP_PINS);
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?} (cargo xtask setup)"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
