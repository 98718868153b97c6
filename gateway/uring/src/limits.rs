//! What the process may have: descriptors and cores.

#![expect(unsafe_code, reason = "resource limits and CPU affinity")]

use std::io;

/// The kernel's bound on a ring's table, `IORING_MAX_FIXED_FILES`.
const TABLE_MAX: u64 = 1 << 20;

/// Raises the limit of open files as far as it goes without privileges, and returns it.
///
/// A ring's table may not be larger than this limit, although what is in it does not count against
/// it.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = descriptor_limit()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is valid, and the kernel reads it during the call.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// The largest table a ring can have now.
pub(crate) fn table_max() -> u32 {
    let limit = descriptor_limit().map_or(TABLE_MAX, |limit| limit.rlim_cur);
    limit.min(TABLE_MAX) as u32
}

fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid, and the kernel writes to it during the call.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

/// The cores that the calling thread may run on, in ascending order.
///
/// # Errors
/// Those of `sched_getaffinity`.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let mut set = CoreSet::EMPTY;
    let start = set.0.as_mut_ptr().cast();
    // SAFETY: the pointer and the size are those of the set, which the kernel writes to during the
    // call.
    checked(unsafe { libc::sched_getaffinity(0, size_of::<CoreSet>(), start) })?;
    Ok((0..CoreSet::CORES).filter(|&core| set.has(core)).collect())
}

/// Pins the calling thread to a core, one of [`allowed_cores`].
///
/// # Errors
/// Those of `sched_setaffinity`; `EINVAL` if there is no such core or it is not allowed.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    let mut set = CoreSet::EMPTY;
    if core >= CoreSet::CORES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    set.add(core);
    let start = set.0.as_ptr().cast();
    // SAFETY: the pointer and the size are those of the set, which the kernel reads during the
    // call.
    checked(unsafe { libc::sched_setaffinity(0, size_of::<CoreSet>(), start) })
}

/// A `cpu_set_t` whose bits are reached without the C library's macros, room for 1024 cores.
struct CoreSet([u64; 16]);

impl CoreSet {
    const EMPTY: Self = Self([0; 16]);
    const CORES: usize = 16 * 64;

    fn add(&mut self, core: usize) {
        self.0[core / 64] |= 1 << (core % 64);
    }

    fn has(&self, core: usize) -> bool {
        self.0[core / 64] & 1 << (core % 64) != 0
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_thread_may_run_on_its_core_alone() {
        // A thread of its own, so that the pin goes with it.
        std::thread::spawn(|| {
            let cores = allowed_cores().unwrap();
            let last = *cores.last().unwrap();
            pin_to_core(last).unwrap();
            assert_eq!(allowed_cores().unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn core_that_does_not_exist_is_an_error() {
        assert!(pin_to_core(1023).is_err());
        assert!(pin_to_core(usize::MAX).is_err());
    }

    #[test]
    fn raised_limit_is_the_hard_limit() {
        let raised = raise_descriptor_limit().unwrap();
        let limit = descriptor_limit().unwrap();
        assert_eq!((limit.rlim_cur, limit.rlim_max), (raised, raised));
    }
}
