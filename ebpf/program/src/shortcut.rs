//! The shortest way for what a flood is made of: a TCP segment to the first filtered port, in an Ethernet frame with neither
//! tags nor IPv4 options nor fragments, on an edge that enforces, and about which the lists alone decide.
//!
//! It comes to what [`judge`](portcullis_ebpf_common::judge) comes to, in a third of the instructions, because every offset is a
//! constant and nothing has to be kept. Whatever is not quite so (a SYN that may pass, a recent verdict, somebody who reads
//! events) is left to the whole way; the packet cases and the comparison with tcpdump go through both.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::layout::{InterfaceCounter, ListCounter, Mode, Role};
use portcullis_ebpf_common::{Action, Source};

use crate::frame::Frame;
use crate::{INTERFACE, SETTINGS, count, events, lists, verdicts};

/// Octets of the headers of Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 54;

/// EtherType, version, length of the header; the octet behind them is of no interest.
const IPV4_PLAIN: u32 = word([0x08, 0x00, 0x45, 0]);
const IPV4_MASK: u32 = word([0xff, 0xff, 0xff, 0]);
/// No more fragments and no offset, a time to live of no interest, TCP. "Don't fragment" does not matter.
const TCP_WHOLE: u32 = word([0, 0, 0, 6]);
const TCP_MASK: u32 = word([0x3f, 0xff, 0, 0xff]);
/// The flags of TCP, as the last octet of their word.
const SYN_ACK: u32 = word([0, 0, 0, 0x12]);
const SYN: u32 = word([0, 0, 0, 0x02]);

const fn word(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

/// What becomes of the frame, if that can be said here.
#[inline(always)]
pub(crate) fn action<const FRAGS: bool>(context: *mut xdp_md) -> Option<u32> {
    let headers = Frame::<FRAGS>::new(context).part::<HEADERS>(0)?;
    if headers.word(3) & IPV4_MASK != IPV4_PLAIN || headers.word(5) & TCP_MASK != TCP_WHOLE {
        return None;
    }
    // The address lies in the second half of one word and the first of the next.
    let address = headers.word(6) >> 16 | headers.word(7) << 16;
    let port = u16::from_be(headers.word(9) as u16);
    let opens = headers.word(11) & SYN_ACK == SYN;

    // A variable, and so on the stack, for the same reason as with `INTERFACE`.
    let first = 0;
    let settings = SETTINGS.get_value(0, &first)?;
    let interface = INTERFACE.load();
    if interface >> 16 != Role::Edge as u32
        || settings.mode() != Mode::Enforce
        || settings.first_port() != port
    {
        return None;
    }
    let class = lists::class_of_ipv4(u32::from_be(address));
    let (counter, action) = match class.action() {
        Some(Action::Drop) => (InterfaceCounter::DroppedListed, XDP_DROP),
        Some(Action::Permit) => (InterfaceCounter::Permitted, XDP_PASS),
        None if verdicts::may_be_recent(&Source::ipv4(address.to_ne_bytes()).key()) => return None,
        None if settings.drop_unlisted() => (InterfaceCounter::DroppedUnlisted, XDP_DROP),
        None if opens => return None,
        None => (InterfaceCounter::Passed, XDP_PASS),
    };
    if action == XDP_DROP && events::are_read() {
        return None;
    }
    if class.action().is_some() {
        count::list(class.slot(), ListCounter::Decided);
    }
    count::interface(interface & 0xffff, counter, false);
    Some(action)
}
