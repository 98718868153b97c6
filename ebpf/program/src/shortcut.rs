//! The shortest way for what a flood is made of: a TCP segment to the first filtered port, in an
//! Ethernet frame with neither tags nor options nor fragments, on an edge that enforces, and about
//! which the lists alone decide.
//!
//! It comes to what [`judge`](portcullis_ebpf_common::judge) comes to, in a third of the
//! instructions, because every offset is a constant and nothing has to be kept. Whatever is not
//! quite so (a SYN that may pass, a recent verdict, a drop that somebody is to be told of) is left
//! to the whole way; the packet cases and the comparison with tcpdump go through both.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::xdp_md;
use portcullis_ebpf_common::layout::{InterfaceCounter, ListCounter, VerdictKey};
use portcullis_ebpf_common::{Action, Class, Source};

use crate::control::control;
use crate::count::Counters;
use crate::frame::Frame;
use crate::{events, interface, lists};

/// Octets of the headers of Ethernet, IPv4 and TCP without options.
const IPV4_HEADERS: usize = 54;
/// The same with IPv6.
const IPV6_HEADERS: usize = 74;

/// EtherType, version and length of the header; the octet behind them is of no interest.
const IPV4: Pattern = Pattern::new([0x08, 0x00, 0x45, 0], [0xff, 0xff, 0xff, 0]);
/// No more fragments and no offset, a time to live of no interest, TCP. "Don't fragment" does not
/// matter.
const IPV4_TCP: Pattern = Pattern::new([0, 0, 0, 6], [0x3f, 0xff, 0, 0xff]);
/// EtherType and version.
const IPV6: Pattern = Pattern::new([0x86, 0xdd, 0x60, 0], [0xff, 0xff, 0xf0, 0]);
/// The next header is TCP.
const IPV6_TCP: Pattern = Pattern::new([6, 0, 0, 0], [0xff, 0, 0, 0]);
/// The last octet has the flags of TCP: a SYN without an ACK.
const OPENS: Pattern = Pattern::new([0, 0, 0, 0x02], [0, 0, 0, 0x12]);

/// What some bits of a word are.
struct Pattern {
    bits: u32,
    mask: u32,
}

impl Pattern {
    const fn new(bits: [u8; 4], mask: [u8; 4]) -> Self {
        Self {
            bits: u32::from_ne_bytes(bits),
            mask: u32::from_ne_bytes(mask),
        }
    }

    #[inline(always)]
    fn fits(&self, word: u32) -> bool {
        word & self.mask == self.bits
    }
}

/// What becomes of the frame, if that can be said here.
#[inline(always)]
pub(crate) fn action<const FRAGS: bool>(context: *mut xdp_md) -> Option<u32> {
    let frame = Frame::<FRAGS>::new(context);
    let headers = frame.part::<IPV4_HEADERS>(0)?;
    if IPV4.fits(headers.four::<12>()) {
        if !IPV4_TCP.fits(headers.four::<20>()) {
            return None;
        }
        let address = headers.four::<26>();
        let to = Destination {
            port: headers.four::<36>() as u16,
            opens: || OPENS.fits(headers.four::<44>()),
        };
        return judged(to, [Source::FAMILY_IPV4, address, 0], || {
            Some(lists::ipv4(address))
        });
    }
    let headers = frame.part::<IPV6_HEADERS>(0)?;
    if !IPV6.fits(headers.four::<12>()) || !IPV6_TCP.fits(headers.four::<20>()) {
        return None;
    }
    let upper = headers.eight::<22>();
    let to = Destination {
        port: headers.four::<56>() as u16,
        opens: || OPENS.fits(headers.four::<64>()),
    };
    let key = [Source::FAMILY_IPV6, upper as u32, (upper >> 32) as u32];
    judged(to, key, || lists::ipv6(u64::from_be(upper)))
}

/// What the segment is for.
struct Destination<Opens> {
    /// As it lies in the packet.
    port: u16,
    /// Whether it is a SYN without an ACK.
    opens: Opens,
}

/// The order of verdicts, as far as it goes without a memory of sources.
#[inline(always)]
fn judged(
    to: Destination<impl FnOnce() -> bool>,
    key: VerdictKey,
    class: impl FnOnce() -> Option<Class>,
) -> Option<u32> {
    let control = control()?;
    let glance = control.glance();
    let interface = interface();
    // Where frames begin without an Ethernet header, what was read above may be anything.
    if !interface.is_plain_edge() || !glance.enforces(to.port) {
        return None;
    }
    let class = class()?;
    let (counter, action) = match class.action() {
        Some(Action::Drop) => (InterfaceCounter::DroppedListed, XDP_DROP),
        Some(Action::Permit) => (InterfaceCounter::Permitted, XDP_PASS),
        None if control.may_be_recent(&key) => return None,
        None if glance.drops_unlisted() => (InterfaceCounter::DroppedUnlisted, XDP_DROP),
        None if (to.opens)() => return None,
        None => (InterfaceCounter::Passed, XDP_PASS),
    };
    if action == XDP_DROP && events::are_wanted(control) {
        return None;
    }
    let mut counters = Counters::of_this_cpu()?;
    if class.action().is_some() {
        counters.list(class.slot(), ListCounter::Decided);
    }
    counters.interface(interface.slot(), counter, false);
    Some(action)
}
