//! The XDP program: decides on a frame, by the fast path if that can, else by the slow path, counts
//! it, and passes, drops or answers it.
//!
//! It is loaded once per interface, with the interface's slot and role as a constant: the counters
//! to use need no lookup, and the verifier removes what the other role would do. All instances
//! share the pinned maps. Where settings or lists are missing the frame passes: the filter drops
//! only what a list or a setting says.
//!
//! What is rare (answers, events, budgets, frames with tags or options) is in subprograms, out of
//! the way of the packets of a flood.
//!
//! The verifier processes some 200,000 instructions of it (140,000 for a customer's interface), of
//! the million that it allows; `verified_insns` in the fdinfo of a loaded program says how many.
//! Most of that is the lookup of an address, where each line may be in the first block or in
//! another. `Frame::forget` and `Judged` keep it from following each way to an offset by itself;
//! they have to stay. The stack is 512 bytes for all calls together; large things lie in per-CPU
//! maps.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod budget;
mod control;
mod cookie;
mod count;
mod decision;
mod events;
mod fast_path;
mod frame;
mod judged;
mod lists;
mod reply;
mod slow_path;
mod verdicts;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use portcullis_ebpf_common::fast_path::SlowPath;
use portcullis_ebpf_common::layout::InterfaceConstant;

use self::decision::Decision;

/// What this instance knows of its interface, an [`InterfaceConstant`]; set before it is loaded.
///
/// Its value here is one that no other constant has: LLVM puts equal constants into one place, and
/// what is set before loading would be set for both. With 0, the key of `SETTINGS` became the slot,
/// too.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0xfeed_5107);

/// What this instance knows of its interface.
#[inline(always)]
fn interface() -> InterfaceConstant {
    InterfaceConstant(INTERFACE.load())
}

/// Filters one frame, which may lie in several buffers: devices with jumbo frames want that of a
/// program.
#[xdp(frags)]
pub fn portcullis(context: XdpContext) -> u32 {
    filter::<true>(context.ctx)
}

/// The same for kernels before 5.18, which know nothing of several buffers.
#[xdp]
pub fn portcullis_linear(context: XdpContext) -> u32 {
    filter::<false>(context.ctx)
}

/// Decides on a frame. `FRAGS`: it may lie in several buffers.
#[inline(always)]
fn filter<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    let decision = match fast_path::decide::<FRAGS>(context) {
        Ok(decision) => decision,
        Err(SlowPath) => slow_path::decide::<FRAGS>(context),
    };
    match decision {
        Decision::Answer => answer::send::<FRAGS>(context),
        Decision::Drop | Decision::Pass => decision as u32,
    }
}

/// Nothing here panics, and the linker drops this; the compiler wants it all the same.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
