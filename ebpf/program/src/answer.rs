//! Answers to a frame, sent back where it came from: a RST to a customer, a SYN cookie to a client.

use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::layout::{InterfaceCounter, Mode, Settings};
use portcullis_ebpf_common::{Verdict, packet};

use crate::decision::Decision;
use crate::frame::Frame;
use crate::judged::Judged;
use crate::{cookie, count, reply};

/// Whether a judged packet gets an answer, if it can get one.
#[inline(always)]
pub(crate) fn is_wanted<const FRAGS: bool>(
    frame: &Frame<FRAGS>,
    judged: &Judged,
    settings: &Settings,
) -> bool {
    let wanted = match judged.verdict {
        Verdict::Customer => settings.customer_resets(),
        Verdict::Passed => settings.syn_cookies() && packet::opens(frame, &judged.segment),
        // It opens a connection, or it would have used no budget.
        Verdict::OverBudget => settings.syn_cookies(),
        _ => false,
    };
    wanted && judged.mode == Mode::Enforce && !settings.is_silent(judged.interface_slot)
}

/// Turns the frame that was judged last into an answer to it, or leaves it to its verdict. The
/// entry function calls it, because below the slow path there is no room left on the stack.
#[inline(never)]
pub(crate) fn send<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    let Some(judged) = Judged::last() else {
        return Decision::Pass as u32;
    };
    // What the slow path would have done without an answer.
    let unanswered = |verdict: Verdict| {
        let action = Decision::of(verdict, Mode::Enforce) as u32;
        (verdict.interface_counter(Mode::Enforce), action)
    };
    let (counter, action) = match judged.verdict {
        Verdict::Customer if reply::reset::<FRAGS>(context, judged) => {
            (InterfaceCounter::ResetCustomer, XDP_TX)
        }
        Verdict::Customer => unanswered(Verdict::Customer),
        _ if cookie::answer::<FRAGS>(context, judged) => (InterfaceCounter::SynCookie, XDP_TX),
        Verdict::OverBudget => unanswered(Verdict::OverBudget),
        _ => unanswered(Verdict::Passed),
    };
    count::answerable(judged.interface_slot, counter);
    action
}
