//! Rates: how much of something there was in the current second.

/// Lines of the SYN sketch, a power of two: 8 MiB.
pub const SKETCH_LINES: u32 = 131_072;

/// How much of a rate was used in one second: the second in the upper half, the number in the
/// lower.
pub type RateUse = u64;

/// A line of the SYN sketch: one cache line of cells.
pub type SketchLine = [RateUse; 8];

/// The rates that the program keeps in `RATES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rate {
    /// RSTs to customers.
    Resets = 0,
}

/// How many rates there are.
pub const RATES: usize = 1;
