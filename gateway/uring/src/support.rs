//! Can this machine run it? For `portcullis doctor`, and for errors at start-up that say what to
//! do.

use crate::completion::{Completion, OperationResult};
use crate::ring::PreparedRing;
use crate::settings::{Settings, SetupError};
use io_uring::{IoUring, Probe, opcode};
use std::time::Duration;
use std::{fmt, fs, io};

/// A feature that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it is.
    pub feature: &'static str,
    /// The release of Linux that brought it.
    pub since: &'static str,
}

/// Why there is no io_uring at all.
#[derive(Debug)]
pub enum Unavailable {
    /// The kernel was built without it, or is too old to have it.
    NotInKernel,
    /// `kernel.io_uring_disabled` has this value: 1 excludes processes without privileges, 2
    /// every process.
    DisabledBySysctl(u8),
    /// Something else forbids it: a seccomp profile, as Docker's, or a security module.
    Forbidden,
    /// The kernel has it, but does not know the flags that a ring is made with.
    TooOld,
    /// Something else.
    Other(io::Error),
}

impl Unavailable {
    /// Finds out what an error of setting up a ring means.
    pub(crate) fn from_setup(error: io::Error) -> Self {
        let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        Self::classify(error, setting.as_deref())
    }

    /// `setting` is what the file of the sysctl holds. It exists if the kernel (since 6.6) has
    /// io_uring: a system call that does not exist is then hidden by a filter.
    fn classify(error: io::Error, setting: Option<&str>) -> Self {
        let disabled = setting.and_then(|text| text.trim().parse().ok());
        match (error.raw_os_error(), disabled) {
            (Some(libc::EPERM), Some(value @ 1..)) => Self::DisabledBySysctl(value),
            (Some(libc::EPERM | libc::EACCES), _) | (Some(libc::ENOSYS), Some(_)) => {
                Self::Forbidden
            }
            (Some(libc::ENOSYS), None) => Self::NotInKernel,
            (Some(libc::EINVAL), _) => Self::TooOld,
            _ => Self::Other(error),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInKernel => {
                f.write_str("this kernel has no io_uring; Linux 6.13 or newer is needed")
            }
            Self::DisabledBySysctl(value) => write!(
                f,
                "io_uring is switched off (kernel.io_uring_disabled = {value}): sysctl \
                 kernel.io_uring_disabled=0, or with the value 1 run as a member of \
                 kernel.io_uring_group"
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden to this process, most likely by a seccomp profile: in \
                 Docker, allow io_uring_setup, io_uring_enter and io_uring_register in the profile",
            ),
            Self::TooOld => {
                f.write_str("this kernel's io_uring is too old; Linux 6.13 or newer is needed")
            }
            Self::Other(error) => write!(f, "cannot set up io_uring: {error}"),
        }
    }
}

impl std::error::Error for Unavailable {}

/// The operations of a ring, with their numbers.
const OPERATIONS: [(u8, Missing); 9] = [
    (opcode::Accept::CODE, missing("accept", "5.5")),
    (opcode::Connect::CODE, missing("connect", "5.5")),
    (opcode::AsyncCancel::CODE, missing("cancel", "5.5")),
    (opcode::Close::CODE, missing("close", "5.6")),
    (opcode::Send::CODE, missing("send", "5.6")),
    (opcode::RecvMulti::CODE, missing("receive", "5.6")),
    (opcode::Shutdown::CODE, missing("shutdown", "5.11")),
    (opcode::Socket::CODE, missing("socket", "5.19")),
    (opcode::SetSockOpt::CODE, missing("socket options", "6.7")),
];

const fn missing(feature: &'static str, since: &'static str) -> Missing {
    Missing { feature, since }
}

/// Tries out what a ring needs, by making a small one and waking it: the features that are not
/// there, none if all is well.
///
/// # Errors
/// [`Unavailable`] if the kernel offers no io_uring.
pub fn missing_features() -> Result<Vec<Missing>, Unavailable> {
    let plain = IoUring::new(4).map_err(Unavailable::from_setup)?;
    let mut probe = Probe::new();
    plain
        .submitter()
        .register_probe(&mut probe)
        .map_err(Unavailable::Other)?;
    let mut missing: Vec<Missing> = OPERATIONS
        .into_iter()
        .filter(|(code, _)| !probe.is_supported(*code))
        .map(|(_, feature)| feature)
        .collect();
    let features = plain.params();
    for (there, feature, since) in [
        (
            features.is_feature_nodrop(),
            "completions that wait for room",
            "5.5",
        ),
        (
            features.is_feature_ext_arg(),
            "a wait with a timeout",
            "5.11",
        ),
        (
            features.is_feature_linked_file(),
            "chains on direct descriptors",
            "5.17",
        ),
        (
            features.is_feature_skip_cqe_on_success(),
            "silent operations",
            "5.17",
        ),
    ] {
        if !there {
            missing.push(Missing { feature, since });
        }
    }
    missing.extend(try_a_ring()?);
    Ok(missing)
}

/// Makes a ring with all it takes, wakes it and looks whether it woke up.
fn try_a_ring() -> Result<Option<Missing>, Unavailable> {
    let settings = Settings {
        slots: 4,
        entries: 4,
        buffers: 4,
        buffer_size: 64,
        ..Settings::default()
    };
    let ring = match PreparedRing::new(settings) {
        Ok(ring) => ring,
        Err(SetupError::Unavailable(Unavailable::TooOld)) => {
            return Ok(Some(missing(
                "rings of one thread with deferred work",
                "6.6",
            )));
        }
        Err(SetupError::Unavailable(why)) => return Err(why),
        Err(SetupError::Failed { step, error }) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(Some(missing(step, "5.19")));
        }
        Err(error) => return Err(Unavailable::Other(error.into())),
    };
    let mut ring = ring.start().map_err(Unavailable::Other)?;
    ring.waker().wake();
    let mut completions = Vec::new();
    ring.wait(Duration::from_millis(100), &mut completions)
        .map_err(Unavailable::Other)?;
    let woken = |completion: &Completion| matches!(completion.outcome, OperationResult::Wake);
    Ok((!completions.iter().any(woken))
        .then(|| missing("waking a ring from a thread without one", "6.13")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_that_is_needed() {
        assert_eq!(missing_features().unwrap(), []);
    }

    #[test]
    fn reason_for_having_no_io_uring_is_told_apart() {
        let text = |error, setting| {
            Unavailable::classify(io::Error::from_raw_os_error(error), setting).to_string()
        };
        for (error, setting, says) in [
            (libc::EPERM, Some("2\n"), "io_uring_disabled = 2"),
            (libc::EPERM, Some("1\n"), "io_uring_group"),
            (libc::EPERM, Some("0\n"), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, Some("0\n"), "seccomp"),
            (libc::ENOSYS, None, "no io_uring"),
            (libc::EINVAL, Some("0\n"), "too old"),
            (libc::ENOMEM, Some("0\n"), "cannot set up"),
        ] {
            let text = text(error, setting);
            assert!(text.contains(says), "{error} {setting:?}: {text}");
        }
    }
}
