//! Recent verdicts: sources that are kept out for a while.

/// Recent verdicts at most. A full map takes some 50 MiB of kernel memory, an empty one 4 MiB.
pub const VERDICTS_MAX: u32 = 262_144;

/// Bytes of the note of a recent verdict.
pub const VERDICT_NOTE_MAX: usize = 64;

/// Nanoseconds after a verdict was added in which only the SYNs of its source are dropped: an open
/// session can still hear why and end in order. Then all its packets are.
pub const VERDICT_GRACE_NS: u64 = 10_000_000_000;

/// The key of a recent verdict.
pub type VerdictKey = [u32; 3];

/// Drops the packets of a source for a while: the relay or an operator has added it. Times are
/// nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecentVerdict {
    /// When it ends.
    pub expires_ns: u64,
    /// When it was added; a renewal does not move it.
    pub added_ns: u64,
    /// When the last packet was dropped for it; the program writes it.
    pub last_ns: u64,
    /// Packets that were dropped for it; the program counts them.
    pub packets: u64,
    /// What added it: a number that only userspace understands.
    pub cause: u32,
    /// Keeps what follows in place.
    pub reserved: u32,
    /// For people: the list that names the source, padded with zeros.
    pub note: [u8; VERDICT_NOTE_MAX],
}

/// What userspace counts of recent verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum VerdictCounter {
    /// Added for a source that had none.
    Added = 0,
    /// Added for a source that had one.
    Renewed = 1,
    /// Removed by hand.
    Removed = 2,
    /// Removed because they had expired.
    Expired = 3,
    /// Removed to make room for others.
    Evicted = 4,
    /// Not added: the source is permitted or local.
    Refused = 5,
    /// Not added: there is no room, and verdicts of operators are not removed to make some.
    NoRoom = 6,
}

/// How many counters recent verdicts have.
pub const VERDICT_COUNTERS: u32 = 7;
