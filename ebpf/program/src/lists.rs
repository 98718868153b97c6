//! The generation of lists in force, and the lookup of an address in it.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{ArrayOfMaps, LpmTrie};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::packet::SOURCE_BITS;
use portcullis_ebpf_common::{Class, Lookup, Source};

#[btf_map]
static LISTS: ArrayOfMaps<LpmTrie<[u32; 5], u32, 1>, 1> = ArrayOfMaps::new();

/// The generation in force.
pub(crate) struct InForce;

impl Lookup for InForce {
    #[inline(always)]
    fn class(&self, source: &Source) -> Class {
        let Some(lists) = LISTS.get(0) else {
            return Class::NONE;
        };
        let key = Key::new(SOURCE_BITS, source.0);
        lists.get(&key).map_or(Class::NONE, |class| Class(*class))
    }

    #[inline(always)]
    fn class_of_destination(&self, destination: &Source) -> Class {
        Class(out_of_line(destination))
    }
}

/// A second copy of the lookup, out of the way of the first.
#[inline(never)]
fn out_of_line(address: &Source) -> u32 {
    InForce.class(address).0
}
