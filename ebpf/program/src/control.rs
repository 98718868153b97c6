//! What the program reads for nearly every packet, in one map.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{Control, MAPPED};

#[btf_map]
static CONTROL: Array<Control, 1, MAPPED> = Array::new();

/// The one element. It always exists; the verifier has to see that.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}
