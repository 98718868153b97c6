//! Presence: which ranges of IPv4 addresses have an entry on a list.
//!
//! The build starts with a bit for each /25. It then doubles the size of the ranges as long as few
//! of them are non-empty. A small table stays in the caches of the processor, but a table in which
//! most ranges are non-empty saves no lookup.

use portcullis_ebpf_common::snapshot::{Line, PRESENCE_SHIFT_MAX, PRESENCE_SHIFT_MIN};

/// At most one range in this many is non-empty, where the size of the ranges can be chosen.
const SPARSE: u64 = 16;
/// With this shift the table takes 64 KiB, and a smaller one is not faster. No range may be longer
/// than a /16: a non-empty range needs a directory, and the directory grows by whole /16s.
const SHIFT_MAX: u32 = 13;
const _: () = assert!(SHIFT_MAX <= 16);

/// The bits. An address, shifted right by `shift`, is the number of its bit.
pub(super) struct Presence {
    words: Vec<u64>,
    shift: u32,
}

impl Presence {
    /// No prefixes: one line, all bits unset.
    pub(super) fn empty() -> Self {
        Self {
            words: words(PRESENCE_SHIFT_MAX),
            shift: PRESENCE_SHIFT_MAX,
        }
    }

    /// A bit for each /25, all unset.
    pub(super) fn fine() -> Self {
        Self {
            words: words(PRESENCE_SHIFT_MIN),
            shift: PRESENCE_SHIFT_MIN,
        }
    }

    /// Sets the two bits of a /24. The table is still [`fine`](Self::fine).
    pub(super) fn set(&mut self, network: u32, halves: u64) {
        self.words[(network >> 5) as usize] |= halves << (network % 32 * 2);
    }

    /// The same presence with ranges as long as possible.
    pub(super) fn coarsened(mut self) -> Self {
        while self.shift < SHIFT_MAX {
            let coarser = Self {
                words: self.words.chunks_exact(2).map(halved).collect(),
                shift: self.shift + 1,
            };
            let present: u64 = coarser
                .words
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .sum();
            if present * SPARSE > 64 * coarser.words.len() as u64 {
                break;
            }
            self = coarser;
        }
        self
    }

    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    pub(super) fn lines(&self) -> usize {
        self.words.len() / (size_of::<Line>() / size_of::<u64>())
    }

    /// Writes the lines.
    pub(super) fn write(&self, lines: &mut [Line]) {
        for (to, from) in lines.as_flattened_mut().iter_mut().zip(&self.words) {
            // The lines are zero already, and a page that is not written takes no memory.
            if *from != 0 {
                *to = *from;
            }
        }
    }
}

fn words(shift: u32) -> Vec<u64> {
    vec![0; 1 << (u32::BITS - shift - u64::BITS.ilog2())]
}

/// Two words as one: each bit says whether either of two neighbours is set.
fn halved(words: &[u64]) -> u64 {
    let half = |word: &u64| {
        let pairs = (word | word >> 1) & 0x5555_5555_5555_5555;
        let pairs = (pairs | pairs >> 1) & 0x3333_3333_3333_3333;
        let pairs = (pairs | pairs >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
        let pairs = (pairs | pairs >> 4) & 0x00ff_00ff_00ff_00ff;
        let pairs = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
        (pairs | pairs >> 16) & 0xffff_ffff
    };
    words
        .iter()
        .rev()
        .fold(0, |above, word| above << 32 | half(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_prefixes_it_is_one_line() {
        assert_eq!(Presence::empty().lines(), 1);
    }

    /// A number of /24s, spread evenly over all of IPv4, and the shift expected for it.
    #[test]
    fn it_is_as_small_as_possible_and_never_calls_a_non_empty_range_empty() {
        for (networks, shift) in [
            (1, 13),
            (1_000, 13),
            (100_000, 11),
            (1_000_000, 8),
            (4_000_000, 7),
        ] {
            let mut presence = Presence::fine();
            let step = (1 << 24) / networks;
            for at in 0..networks {
                presence.set(at * step, 1 << (at & 1));
            }
            let presence = presence.coarsened();
            assert_eq!(presence.shift(), shift, "{networks}");
            assert_eq!(presence.lines() << (shift + 9), 1 << 32, "{networks}");
            let is_present = |address: u32| {
                let bit = address >> shift;
                presence.words[(bit >> 6) as usize] >> (bit & 63) & 1 != 0
            };
            let missing = (0..networks).find(|at| !is_present((at * step) << 8 | (at & 1) << 7));
            assert_eq!(missing, None, "{networks}");
            let set: u32 = presence.words.iter().map(|word| word.count_ones()).sum();
            assert!(set <= networks, "{networks}: {set}");
        }
    }
}
