//! Recent verdicts, and the local networks that none of them can touch.

use aya_ebpf::btf_maps::{HashMap, LpmTrie};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{LOCAL_NETWORKS_MAX, RecentVerdict, VERDICTS_MAX, VerdictKey};

#[btf_map]
static VERDICTS: HashMap<VerdictKey, RecentVerdict, { VERDICTS_MAX as usize }> = HashMap::new();

#[btf_map]
static LOCAL_NETWORKS: LpmTrie<[u32; 5], u32, { LOCAL_NETWORKS_MAX as usize }> = LpmTrie::new();
