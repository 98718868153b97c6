//! Which core a thread works on: what makes a flood has one to itself where there are two.

use anyhow::{Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// What a core is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// The last one: the sequence of sources and the queue of the link belong to one core.
    Flood,
    /// The first one.
    Clients,
}

/// Keeps the calling thread on a core until it ends.
pub(crate) fn stay_on(core: Core) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core) == Ok(true));
    let core = match core {
        Core::Flood => cores.next_back(),
        Core::Clients => cores.next(),
    };
    let Some(core) = core else {
        bail!("this process may use no core");
    };
    let mut one = CpuSet::new();
    one.set(core)?;
    Ok(sched_setaffinity(this, &one)?)
}
