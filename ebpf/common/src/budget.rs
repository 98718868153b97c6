//! What is limited per second: the SYNs of one source, the RSTs and the events of all.
//!
//! A budget is a cell that holds a second and what was used up in it, so a new second needs no
//! clearing. SYNs are counted in a count-min sketch with conservative update (Cormode and
//! Muthukrishnan 2005; Estan and Varghese 2002): four cells of a line for each source, each of
//! which it shares with others, and the lowest of which is nearest the truth. The four are in one
//! cache line, so that a SYN costs one access to memory. A sketch has its size whatever the number
//! of sources, so a flood of forged ones can neither fill nor empty it; what it can do is to raise
//! the counts of others a little. Rejected: an LRU map, which such a flood keeps recycling.
//!
//! CPUs read and write cells without locks: a count can come out too low by what two of them did at
//! the same moment.

use crate::hash::mix;
use crate::layout::{RateUse, SKETCH_LINES, SketchLine, VerdictKey};

/// The hash of a source, every bit of which is as good as the others.
#[inline(always)]
#[must_use]
pub const fn hash(key: &VerdictKey) -> u64 {
    mix(key[0] as u64 ^ mix((key[1] as u64) << 32 | key[2] as u64))
}

/// The line of the sketch in which the source with this hash is counted.
#[inline(always)]
#[must_use]
pub const fn line(hash: u64) -> u32 {
    hash as u32 & (SKETCH_LINES - 1)
}

/// How much was used in this second, by a cell.
#[inline(always)]
#[must_use]
pub const fn used(cell: RateUse, second: u32) -> u32 {
    if (cell >> 32) as u32 == second {
        cell as u32
    } else {
        0
    }
}

/// The cell after one more; `None` if the budget of this second is used up.
#[inline(always)]
#[must_use]
pub const fn take(cell: RateUse, second: u32, budget: u32) -> Option<RateUse> {
    let used = used(cell, second);
    if used >= budget {
        return None;
    }
    Some((second as u64) << 32 | (used + 1) as u64)
}

/// Takes one from the budget of the source with this hash, in its line and this second; `true`:
/// there was nothing left.
#[inline(always)]
pub fn exhausts(line: &mut SketchLine, hash: u64, second: u32, budget: u32) -> bool {
    // Of two neighbours one, four times.
    let place = |pair: usize| (pair * 2 + (hash >> (32 + pair) & 1) as usize) & 7;
    let mut lowest = u32::MAX;
    for pair in 0..4 {
        let used = used(line[place(pair)], second);
        if used < lowest {
            lowest = used;
        }
    }
    if lowest >= budget {
        return true;
    }
    // Only the lowest are raised: the others count other sources, too.
    for pair in 0..4 {
        if used(line[place(pair)], second) <= lowest {
            line[place(pair)] = u64::from(second) << 32 | u64::from(lowest + 1);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    struct Sketch(Vec<SketchLine>);

    impl Sketch {
        fn new() -> Self {
            Self(vec![[0; 8]; SKETCH_LINES as usize])
        }

        fn exhausts(&mut self, key: VerdictKey, second: u32, budget: u32) -> bool {
            let hash = hash(&key);
            exhausts(&mut self.0[line(hash) as usize], hash, second, budget)
        }
    }

    fn key(number: u32) -> VerdictKey {
        [4_u32.to_be(), number, 0]
    }

    #[test]
    fn a_source_has_its_budget_in_each_second_and_no_more() {
        let mut sketch = Sketch::new();
        for second in [0, 1, 7, u32::MAX] {
            for _ in 0..5 {
                assert!(!sketch.exhausts(key(1), second, 5));
            }
            assert!(sketch.exhausts(key(1), second, 5));
        }
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let mut sketch = Sketch::new();
        for _ in 0..100 {
            sketch.exhausts(key(1), 1, 5);
        }
        assert!(!sketch.exhausts(key(1), 1, 6));
    }

    #[test]
    fn a_flood_of_forged_sources_costs_an_honest_one_nothing() {
        let mut sketch = Sketch::new();
        // A hundred thousand sources with one SYN each, and one that sends ten.
        for forged in 0..100_000 {
            sketch.exhausts(key(1 << 20 | forged), 1, 200);
        }
        for _ in 0..10 {
            assert!(!sketch.exhausts(key(5), 1, 200));
        }
    }

    #[test]
    fn the_count_of_a_source_is_never_too_low_and_rarely_too_high() {
        let mut sketch = Sketch::new();
        let mut refused_early = 0;
        for source in 0..20_000 {
            for _ in 0..3 {
                refused_early += u32::from(sketch.exhausts(key(source), 1, 4));
            }
        }
        // 20,000 sources share 131,072 lines; they have sent three quarters of what they may.
        assert!(
            refused_early < 300,
            "{refused_early} of 60,000 SYNs were refused for others' sake"
        );
        for source in 0..20_000 {
            sketch.exhausts(key(source), 1, 4);
            assert!(sketch.exhausts(key(source), 1, 4));
        }
    }

    #[test]
    fn a_rate_ends_with_its_number_and_begins_anew_with_the_second() {
        let mut cell = 0;
        for _ in 0..3 {
            cell = take(cell, 9, 3).unwrap_or_default();
        }
        assert_eq!(take(cell, 9, 3), None);
        assert_eq!(take(cell, 10, 3), Some(10 << 32 | 1));
        assert_eq!(take(0, 9, 0), None, "no budget at all");
    }
}
