//! A ring: setting it up, waiting on it, tearing it down.
//!
//! The flags of a ring, and why:
//!
//! - `SINGLE_ISSUER`, `DEFER_TASKRUN`, `COOP_TASKRUN`: one thread submits, and the kernel works for
//!   it when it waits and not by interrupting it;
//! - `R_DISABLED`: the main thread makes it while there are privileges, and the worker that will
//!   own it enables it;
//! - `SUBMIT_ALL`, `NO_SQARRAY`: a bad entry does not stop a batch; one indirection less;
//! - a completion queue of 16 times the submission queue: multishot receives complete more often
//!   than they are submitted.
//!
//! No `SQPOLL`: a polling kernel thread would take a core away from a worker.

use crate::address::RawAddress;
use crate::buffers::{Buffer, Buffers, GROUP};
use crate::completion::{Completion, Tables};
use crate::limits;
use crate::settings::{Settings, SetupError};
use crate::slots::Slots;
use crate::support::Unavailable;
use crate::syscall::RegisteredRing;
use crate::token::SLOTS_MAX;
use crate::wake::Waker;
use io_uring::IoUring;
use io_uring::opcode::AsyncCancel2;
use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// How long a dropped ring waits for the kernel to let go of its memory before it leaks the memory.
const TEARDOWN_MAX: Duration = Duration::from_secs(2);
/// The kernel's own bound on a wait is about 292 years; a shorter one makes no difference.
const WAIT_MAX: Duration = Duration::from_hours(1);
/// How often a full submission queue is submitted anew before the ring counts as broken.
const SUBMIT_ATTEMPTS_MAX: u32 = 1000;
/// A chain of operations is submitted as one, so the queue has room for the longest of them.
const ENTRIES_MIN: u32 = 4;
/// Completion queue entries per submission queue entry.
const COMPLETIONS_PER_ENTRY: u32 = 16;

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> SetupError {
    move |error| SetupError::Failed { step, error }
}

/// A ring with its memory, its table and its listeners, not yet in use. It may go to another
/// thread.
pub struct PreparedRing(Core);

impl PreparedRing {
    /// Makes a ring that does nothing yet.
    ///
    /// # Errors
    /// [`SetupError`] says what is missing and what to do about it.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let slots_max = limits::table_max().min(SLOTS_MAX);
        if settings.slots > slots_max {
            return Err(SetupError::TableTooLarge {
                slots: settings.slots,
                slots_max,
            });
        }
        let ring = build(settings.entries)
            .map_err(|error| SetupError::Unavailable(Unavailable::from_setup(error)))?;
        let buffers = Buffers::new(settings.buffers, settings.buffer_size)
            .map_err(failed("allocate the receive buffers"))?;
        ring.submitter()
            .register_files_sparse(settings.slots)
            .map_err(failed("register the table of connections"))?;
        buffers
            .register(&ring)
            .map_err(failed("register the receive buffers"))?;
        let waker = Waker::new(ring.as_raw_fd());
        Ok(Self(Core {
            ring,
            registered: None,
            tables: Tables {
                slots: Slots::new(settings.slots),
                buffers,
                waker,
                in_flight: 0,
                ready: Vec::new(),
                deferred: Vec::new(),
            },
            listeners: settings.listeners,
            broken: None,
        }))
    }

    /// A handle to wake the ring with. A wake before the start is reported by the first wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.0.tables.waker.clone()
    }

    /// Makes the ring the calling thread's own.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn start(self) -> io::Result<Ring> {
        let mut core = self.0;
        core.ring.submitter().register_enable_rings()?;
        let no_iowait = core.ring.params().is_feature_no_iowait();
        core.registered = Some(RegisteredRing::new(core.ring.as_raw_fd(), no_iowait)?);
        if core.tables.waker.taken() {
            core.tables.ready.push(Completion::WAKE);
        }
        Ok(Ring {
            core,
            not_send: PhantomData,
        })
    }
}

impl fmt::Debug for PreparedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedRing").finish_non_exhaustive()
    }
}

