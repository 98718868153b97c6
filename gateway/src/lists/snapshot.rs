//! A snapshot in memory: of this process alone, or of a map that the program in the kernel reads,
//! too.
//!
//! With a filter there is one copy of the lists: they are built straight into the kernel's memory,
//! and the policy looks into the very lines that the program does. Who compiles says so with an
//! [`Allocate`].

use core::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::snapshot::{
    CLASSES, FIRST_FREE, Field, Line, Lines, mark, up_to_64, within_64,
};

use super::build;
use crate::filter::KernelMemory;

/// Gives zeroed memory for this many lines.
pub type Allocate = fn(usize) -> Memory;

/// Lines that nobody shares yet.
#[derive(Debug)]
pub enum Memory {
    /// Of this process. What is not written costs nothing.
    Private(Vec<Line>),
    /// Of a map in the kernel.
    Kernel(KernelMemory),
}

impl Memory {
    /// Zeroed memory of this process.
    #[must_use]
    pub fn private(lines: usize) -> Self {
        Self::Private(vec![[0; 8]; lines])
    }

    /// The lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Line] {
        match self {
            Self::Private(lines) => lines,
            Self::Kernel(memory) => memory.as_slice(),
        }
    }

    /// The lines, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [Line] {
        match self {
            Self::Private(lines) => lines,
            Self::Kernel(memory) => memory.as_mut_slice(),
        }
    }
}

/// Lines that say which list speaks for an address. Shared and immutable, but for the generation
/// and the classes of the lists, which the filter writes when it puts the snapshot in place.
#[derive(Clone)]
pub struct Snapshot(Arc<Memory>);

impl From<Memory> for Snapshot {
    fn from(memory: Memory) -> Self {
        Self(Arc::new(memory))
    }
}

/// No lists.
impl Default for Snapshot {
    fn default() -> Self {
        build::snapshot(Vec::new(), Memory::private)
    }
}

/// Its size: nobody wants to read the lines.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({} lines)", self.lines().len())
    }
}

impl Snapshot {
    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        self.0.as_slice()
    }

    /// Octets of memory, if all of it is used.
    #[must_use]
    pub fn size(&self) -> u64 {
        size_of_val(self.lines()) as u64
    }

    /// The kernel's map that it lies in, if it does.
    #[must_use]
    pub fn in_kernel(&self) -> Option<&KernelMemory> {
        match &*self.0 {
            Memory::Kernel(memory) => Some(memory),
            Memory::Private(_) => None,
        }
    }

    /// The list that speaks for an address, by its place in the configuration, and the prefix by
    /// which it does.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<(u16, IpNet)> {
        lookup(self.lines(), address)
    }

    /// The same for the longest prefix that covers all of a network: a single address, or up to /64
    /// of IPv6. Of other networks of IPv4 it is that of the first address.
    #[must_use]
    pub fn covering(&self, network: IpNet) -> Option<(u16, IpNet)> {
        let (list, prefix) = match network {
            IpNet::V6(network) if network.prefix_len() <= 64 => {
                let upper = (u128::from(network.network()) >> 64) as u64;
                let (list, length) = up_to_64(self.lines(), upper).get()?;
                (
                    list,
                    IpNet::new(network.network().into(), length).ok()?.trunc(),
                )
            }
            network => self.lookup(network.network())?,
        };
        prefix.contains(&network).then_some((list, prefix))
    }

    /// The prefixes longer than /64 in the /64 of an IPv6 address, in no order, each with its list.
    /// It reads all of such prefixes, if there are any in that /64.
    #[must_use]
    pub fn within_64(&self, address: IpAddr) -> Vec<(u16, IpNet)> {
        let IpAddr::V6(address) = address else {
            return Vec::new();
        };
        let upper = (u128::from(address) >> 64) as u64;
        within_64(self.lines(), upper)
            .filter_map(|(lower, mark)| {
                let (list, length) = mark.get()?;
                let address = u128::from(upper) << 64 | u128::from(lower);
                let prefix = IpNet::new(IpAddr::V6(address.into()), length).ok()?;
                Some((list, prefix))
            })
            .collect()
    }

    /// The lines but for what the kernel makes of them: the header without its generation, the
    /// heads of the tables, the rest.
    fn said(&self) -> Option<(Line, &[Line], &[Line])> {
        let (header, rest) = self.lines().split_first()?;
        let mut header = *header;
        Field::GENERATION.set(&mut header, 0);
        let (fixed, tables) = rest.split_at_checked(FIRST_FREE - 1)?;
        Some((header, &fixed[..CLASSES - 1], tables))
    }

    /// Whether both say the same about every address, by the same lists.
    #[must_use]
    pub fn says_the_same(&self, other: &Snapshot) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.said() == other.said()
    }
}

/// [`Snapshot::lookup`] in lines wherever they are.
pub(super) fn lookup<L: Lines + ?Sized>(lines: &L, address: IpAddr) -> Option<(u16, IpNet)> {
    let source = match address {
        IpAddr::V4(address) => Source::ipv4(address.octets()),
        IpAddr::V6(address) => Source::ipv6(address.octets()),
    };
    let (list, length) = mark(lines, &source).get()?;
    let prefix = IpNet::new(address, length).ok()?;
    Some((list, prefix.trunc()))
}
