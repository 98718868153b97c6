//! What the program sends by itself: a RST to a customer. The headers are worked out in
//! `ebpf/common`.

use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::layout::Rate;
use portcullis_ebpf_common::reply::{
    self, Answer, IPV4_OCTETS, IPV6_OCTETS, PPPOE_LENGTH, TCP_OCTETS,
};
use portcullis_ebpf_common::{Framing, Packet, Segment};

use crate::budget;
use crate::frame::Frame;
use crate::judged::{Judged, NETWORK_MASK};

/// Makes of a customer's segment the RST for it. `false`: it is none that may be answered, or there
/// were so many in this second already, and it is to be dropped.
#[inline(never)]
pub(crate) fn reset<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    let segment = judged.segment();
    let frame = Frame::<FRAGS>::new(context);
    let Some(answer) = reply::reset(&frame, &segment) else {
        return false;
    };
    budget::take(Rate::Resets, judged.resets_per_second)
        && send::<FRAGS>(context, &segment, &answer)
}

/// Makes of a frame the answer to it.
#[inline(always)]
pub(crate) fn send<const FRAGS: bool>(
    context: *mut xdp_md,
    segment: &Segment,
    answer: &Answer,
) -> bool {
    if segment.source.is_ipv4() {
        ipv4::<FRAGS>(context, segment, answer)
    } else {
        ipv6::<FRAGS>(context, segment, answer)
    }
}

#[inline(never)]
fn ipv4<const FRAGS: bool>(context: *mut xdp_md, segment: &Segment, answer: &Answer) -> bool {
    let start = |addresses| reply::ipv4(addresses, answer);
    put::<FRAGS, 1, 3, { IPV4_OCTETS + TCP_OCTETS }>(context, segment, answer, start).is_some()
}

#[inline(never)]
fn ipv6<const FRAGS: bool>(context: *mut xdp_md, segment: &Segment, answer: &Answer) -> bool {
    let start = |_| reply::ipv6(answer);
    put::<FRAGS, 4, 2, { IPV6_OCTETS + TCP_OCTETS }>(context, segment, answer, start).is_some()
}

/// Writes the headers behind VLAN tags and PPPoE, and cuts the frame to them. `N`: words of an
/// address, `START`: words in front of the addresses, `OCTETS`: of both headers.
#[inline(always)]
fn put<const FRAGS: bool, const N: usize, const START: usize, const OCTETS: usize>(
    context: *mut xdp_md,
    segment: &Segment,
    answer: &Answer,
    start: impl FnOnce(u64) -> [u32; START],
) -> Option<()> {
    let frame = Frame::<FRAGS>::new(context);
    let network = segment.network;
    let ports = frame.word(segment.transport)?.rotate_left(16);
    let option = if answer.mss == 0 { 0 } else { 4 };
    let packet = OCTETS + option;
    let frame = frame.resized(network + packet)?;
    if segment.framing != Framing::Tun {
        frame.turn()?;
    }
    let headers = frame.part::<OCTETS>(network)?;
    let addresses = headers.exchange::<N>(START);
    headers.put(0, &start(addresses));
    let [a, b, c, d, e, option] = reply::tcp(ports, addresses, answer);
    headers.put(START + N * 2, &[a, b, c, d, e]);
    if segment.framing == Framing::Pppoe {
        let length = reply::pppoe(packet, segment.source.is_ipv4());
        let place = network - PPPOE_LENGTH;
        frame.part::<4>(place & NETWORK_MASK)?.put(0, &[length]);
    }
    if answer.mss != 0 {
        frame.part::<4>(network + OCTETS)?.put(0, &[option]);
    }
    Some(())
}
