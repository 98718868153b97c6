//! The fast path: the verdict on what a flood is made of, from headers at fixed offsets.
//!
//! It reads a TCP segment in an Ethernet frame with neither tags nor options nor fragments, to the
//! first filtered port, on an edge that enforces, and decides by the lists alone. Every offset is a
//! constant and nothing has to be kept, which takes a third of the slow path's instructions. The
//! verdict comes from the slow path's table, [`decide`]; a fact that the fast path does not know (a
//! grant, a recent verdict, a budget, prefixes within a /64) leaves the frame to the slow path.

use crate::layout::{PackedSettings, Role, VerdictKey};
use crate::packet::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Source, TCP,
    TCP_HEADER, flags, pair,
};
use crate::verdict::{Class, Facts, Verdict, decide};

/// Leaves a frame to the slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowPath;

/// Bytes of the headers of Ethernet, IPv4 and TCP without options.
pub const IPV4_HEADERS: usize = ETHERNET_HEADER + IPV4_HEADER + TCP_HEADER;
/// Bytes of the headers of Ethernet, IPv6 and TCP without options.
pub const IPV6_HEADERS: usize = ETHERNET_HEADER + IPV6_HEADER + TCP_HEADER;

/// A frame, of which the fast path reads the beginning.
pub trait Beginning {
    /// Its first `BYTES` bytes; `None` if its first buffer holds fewer.
    fn headers<const BYTES: usize>(&self) -> Option<impl Headers>;
}

/// The first bytes of a frame, all of them there.
pub trait Headers {
    /// The four bytes from the byte `AT` on, as they lie in memory.
    fn word<const AT: usize>(&self) -> u32;
    /// The eight bytes from the byte `AT` on, as they lie in memory.
    fn double<const AT: usize>(&self) -> u64;
}

/// Where the EtherType is; the IP header begins in the same word.
const ETHERTYPE: usize = ETHERNET_HEADER - 2;
/// EtherType, version, and a header without options.
const IPV4: Pattern = Pattern::new(ether_type(ETHERTYPE_IPV4, 0x45), [0xff, 0xff, 0xff, 0]);
/// A whole packet in one fragment, and TCP; "do not fragment" and the time to live do not matter.
const IPV4_TCP: Pattern = Pattern::new([0, 0, 0, TCP], [0x3f, 0xff, 0, 0xff]);
/// EtherType and version.
const IPV6: Pattern = Pattern::new(ether_type(ETHERTYPE_IPV6, 0x60), [0xff, 0xff, 0xf0, 0]);
/// The next header is TCP.
const IPV6_TCP: Pattern = Pattern::new([TCP, 0, 0, 0], [0xff, 0, 0, 0]);
/// The last byte has the flags of TCP: a SYN without an ACK.
const OPENS: Pattern = Pattern::new(
    [0, 0, 0, pair(flags::SYN).1],
    [0, 0, 0, pair(flags::SYN | flags::ACK).1],
);

const fn ether_type(ether_type: u16, first: u8) -> [u8; 4] {
    let (high, low) = pair(ether_type);
    [high, low, first, 0]
}

/// The value of some bits of a word.
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
    const fn fits(&self, word: u32) -> bool {
        word & self.mask == self.bits
    }
}

/// A TCP segment, all of whose headers are at fixed offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainSegment {
    /// Its source.
    pub source: PlainSource,
    /// The port that it goes to, as it lies in the packet.
    port: u16,
    /// The word of the TCP header whose last byte has the flags.
    flags: u32,
}

/// The source of a plain segment, each word as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainSource {
    /// An IPv4 address.
    Ipv4(u32),
    /// The upper half of an IPv6 address: its /64.
    Ipv6Network(u64),
}

impl PlainSource {
    /// As [`Source::key`].
    #[inline(always)]
    #[must_use]
    pub const fn key(self) -> VerdictKey {
        match self {
            Self::Ipv4(address) => [Source::FAMILY_IPV4, address, 0],
            Self::Ipv6Network(upper) => [Source::FAMILY_IPV6, upper as u32, (upper >> 32) as u32],
        }
    }
}

/// The segment in a frame, if all its headers are at fixed offsets.
///
/// # Errors
/// It is no TCP segment, or something is between its headers.
#[inline(always)]
pub fn read(frame: &impl Beginning) -> Result<PlainSegment, SlowPath> {
    let headers = frame.headers::<IPV4_HEADERS>().ok_or(SlowPath)?;
    if IPV4.fits(headers.word::<ETHERTYPE>()) {
        return ipv4(&headers);
    }
    let headers = frame.headers::<IPV6_HEADERS>().ok_or(SlowPath)?;
    if IPV6.fits(headers.word::<ETHERTYPE>()) {
        return ipv6(&headers);
    }
    Err(SlowPath)
}

