//! Becoming the configured user, once everything that takes privileges is held.
//!
//! What the gate may still do afterwards, and nothing else of what root may:
//!
//! - accept, connect, answer on the admin address: sockets and rings are open already;
//! - put other lists and settings into a filter in place: its maps are open already, and `CAP_BPF`
//!   is kept for making new ones;
//! - read the filter's counters and events, add and remove recent verdicts: its maps and links are
//!   open already;
//! - put the filter back on an interface that was made again: its programs and the directory of its
//!   links are open already, and that directory is the user's;
//! - read the configuration and its files again: only if that user may read them.
//!
//! It can no longer listen on other ports or load other programs. Only the control plane's thread
//! keeps `CAP_BPF`, and only if there is a filter; the workers, which are the ones to talk to
//! strangers, have no capability at all. (Both share their memory: it is the kernel's checks that
//! are narrowed, not a wall inside of the process.)

use std::ffi::CString;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd;

use super::Error;

/// A user of this system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: unistd::Uid,
    gid: unistd::Gid,
}

impl User {
    /// Looks a user up by name.
    pub(crate) fn find(name: &str) -> Result<Self, Error> {
        let found = unistd::User::from_name(name).map_err(|errno| Error::User {
            name: name.to_owned(),
            step: "look it up",
            error: errno.into(),
        })?;
        let user = found.ok_or_else(|| Error::NoSuchUser {
            name: name.to_owned(),
        })?;
        Ok(Self {
            name: user.name,
            uid: user.uid,
            gid: user.gid,
        })
    }

    /// Its number.
    pub(super) fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The number of its group.
    pub(super) fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Whether the process is this user's already.
    pub(crate) fn is_taken_on(&self) -> bool {
        unistd::geteuid() == self.uid
    }

    /// Makes the process this user's, for good. To be called while it has a single thread:
    /// capabilities are each thread's own, and threads start with those of the thread that makes
    /// them.
    ///
    /// `keep_bpf` keeps what updates of the filter need.
    pub(crate) fn take_on(&self, keep_bpf: bool) -> Result<(), Error> {
        if !self.is_taken_on() {
            self.change_ids(keep_bpf)?;
        }
        let kept: CapsHashSet = keep_bpf
            .then_some(Capability::CAP_BPF)
            .into_iter()
            .collect();
        self.restrict(&kept)?;
        prctl::set_no_new_privs().map_err(self.failed("give up gaining privileges"))
    }

    fn change_ids(&self, keep_capabilities: bool) -> Result<(), Error> {
        prctl::set_keepcaps(keep_capabilities).map_err(self.failed("keep capabilities"))?;
        // A name of the user database never holds a zero octet.
        let name = CString::new(self.name.as_str()).unwrap_or_default();
        unistd::initgroups(&name, self.gid).map_err(self.failed("take on its groups"))?;
        unistd::setgid(self.gid).map_err(self.failed("take on its group"))?;
        unistd::setuid(self.uid).map_err(self.failed("become it"))
    }

    /// Gives up all capabilities but these (as far as they are there: an ordinary user's gate never
    /// had them).
    fn restrict(&self, kept: &CapsHashSet) -> Result<(), Error> {
        let restricted = || {
            let permitted = caps::read(None, CapSet::Permitted)?;
            let kept: CapsHashSet = permitted.intersection(kept).copied().collect();
            caps::clear(None, CapSet::Effective)?;
            caps::clear(None, CapSet::Inheritable)?;
            caps::set(None, CapSet::Permitted, &kept)?;
            caps::set(None, CapSet::Effective, &kept)
        };
        restricted().map_err(|error: caps::errors::CapsError| Error::User {
            name: self.name.clone(),
            step: "give capabilities up",
            error: io::Error::other(error),
        })
    }

    fn failed(&self, step: &'static str) -> impl Fn(Errno) -> Error + '_ {
        move |errno| Error::User {
            name: self.name.clone(),
            step,
            error: errno.into(),
        }
    }
}

/// Gives up what the control plane keeps for the filter: for a worker, at the start of its thread.
pub(super) fn give_up_capabilities() -> io::Result<()> {
    caps::clear(None, CapSet::Effective)
        .and_then(|()| caps::clear(None, CapSet::Permitted))
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_named_with_the_way_out() {
        let error = User::find("no-such-user-here").unwrap_err().to_string();
        assert!(
            error.contains("no-such-user-here") && error.contains("useradd"),
            "{error}"
        );
    }

    #[test]
    fn a_worker_keeps_no_capability() {
        // Capabilities are each thread's own.
        std::thread::spawn(|| {
            give_up_capabilities().unwrap();
            assert!(caps::read(None, CapSet::Permitted).unwrap().is_empty());
            assert!(caps::read(None, CapSet::Effective).unwrap().is_empty());
        })
        .join()
        .unwrap();
    }
}
