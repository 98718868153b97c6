//! The settings of the program: one element, which userspace replaces whole.

use super::INTERFACE_SLOTS;

/// Most ports that can be filtered.
pub const PORTS_MAX: usize = 16;

/// What the program does with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drops packets.
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
    flags: u32,
    /// SYNs that one source may send in a second before they are counted; 0: any number.
    pub syn_budget: u32,
    /// RSTs in a second, on all interfaces together; 0: none.
    pub resets_per_second: u32,
    ports: [u16; PORTS_MAX],
    /// A bit for each slot of an interface.
    silent: [u32; SILENT_WORDS],
}

/// Words of 32 slots each.
const SILENT_WORDS: usize = INTERFACE_SLOTS.div_ceil(32) as usize;

/// What the program does beyond its lists: the flags of [`Settings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Sources on no list are dropped.
    pub drop_unlisted: bool,
    /// SYNs for a listener of this host are answered with a cookie while its queue overflows.
    pub syn_cookies: bool,
    /// Packets that a customer may not send are answered with a RST, as far as the rate allows;
    /// else they are dropped.
    pub customer_resets: bool,
}

impl Settings {
    const DROP_UNLISTED: u32 = 1;
    const SYN_COOKIES: u32 = 2;
    const CUSTOMER_RESETS: u32 = 4;

    /// Settings for these ports, with neither a budget nor RSTs. Ports beyond [`PORTS_MAX`] are
    /// ignored: the caller refuses them before.
    #[must_use]
    pub fn new(mode: Mode, measures: Measures, ports: &[u16]) -> Self {
        let flag = |set, flag| if set { flag } else { 0 };
        let mut settings = Self {
            mode: mode as u32,
            flags: flag(measures.drop_unlisted, Self::DROP_UNLISTED)
                | flag(measures.syn_cookies, Self::SYN_COOKIES)
                | flag(measures.customer_resets, Self::CUSTOMER_RESETS),
            syn_budget: 0,
            resets_per_second: 0,
            ports: [0; PORTS_MAX],
            silent: [0; SILENT_WORDS],
        };
        for (slot, port) in settings.ports.iter_mut().zip(ports) {
            *slot = *port;
        }
        settings
    }

    /// The mode in force. A number that no version has written counts as [`Mode::Off`].
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
        self.flags & Self::DROP_UNLISTED != 0
    }

    /// Whether SYNs for a listener of this host may be answered with a cookie.
    #[inline(always)]
    #[must_use]
    pub fn syn_cookies(&self) -> bool {
        self.flags & Self::SYN_COOKIES != 0
    }

    /// Whether packets that a customer may not send are answered with a RST.
    #[inline(always)]
    #[must_use]
    pub fn customer_resets(&self) -> bool {
        self.flags & Self::CUSTOMER_RESETS != 0
    }

    /// The filtered ports. Port 0 ends the table: it is never filtered.
    #[inline(always)]
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied().take_while(|port| *port != 0)
    }

    /// Stops answers on the interface in this slot: frames that the program sends back there are
    /// lost.
    pub fn set_silent(&mut self, slot: u32) {
        if let Some(word) = self.silent.get_mut(slot as usize / 32) {
            *word |= 1 << (slot % 32);
        }
    }

    /// Whether answers are stopped on the interface in this slot.
    #[inline(always)]
    #[must_use]
    pub fn is_silent(&self, slot: u32) -> bool {
        match self.silent.get(slot as usize / 32) {
            Some(word) => word >> (slot % 32) & 1 != 0,
            None => true,
        }
    }

    /// Whether packets to this TCP port are checked against the lists.
    #[inline(always)]
    #[must_use]
    pub fn filters(&self, port: u16) -> bool {
        self.ports().any(|filtered| filtered == port)
    }
}
