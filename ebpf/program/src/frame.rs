//! A frame as the kernel hands it over: between two pointers, against which the verifier wants
//! every access checked.
//!
//! Headers lie at odd multiples of two, so the compiler would read them byte by byte. Machines with
//! unaligned access read them in one piece, and on others the verifier refuses the program: hence
//! the loads and stores in assembly.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use portcullis_ebpf_common::Packet;
use portcullis_ebpf_common::packet::TRANSPORT_MAX;

/// A frame, the first buffer of which lies between the pointers. `FRAGS`: there may be more
/// buffers, which only a kernel from 5.18 on can have, and tell.
pub(crate) struct Frame<const FRAGS: bool> {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl<const FRAGS: bool> Frame<FRAGS> {
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        Self {
            context,
            // SAFETY: the kernel's context outlives the program's run.
            start: unsafe { (*context).data } as usize,
            // SAFETY: as above.
            end: unsafe { (*context).data_end } as usize,
        }
    }

    /// The place of a `T` at the offset, if all of it is in the first buffer.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<usize> {
        let mut place = self.start + offset;
        // SAFETY: it changes nothing. But the compiler, not knowing that, neither computes this
        // place from another, of which the verifier has seen less, nor takes out the check below
        // because of one further on.
        unsafe {
            asm!("{0} = {0}", inout(reg) place, options(pure, nomem, nostack, preserves_flags))
        };
        if place + size_of::<T>() > self.end {
            return None;
        }
        Some(place)
    }

    /// Bytes of the whole frame.
    #[inline(always)]
    fn bytes(&self) -> usize {
        if FRAGS {
            // SAFETY: the context is the kernel's.
            unsafe { bpf_xdp_get_buff_len(self.context) as usize }
        } else {
            self.end - self.start
        }
    }

    /// The frame with this many bytes, cut or lengthened at its end. Parts read before are void.
    #[inline(always)]
    pub(crate) fn resized(self, bytes: usize) -> Option<Self> {
        let change = bytes as i32 - self.bytes() as i32;
        // SAFETY: the context is the kernel's; pointers into the frame are made anew below.
        if unsafe { bpf_xdp_adjust_tail(self.context, change) } != 0 {
            return None;
        }
        Some(Self::new(self.context))
    }

    /// A part of it, checked once: the compiler takes out a second check that follows from the
    /// first, and the verifier cannot see that it does.
    #[inline(always)]
    pub(crate) fn part<const BYTES: usize>(&self, offset: usize) -> Option<Part<BYTES>> {
        self.at::<[u8; BYTES]>(offset).map(Part)
    }

    /// Exchanges the Ethernet addresses, so that the frame goes back where it came from.
    #[inline(always)]
    pub(crate) fn turn(&self) -> Option<()> {
        let addresses = self.part::<12>(0)?;
        let [a, b, c] = [addresses.word(0), addresses.word(1), addresses.word(2)];
        // Six bytes each: a and the first half of b, the second half of b and c.
        addresses.put(
            0,
            &[b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16],
        );
        Some(())
    }
}

/// `BYTES` bytes of a frame, whose bounds were checked. Places in it are constants, counted in
/// words unless in bytes by name; none is beyond the end.
pub(crate) struct Part<const BYTES: usize>(usize);

impl<const BYTES: usize> Part<BYTES> {
    /// For the kernel to read.
    #[inline(always)]
    pub(crate) fn pointer(&self) -> *mut u32 {
        self.0 as *mut u32
    }

    /// A word as it lies in memory.
    #[inline(always)]
    pub(crate) fn word(&self, at: usize) -> u32 {
        // SAFETY: the bounds were checked when this was made.
        unsafe { read_word(self.0 + at * 4) }
    }

