//! Turns a frame into the answer to it: the RST for a customer's segment, or another answer that
//! [`portcullis_ebpf_common::reply`] has worked out.

use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::layout::Rate;
use portcullis_ebpf_common::packet::{IPV4_HEADER, IPV6_HEADER, TCP_HEADER};
use portcullis_ebpf_common::reply::{self, MSS_OPTION, PPPOE_LENGTH, TcpReply};
use portcullis_ebpf_common::{Framing, Packet, Segment};

use crate::budget;
use crate::frame::Frame;
use crate::judged::{Judged, NETWORK_MASK};

/// Turns a customer's segment into the RST for it. `false`: it may not be answered, or the rate is
/// used up in this second.
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

/// Turns a frame into an answer to it. `false`: the frame cannot be changed.
#[inline(always)]
pub(crate) fn send<const FRAGS: bool>(
    context: *mut xdp_md,
    segment: &Segment,
    answer: &TcpReply,
) -> bool {
    if segment.source.is_ipv4() {
        ipv4::<FRAGS>(context, segment, answer)
    } else {
        ipv6::<FRAGS>(context, segment, answer)
    }
}

#[inline(never)]
fn ipv4<const FRAGS: bool>(context: *mut xdp_md, segment: &Segment, answer: &TcpReply) -> bool {
    let start = |addresses| reply::ipv4(addresses, answer);
    put::<FRAGS, 1, 3, { IPV4_HEADER + TCP_HEADER }>(context, segment, answer, start).is_some()
}

#[inline(never)]
fn ipv6<const FRAGS: bool>(context: *mut xdp_md, segment: &Segment, answer: &TcpReply) -> bool {
    let start = |_| reply::ipv6(answer);
    put::<FRAGS, 4, 2, { IPV6_HEADER + TCP_HEADER }>(context, segment, answer, start).is_some()
}

/// Writes the headers behind VLAN tags and PPPoE, and cuts the frame to them. `N`: words of an
/// address; `START`: words in front of the addresses; `BYTES`: both headers, without options.
#[inline(always)]
fn put<const FRAGS: bool, const N: usize, const START: usize, const BYTES: usize>(
    context: *mut xdp_md,
    segment: &Segment,
    answer: &TcpReply,
    start: impl FnOnce(u64) -> [u32; START],
) -> Option<()> {
    let frame = Frame::<FRAGS>::new(context);
    let network = segment.network;
    let ports = frame.word(segment.transport)?.rotate_left(16);
    let option = if answer.mss.is_some() { MSS_OPTION } else { 0 };
    let packet = BYTES + option;
    let frame = frame.resized(network + packet)?;
    if segment.framing != Framing::Tun {
        frame.turn()?;
    }
    let headers = frame.part::<BYTES>(network)?;
    let addresses = headers.exchange::<N>(START);
    headers.put(0, &start(addresses));
    let [a, b, c, d, e, option] = reply::tcp(ports, addresses, answer);
    headers.put(START + N * 2, &[a, b, c, d, e]);
    if segment.framing == Framing::Pppoe {
        let length = reply::pppoe(packet, segment.source.is_ipv4());
        let place = network - PPPOE_LENGTH;
        frame.part::<4>(place & NETWORK_MASK)?.put(0, &[length]);
    }
    if answer.mss.is_some() {
        frame.part::<4>(network + BYTES)?.put(0, &[option]);
    }
    Some(())
}
