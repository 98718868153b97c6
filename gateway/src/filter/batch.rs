//! Reads all elements of a hash map, thousands in each system call. aya 0.14 reads one at a time,
//! and if that element is removed meanwhile the kernel begins again from the first.
#![allow(
    unsafe_code,
    reason = "aya has no batch operations, so this makes the system call itself"
)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::MapData;
use nix::libc;

/// Elements of one call. The kernel reads a bucket as a whole; no bucket has this many.
const BATCH: usize = 16_384;

/// The part of `union bpf_attr` (linux/bpf.h) for BPF_MAP_LOOKUP_BATCH.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: i32,
    element_flags: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// All elements of a hash map. An element that is added or removed meanwhile may be among them or
/// not.
///
/// `K` and `V` must have the sizes of the map's keys and values.
pub(super) fn elements<K: Pod, V: Pod>(map: &MapData) -> io::Result<Vec<(K, V)>> {
    let mut keys: Vec<K> = Vec::with_capacity(BATCH);
    let mut values: Vec<V> = Vec::with_capacity(BATCH);
    let mut elements = Vec::new();
    // Where the next call continues: the number of a bucket.
    let (mut from, mut to) = ([0_u32; 4], [0_u32; 4]);
    let mut begun = false;
    loop {
        let mut attributes = Attributes {
            in_batch: if begun {
                from.as_ptr().expose_provenance() as u64
            } else {
                0
            },
            out_batch: to.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: BATCH as u32,
            map: map.fd().as_fd().as_raw_fd(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the descriptor is open. Keys and values have room for `count` elements of the
        // map's own sizes; the batch positions are larger than the kernel's; all of them live until
        // the call returns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        let ended = match result {
            0 => false,
            _ => match io::Error::last_os_error() {
                // These were the last elements.
                error if error.raw_os_error() == Some(libc::ENOENT) => true,
                error => return Err(error),
            },
        };
        let read = (attributes.count as usize).min(BATCH);
        // SAFETY: the kernel has written `read` keys, and every bit pattern is a value of a `Pod`.
        unsafe { keys.set_len(read) };
        // SAFETY: as above.
        unsafe { values.set_len(read) };
        elements.extend(keys.drain(..).zip(values.drain(..)));
        if ended {
            return Ok(elements);
        }
        (from, begun) = (to, true);
    }
}
