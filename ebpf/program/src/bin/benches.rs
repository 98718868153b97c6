//! The programs that the benches compare with the filter, and the generators of their packets.
//!
//! The peers are what an engineer would write first: a program that only drops, one that parses and
//! drops, a hash map, an LPM trie. They parse a frame in their own, short way (no VLAN tags, no
//! extension headers), so that the filter is not measured against its own parser.
//!
//! The generators put the next source of a sequence into a frame: `flood` sends it on,
//! `next_source` hands it to a contestant by a tail call, because `BPF_PROG_TEST_RUN` repeats one
//! frame, and one source repeated flatters every cache. The two `fill` programs put the same
//! sequence into the maps, at a fraction of what a system call per entry takes.

#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use portcullis_ebpf_common::traffic::{self, Kind};

/// A part of a sequence of sources, gone through in circles by one CPU at a time: the place next to
/// be used, counted from the first one; the first one; their number; the [`Kind`].
type Sequence = [u32; 4];

#[btf_map]
static SEQUENCE: Array<Sequence, 1> = Array::new();

#[btf_map]
static CONTESTANT: ProgramArray<1> = ProgramArray::new();

/// Packets dropped, packets passed.
#[btf_map]
static COUNTS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

// The number of entries of the following maps is set when they are loaded.

#[btf_map]
static HASH_IPV4: HashMap<u32, u32, 1> = HashMap::new();

#[btf_map]
static HASH_IPV6: HashMap<u64, u32, 1> = HashMap::new();

#[btf_map]
static TRIE_IPV4: LpmTrie<u32, u32, 1> = LpmTrie::new();

#[btf_map]
static TRIE_IPV6: LpmTrie<[u32; 4], u32, 1> = LpmTrie::new();

/// Not zero: the hash map's program drops what it does not find, too. Set before it is loaded; its
/// value here is one that no other constant has, because LLVM puts equal constants into one place.
#[unsafe(no_mangle)]
static DROP_UNLISTED: Global<u32> = Global::new(0xfeed_d809);

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const SMTP: u16 = 25_u16.to_be();

/// Drops: the least that a program can do.
#[xdp(frags)]
pub fn empty(_context: XdpContext) -> u32 {
    XDP_DROP
}

/// Parses, counts, drops what goes to port 25.
#[xdp(frags)]
pub fn bare(context: XdpContext) -> u32 {
    match source(&context) {
        Some(_) => dropped(),
        None => XDP_PASS,
    }
}

/// Parses, looks the source up in a hash map, counts, drops if it is there.
#[xdp(frags)]
pub fn hash(context: XdpContext) -> u32 {
    let Some(source) = source(&context) else {
        return XDP_PASS;
    };
    // SAFETY: nothing is removed from the maps while the program runs.
    let listed = match source {
        FrameSource::Ipv4(address) => unsafe { HASH_IPV4.get(address) }.is_some(),
        FrameSource::Ipv6([upper, _]) => unsafe { HASH_IPV6.get(upper) }.is_some(),
    };
    if listed || DROP_UNLISTED.load() != 0 {
        dropped()
    } else {
        passed()
    }
}

/// Parses, looks the source up in an LPM trie, counts, drops if a prefix covers it.
#[xdp(frags)]
pub fn trie(context: XdpContext) -> u32 {
    let Some(source) = source(&context) else {
        return XDP_PASS;
    };
    let listed = match source {
        FrameSource::Ipv4(address) => TRIE_IPV4.get(&Key::new(32, address)).is_some(),
        FrameSource::Ipv6(address) => TRIE_IPV6.get(&Key::new(128, halves(address))).is_some(),
    };
    if listed { dropped() } else { passed() }
}

/// Hands the frame on with the next source.
#[xdp(frags)]
pub fn next_source(context: XdpContext) -> u32 {
    if put_next_source(&context).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: nothing is left here that a call that does not return would leave undone.
    unsafe { CONTESTANT.tail_call(&context, 0) };
    XDP_ABORTED
}