/// A ring in use. It stays on the thread that started it: the kernel allows no other to submit.
///
/// Nothing that is submitted happens before the next [`wait`](Ring::wait), unless the submission
/// queue is full. A ring that is dropped cancels what is in flight and waits for it.
pub struct Ring {
    pub(crate) core: Core,
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// A handle to wake the ring with.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.core.tables.waker.clone()
    }

    /// Submits everything and waits for a completion or until the time is up (zero: does not wait);
    /// appends what has happened to `completions`. It may return with none before the time is up.
    ///
    /// # Errors
    /// Only if the ring is broken.
    pub fn wait(&mut self, timeout: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let core = &mut self.core;
        if let Some(error) = core.broken.take() {
            return Err(error);
        }
        core.tables.buffers.publish();
        let wait = !timeout.is_zero() && core.tables.ready.is_empty();
        core.enter(if wait { timeout } else { Duration::ZERO })?;
        completions.append(&mut core.tables.ready);
        core.drain(completions);
        self.close_deferred();
        Ok(())
    }

    /// The bytes of a received buffer.
    ///
    /// # Panics
    /// If the buffer was recycled already or never received, or is not so long.
    #[must_use]
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        match self.core.tables.buffers.bytes(buffer) {
            Some(bytes) => bytes,
            None => panic!("the ring has not lent {buffer:?}"),
        }
    }

    /// Overwrites a received buffer with zeroes: it held what is not to stay in memory.
    ///
    /// # Panics
    /// As [`bytes`](Self::bytes).
    pub fn wipe(&mut self, buffer: &Buffer) {
        let wiped = self.core.tables.buffers.wipe(buffer);
        assert!(wiped, "the ring has not lent {buffer:?}");
    }

    /// Gives a received buffer back, whether or not its connection still exists. The kernel sees it
    /// at the next wait.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the caller cannot read it any more"
    )]
    pub fn recycle(&mut self, buffer: Buffer) {
        let recycled = self.core.tables.buffers.recycle(buffer.id);
        debug_assert!(recycled, "{buffer:?} recycled twice");
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.core.tables.in_flight)
            .finish_non_exhaustive()
    }
}

/// What a ring consists of. The fields are dropped in this order: the ring before the memory that
/// it knows.
pub(crate) struct Core {
    pub(crate) ring: IoUring,
    registered: Option<RegisteredRing>,
    pub(crate) tables: Tables,
    pub(crate) listeners: Vec<OwnedFd>,
    /// An operation could not be submitted at all: the next wait fails with this.
    broken: Option<io::Error>,
}

impl Core {
    /// Queues entries that belong together; they are submitted together too. Submits if there is no
    /// room for them.
    pub(crate) fn push(&mut self, entries: &[Entry]) {
        self.submit_until(|core| crate::operations::push(&mut core.ring, entries));
    }

    /// Submits all that is queued now and not with the next wait.
    pub(crate) fn submit_everything(&mut self) {
        self.submit_until(|core| core.ring.submission().is_empty());
    }

    /// Submits again and again, for as long as something cannot be done. If the kernel takes
    /// nothing for that long, the ring is broken.
    fn submit_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            if done(self) {
                return;
            }
            if let Err(error) = self.submit() {
                self.broken = Some(error);
                return;
            }
        }
        self.broken = Some(io::Error::from_raw_os_error(libc::EBUSY));
    }

    /// Submits what is queued, without waiting. Should the kernel be out of room, completions are
    /// taken meanwhile.
    fn submit(&mut self) -> io::Result<()> {
        let Some(registered) = self.registered else {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        };
        let queued = self.ring.submission().len() as u32;
        match registered.enter(queued, None) {
            Ok(_) => Ok(()),
            Err(error) if passes(&error) => {
                self.enter(Duration::ZERO)?;
                let mut ready = std::mem::take(&mut self.tables.ready);
                self.drain(&mut ready);
                self.tables.ready = ready;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Submits and waits, with one system call.
    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        let Some(registered) = self.registered else {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        };
        let queued = self.ring.submission().len() as u32;
        let timespec = Timespec::from(timeout.min(WAIT_MAX));
        let bounds = SubmitArgs::new().timespec(&timespec);
        let want = u32::from(!timeout.is_zero());
        match registered.enter(queued, Some((want, bounds))) {
            Err(error) if !passes(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes all completions there are. Those that did not fit into the queue come with the next
    /// wait: entering the ring moves them up.
    fn drain(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            self.tables.complete(&entry, completions);
        }
    }

    /// Cancels everything and waits for it. True if the kernel holds none of the ring's memory any
    /// more.
    fn settle(&mut self) -> bool {
        let deadline = Instant::now() + TEARDOWN_MAX;
        while self.tables.in_flight > 0 {
            let cancel = AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(&[cancel]);
            if self.broken.is_some() || Instant::now() > deadline {
                return false;
            }
            if self.enter(Duration::from_millis(50)).is_err() {
                return false;
            }
            self.drain(&mut Vec::new());
        }
        true
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.tables.waker.detach();
        if !self.settle() {
            self.tables.slots.leak();
            self.tables.buffers.leak();
        }
        if let Some(registered) = self.registered {
            // It fails only if the thread's table is gone, and then there is nothing to take out.
            let _ = registered.unregister(self.ring.as_raw_fd());
        }
    }
}

/// Makes a disabled ring.
pub(crate) fn build(entries: u32) -> io::Result<IoUring> {
    let entries = entries.max(ENTRIES_MIN);
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_no_sqarray()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY))
        .build(entries)
}

/// Errors of entering a ring that are no errors: the time was up, a signal came, or the kernel
/// wants completions to be taken first.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

const _: fn() = || {
    fn send<T: Send>() {}
    send::<PreparedRing>();
    // The kernel writes addresses of peers into these.
    assert!(size_of::<RawAddress>() == 32 && GROUP == 0);
};
