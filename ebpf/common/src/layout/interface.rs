//! What an instance of the program knows of its interface: a constant, set before it is loaded.

/// What is behind an interface, and so which packets are dropped on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// The outside: packets that come in are dropped by their source.
    Edge = 0,
    /// Customers: packets that go out pass only if their source or their destination is on a permit
    /// list.
    Customer = 1,
}

/// How the frames of an interface begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkLayer {
    /// With an Ethernet header.
    Ethernet = 0,
    /// With IPv4 or IPv6. The driver would lose frames that the program sends back.
    RawIp = 1,
    /// With IPv4 or IPv6, on a TUN device, which takes frames that the program sends back.
    Tun = 2,
}

/// What an instance of the program knows of its interface, in one constant: the slot in the lower
/// half, the [`Role`] above it, then the [`LinkLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterfaceConstant(pub u32);

impl InterfaceConstant {
    const SLOT: u32 = 0xffff;
    const ROLE: u32 = 16;
    const LINK_LAYER: u32 = 17;

    /// The constant of an interface.
    #[must_use]
    pub const fn new(slot: u32, role: Role, layer: LinkLayer) -> Self {
        Self(slot & Self::SLOT | (role as u32) << Self::ROLE | (layer as u32) << Self::LINK_LAYER)
    }

    /// The slot of its counters.
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

    /// Whether it is an edge with Ethernet.
    #[inline(always)]
    #[must_use]
    pub const fn is_ethernet_edge(self) -> bool {
        self.0 >> Self::ROLE == 0
    }
}
