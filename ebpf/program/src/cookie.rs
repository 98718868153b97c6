//! SYN cookies for the listeners of this host, without a socket buffer being made for the SYN.
//!
//! The kernel makes the cookie (`bpf_tcp_gen_syncookie`), and only if it would send one itself: the
//! queue of the listener overflows, or `net.ipv4.tcp_syncookies` is 2. Making one marks the
//! listener, so that the kernel accepts the ACK that brings it back. So this switches itself on and
//! off. The answer has no option but the MSS: the timestamp, in which the kernel's own cookies keep
//! window scaling and SACK, would be misread.

use core::hint::black_box;
use core::ptr::from_mut;

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::packet::flags;
use portcullis_ebpf_common::reply::{Answer, IPV4_OCTETS, IPV6_OCTETS};
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

/// What the kernel is asked with. It lies in a map because the stack has no room for it.
struct Question {
    tuple: Tuple,
    tcp: [u32; TCP_WORDS_MAX],
    route: FibLookup,
}

#[btf_map]
static QUESTION: PerCpuArray<Question, 1> = PerCpuArray::new();

/// Makes of a SYN the answer to it, if the kernel wants it answered with a cookie. `false`: the SYN
/// is untouched.
#[inline(always)]
pub(crate) fn answer<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    if judged.segment.hidden || judged.segment.fragment {
        return false;
    }
    // The listener behind PPPoE is reached by an interface of its own, which the kernel answers on.
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
    made::<FRAGS, IPV4_WORDS, IPV4_OCTETS>(context, judged).is_some()
}

#[inline(never)]
fn ipv6<const FRAGS: bool>(context: *mut xdp_md, judged: &Judged) -> bool {
    made::<FRAGS, IPV6_WORDS, IPV6_OCTETS>(context, judged).is_some()
}

/// `WORDS`: of both addresses, `OCTETS`: of the IP header.
#[inline(always)]
fn made<const FRAGS: bool, const WORDS: usize, const OCTETS: usize>(
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
    let octets = usize::from(half >> 12) * 4;
    // SAFETY: the verifier sees that the pointer is not null, and nothing else runs here on this
    // CPU.
    let question = unsafe { &mut *QUESTION.get_ptr_mut(0)? };
    for (index, word) in question.tcp.iter_mut().enumerate() {
        if index * 4 < octets {
            *word = frame.word(segment.transport + index * 4)?;
        }
    }
    let ip = frame.part::<OCTETS>(segment.network)?;
    for (index, word) in question.tuple.iter_mut().enumerate().take(WORDS) {
        *word = ip.word(OCTETS / 4 - WORDS + index);
    }
    question.tuple[WORDS] = question.tcp[0];
    let (cookie, mss) = cookie::<WORDS, OCTETS>(context, question, &ip, octets)?;
    if !is_ours::<WORDS>(context, question) {
        return None;
    }
    let answer = Answer::cookie(cookie, u32::from_be(question.tcp[1]), mss);
    reply::send::<FRAGS>(context, &segment, &answer).then_some(())
}

/// The kernel's cookie for a SYN, and the MSS that it stands for.
#[inline(always)]
fn cookie<const WORDS: usize, const OCTETS: usize>(
    context: *mut xdp_md,
    question: &mut Question,
    ip: &Part<OCTETS>,
    octets: usize,
) -> Option<(u32, u16)> {
    let size = (WORDS as u32 + 1) * 4;
    let tuple = from_mut(&mut question.tuple).cast();
    // SAFETY: the tuple has at least the size that is said, and the socket is released below.
    let socket = unsafe { bpf_skc_lookup_tcp(context.cast(), tuple, size, THIS_NAMESPACE, 0) };
    if socket.is_null() {
        return None;
    }
    // The compiler knows the bounds already and would leave out what shows them to the verifier.
    let octets = black_box(octets);
    let made = if (20..=60).contains(&octets) {
        // SAFETY: both headers are at least as long as is said, and the socket is held.
        unsafe {
            bpf_tcp_gen_syncookie(
                socket.cast(),
                ip.pointer().cast(),
                OCTETS as u32,
                from_mut(&mut question.tcp).cast(),
                octets as u32,
            )
        }
    } else {
        -1
    };
    // SAFETY: the lookup gave it, and nobody uses it any more.
    unsafe { bpf_sk_release(socket.cast()) };
    (made >= 0).then_some((made as u32, (made >> 32) as u16))
}

/// Whether a packet is for this host: a listener on all addresses is found for one that is only
/// passing through, too.
#[inline(always)]
fn is_ours<const WORDS: usize>(context: *mut xdp_md, question: &mut Question) -> bool {
    let route = &mut question.route;
    // SAFETY: a struct of integers, for which all zeros are values.
    *route = unsafe { core::mem::zeroed() };
    route.family = if WORDS == IPV4_WORDS {
        AF_INET
    } else {
        AF_INET6
    };
    // SAFETY: the context is the kernel's.
    route.ifindex = unsafe { (*context).ingress_ifindex };
    let [a, b, c, d, e, f, g, h, _] = question.tuple;
    if WORDS == IPV4_WORDS {
        route.__bindgen_anon_3.ipv4_src = a;
        route.__bindgen_anon_4.ipv4_dst = b;
    } else {
        route.__bindgen_anon_3.ipv6_src = [a, b, c, d];
        route.__bindgen_anon_4.ipv6_dst = [e, f, g, h];
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the kernel's, and the parameters have the size that is said.
    let found = unsafe { bpf_fib_lookup(context.cast(), from_mut(route), size, 0) };
    NOT_FORWARDED.contains(&found)
}
