//! The system calls that the io-uring crate has no wrapper for: entering a ring by its registered
//! number and sending a ring a message from a thread that has no ring.
//!
//! The crate can register a ring's descriptor, but it keeps the number in a `Submitter` that
//! borrows the ring, and a `Submitter` cannot live as long as the ring does.

#![expect(unsafe_code, reason = "raw system calls")]

use io_uring::squeue::Entry;
use io_uring::types::SubmitArgs;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{from_mut, from_ref};

// include/uapi/linux/io_uring.h
const IORING_ENTER_GETEVENTS: u32 = 1 << 0;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;
const IORING_ENTER_REGISTERED_RING: u32 = 1 << 4;
const IORING_ENTER_NO_IOWAIT: u32 = 1 << 7;
const IORING_REGISTER_RING_FDS: u32 = 20;
const IORING_UNREGISTER_RING_FDS: u32 = 21;
const IORING_REGISTER_SEND_MSG_RING: u32 = 31;

/// `struct io_uring_rsrc_update`
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// The number of a ring in the table of the thread that registered it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegisteredRing {
    index: u32,
    /// Do not count the wait as waiting for a disk; the kernel knows the flag since 6.15.
    no_iowait: bool,
}

impl RegisteredRing {
    /// Registers a ring's descriptor for the calling thread.
    pub(crate) fn new(ring: RawFd, no_iowait: bool) -> io::Result<Self> {
        let mut update = ResourceUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: u64::try_from(ring).map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        let argument = from_mut(&mut update).cast();
        // SAFETY: the argument is one valid update, which the kernel reads and writes during the
        // call only.
        unsafe { register(ring, IORING_REGISTER_RING_FDS, argument, 1) }?;
        Ok(Self {
            index: update.offset,
            no_iowait,
        })
    }

    /// Takes the ring out of the calling thread's table, which must be the one it was registered
    /// in.
    pub(crate) fn unregister(self, ring: RawFd) -> io::Result<()> {
        let mut update = ResourceUpdate {
            offset: self.index,
            reserved: 0,
            data: 0,
        };
        let argument = from_mut(&mut update).cast();
        // SAFETY: the argument is one valid update, which the kernel reads during the call only.
        unsafe { register(ring, IORING_UNREGISTER_RING_FDS, argument, 1) }
    }

    /// Submits `to_submit` entries and runs what the kernel has put off; waits for `want`
    /// completions if `wait` is given, which also bounds the time. Returns how many entries were
    /// taken.
    ///
    /// Safe, because what the entries point to was promised to stay valid when they were pushed.
    pub(crate) fn enter(
        self,
        to_submit: u32,
        wait: Option<(u32, SubmitArgs<'_, '_>)>,
    ) -> io::Result<u32> {
        let mut flags = IORING_ENTER_REGISTERED_RING;
        if self.no_iowait {
            flags |= IORING_ENTER_NO_IOWAIT;
        }
        let mut want = 0;
        let mut arguments = SubmitArgs::new();
        if let Some((completions, bounds)) = wait {
            flags |= IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
            want = completions;
            arguments = bounds;
        }
        // SAFETY: the arguments are a valid io_uring_getevents_arg, whose lifetime covers the
        // timespec it points to.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.index,
                to_submit,
                want,
                flags,
                from_ref(&arguments),
                size_of::<SubmitArgs<'_, '_>>(),
            )
        };
        u32::try_from(taken).map_err(|_| io::Error::last_os_error())
    }
}

/// Runs a message entry (`IORING_OP_MSG_RING`) at once, on behalf of no ring. Needs Linux 6.13.
pub(crate) fn send_message(message: &Entry) -> io::Result<()> {
    let argument = from_ref(message).cast_mut().cast();
    // SAFETY: the argument is one valid entry, which the kernel only reads, during the call; a
    // message with data points to no memory. The number -1 stands for "no ring of one's own".
    unsafe { register(-1, IORING_REGISTER_SEND_MSG_RING, argument, 1) }
}

/// # Safety
/// `argument` must be what the operation takes, `count` of it, valid during the call.
unsafe fn register(
    ring: RawFd,
    operation: u32,
    argument: *mut libc::c_void,
    count: u32,
) -> io::Result<()> {
    // SAFETY: promised by the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            operation,
            argument,
            count,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
