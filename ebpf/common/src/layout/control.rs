//! What the program reads for nearly every packet, in one map element.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Mode, Settings, VerdictKey};
use crate::hash::spread;

/// Hints of recent verdicts, a bit each: a source whose hint is not set has no verdict. As many as
/// there can be verdicts: with all of them a third of the other sources still need no lookup. In
/// all 32 KiB, which stay in a core's first caches under a flood of sources that never come again.
pub const VERDICT_HINTS: u32 = 1 << 18;

/// Hints of grants, a bit each, as many as there can be grants: 8 KiB. They are not those of
/// verdicts, which may be set for most sources: a source on a drop list is dropped without any
/// further lookup unless its own hint is set.
pub const GRANT_HINTS: u32 = 1 << 16;

/// A word that other processes may change at any time. Not an atomic in the program: the compiler
/// has no atomic load for BPF, but loads it in one piece.
#[cfg(not(target_arch = "bpf"))]
#[repr(transparent)]
pub struct Word(AtomicU64);

/// A word that userspace may change at any time, as the program reads it.
#[cfg(target_arch = "bpf")]
#[repr(transparent)]
pub struct Word(core::cell::Cell<u64>);

#[cfg(target_arch = "bpf")]
impl Word {
    /// Its value now.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// Its value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Writes it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::SeqCst);
    }

    fn set_bits(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::SeqCst);
    }

    fn clear_bits(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::SeqCst);
    }
}

/// What the program reads for nearly every packet, in one place, because each map lookup costs
/// time. Several processes write it while the program reads.
#[repr(C)]
pub struct Control {
    packed_settings: Word,
    /// Until when there is a reader of events, in nanoseconds of CLOCK_MONOTONIC; 0: there is none.
    pub reader_until_ns: Word,
    /// Whether there may be any grant; 0: there is none, and the hints need not be read.
    pub may_have_grants: Word,
    /// Fills the cache line.
    reserved: [u64; 5],
    hints: [Word; VERDICT_HINTS as usize / 64],
    grant_hints: [Word; GRANT_HINTS as usize / 64],
}

impl Control {
    /// Whether there may be a recent verdict under this key. Most sources have none, and a lookup
    /// in a hash costs as much as all the rest.
    #[inline(always)]
    #[must_use]
    pub fn may_be_recent(&self, key: &VerdictKey) -> bool {
        let (word, bit) = self.hint(hint(key));
        word.is_some_and(|word| word.get() & bit != 0)
    }

    /// Whether there may be a grant for a source with this key: an address, or one in the /64 of an
    /// IPv6 address.
    #[inline(always)]
    #[must_use]
    pub fn may_be_granted(&self, key: &VerdictKey) -> bool {
        if self.may_have_grants.get() == 0 {
            return false;
        }
        let hint = grant_hint(key);
        let word = self.grant_hints.get(hint as usize / 64);
        word.is_some_and(|word| word.get() & 1 << (hint % 64) != 0)
    }

    /// Has the program look for grants under keys whose hints are set here, and for no others.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_grant_hints(&self, hints: &[u64]) {
        for (word, hints) in self.grant_hints.iter().zip(hints) {
            word.set(*hints);
        }
        let any = hints.iter().any(|word| *word != 0);
        self.may_have_grants.set(u64::from(any));
    }

    /// Has the program look for grants under keys with this hint, too.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_grant_hint(&self, hint: u32) {
        if let Some(word) = self.grant_hints.get(hint as usize / 64) {
            word.set_bits(1 << (hint % 64));
        }
        self.may_have_grants.set(1);
    }

    /// Has the program look for verdicts under keys with this hint.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_hint(&self, hint: u32) {
        if let (Some(word), bit) = self.hint(hint) {
            word.set_bits(bit);
        }
    }

    /// Has the program look for none under keys with this hint.
    #[cfg(not(target_arch = "bpf"))]
    pub fn clear_hint(&self, hint: u32) {
        if let (Some(word), bit) = self.hint(hint) {
            word.clear_bits(bit);
        }
    }

    #[inline(always)]
    fn hint(&self, hint: u32) -> (Option<&Word>, u64) {
        (self.hints.get(hint as usize / 64), 1 << (hint % 64))
    }

    /// The settings of the fast path.
    #[inline(always)]
    #[must_use]
    pub fn packed_settings(&self) -> PackedSettings {
        PackedSettings(self.packed_settings.get())
    }

    /// Writes the settings of the fast path.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_packed_settings(&self, settings: PackedSettings) {
        self.packed_settings.set(settings.0);
    }
}

/// The settings of the fast path, in a word that is read in one piece: the first port, and flags.
///
/// Userspace clears them while it exchanges the [`Settings`], so that no packet meets settings of
/// both generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PackedSettings(u64);

impl PackedSettings {
    const PORT: u64 = 0xffff;
    const FAST_PATH: u64 = 1 << 16;
    const DROP_UNLISTED: u64 = 1 << 17;

    /// Every packet takes the slow path.
    pub const SLOW_PATH_ONLY: Self = Self(0);

    /// What the fast path needs of these settings. It is for a program that enforces.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let (Mode::Enforce, Some(port)) = (settings.mode(), settings.ports().next()) else {
            return Self::SLOW_PATH_ONLY;
        };
        let unlisted = if settings.drop_unlisted() {
            Self::DROP_UNLISTED
        } else {
            0
        };
        Self(Self::FAST_PATH | unlisted | u64::from(port.to_be()))
    }

    /// Whether the fast path may decide on packets to this port, given as it lies in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn filters(self, port: u16) -> bool {
        self.0 & (Self::FAST_PATH | Self::PORT) == Self::FAST_PATH | port as u64
    }

    /// Whether a source on no list is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn drop_unlisted(self) -> bool {
        self.0 & Self::DROP_UNLISTED != 0
    }
}

/// The number of the hint that belongs to a key. Userspace sets it after it has added the verdict;
/// it may stay when the verdict is removed. One product is enough: a sender who chooses addresses
/// that share a hint gains nothing, each costs one lookup more.
#[inline(always)]
#[must_use]
pub const fn hint(key: &VerdictKey) -> u32 {
    let product = spread((key[1] as u64) << 32 | key[2] as u64);
    (product >> (64 - VERDICT_HINTS.ilog2())) as u32
}

/// The number of the hint of grants that belongs to a key: to that of an IPv6 address by its /64,
/// which is all that the fast path reads of it.
#[inline(always)]
#[must_use]
pub const fn grant_hint(key: &VerdictKey) -> u32 {
    let product = spread((key[1] as u64) << 32 | key[2] as u64);
    (product >> (64 - GRANT_HINTS.ilog2())) as u32
}