    /// The four bytes from the byte `AT` on, in one instruction.
    #[inline(always)]
    pub(crate) fn word_at<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= BYTES) };
        let word: u64;
        // SAFETY: the bounds were checked when this was made; the instruction does nothing else.
        unsafe {
            asm!("{word} = *(u32 *)({place} + {at})", word = out(reg) word, place = in(reg) self.0,
                at = const AT, options(pure, readonly, nostack, preserves_flags));
        }
        word as u32
    }

    /// The eight bytes from the byte `AT` on, in one instruction.
    #[inline(always)]
    pub(crate) fn double_at<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= BYTES) };
        let double: u64;
        // SAFETY: as above.
        unsafe {
            asm!("{double} = *(u64 *)({place} + {at})", double = out(reg) double,
                place = in(reg) self.0, at = const AT,
                options(pure, readonly, nostack, preserves_flags));
        }
        double
    }

    /// Writes words.
    #[inline(always)]
    pub(crate) fn put<const N: usize>(&self, at: usize, words: &[u32; N]) {
        for (index, word) in words.iter().enumerate() {
            // SAFETY: as above.
            unsafe { write(self.0 + (at + index) * 4, *word) };
        }
    }

    /// Exchanges two addresses of `N` words, one behind the other; gives the sum of their words.
    #[inline(always)]
    pub(crate) fn exchange<const N: usize>(&self, at: usize) -> u64 {
        let mut sum = 0;
        for index in at..at + N {
            let [a, b] = [self.word(index), self.word(index + N)];
            sum += u64::from(a) + u64::from(b);
            self.put(index, &[b]);
            self.put(index + N, &[a]);
        }
        sum
    }
}

impl<const FRAGS: bool> Packet for Frame<FRAGS> {
    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        // SAFETY: `at` has checked the bounds.
        self.at::<u16>(offset)
            .map(|place| u16::from_be(unsafe { read_half(place) } as u16))
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> Option<u32> {
        // SAFETY: `at` has checked the bounds.
        self.at::<u32>(offset)
            .map(|place| unsafe { read_word(place) })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let part = Part::<N>(self.at::<[u32; N]>(offset)?);
        Some(core::array::from_fn(|at| part.word(at)))
    }

    #[inline(always)]
    fn continues(&self) -> bool {
        FRAGS && self.bytes() > self.end - self.start
    }

    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        let mut offset = offset;
        // SAFETY: the same twice changes nothing; the verifier does not know that, and the compiler
        // does not see it.
        unsafe {
            asm!("{offset} ^= {unknown}", "{offset} ^= {unknown}",
                offset = inout(reg) offset, unknown = in(reg) self.end - self.start,
                options(pure, nomem, nostack, preserves_flags));
        }
        offset & TRANSPORT_MASK
    }
}

/// The bits that an offset can have.
pub(crate) const TRANSPORT_MASK: usize = (TRANSPORT_MAX + 1).next_power_of_two() - 1;

/// The two bytes at a place in a frame.
///
/// # Safety
/// They are within the frame, and the verifier can see that.
#[inline(always)]
unsafe fn read_half(place: usize) -> u64 {
    let half;
    // SAFETY: the caller has checked the bounds; the instruction does nothing else.
    unsafe {
        asm!("{half} = *(u16 *)({place} + 0)", half = out(reg) half, place = in(reg) place,
            options(pure, readonly, nostack, preserves_flags));
    }
    half
}

/// The four bytes at a place in a frame.
///
/// # Safety
/// As for [`read_half`].
#[inline(always)]
unsafe fn read_word(place: usize) -> u32 {
    let word: u64;
    // SAFETY: the caller has checked the bounds; the instruction does nothing else.
    unsafe {
        asm!("{word} = *(u32 *)({place} + 0)", word = out(reg) word, place = in(reg) place,
            options(pure, readonly, nostack, preserves_flags));
    }
    word as u32
}

/// Writes four bytes at a place in a frame.
///
/// # Safety
/// As for [`read_half`].
#[inline(always)]
unsafe fn write(place: usize, word: u32) {
    // SAFETY: the caller has checked the bounds; the instruction does nothing else.
    unsafe {
        asm!("*(u32 *)({place} + 0) = {word}", place = in(reg) place,
                word = in(reg) u64::from(word),
            options(nostack, preserves_flags));
    }
}
