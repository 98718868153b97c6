//! The layout of the maps that the program and userspace share, and of the pins under which a
//! restart finds them.
//!
//! | map | kind | written by |
//! |---|---|---|
//! | `SETTINGS` | array of one inner array | userspace, swapped whole |
//! | `CONTROL` | array of one | userspace, mapped |
//! | `SNAPSHOT` | array of inner arrays | userspace, mapped; swapped whole |
//! | `COUNTERS` | per-CPU array of one | the program |
//! | `VERDICTS` | hash | userspace; the program counts |
//! | `GRANTS` | hash | the gate |
//! | `LOCAL_NETWORKS` | LPM trie | userspace |
//! | `SYN_SKETCH` | array | the program |
//! | `RATES` | array | the program |
//! | `EVENTS` | ring buffer | the program |
//! | `EVENT_RATES` | per-CPU array of one | the program |
//! | `JUDGED`, `COOKIE_REQUEST` | per-CPU arrays of one | the program, for itself; not pinned |
//! | `LIST_RECORDS` | array | userspace, for itself |
//! | `INTERFACE_RECORDS` | array | userspace, for itself |
//! | `VERDICT_COUNTERS` | array | userspace, for itself |
//! | `TOP_SOURCES` | array | the reader of events |
//! | `GATE` | array of one | the gate |
//!
//! | map | holds |
//! |---|---|
//! | `SETTINGS` | [`Settings`] |
//! | `CONTROL` | what the program reads for nearly every packet: [`Control`] |
//! | `SNAPSHOT` | the blocks of a [`snapshot`](crate::snapshot) of all lists: [`snapshot_slot`] |
//! | `COUNTERS` | what is counted for interfaces and lists: [`Counters`] |
//! | `VERDICTS` | source, or its /64 -> [`RecentVerdict`] |
//! | `GRANTS` | [`Source`](crate::Source) -> when its grant ends, in nanoseconds |
//! | `LOCAL_NETWORKS` | [`Source`](crate::Source) prefix -> any value |
//! | `SYN_SKETCH` | [`SketchLine`]s: SYNs of sources in this second |
//! | `RATES` | [`Rate`] -> [`RateUse`] |
//! | `EVENTS` | [`Event`]s, while there is a reader |
//! | `EVENT_RATES` | [`RateUse`] of its events |
//! | `JUDGED`, `COOKIE_REQUEST` | what has no room on the program's stack |
//! | `LIST_RECORDS` | what a list's slot means, in two banks: [`ListRecord`] |
//! | `INTERFACE_RECORDS` | what an interface's slot means: [`InterfaceRecord`] |
//! | `VERDICT_COUNTERS` | recent verdicts added and removed: [`VerdictCounter`] |
//! | `TOP_SOURCES` | the sources that are dropped most: [`TopSource`], in their order |
//! | `GATE` | where its admin endpoint is: [`GateRecord`] |
//!
//! All lists of both address families are in one snapshot, whose first block has the header, so
//! that one update of one element puts a generation of them in place. The header holds the number
//! of the generation, whose parity says where its other blocks are, and which bank of
//! `LIST_RECORDS` describes it. So the swap of the snapshot swaps the names with it, and a crash at
//! any moment leaves one whole generation in force.

mod control;
mod counters;
mod events;
mod interface;
mod rates;
mod records;
mod settings;
mod verdicts;

pub use self::control::{
    Control, GRANT_HINTS, PackedSettings, VERDICT_HINTS, Word, grant_hint, hint,
};
pub use self::counters::{
    Counters, FIRST_UNREAD, InterfaceCounter, InterfaceCounters, ListCounter, ListCounters,
    NOTHING_COUNTED, unread_counter,
};
pub use self::events::{
    EVENTS_PER_SECOND, EVENTS_SIZE, Event, NO_LIST, Reason, TOP_SOURCES_MAX, TopSource,
};
pub use self::interface::{InterfaceConstant, LinkLayer, Role};
pub use self::rates::{RATES, Rate, RateUse, SKETCH_LINES, SketchLine};
pub use self::records::{
    GateRecord, INTERFACE_NAME_MAX, InterfaceRecord, LIST_NAME_MAX, ListRecord,
};
pub use self::settings::{Measures, Mode, PORTS_MAX, Settings};
pub use self::verdicts::{
    RecentVerdict, VERDICT_COUNTERS, VERDICT_GRACE_NS, VERDICT_NOTE_MAX, VERDICTS_MAX,
    VerdictCounter, VerdictKey,
};
/// Most lists that a generation may have in the kernel.
pub use crate::snapshot::LISTS_MAX;

/// Changes whenever the meaning of a map changes, that of the lines of a snapshot included. It is
/// part of the pin path, because a start takes pinned maps over without checking their shape.
pub const LAYOUT_VERSION: u32 = 7;

/// Slots for lists: twice [`LISTS_MAX`], so that a reload that renames every list finds free slots
/// while the generation before it still counts in its own.
pub const LIST_SLOTS: u32 = 512;
/// Most interfaces that share a pin path.
pub const INTERFACES_MAX: u32 = 64;
/// Slots for interfaces: the last is for frames that come from no interface, but are run through
/// the program to try it.
pub const INTERFACE_SLOTS: u32 = INTERFACES_MAX + 1;
/// Most grants. A full map takes some 6 MiB of kernel memory.
pub const GRANTS_MAX: u32 = 65_536;
/// Most local networks.
pub const LOCAL_NETWORKS_MAX: u32 = 65_536;

/// The flag of hashes whose elements take memory only while they are there: `BPF_F_NO_PREALLOC`.
/// The program adds none.
pub const NO_PREALLOC: usize = 1;
/// The flag of arrays that userspace maps: `BPF_F_MMAPABLE`. A snapshot is written at the speed of
/// memory, and a bit of `CONTROL` without a system call. Not `BPF_F_INNER_MAP` for the blocks of a
/// snapshot: the kernel inlines the lookup in an array of known size, and calls a helper for any
/// other.
pub const MAPPED: usize = 1 << 10;
/// Blocks that a snapshot can have: 4 GiB.
pub const SNAPSHOT_BLOCKS_MAX: u32 = 64;
/// Elements of `SNAPSHOT`.
pub const SNAPSHOT_SLOTS: u32 = 2 * SNAPSHOT_BLOCKS_MAX;

/// The element of `SNAPSHOT` that holds this block of a generation. The first block of the
/// generation in force is in the first element, so that one update exchanges generations; the
/// others are in the bank that the parity of the number says, where those of the generation before
/// and after it are not.
#[inline(always)]
#[must_use]
pub const fn snapshot_slot(generation: u32, block: u32) -> u32 {
    match block {
        0 => 0,
        _ => (generation & 1) * SNAPSHOT_BLOCKS_MAX + block,
    }
}
