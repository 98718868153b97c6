//! What the program looks at for nearly every packet.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Mode, Settings, VerdictKey};
use crate::hash::spread;

/// Hints of recent verdicts, a bit each: where there is none under the hash of a source, no verdict
/// needs to be looked for. As many as there can be verdicts, so that with all of them a third of
/// the other sources still need no look, and 32 KiB, so that they stay in the nearest caches of a
/// processor under a flood from sources that never come again.
pub const VERDICT_HINTS: u32 = 1 << 18;

/// A word that others change meanwhile. In the program it is no atomic one, because BPF's compiler
/// knows no load of such; it is loaded whole all the same.
#[cfg(not(target_arch = "bpf"))]
#[repr(transparent)]
pub struct Word(AtomicU64);

/// A word that others change meanwhile, as the program has it.
#[cfg(target_arch = "bpf")]
#[repr(transparent)]
pub struct Word(core::cell::Cell<u64>);

#[cfg(target_arch = "bpf")]
impl Word {
    /// What it is now.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// What it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Changes all of it.
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

/// What the program looks at for nearly every packet, in one place, because each look into a map
/// costs some. Several processes write it while the program reads.
#[repr(C)]
pub struct Control {
    glance: Word,
    /// Until when somebody reads the events, in nanoseconds of CLOCK_MONOTONIC; 0: nobody does.
    pub reader_until_ns: Word,
    /// Fills the line.
    reserved: [u64; 6],
    hints: [Word; VERDICT_HINTS as usize / 64],
}

impl Control {
    /// Whether there may be a recent verdict under this key. Most sources have none, and a look
    /// into a hash costs as much as all the rest.
    #[inline(always)]
    #[must_use]
    pub fn may_be_recent(&self, key: &VerdictKey) -> bool {
        let (word, bit) = self.hint(hint(key));
        word.is_some_and(|word| word.get() & bit != 0)
    }

    /// From now on a verdict is looked for under keys with this hint.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_hint(&self, hint: u32) {
        if let (Some(word), bit) = self.hint(hint) {
            word.set_bits(bit);
        }
    }

    /// From now on none is.
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

    /// What of the settings nearly every packet needs.
    #[inline(always)]
    #[must_use]
    pub fn glance(&self) -> Glance {
        Glance(self.glance.get())
    }

    /// From now on this is seen.
    #[cfg(not(target_arch = "bpf"))]
    pub fn set_glance(&self, glance: Glance) {
        self.glance.set(glance.0);
    }
}

/// What of the settings nearly every packet needs, in a word that is read in one piece: whether the
/// program enforces, whether it drops the unlisted, and the first port. Zero: look at the settings.
/// It is zero while they are exchanged, so that both never say different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Glance(pub u64);

impl Glance {
    const ENFORCES: u64 = 1 << 16;
    const DROPS_UNLISTED: u64 = 1 << 17;

    /// Nothing to be seen.
    pub const NOTHING: Self = Self(0);

    /// What a glance at these settings shows.
    #[must_use]
    pub fn at(settings: &Settings) -> Self {
        let port = settings.ports[0];
        if settings.mode() != Mode::Enforce || port == 0 {
            return Self::NOTHING;
        }
        let unlisted = if settings.drop_unlisted() {
            Self::DROPS_UNLISTED
        } else {
            0
        };
        Self(Self::ENFORCES | unlisted | u64::from(port.to_be()))
    }

    /// Whether what goes to this port, given as it lies in a packet, is to be judged, and what is
    /// to be dropped dropped.
    #[inline(always)]
    #[must_use]
    pub const fn enforces(self, port: u16) -> bool {
        self.0 & (Self::ENFORCES | 0xffff) == Self::ENFORCES | port as u64
    }

    /// Whether a source on no list is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn drops_unlisted(self) -> bool {
        self.0 & Self::DROPS_UNLISTED != 0
    }
}

/// The number of the hint that belongs to a key. Whoever gives a verdict sets it, behind the
/// verdict; it may stay when the verdict goes. One product, because whoever chooses addresses that
/// share a hint has gained nothing: only a look more at each.
#[inline(always)]
#[must_use]
pub const fn hint(key: &VerdictKey) -> u32 {
    let product = spread((key[1] as u64) << 32 | key[2] as u64);
    (product >> (64 - VERDICT_HINTS.ilog2())) as u32
}
