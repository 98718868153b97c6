//! The slow path: any frame, by the parser and all verdicts.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::{Mode, Settings};
use portcullis_ebpf_common::{Content, judge, packet};

use crate::control::control;
use crate::decision::Decision;
use crate::frame::Frame;
use crate::judged::Judged;
use crate::lists::InForce;
use crate::verdicts::Sources;
use crate::{answer, count, events, interface};

#[btf_map]
static SETTINGS: ArrayOfMaps<Array<Settings, 1>, 1> = ArrayOfMaps::new();

/// The settings in force; `None` before userspace has written any.
#[inline(always)]
fn settings() -> Option<&'static Settings> {
    // A variable, and so on the stack: as a constant it would share its place with another one that
    // is set before loading (see `INTERFACE`).
    let first = 0;
    SETTINGS.get_value(0, &first)
}

/// The decision on a frame.
#[inline(never)]
pub(crate) fn decide<const FRAGS: bool>(context: *mut xdp_md) -> Decision {
    let Some(settings) = settings() else {
        return Decision::Pass;
    };
    let mode = settings.mode();
    if mode == Mode::Off {
        return Decision::Pass;
    }
    let (role, slot) = (interface().role(), interface().slot());
    let frame = Frame::<FRAGS>::new(context);
    let content = packet::read(&frame, interface().link_layer());
    let verdict = judge(&frame, &content, role, settings, &InForce, &Sources);
    count::content(slot, &content);
    if let Content::Segment(segment) = content {
        let judged = Judged {
            segment,
            verdict,
            interface_slot: slot,
            resets_per_second: settings.resets_per_second,
            mode,
        };
        let reported = verdict.reason().is_some() && control().is_some_and(events::are_wanted);
        if reported {
            if let Some(judged) = judged.put() {
                events::report(judged);
            }
        }
        if answer::is_wanted(&frame, &judged, settings) && judged.put().is_some() {
            return Decision::Answer;
        }
    }
    count::packet(slot, verdict, mode);
    Decision::of(verdict, mode)
}
