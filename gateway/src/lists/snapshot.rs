//! A snapshot in memory.
//!
//! With a filter there is one copy of the lists: they are written straight into the memory of a map
//! that the program in the kernel reads, and the policy looks into the same lines. Nothing here
//! knows of that: the caller hands in the memory with an [`Allocate`].

use core::any::Any;
use core::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::snapshot::{
    CLASSES, FIRST_FREE, Field, Line, Lines, mark, up_to_64, within_64,
};

use super::build;

/// Gives zeroed memory for this many lines.
pub type Allocate = fn(usize) -> Box<dyn Memory>;

/// Memory that lines can lie in.
pub trait Memory: Any + Send + Sync {
    /// The lines.
    fn lines(&self) -> &[Line];

    /// The lines, to be written: nothing shares them yet.
    fn lines_mut(&mut self) -> &mut [Line];
}

/// Zeroed memory of this process. What is not written costs nothing.
#[must_use]
pub fn private(lines: usize) -> Box<dyn Memory> {
    Box::new(vec![Line::default(); lines])
}

impl Memory for Vec<Line> {
    fn lines(&self) -> &[Line] {
        self
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        self
    }
}

/// Lines that say which list decides about an address. Shared and immutable, except the generation
/// and the classes of the lists, which the filter writes when it puts the snapshot in place.
#[derive(Clone)]
pub struct Snapshot(Arc<dyn Memory>);

impl From<Box<dyn Memory>> for Snapshot {
    fn from(memory: Box<dyn Memory>) -> Self {
        Self(memory.into())
    }
}

/// No lists.
impl Default for Snapshot {
    fn default() -> Self {
        build::plan(Vec::new()).write(private)
    }
}

/// Its size: the lines are too many to read.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({} lines)", self.lines().len())
    }
}

impl Snapshot {
    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        self.0.lines()
    }

    /// Bytes of memory, if all of it is used.
    #[must_use]
    pub fn size(&self) -> u64 {
        size_of_val(self.lines()) as u64
    }

    /// The memory that it lies in, if it is of this type.
    #[must_use]
    pub fn memory<M: Memory>(&self) -> Option<&M> {
        let memory: &dyn Any = &*self.0;
        memory.downcast_ref()
    }

    /// The list that decides about an address, by its place in the configuration, and the prefix by
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

    /// The lines without what the kernel makes of them: the header without its generation, the
    /// heads of the tables, the rest.
    fn content(&self) -> Option<(Line, &[Line], &[Line])> {
        let (header, rest) = self.lines().split_first()?;
        let mut header = *header;
        Field::GENERATION.set(&mut header, 0);
        let (fixed, tables) = rest.split_at_checked(FIRST_FREE - 1)?;
        Some((header, &fixed[..CLASSES - 1], tables))
    }

    /// Whether both have the same answer for every address, by the same lists.
    #[must_use]
    pub fn same_content(&self, other: &Snapshot) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.content() == other.content()
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
