//! The XDP program: reads a frame, asks [`judge`] for the verdict, counts it, and passes, drops or
//! answers.
//!
//! It is loaded once per interface, with the interface's slot and role as a constant, so that
//! nothing has to be looked up to know whose counters to use, and the verifier takes out what the
//! other role would do. All instances share the pinned maps. What cannot be found (no settings yet,
//! no lists yet) passes: the filter drops only on the word of a list or of the settings.
//!
//! What is rare (answers, events, budgets, frames with tags or options) is in subprograms, out of
//! the way of the packets of a flood.
//!
//! The verifier walks some 200,000 instructions of it (140,000 for a customer's interface), of the
//! million that it takes; `verified_insns` in the fdinfo of a loaded program says how many. Most of
//! that is the lookup of an address, where each line may be in the first block or in another. What
//! keeps it from following each way to an offset by itself (`Frame::forget`, `Judged`) has to stay.
//! The stack is 512 octets for all calls together; large things lie in per-CPU maps.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod budget;
mod control;
mod cookie;
mod count;
mod events;
mod frame;
mod judged;
mod lists;
mod reply;
mod shortcut;
mod verdicts;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use portcullis_ebpf_common::layout::{InterfaceConstant, InterfaceCounter, Mode, Settings};
use portcullis_ebpf_common::{Content, Verdict, judge, packet};

use self::control::control;
use self::count::Counters;
use self::frame::Frame;
use self::judged::Judged;
use self::lists::InForce;
use self::verdicts::Sources;

/// What this instance is told of its interface, an [`InterfaceConstant`]; set before it is loaded.
///
/// Its value here is one that no other constant has: LLVM puts equal constants into one place, and
/// what is set before loading would be set for both. With 0, the key of `SETTINGS` became the slot,
/// too.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0xfeed_5107);

/// What this instance is told of its interface.
#[inline(always)]
fn interface() -> InterfaceConstant {
    InterfaceConstant(INTERFACE.load())
}

#[btf_map]
static SETTINGS: ArrayOfMaps<Array<Settings, 1>, 1> = ArrayOfMaps::new();

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

#[inline(always)]
fn filter<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    if let Some(action) = shortcut::action::<FRAGS>(context) {
        return action;
    }
    match look_closer::<FRAGS>(context) {
        ANSWER => answer::<FRAGS>(context),
        action => action,
    }
}

/// What [`look_closer`] gives in place of an action, if [`answer`] has the last word.
const ANSWER: u32 = u32::MAX;

/// The whole way of a frame through parser and verdicts.
#[inline(never)]
fn look_closer<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    // A variable, and so on the stack, for the same reason as with `INTERFACE`.
    let first = 0;
    let Some(settings) = SETTINGS.get_value(0, &first) else {
        return XDP_PASS;
    };
    let mode = settings.mode();
    if mode == Mode::Off {
        return XDP_PASS;
    }
    let (role, slot) = (interface().role(), interface().slot());
    let frame = Frame::<FRAGS>::new(context);
    let content = packet::read(&frame, interface().link_layer());
    let verdict = judge(&frame, &content, role, settings, &InForce, &Sources);
    let segment = match content {
        Content::Segment(segment) if verdict != Verdict::Other => segment,
        _ => return without_segment(slot, &content, verdict, mode),
    };
    if let Some((list, counter)) = verdict.list_counter(mode) {
        if let Some(mut counters) = Counters::of_this_cpu() {
            counters.list(list, counter);
        }
    }
    let judged = Judged {
        segment,
        verdict,
        interface_slot: slot,
        resets_per_second: settings.resets_per_second,
        monitored: mode == Mode::Monitor,
    };
    if verdict.reason().is_some() && control().is_some_and(events::are_wanted) {
        if let Some(judged) = judged.put() {
            events::tell(judged);
        }
    }
    if mode == Mode::Enforce && may_be_answered(&frame, &judged, settings) {
        if judged.put().is_some() {
            return ANSWER;
        }
    }
    let action = if verdict.drops(mode) {
        XDP_DROP
    } else {
        XDP_PASS
    };
    counted(
        slot,
        verdict.interface_counter(mode),
        segment.hidden,
        action,
    )
}

/// What becomes of a packet in which no segment for a filtered port was found. There is no source
/// of which anybody could be told.
#[inline(always)]
fn without_segment(slot: u32, content: &Content, verdict: Verdict, mode: Mode) -> u32 {
    if let Content::Unread(encapsulation) = content {
        if let Some(mut counters) = Counters::of_this_cpu() {
            counters.unread(slot, *encapsulation);
        }
    }
    let action = if verdict.drops(mode) {
        XDP_DROP
    } else {
        XDP_PASS
    };
    counted(slot, verdict.interface_counter(mode), false, action)
}

/// What becomes of a packet, which is counted for its interface.
#[inline(always)]
fn counted(slot: u32, counter: InterfaceCounter, hidden: bool, action: u32) -> u32 {
    if let Some(mut counters) = Counters::of_this_cpu() {
        counters.interface(slot, counter, hidden);
    }
    action
}

#[inline(always)]
fn may_be_answered<const FRAGS: bool>(
    frame: &Frame<FRAGS>,
    judged: &Judged,
    settings: &Settings,
) -> bool {
    let wanted = match judged.verdict {
        Verdict::Customer => settings.customer_resets(),
        Verdict::Passed => settings.syn_cookies() && packet::opens(frame, &judged.segment),
        // It was a SYN, or there would be no budget for it.
        Verdict::OverBudget => settings.syn_cookies(),
        _ => false,
    };
    wanted && !settings.is_silent(judged.interface_slot)
}

/// Makes of the frame that was judged last an answer to it, if it is to have one now. Called from
/// the entry function: what is below [`look_closer`] on the stack leaves no room for it.
#[inline(never)]
fn answer<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    let Some(judged) = Judged::last() else {
        return XDP_PASS;
    };
    let (counter, action) = match judged.verdict {
        Verdict::Customer if reply::reset::<FRAGS>(context, judged) => {
            (InterfaceCounter::ResetCustomer, XDP_TX)
        }
        Verdict::Customer => (InterfaceCounter::DroppedCustomer, XDP_DROP),
        _ if cookie::answer::<FRAGS>(context, judged) => (InterfaceCounter::SynCookie, XDP_TX),
        Verdict::OverBudget => (InterfaceCounter::OverBudget, XDP_PASS),
        _ => (InterfaceCounter::Passed, XDP_PASS),
    };
    counted(
        judged.interface_slot,
        counter,
        judged.segment.hidden,
        action,
    )
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
