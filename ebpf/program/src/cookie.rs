//! SYN cookies for the listeners of this host: a SYN that is answered here costs no socket buffer.
//!
//! The kernel makes the cookie (`bpf_tcp_gen_syncookie`), and only if it would send one itself: the
//! queue of the listener overflows, or `net.ipv4.tcp_syncookies` is 2: so cookies switch themselves
//! on and off. Making one marks the listener, and the kernel accepts the ACK that brings it back.
//! The answer has no option but the MSS: the kernel would misread a timestamp, in which its own
//! cookies keep window scaling and SACK.

use core::hint::black_box;
use core::num::NonZeroU16;
use core::ptr::from_mut;

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::packet::{IPV4_HEADER, IPV6_HEADER, TCP_HEADER, flags};
use portcullis_ebpf_common::reply::TcpReply;
use portcullis_ebpf_common::{Framing, Packet};

use crate::frame::{Frame, Part};
use crate::judged::Judged;
use crate::reply;

/// Words of both addresses.
const IPV4_WORDS: usize = 2;
const IPV6_WORDS: usize = 8;
/// Words of the longest TCP header.
const TCP_WORDS_MAX: usize = 15;
/// `BPF_F_CURRENT_NETNS`: the namespace of the interface.
const THIS_NAMESPACE: u64 = u64::MAX;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_FIB_LKUP_RET_NOT_FWDED` and `BPF_FIB_LKUP_RET_FWD_DISABLED`.
const NOT_FORWARDED: [i64; 2] = [4, 5];

/// `struct bpf_sock_tuple`: the addresses and the ports, as they lie in the headers.
type Tuple = [u32; 9];

/// The arguments of the kernel's helpers. They lie in a map because the stack has no room.
struct CookieRequest {
    tuple: Tuple,
    tcp: [u32; TCP_WORDS_MAX],
    route: FibLookup,
}

#[btf_map]
static COOKIE_REQUEST: PerCpuArray<CookieRequest, 1> = PerCpuArray::new();

/// Turns a SYN into the answer to it, if the kernel wants a cookie sent. `false`: the SYN is
/// unchanged.
#[inline(always)]
pub(crate) fn answer<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    if judged.segment.port.is_hidden() || judged.segment.fragment {
        return false;
    }
    // A listener behind PPPoE has an interface of its own, on which the kernel answers.
    if !matches!(judged.segment.framing, Framing::Ethernet | Framing::Tun) {
        return false;
    }
    if judged.segment.source.is_ipv4() {
        ipv4::<FRAGS>(context, judged)
    } else {
        ipv6::<FRAGS>(context, judged)
    }
}

#[inline(never)]
fn ipv4<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    made::<FRAGS, IPV4_WORDS, IPV4_HEADER>(context, judged).is_some()
}

#[inline(never)]
fn ipv6<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    made::<FRAGS, IPV6_WORDS, IPV6_HEADER>(context, judged).is_some()
}

/// `WORDS`: of both addresses, `BYTES`: of the IP header.
#[inline(always)]
fn made<const FRAGS: bool, const WORDS: usize, const BYTES: usize>(
    context: *mut xdp_md,
    judged: &Judged,
) -> Option<()> {
    let segment = judged.segment();
    let frame = Frame::<FRAGS>::new(context);
    let half = frame.half(segment.transport + 12)?;
    let controls = flags::SYN | flags::ACK | flags::RST | flags::FIN;
    if half & controls != flags::SYN {
        return None;
    }
    let tcp_bytes = usize::from(half >> 12) * 4;
    // SAFETY: the verifier sees that the pointer is not null, and nothing else runs here on this
    // CPU.
    let request = unsafe { &mut *COOKIE_REQUEST.get_ptr_mut(0)? };
    for (index, word) in request.tcp.iter_mut().enumerate() {
        if index * 4 < tcp_bytes {
            *word = frame.word(segment.transport + index * 4)?;
        }
    }
    let ip = frame.part::<BYTES>(segment.network)?;
    for (index, word) in request.tuple.iter_mut().enumerate().take(WORDS) {
        *word = ip.word(BYTES / 4 - WORDS + index);
    }
    request.tuple[WORDS] = request.tcp[0];
    let (cookie, mss) = cookie::<WORDS, BYTES>(context, request, &ip, tcp_bytes)?;
    if !is_ours::<WORDS>(context, request) {
        return None;
    }
    let answer = TcpReply::cookie(cookie, u32::from_be(request.tcp[1]), mss);
    reply::send::<FRAGS>(context, &segment, &answer).then_some(())
}

/// The kernel's cookie for a SYN, and the MSS that it encodes.
#[inline(always)]
fn cookie<const WORDS: usize, const BYTES: usize>(
    context: *mut xdp_md,
    request: &mut CookieRequest,
    ip: &Part<BYTES>,
    tcp_bytes: usize,
) -> Option<(u32, Option<NonZeroU16>)> {
    let size = (WORDS as u32 + 1) * 4;
    let tuple = from_mut(&mut request.tuple).cast();
    // SAFETY: the tuple is at least as large as `size`, and the socket is released below.
    let socket = unsafe { bpf_skc_lookup_tcp(context.cast(), tuple, size, THIS_NAMESPACE, 0) };
    if socket.is_null() {
        return None;
    }
    // The compiler knows the bounds already and would leave out what shows them to the verifier.
    let tcp_bytes = black_box(tcp_bytes);
    let made = if (TCP_HEADER..=TCP_WORDS_MAX * 4).contains(&tcp_bytes) {
        // SAFETY: both headers are at least as long as the lengths given, and the socket is held.
        unsafe {
            bpf_tcp_gen_syncookie(
                socket.cast(),
                ip.pointer().cast(),
                BYTES as u32,
                from_mut(&mut request.tcp).cast(),
                tcp_bytes as u32,
            )
        }
    } else {
        -1
    };
    // SAFETY: the lookup gave it, and it is not used after this.
    unsafe { bpf_sk_release(socket.cast()) };
    (made >= 0).then_some((made as u32, NonZeroU16::new((made >> 32) as u16)))
}

/// Whether a packet is for this host. The lookup of a listener on all addresses succeeds for
/// packets that only pass through, too.
#[inline(always)]
fn is_ours<const WORDS: usize>(context: *mut xdp_md, request: &mut CookieRequest) -> bool {
    let route = &mut request.route;
    // SAFETY: a struct of integers, for which all zeros are values.
    *route = unsafe { core::mem::zeroed() };
    route.family = if WORDS == IPV4_WORDS {
        AF_INET
    } else {
        AF_INET6
    };
    // SAFETY: the context is the kernel's.
    route.ifindex = unsafe { (*context).ingress_ifindex };
    let [a, b, c, d, e, f, g, h, _] = request.tuple;
    if WORDS == IPV4_WORDS {
        route.__bindgen_anon_3.ipv4_src = a;
        route.__bindgen_anon_4.ipv4_dst = b;
    } else {
        route.__bindgen_anon_3.ipv6_src = [a, b, c, d];
        route.__bindgen_anon_4.ipv6_dst = [e, f, g, h];
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the kernel's, and the parameters have this size.
    let found = unsafe { bpf_fib_lookup(context.cast(), from_mut(route), size, 0) };
    NOT_FORWARDED.contains(&found)
}
