//! What an instance of the program is told of its interface, before it is loaded.

use super::Role;

/// How the frames of an interface begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkLayer {
    /// With an Ethernet header.
    Ethernet = 0,
    /// With IPv4 or IPv6. What the program would send back goes no further than the driver.
    RawIp = 1,
    /// With IPv4 or IPv6, on a TUN device: what the program sends back comes out of it.
    Tun = 2,
}

/// What an instance of the program is told of its interface, in one constant: the slot in the lower
/// half, the [`Role`] above it, then the [`LinkLayer`]. No more than the slot: an edge with
/// Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterfaceConstant(pub u32);

impl InterfaceConstant {
    const SLOT: u32 = 0xffff;
    const ROLE: u32 = 16;
    const LINK_LAYER: u32 = 17;

    /// What the program is told.
    #[must_use]
    pub const fn new(slot: u32, role: Role, layer: LinkLayer) -> Self {
        Self(slot & Self::SLOT | (role as u32) << Self::ROLE | (layer as u32) << Self::LINK_LAYER)
    }

    /// Where it counts.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 & Self::SLOT
    }

    /// What is behind the interface.
    #[inline(always)]
    #[must_use]
    pub const fn role(self) -> Role {
        if self.0 >> Self::ROLE & 1 == Role::Customer as u32 {
            Role::Customer
        } else {
            Role::Edge
        }
    }

    /// How its frames begin.
    #[inline(always)]
    #[must_use]
    pub const fn link_layer(self) -> LinkLayer {
        match self.0 >> Self::LINK_LAYER & 3 {
            1 => LinkLayer::RawIp,
            2 => LinkLayer::Tun,
            _ => LinkLayer::Ethernet,
        }
    }

    /// Whether it is an edge with Ethernet, and nothing else is to be minded.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain_edge(self) -> bool {
        self.0 >> Self::ROLE == 0
    }
}
