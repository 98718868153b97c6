//! What userspace writes down for itself: the meaning of slots, and where the gate answers.

use super::{InterfaceCounters, ListCounters};

/// Bytes of a list's name.
pub const LIST_NAME_MAX: usize = 64;

/// Bytes of an interface's name (the kernel's `IFNAMSIZ`).
pub const INTERFACE_NAME_MAX: usize = 16;

/// What userspace knows of a list's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListRecord {
    /// The name, padded with zeros. Empty: the slot is free.
    pub name: [u8; LIST_NAME_MAX],
    /// The slot's [`Class`](crate::Class).
    pub class: u32,
    /// The position of the list in the configuration.
    pub position: u32,
    /// Entries of the list in its file, before overlaps were settled.
    pub entries: u64,
    /// What the slot had counted, on all CPUs together, when the list took it.
    pub counted_before: ListCounters,
}

/// What userspace knows of an interface's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceRecord {
    /// The name, padded with zeros. Empty: the slot is free.
    pub name: [u8; INTERFACE_NAME_MAX],
    /// 0: the edge of the network.
    pub role: u32,
    /// 0: in the driver; 1: generic.
    pub xdp_mode: u32,
    /// What the slot had counted, on all CPUs together, when the interface took it.
    pub counted_before: InterfaceCounters,
}

/// Where the gate that holds the filter answers: with it a command finds the gate without its
/// configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GateRecord {
    /// The address of its admin endpoint: a [`Source`](crate::Source).
    pub admin: [u32; 5],
    /// Its port; 0: there is no admin endpoint.
    pub port: u32,
}
