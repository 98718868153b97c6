//! How much of something there may be in a second: the SYNs of one source, the RSTs and the events of all.
//!
//! A budget is a cell that holds a second and what was used up in it, so a new second needs no clearing. SYNs are counted
//! in a count-min sketch with conservative update (Cormode and Muthukrishnan 2005; Estan and Varghese 2002): four cells
//! for each source, each of which it shares with others, and the lowest of which is nearest the truth. A sketch has its size whatever the
//! number of sources, so a flood of forged ones can neither fill nor empty it; what it can do is to raise the counts of others a
//! little. Rejected: an LRU map, which such a flood keeps recycling.
//!
//! CPUs read and write cells without locks: a count can come out too low by what two of them did at the same moment.

use crate::layout::{RateUse, SKETCH_ROWS, SKETCH_WIDTH, VerdictKey};
use crate::snapshot::mix;

/// Where the cells of a sketch are.
pub trait Cells {
    /// The cell with this number.
    fn read(&self, number: u32) -> RateUse;
    /// Puts a value into it.
    fn write(&self, number: u32, cell: RateUse);
}

/// What a cell says was used up in this second.
#[inline(always)]
#[must_use]
pub const fn used(cell: RateUse, second: u32) -> u32 {
    if (cell >> 32) as u32 == second {
        cell as u32
    } else {
        0
    }
}

/// The cell after one more, unless so many were used up in this second already.
#[inline(always)]
#[must_use]
pub const fn take(cell: RateUse, second: u32, budget: u32) -> Option<RateUse> {
    let used = used(cell, second);
    if used >= budget {
        return None;
    }
    Some((second as u64) << 32 | (used + 1) as u64)
}

/// Takes one from the budget of a source in this second; whether there was nothing left.
#[inline(always)]
pub fn exhausts<C: Cells>(cells: &C, key: &VerdictKey, second: u32, budget: u32) -> bool {
    let hash = mix(u64::from(key[0]) ^ mix(u64::from(key[1]) << 32 | u64::from(key[2])));
    let number = |row: u32| {
        let column = (hash >> (row * 16)) as u32 & (SKETCH_WIDTH - 1);
        row * SKETCH_WIDTH + column
    };
    let mut lowest = u32::MAX;
    for row in 0..SKETCH_ROWS {
        let used = used(cells.read(number(row)), second);
        if used < lowest {
            lowest = used;
        }
    }
    if lowest >= budget {
        return true;
    }
    // Only the lowest are raised: the others count somebody else, too.
    for row in 0..SKETCH_ROWS {
        if used(cells.read(number(row)), second) <= lowest {
            cells.write(number(row), u64::from(second) << 32 | u64::from(lowest + 1));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    struct Sketch(RefCell<Vec<RateUse>>);

    impl Sketch {
        fn new() -> Self {
            Self(RefCell::new(vec![0; (SKETCH_ROWS * SKETCH_WIDTH) as usize]))
        }
    }

    impl Cells for Sketch {
        fn read(&self, number: u32) -> RateUse {
            self.0.borrow()[number as usize]
        }

        fn write(&self, number: u32, cell: RateUse) {
            self.0.borrow_mut()[number as usize] = cell;
        }
    }

    fn key(number: u32) -> VerdictKey {
        [4_u32.to_be(), number, 0]
    }

    #[test]
    fn a_source_has_its_budget_in_each_second_and_no_more() {
        let sketch = Sketch::new();
        for second in [0, 1, 7, u32::MAX] {
            for _ in 0..5 {
                assert!(!exhausts(&sketch, &key(1), second, 5));
            }
            assert!(exhausts(&sketch, &key(1), second, 5));
        }
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let sketch = Sketch::new();
        for _ in 0..100 {
            exhausts(&sketch, &key(1), 1, 5);
        }
        assert!(!exhausts(&sketch, &key(1), 1, 6));
    }

    #[test]
    fn a_flood_of_forged_sources_costs_an_honest_one_nothing() {
        let sketch = Sketch::new();
        // A hundred thousand sources with one SYN each, and one that sends ten.
        for forged in 0..100_000 {
            exhausts(&sketch, &key(1 << 20 | forged), 1, 200);
        }
        for _ in 0..10 {
            assert!(!exhausts(&sketch, &key(5), 1, 200));
        }
    }

    #[test]
    fn the_count_of_a_source_is_never_too_low_and_rarely_too_high() {
        let sketch = Sketch::new();
        let mut refused_early = 0;
        for source in 0..20_000 {
            for _ in 0..3 {
                refused_early += u32::from(exhausts(&sketch, &key(source), 1, 4));
            }
        }
        // 20,000 sources share 65,536 columns; they have sent three quarters of what they may.
        assert!(
            refused_early < 100,
            "{refused_early} of 60,000 SYNs were refused for others' sake"
        );
        for source in 0..20_000 {
            exhausts(&sketch, &key(source), 1, 4);
            assert!(exhausts(&sketch, &key(source), 1, 4));
        }
    }

    #[test]
    fn the_cells_of_a_source_lie_in_rows_of_their_own_within_the_sketch() {
        struct Seen(RefCell<Vec<u32>>);
        impl Cells for Seen {
            fn read(&self, _number: u32) -> RateUse {
                0
            }
            fn write(&self, number: u32, _cell: RateUse) {
                self.0.borrow_mut().push(number);
            }
        }
        for source in 0..1000 {
            let seen = Seen(RefCell::default());
            exhausts(&seen, &key(source), 1, 1);
            let rows: Vec<u32> = seen.0.borrow().iter().map(|at| at / SKETCH_WIDTH).collect();
            assert_eq!(rows, [0, 1, 2, 3]);
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