/// Sends the frame out with the next source.
#[xdp(frags)]
pub fn flood(context: XdpContext) -> u32 {
    match put_next_source(&context) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

/// Sends a SYN out with the next source. Its identification and its port make up for the address in
/// both checksums, so that those of the frame stay right, and a listener takes it for what it is.
#[xdp(frags)]
pub fn syn_flood(context: XdpContext) -> u32 {
    match put_next_client(&context) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

/// Sends a SYN out in the name of one client, whose address is the first of the sequence, each from
/// another port.
#[xdp(frags)]
pub fn syn_flood_of_one(context: XdpContext) -> u32 {
    match put_next_port(&context) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

/// Puts the next source into the hash map.
#[xdp(frags)]
pub fn fill_hash(_context: XdpContext) -> u32 {
    let Some(next) = next() else {
        return XDP_ABORTED;
    };
    let filled = match next {
        FrameSource::Ipv4(address) => HASH_IPV4.insert(address, 1, 0),
        FrameSource::Ipv6([upper, _]) => HASH_IPV6.insert(upper, 1, 0),
    };
    filled.map_or(XDP_ABORTED, |()| XDP_PASS)
}

/// Puts the next source, a /32 or a /64, into the trie.
#[xdp(frags)]
pub fn fill_trie(_context: XdpContext) -> u32 {
    let Some(next) = next() else {
        return XDP_ABORTED;
    };
    let filled = match next {
        FrameSource::Ipv4(address) => TRIE_IPV4.insert(&Key::new(32, address), 1, 0),
        FrameSource::Ipv6(address) => TRIE_IPV6.insert(&Key::new(64, halves(address)), 1, 0),
    };
    filled.map_or(XDP_ABORTED, |()| XDP_PASS)
}

/// A source as it lies in the packet.
enum FrameSource {
    Ipv4(u32),
    Ipv6([u64; 2]),
}

/// The source of a TCP segment to port 25.
#[inline(always)]
fn source(context: &XdpContext) -> Option<FrameSource> {
    match read::<u16>(context, 12)? {
        ETHERTYPE_IPV4 => {
            // The least header of both layers, so that the offsets before the port need no check of
            // their own.
            read::<[u8; 20]>(context, 34)?;
            let header = usize::from(read::<u8>(context, 14)? & 0x0f) * 4;
            let port: u16 = read(context, 14 + header + 2)?;
            let wanted = read::<u8>(context, 23)? == TCP && port == SMTP;
            wanted.then_some(FrameSource::Ipv4(read(context, 26)?))
        }
        ETHERTYPE_IPV6 => {
            let port: u16 = read(context, 56)?;
            let wanted = read::<u8>(context, 20)? == TCP && port == SMTP;
            wanted.then_some(FrameSource::Ipv6([read(context, 22)?, read(context, 30)?]))
        }
        _ => None,
    }
}

#[inline(always)]
fn put_next_source(context: &XdpContext) -> Option<()> {
    match next()? {
        FrameSource::Ipv4(address) => write(context, 26, address),
        FrameSource::Ipv6([upper, _]) => write(context, 22, upper),
    }
}

/// The SYN of `syn_flood`, without the fields that depend on its source.
#[btf_map]
static SYN: Array<[u32; 14], 1> = Array::new();

/// Puts a SYN there, all of it: a frame comes back as the other side has left it, and that may have
/// made an answer of it. Its source is one that a listener takes for an honest one.
#[inline(always)]
fn put_next_client(context: &XdpContext) -> Option<()> {
    put_syn(context)?;
    let FrameSource::Ipv4(address) = next()? else {
        return None;
    };
    // From anywhere but the loopback and multicast.
    let address = 0x0b00_0000 + u32::from_be(address) % 0x7400_0000;
    let complement = complement(address);
    write(context, 26, address.to_be())?;
    write(context, 18, complement.to_be())?;
    write(context, 34, complement.to_be())
}

/// The same for one client. The upper half of the sequence number makes up for its address and its
/// port.
#[inline(always)]
fn put_next_port(context: &XdpContext) -> Option<()> {
    put_syn(context)?;
    let sequence = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: the verifier has seen that it is not null, and one CPU at a time uses it.
    let [next, address, _, _] = unsafe { &mut *sequence };
    *next = next.wrapping_add(1);
    // Those that a client takes among them.
    let port = 1024 + *next % 64_512;
    let folded = !complement(*address);
    write(context, 26, address.to_be())?;
    write(context, 18, (!folded).to_be())?;
    write(context, 34, (port as u16).to_be())?;
    write(context, 38, complement(u32::from(folded) + port).to_be())
}

#[inline(always)]
fn put_syn(context: &XdpContext) -> Option<()> {
    let syn = SYN.get(0)?;
    at::<[u32; 14]>(context, 0)?;
    for (index, word) in syn.iter().enumerate() {
        write(context, index * 4, *word)?;
    }
    Some(())
}

/// What adds up to nothing with both halves of a word (RFC 1071).
#[inline(always)]
fn complement(word: u32) -> u16 {
    let sum = (word >> 16) + (word & 0xffff);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The next source of the sequence.
#[inline(always)]
fn next() -> Option<FrameSource> {
    let sequence = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: the verifier has seen that it is not null, and one CPU at a time uses it.
    let [next, first, number, kind] = unsafe { &mut *sequence };
    let place = first.wrapping_add(*next);
    *next += 1;
    if *next >= *number {
        *next = 0;
    }
    const IPV4: u32 = Kind::Ipv4 as u32;
    const IPV4_NEAR: u32 = Kind::Ipv4Near as u32;
    Some(match *kind {
        IPV4 => FrameSource::Ipv4(traffic::ipv4(place).to_be()),
        IPV4_NEAR => FrameSource::Ipv4(traffic::ipv4_near(place).to_be()),
        _ => FrameSource::Ipv6([traffic::ipv6(place).to_be(), 0]),
    })
}

#[inline(always)]
fn halves([upper, lower]: [u64; 2]) -> [u32; 4] {
    [
        upper as u32,
        (upper >> 32) as u32,
        lower as u32,
        (lower >> 32) as u32,
    ]
}

#[inline(always)]
fn dropped() -> u32 {
    count(0);
    XDP_DROP
}

#[inline(always)]
fn passed() -> u32 {
    count(1);
    XDP_PASS
}

#[inline(always)]
fn count(which: usize) {
    if let Some(counts) = COUNTS.get_ptr_mut(0) {
        // SAFETY: the verifier has seen that it is not null, and the counts are those of this CPU.
        unsafe { (*counts)[which] += 1 };
    }
}

#[inline(always)]
fn at<T>(context: &XdpContext, offset: usize) -> Option<*mut T> {
    let pointer = context.data() + offset;
    if pointer + size_of::<T>() > context.data_end() {
        return None;
    }
    Some(pointer as *mut T)
}

#[inline(always)]
fn read<T: Copy>(context: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: `at` has checked the bounds; all types that are read here are integers.
    at::<T>(context, offset).map(|pointer| unsafe { pointer.read_unaligned() })
}

#[inline(always)]
fn write<T>(context: &XdpContext, offset: usize, value: T) -> Option<()> {
    // SAFETY: `at` has checked the bounds.
    at::<T>(context, offset).map(|pointer| unsafe { pointer.write_unaligned(value) })
}

/// Nothing here panics, and the linker drops this; the compiler wants it all the same.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
