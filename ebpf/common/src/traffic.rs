//! The sources of made-up traffic: a sequence of distinct addresses that look random, the same in
//! the kernel, where packets are made of them, and in userspace, where lists are.
//!
//! An address follows from its place in the sequence alone, so a list of the first ten million, a
//! flood from a hundred thousand of them, one from addresses that are certainly not among them, and
//! the same flood once more need no memory and no agreement but the numbers. Rejected:
//! `bpf_get_prandom_u32`, which cannot be repeated, and consecutive addresses, which are kind to
//! every cache.

/// The addresses of a sequence, in the form that the programs of the bench read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// [`ipv4`].
    Ipv4 = 0,
    /// [`ipv4_near`].
    Ipv4Near = 1,
    /// [`ipv6`].
    Ipv6 = 2,
}

/// The network below which all IPv6 sources are: documentation (RFC 3849).
const IPV6_PREFIX: u64 = 0x2001_0db8 << 32;

/// The IPv4 address at a place of the sequence. Every address there is has one place.
#[inline(always)]
#[must_use]
pub const fn ipv4(place: u32) -> u32 {
    // The finalizer "lowbias32" (Wellons 2018): a bijection whose every input bit decides over
    // every output bit.
    let word = (place ^ place >> 16).wrapping_mul(0x7feb_352d);
    let word = (word ^ word >> 15).wrapping_mul(0x846c_a68b);
    word ^ word >> 16
}

/// The /15 of [`ipv4_near`]: one for benchmarks (RFC 2544).
const NEAR: u32 = 198 << 24 | 18 << 16;

/// The address within one /15 at a place of the sequence; the place counts modulo the size of a
/// /15.
#[inline(always)]
#[must_use]
pub const fn ipv4_near(place: u32) -> u32 {
    // As above, on 17 bits.
    const BITS: u32 = (1 << 17) - 1;
    let word = place & BITS;
    let word = (word ^ word >> 9).wrapping_mul(0x1_352d) & BITS;
    let word = (word ^ word >> 8).wrapping_mul(0xa68b) & BITS;
    NEAR | (word ^ word >> 9)
}

/// The upper 64 bits of the IPv6 address at a place of the sequence; which /64 it is in.
#[inline(always)]
#[must_use]
pub const fn ipv6(place: u32) -> u64 {
    IPV6_PREFIX | ipv4(place) as u64
}
