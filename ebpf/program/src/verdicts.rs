//! What the maps know of a source: its grant, its recent verdict, whether it is local, and how many
//! SYNs it has sent.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{HashMap, LpmTrie};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{
    GRANTS_MAX, LOCAL_NETWORKS_MAX, NO_PREALLOC, RecentVerdict, VERDICTS_MAX, VerdictKey,
};
use portcullis_ebpf_common::packet::SOURCE_BITS;
use portcullis_ebpf_common::{Memory, Recent, Source};

use crate::budget;
use crate::control::control;

#[btf_map]
static VERDICTS: HashMap<VerdictKey, RecentVerdict, { VERDICTS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
static GRANTS: HashMap<[u32; 5], u64, { GRANTS_MAX as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map]
static LOCAL_NETWORKS: LpmTrie<[u32; 5], u32, { LOCAL_NETWORKS_MAX as usize }> = LpmTrie::new();

/// Nanoseconds of CLOCK_MONOTONIC at the last tick: cheaper than the exact time, and exact enough
/// for seconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What the maps know of all sources.
pub(crate) struct Sources;

impl Memory for Sources {
    type Recent = Entry;

    #[inline(always)]
    fn granted_until_ns(&self, source: &Source) -> u64 {
        match control() {
            Some(control) if control.may_be_granted(&source.key()) => granted_until_ns(source),
            _ => 0,
        }
    }

    #[inline(always)]
    fn recent(&self, key: &VerdictKey) -> Option<Entry> {
        if !control()?.may_be_recent(key) {
            return None;
        }
        VERDICTS.get_ptr_mut(key).map(Entry)
    }

    #[inline(always)]
    fn is_local(&self, source: &Source) -> bool {
        is_local(source)
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline(always)]
    fn exhausts(&self, key: &VerdictKey, budget: u32) -> bool {
        budget::exhausts(key, budget)
    }
}

/// Not inlined: it is for sources that share a hint with a grant.
#[inline(never)]
fn granted_until_ns(source: &Source) -> u64 {
    match GRANTS.get_ptr(&source.0) {
        // SAFETY: the verifier has seen that the pointer is not null; entries are never unmapped
        // while the program runs.
        Some(until_ns) => unsafe { *until_ns },
        None => 0,
    }
}

/// Not inlined: it is for sources that would be dropped, or are over their budget.
#[inline(never)]
fn is_local(source: &Source) -> bool {
    let key = Key::new(SOURCE_BITS, source.0);
    LOCAL_NETWORKS.get(&key).is_some()
}

/// A recent verdict in its map. If userspace removes it meanwhile, the counts go to another entry
/// or to none, and are wrong by one packet.
pub(crate) struct Entry(*mut RecentVerdict);

impl Recent for Entry {
    #[inline(always)]
    fn added_ns(&self) -> u64 {
        // SAFETY: the verifier has seen that the pointer is not null; entries are never unmapped
        // while the program runs.
        unsafe { (*self.0).added_ns }
    }

    #[inline(always)]
    fn expires_ns(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).expires_ns }
    }

    #[inline(always)]
    fn count(&self, now_ns: u64) {
        // SAFETY: as above. Two CPUs at the same moment count as one: an atomic addition costs more
        // than that is worth.
        unsafe { (*self.0).packets += 1 };
        // SAFETY: as above; the last CPU to write is near enough.
        unsafe { (*self.0).last_ns = now_ns };
    }
}
