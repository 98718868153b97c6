//! How bits are mixed: what every hash here is made of.

/// Multiplies: every bit decides over all that are above it, and what counts up, as prefixes do, comes out evenly spread
/// (Knuth's multiplicative hashing).
///
/// The golden ratio does that for what counts up in the lowest bit, but badly for some of those above: /48s in a row came
/// out ten and then none. Of sixty million random numbers this one has the smallest terms in the continued fractions
/// of all its shifts up to 40 bits: none above 28, where the golden ratio has 970.
#[inline(always)]
pub(crate) const fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x92c7_6f73_b44a_1dc9)
}

/// The same with another such number: what the one brings close together, the other does not.
#[inline(always)]
pub(crate) const fn spread_otherwise(word: u64) -> u64 {
    word.wrapping_mul(0xb1db_ae4e_2511_d375)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input decides over every bit of the output.
#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
