//! The CPU time of a server: all of its processes, all of their threads, those that have ended
//! included.
//!
//! The sum comes from the processes' CPU clocks (nanoseconds; `clock_getcpuclockid(3)`), because
//! `utime` and `stime` in `/proc/PID/stat` count in hundredths of a second, which is several
//! percent of a short turn. Those two are read only for how the sum divides. Kernel threads that
//! io_uring makes for a process are threads of that process and are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Sub;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

/// The kernel's `USER_HZ`, in which `/proc` counts on every architecture that Linux servers run on.
const TICKS_PER_SECOND: u32 = 100;

/// CPU time used since the processes were started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// User and system time together, exact.
    pub total: Duration,
    /// User time alone, in steps of 10 ms.
    pub user: Duration,
    /// System time alone, in steps of 10 ms.
    pub system: Duration,
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// The CPU time of a process and all of its descendants.
///
/// # Errors
/// If one of them ended meanwhile, or `/proc` cannot be read. A server whose processes come and go
/// cannot be measured this way; none of the contestants is one.
pub fn of_tree(root: Pid) -> io::Result<CpuTime> {
    let mut sum = CpuTime::default();
    for pid in tree(root)? {
        let clock = ClockId::pid_cpu_clock_id(pid)?;
        sum.total += Duration::from(clock.now()?);
        let stat = Stat::read(pid)?;
        sum.user += Duration::from_secs(stat.user_ticks) / TICKS_PER_SECOND;
        sum.system += Duration::from_secs(stat.system_ticks) / TICKS_PER_SECOND;
    }
    Ok(sum)
}

/// A process and all of its descendants.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn tree(root: Pid) -> io::Result<BTreeSet<Pid>> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Another process that ended between the listing and now is no error.
        if let Ok(stat) = Stat::read(Pid::from_raw(pid)) {
            children
                .entry(stat.parent)
                .or_default()
                .push(Pid::from_raw(pid));
        }
    }
    let mut found = BTreeSet::from([root]);
    let mut to_visit = vec![root];
    while let Some(pid) = to_visit.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            if found.insert(child) {
                to_visit.push(child);
            }
        }
    }
    Ok(found)
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: Pid,
    user_ticks: u64,
    system_ticks: u64,
}

impl Stat {
    fn read(pid: Pid) -> io::Result<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&line)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be read: {line:?}")))
    }

    /// The second field is the command's name in brackets, which may itself hold blanks and
    /// brackets.
    fn parse(line: &str) -> Option<Self> {
        let (_, after_name) = line.rsplit_once(") ")?;
        // Counted as proc_pid_stat(5) does: what follows the name begins with field 3.
        let field = |number: usize| after_name.split(' ').nth(number - 3);
        Some(Self {
            parent: Pid::from_raw(field(4)?.parse().ok()?),
            user_ticks: field(14)?.parse().ok()?,
            system_ticks: field(15)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_command_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let line = "42 (a) (b c) S 7 42 42 0 -1 4194304 100 0 0 0 36 139 0 0 20 0 1 0 5 6 7";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                parent: Pid::from_raw(7),
                user_ticks: 36,
                system_ticks: 139
            })
        );
    }

    #[test]
    fn the_children_of_a_server_are_counted() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 20 & wait"])
            .spawn()
            .unwrap();
        let root = Pid::from_raw(shell.id().cast_signed());
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let mut pids = tree(root).unwrap();
        while pids.len() < 2 && std::time::Instant::now() < deadline {
            pids = tree(root).unwrap();
        }
        for &pid in &pids {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        shell.wait().unwrap();
        assert_eq!(pids.len(), 2);
    }

    #[test]
    fn work_done_by_a_thread_that_has_ended_is_counted() {
        let this = Pid::this();
        // Another test's processes are children of this one as well, and may end while they are
        // looked at.
        let of_tree = |root| (0..100).find_map(|_| of_tree(root).ok());
        let before = of_tree(this).unwrap();
        let (enough, thread_clock) = (Duration::from_millis(20), ClockId::CLOCK_THREAD_CPUTIME_ID);
        let busy = move || while Duration::from(thread_clock.now().unwrap()) < enough {};
        std::thread::spawn(busy).join().unwrap();
        let used = of_tree(this).unwrap() - before;
        assert!(used.total >= enough, "{used:?}");
    }
}
