//! The layout of the maps that the program and userspace share, and of the pins under which a restart finds them.
//!
//! | map | kind | written by | holds |
//! |---|---|---|---|
//! | `SETTINGS` | array of one inner array | userspace, swapped whole | [`Settings`] |
//! | `LISTS` | array of one inner LPM trie | userspace, swapped whole | [`Source`](crate::Source) prefix -> [`Class`](crate::Class) |
//! | `LIST_COUNTERS` | per-CPU array | the program | slot of a list -> [`ListCounters`] |
//! | `INTERFACE_COUNTERS` | per-CPU array | the program | slot of an interface -> [`InterfaceCounters`] |
//! | `LIST_RECORDS` | array | userspace, for itself | what a list's slot means, in two banks |
//! | `INTERFACE_RECORDS` | array | userspace, for itself | what an interface's slot means |
//!
//! Both address families are in one trie (the family is the first word of a key), so that one update of one element
//! puts a generation of all lists in place. A trie also holds its own generation, under [`GENERATION_KEY`]; its parity
//! says which bank of `LIST_RECORDS` describes it. So the swap of the trie swaps the names with it, and a crash at any
//! moment leaves one whole generation in force.

/// Changes whenever the meaning of a map changes. It is part of the pin path, because a pinned map is taken over without
/// a look at its shape.
pub const LAYOUT_VERSION: u32 = 1;

/// Most ports that can be filtered.
pub const PORTS_MAX: usize = 16;
/// Most lists that a generation may have in the kernel.
pub const LISTS_MAX: usize = 256;
/// Slots for lists: twice as many, so that a reload that renames every list finds free slots while the generation before
/// it still counts on its own.
pub const LIST_SLOTS: u32 = 512;
/// Most interfaces that share a pin path.
pub const INTERFACES_MAX: u32 = 64;
/// Bytes of a list's name.
pub const LIST_NAME_MAX: usize = 64;
/// Bytes of an interface's name (the kernel's `IFNAMSIZ`).
pub const INTERFACE_NAME_MAX: usize = 16;

/// The prefix length, in bits, of the key that holds a trie's generation: the family word alone, which is zero for it.
pub const GENERATION_KEY_BITS: u32 = 32;
/// The words of the key that holds a trie's generation.
pub const GENERATION_KEY: [u32; 5] = [0; 5];

/// What the program does with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drops what is to be dropped.
    Enforce,
    /// Counts what would be dropped, and drops nothing.
    Monitor,
    /// Neither drops nor counts.
    Off,
}

impl Mode {
    /// The mode's name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
            Self::Off => "off",
        }
    }
}

/// The program's runtime settings, as they lie in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    mode: u32,
    drop_unlisted: u32,
    ports: [u16; PORTS_MAX],
}

impl Settings {
    /// Settings for these ports. Ports beyond [`PORTS_MAX`] are not taken: the caller refuses them before.
    #[must_use]
    pub fn new(mode: Mode, drop_unlisted: bool, ports: &[u16]) -> Self {
        let mut settings = Self {
            mode: mode as u32,
            drop_unlisted: drop_unlisted.into(),
            ports: [0; PORTS_MAX],
        };
        for (slot, port) in settings.ports.iter_mut().zip(ports) {
            *slot = *port;
        }
        settings
    }

    /// The mode in force. A number that no version has written means that nothing is to be touched.
    #[inline(always)]
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.mode {
            0 => Mode::Enforce,
            1 => Mode::Monitor,
            _ => Mode::Off,
        }
    }

    /// Whether a source on no list is dropped.
    #[inline(always)]
    #[must_use]
    pub fn drop_unlisted(&self) -> bool {
        self.drop_unlisted != 0
    }

    /// The filtered ports.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied().take_while(|port| *port != 0)
    }

    /// Whether packets to this TCP port are held against the lists. Port 0 ends the table and is never filtered.
    #[inline(always)]
    #[must_use]
    pub fn filters(&self, port: u16) -> bool {
        for filtered in &self.ports {
            if *filtered == 0 {
                return false;
            }
            if *filtered == port {
                return true;
            }
        }
        false
    }
}

/// An interface's counters on one CPU, indexed by [`InterfaceCounter`]: one cache line.
pub type InterfaceCounters = [u64; 8];

/// What an interface counts; every packet counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum InterfaceCounter {
    /// Not TCP to a filtered port.
    Other = 0,
    /// On no list, and passed.
    Passed = 1,
    /// On a permit list.
    Permitted = 2,
    /// On a drop list, and dropped.
    DroppedListed = 3,
    /// On no list, and dropped for it.
    DroppedUnlisted = 4,
    /// On a drop list, and passed because of [`Mode::Monitor`].
    MonitoredListed = 5,
    /// On no list, to be dropped for it, and passed because of [`Mode::Monitor`].
    MonitoredUnlisted = 6,
}

/// A list's counters on one CPU, indexed by [`ListCounter`].
pub type ListCounters = [u64; 2];

/// What a list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ListCounter {
    /// Packets dropped (of a drop list) or permitted (of a permit list).
    Decided = 0,
    /// Packets that a drop list would have dropped, were it not for [`Mode::Monitor`].
    Monitored = 1,
}

/// What userspace remembers of a list's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListRecord {
    /// The name, filled up with zeros. Empty: the slot is free.
    pub name: [u8; LIST_NAME_MAX],
    /// The slot's [`Class`](crate::Class).
    pub class: u32,
    /// Where the list stands in the configuration.
    pub position: u32,
    /// Entries of the list as it was written, before overlaps were settled.
    pub entries: u64,
}

/// What userspace remembers of an interface's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceRecord {
    /// The name, filled up with zeros. Empty: the slot is free.
    pub name: [u8; INTERFACE_NAME_MAX],
    /// 0: the edge of the network.
    pub role: u32,
    /// 0: in the driver; 1: generic.
    pub xdp_mode: u32,
}
