//! The networks that are exempt from verdicts: local networks, and those on a permit list.
//!
//! A verdict on an IPv6 source covers a /64, and an exempt network may be a part of it. The program
//! checks the address of each packet, so that part passes while the rest is dropped. Commands that
//! add or list the verdict report this.

use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_ebpf_common::Action;
use serde::{Deserialize, Serialize};

use super::super::Error;
use super::super::lists::{self, KernelList};
use super::super::maps::Maps;
use super::super::memory::KernelMemory;
use super::super::networks::LocalNetworks;
use super::super::pins::Pins;
use crate::lists::{Compiled, ListAction, Memory, Snapshot};

/// How often reading the lists is tried while they are being exchanged.
const TRIES: u32 = 5;

/// Why a source is exempt from verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exempt", rename_all = "kebab-case")]
pub enum Exemption {
    /// It is in a local network.
    Local {
        /// The local network.
        network: IpNet,
    },
    /// A list permits it.
    Permitted {
        /// The name of the list.
        list: String,
        /// The prefix on the list.
        network: IpNet,
    },
}

impl Exemption {
    /// The exempt network.
    #[must_use]
    pub fn network(&self) -> IpNet {
        match self {
            Self::Local { network } | Self::Permitted { network, .. } => *network,
        }
    }

    /// The reason, in a word or two.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Local { .. } => "local".to_owned(),
            Self::Permitted { list, .. } => format!("permitted by {list}"),
        }
    }
}

/// Lists that may permit a source.
pub(super) trait Permits {
    /// The snapshot for lookups of addresses.
    fn snapshot(&self) -> &Snapshot;
    /// The name of the list with this number, if its action is `permit`.
    fn permit(&self, list: u16) -> Option<&str>;
}

impl Permits for Compiled {
    fn snapshot(&self) -> &Snapshot {
        &self.filtered
    }

    fn permit(&self, list: u16) -> Option<&str> {
        let list = self.lists.get(usize::from(list))?;
        (list.action == ListAction::Permit).then_some(&*list.name)
    }
}

/// The lists in force when this was opened.
pub(super) struct InForce {
    snapshot: Snapshot,
    lists: Vec<KernelList>,
}

impl Permits for InForce {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn permit(&self, list: u16) -> Option<&str> {
        let mut lists = self.lists.iter();
        let list = lists.find(|kept| kept.position == u32::from(list))?;
        (list.action == Action::Permit).then_some(&*list.name)
    }
}

impl InForce {
    /// Opens the lists without a copy, whatever their size. `None` if there are none yet. It needs
    /// root.
    pub(super) fn open(pins: &Pins) -> Result<Option<Self>, Error> {
        let maps = Maps::open(pins)?;
        for _ in 0..TRIES {
            let generation = lists::in_force(&maps)?;
            let Some(blocks) = maps.snapshot_blocks(generation.number, generation.blocks)? else {
                return Ok(None);
            };
            let memory = KernelMemory::of(blocks, generation.lines)?;
            // Blocks of two generations are not a snapshot.
            if memory.generation() == generation.number
                && lists::in_force(&maps)?.number == generation.number
            {
                return Ok(Some(Self {
                    snapshot: (Box::new(memory) as Box<dyn Memory>).into(),
                    lists: generation.lists,
                }));
            }
        }
        Ok(None)
    }
}

/// The list that permits all of a source, and the prefix on that list.
pub(super) fn permit_of(permits: &dyn Permits, source: IpNet) -> Option<Exemption> {
    let (list, network) = permits.snapshot().covering(source)?;
    let list = permits.permit(list)?.to_owned();
    Some(Exemption::Permitted { list, network })
}

/// What exempts all of a source.
pub(super) fn of(
    local: &LocalNetworks,
    permits: Option<&dyn Permits>,
    source: IpNet,
) -> Result<Option<Exemption>, Error> {
    if let Some(network) = local.covering(source)? {
        return Ok(Some(Exemption::Local { network }));
    }
    Ok(permits.and_then(|permits| permit_of(permits, source)))
}

/// The exempt parts of the /64 that a verdict covers; none for a verdict on an IPv4 address.
pub(super) fn within(
    local: &[IpNet],
    permits: Option<&dyn Permits>,
    verdict: IpNet,
) -> Vec<Exemption> {
    let IpAddr::V6(_) = verdict.addr() else {
        return Vec::new();
    };
    let is_part = |network: &&IpNet| network.prefix_len() > 64 && verdict.contains(*network);
    let local = local.iter().filter(is_part);
    let mut exempt: Vec<_> = local
        .map(|network| Exemption::Local { network: *network })
        .collect();
    if let Some(permits) = permits {
        for (list, network) in permits.snapshot().within_64(verdict.addr()) {
            if let Some(list) = permits.permit(list) {
                let list = list.to_owned();
                exempt.push(Exemption::Permitted { list, network });
            }
        }
    }
    exempt.sort_by_key(Exemption::network);
    exempt
}
