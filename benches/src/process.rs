//! Processes that a run starts: each has a log, is found to be listening before it is used, and is
//! stopped by its id.
//!
//! They are started under `setpriv --pdeathsig`, so that they end with the run even when the run is
//! killed outright, and, where they need no privileges, as `nobody` (smtp-sink refuses to be root).

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::cpu::{self, CpuTime};
use crate::interrupt;

/// How long a server may take until it listens.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a server may take to stop after SIGTERM before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(3);
/// How often a wait looks again: short against a turn of some seconds, long enough to take no CPU
/// from it.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Whose privileges a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// Those of the run.
    Kept,
    /// Those of `nobody`, if the run has root's.
    Dropped,
}

/// A process that ends with the value.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a process; what it prints goes to `NAME.log` in `directory`, which is appended to, so
    /// that a reader may empty it at any time.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        name: &str,
        program: &str,
        args: &[&str],
        privileges: Privileges,
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if privileges == Privileges::Dropped && Uid::effective().is_root() {
            command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
        }
        command
            .arg("--")
            .arg(program)
            .args(args)
            .current_dir(directory)
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = interrupt::unblocked(|| command.spawn())?.with_context(|| {
            format!(
                "cannot start {program}: is util-linux's setpriv installed? (cargo xtask setup)"
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Waits until the process answers on this address.
    ///
    /// # Errors
    /// If it ends before it does, or takes longer than 10 s.
    pub fn wait_until_listening(&mut self, address: SocketAddrV4) -> Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        while TcpStream::connect(address).is_err() {
            interrupt::check()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status})\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not listen on {address}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or the run is interrupted.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.wait_looking(limit, |_| {})
    }

    /// As [`wait`](Self::wait), and the most bytes of memory that were resident in the process,
    /// what it has mapped of the kernel's included: the kernel keeps count, and is asked every
    /// millisecond.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_weighing(&mut self, limit: Duration) -> Result<(ExitStatus, u64)> {
        let mut peak = 0;
        let status = self.wait_looking(limit, |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            peak = resident_peak(&status).unwrap_or_default().max(peak);
        })?;
        Ok((status, peak))
    }

    fn wait_looking(&mut self, limit: Duration, mut look: impl FnMut(Pid)) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            look(self.pid());
            interrupt::check()?;
            if Instant::now() > deadline {
                bail!(
                    "{} has not ended after {} s\n{}",
                    self.name,
                    limit.as_secs(),
                    self.log_tail()
                );
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// CPU time of the process and its descendants so far.
    ///
    /// # Errors
    /// If it, or one of them, has ended.
    pub fn cpu_time(&mut self) -> Result<CpuTime> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status})\n{}", self.name, self.log_tail());
        }
        cpu::of_tree(self.pid()).with_context(|| format!("the CPU time of {}", self.name))
    }

    /// The memory of the process itself (not that of its descendants), exact to a page.
    ///
    /// # Errors
    /// If it has ended, or `/proc` cannot be read.
    pub fn memory(&mut self) -> Result<Memory> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status})\n{}", self.name, self.log_tail());
        }
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = fs::read_to_string(&path).with_context(|| path.clone())?;
        Memory::parse(&rollup).with_context(|| format!("{path} has not the fields it should have"))
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, for an error message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// SIGTERM, then SIGKILL for whatever of the tree is left.
    fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let descendants = cpu::tree(self.pid())?;
        kill(self.pid(), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_TIME_MAX;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                for &pid in &descendants {
                    // Those that have ended meanwhile are no error.
                    let _ = kill(pid, Signal::SIGKILL);
                }
                self.child.wait()?;
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!(
                "{} (process {}) was not stopped: {error}",
                self.name,
                self.child.id()
            );
        }
    }
}

/// What a process has in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that are resident.
    pub resident: u64,
    /// Of those, bytes in transparent huge pages.
    pub huge: u64,
}

impl Memory {
    /// `/proc/PID/smaps_rollup`, which walks the page tables; the counters of `/proc/PID/status`
    /// are only brought up to date every 32 pages or so.
    fn parse(rollup: &str) -> Option<Self> {
        Some(Self {
            resident: bytes_of(rollup, "Rss:")?,
            huge: bytes_of(rollup, "AnonHugePages:")?,
        })
    }
}

/// The field `VmHWM` of `/proc/PID/status`, in bytes.
fn resident_peak(status: &str) -> Option<u64> {
    bytes_of(status, "VmHWM:")
}

/// A field of a file of `/proc` that counts in `kB`.
fn bytes_of(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// A TCP address of the loopback interface on which no process listens now.
///
/// # Errors
/// If there is none left.
pub fn free_address() -> io::Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    match listener.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(io::Error::other(format!("asked for IPv4, got {address}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_with_its_value() {
        let directory = tempfile::tempdir().unwrap();
        let sleeper = Running::start(
            "sleep",
            "sleep",
            &["30"],
            Privileges::Kept,
            directory.path(),
        )
        .unwrap();
        let pid = sleeper.pid();
        drop(sleeper);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn resident_memory_is_not_mistaken_for_that_of_the_line_before() {
        let rollup = "55d0-7ffe ---p 0 00:00 0 [rollup]\nRss:  1788 kB\nPss:  9 kB\n\
                      AnonHugePages:  2048 kB\n";
        let memory = Memory::parse(rollup).unwrap();
        assert_eq!((memory.resident, memory.huge), (1788 << 10, 2048 << 10));
    }

    #[test]
    fn the_memory_of_a_process_that_has_ended_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let args = [
            "-c",
            "x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 0.1",
        ];
        let mut shell =
            Running::start("sh", "sh", &args, Privileges::Kept, directory.path()).unwrap();
        let (status, peak) = shell.wait_weighing(Duration::from_secs(10)).unwrap();
        assert!(status.success());
        assert!(peak > 20_000_000, "{peak}");
    }

    #[test]
    fn a_server_that_dies_at_start_is_reported_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let args = ["-c", "echo no such option >&2; exit 3"];
        let mut server =
            Running::start("sh", "sh", &args, Privileges::Kept, directory.path()).unwrap();
        let error = server
            .wait_until_listening(free_address().unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("no such option"), "{error}");
    }
}
