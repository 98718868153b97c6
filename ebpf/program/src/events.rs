//! What was dropped, for somebody who watches: at the cost of one look while nobody does.

use aya_ebpf::btf_maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{EVENTS_SIZE, Event, RateUse};

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_SIZE as usize }> = RingBuf::new();

#[btf_map]
static READER: Array<u64, 1> = Array::new();

#[btf_map]
static EVENT_RATES: PerCpuArray<RateUse, 1> = PerCpuArray::new();
