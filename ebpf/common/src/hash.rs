//! How bits are mixed: what every hash here is made of.

/// Multiplies: every bit decides over all that are above it, and what counts up comes out evenly
/// spread (Knuth).
#[inline(always)]
pub(crate) const fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input decides over
/// every bit of the output.
#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
