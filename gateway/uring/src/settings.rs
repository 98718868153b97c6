//! The sizes of a ring, its listeners, and why it could not be made.

use crate::support::Unavailable;
use std::os::fd::OwnedFd;
use std::{fmt, io};

/// The sizes of a ring and its listeners.
#[derive(Debug)]
pub struct Settings {
    /// Connections the ring can hold: the size of its table, below `RLIMIT_NOFILE` (which it does
    /// not use up).
    pub slots: u32,
    /// Listening sockets, as from [`listen`](crate::listen). A
    /// [`Listener`](crate::Listener) names one by its place here.
    pub listeners: Vec<OwnedFd>,
    /// Entries of the submission queue: how much is submitted with one system call (at least 4).
    pub entries: u32,
    /// Receive buffers, a power of two up to 32768.
    pub buffers: u16,
    /// Size of a receive buffer in octets.
    pub buffer_size: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            slots: 4096,
            listeners: Vec::new(),
            entries: 512,
            buffers: 1024,
            buffer_size: 4096,
        }
    }
}

/// Why a ring could not be made.
#[derive(Debug)]
pub enum SetupError {
    /// The kernel offers no io_uring, or not enough of it.
    Unavailable(Unavailable),
    /// The table of connections is larger than the kernel allows this process.
    TableTooLarge {
        /// What was asked for.
        slots: u32,
        /// The largest that would do.
        slots_max: u32,
    },
    /// A step of the set-up failed.
    Failed {
        /// Which step.
        step: &'static str,
        /// How.
        error: io::Error,
    },
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => why.fmt(f),
            Self::TableTooLarge { slots, slots_max } => write!(
                f,
                "a ring for {slots} connections needs a limit of as many open files; it is \
                 {slots_max}: raise it (ulimit -n, LimitNOFILE=), use more workers or fewer \
                 sessions"
            ),
            Self::Failed { step, error } => write!(f, "cannot {step}: {error}"),
        }
    }
}

impl std::error::Error for SetupError {}

impl From<SetupError> for io::Error {
    fn from(error: SetupError) -> Self {
        io::Error::other(error)
    }
}