/// RFC 791, section 3.1, and RFC 9293, section 3.1.
#[inline(always)]
fn ipv4(headers: &impl Headers) -> Result<PlainSegment, SlowPath> {
    const FRAGMENT: usize = ETHERNET_HEADER + 6;
    const SOURCE: usize = ETHERNET_HEADER + 12;
    const PORT: usize = ETHERNET_HEADER + IPV4_HEADER + 2;
    const FLAGS: usize = ETHERNET_HEADER + IPV4_HEADER + 10;
    if !IPV4_TCP.fits(headers.word::<FRAGMENT>()) {
        return Err(SlowPath);
    }
    Ok(PlainSegment {
        source: PlainSource::Ipv4(headers.word::<SOURCE>()),
        port: headers.word::<PORT>() as u16,
        flags: headers.word::<FLAGS>(),
    })
}

/// RFC 8200, section 3, and RFC 9293, section 3.1.
#[inline(always)]
fn ipv6(headers: &impl Headers) -> Result<PlainSegment, SlowPath> {
    const NEXT_HEADER: usize = ETHERNET_HEADER + 6;
    const SOURCE: usize = ETHERNET_HEADER + 8;
    const PORT: usize = ETHERNET_HEADER + IPV6_HEADER + 2;
    const FLAGS: usize = ETHERNET_HEADER + IPV6_HEADER + 10;
    if !IPV6_TCP.fits(headers.word::<NEXT_HEADER>()) {
        return Err(SlowPath);
    }
    Ok(PlainSegment {
        source: PlainSource::Ipv6Network(headers.double::<SOURCE>()),
        port: headers.word::<PORT>() as u16,
        flags: headers.word::<FLAGS>(),
    })
}

/// What the fast path can learn of a source at little cost.
pub trait Sources {
    /// What the lists say of a source.
    ///
    /// # Errors
    /// There are prefixes within its /64.
    fn class(&self, source: PlainSource) -> Result<Class, SlowPath>;
    /// Whether there may be a grant for a source with this key.
    fn may_be_granted(&self, key: &VerdictKey) -> bool;
    /// Whether there may be a recent verdict under this key.
    fn may_be_recent(&self, key: &VerdictKey) -> bool;
}

/// The verdict on a plain segment that came in on an edge, where the program enforces.
///
/// # Errors
/// It goes to another port, or depends on what the fast path does not know.
#[inline(always)]
pub fn judge<S: Sources>(
    segment: &PlainSegment,
    settings: PackedSettings,
    sources: &S,
) -> Result<Verdict, SlowPath> {
    if !settings.filters(segment.port) {
        return Err(SlowPath);
    }
    decide(&FewFacts {
        segment,
        settings,
        sources,
    })
}

/// A plain segment with what some facts about it come from.
struct FewFacts<'a, S> {
    segment: &'a PlainSegment,
    settings: PackedSettings,
    sources: &'a S,
}

impl<S: Sources> Facts for FewFacts<'_, S> {
    type Unknown = SlowPath;

    #[inline(always)]
    fn role(&self) -> Role {
        Role::Edge
    }

    #[inline(always)]
    fn source(&self) -> Result<Class, SlowPath> {
        self.sources.class(self.segment.source)
    }

    #[inline(always)]
    fn destination(&self) -> Result<Class, SlowPath> {
        Err(SlowPath)
    }

    #[inline(always)]
    fn granted(&self) -> Result<bool, SlowPath> {
        if self.sources.may_be_granted(&self.segment.source.key()) {
            return Err(SlowPath);
        }
        Ok(false)
    }

    #[inline(always)]
    fn recent_verdict(&self) -> Result<bool, SlowPath> {
        if self.sources.may_be_recent(&self.segment.source.key()) {
            return Err(SlowPath);
        }
        Ok(false)
    }

    #[inline(always)]
    fn drop_unlisted(&self) -> bool {
        self.settings.drop_unlisted()
    }

    /// Only a SYN uses a budget up; it may also be answered with a cookie.
    #[inline(always)]
    fn over_budget(&self) -> Result<bool, SlowPath> {
        if OPENS.fits(self.segment.flags) {
            return Err(SlowPath);
        }
        Ok(false)
    }
}
