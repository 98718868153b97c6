//! What there is so much of in a second and no more: SYNs of one source, RSTs of all interfaces together.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{RATES, RateUse, SKETCH_ROWS, SKETCH_WIDTH};

#[btf_map]
static SYN_SKETCH: Array<RateUse, { (SKETCH_ROWS * SKETCH_WIDTH) as usize }> = Array::new();

#[btf_map(name = "RATES")]
static RATES_IN_USE: Array<RateUse, RATES> = Array::new();
