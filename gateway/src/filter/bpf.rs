//! The calls of bpf(2) on links: a link keeps a program attached to an interface.
//!
//! aya creates links and pins them, but it does not report the interface of a link, cannot detach
//! one, and falls back to an attachment that cannot be pinned when the kernel refuses. These calls
//! need open descriptors and a writable directory only, so a gate that has dropped its privileges
//! can still make them.
#![allow(
    unsafe_code,
    reason = "bpf(2) is a system call that takes a pointer to its arguments"
)]

use core::mem::{size_of, size_of_val};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

// linux/bpf.h; the libc crate has none of them.
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const LINK_DETACH: libc::c_long = 34;

const LINK_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// linux/if_link.h: where the program should run. Always given: the kernel's own choice may be the
/// slow generic mode.
pub(super) const XDP_GENERIC: u32 = 1 << 1;
pub(super) const XDP_DRIVER: u32 = 1 << 2;

/// How many links of the whole machine are searched for the one on an interface.
const LINKS_MAX: usize = 10_000;

/// Keeps a program attached to an interface while it is pinned or a descriptor is open.
#[derive(Debug)]
pub(super) struct Link {
    descriptor: OwnedFd,
    /// The kernel's number of the link.
    pub(super) id: u32,
    /// The kernel's number of the program.
    pub(super) program: u32,
    /// The index of the interface, in its own network namespace; 0 if the interface is gone.
    pub(super) index: u32,
}

impl Link {
    /// Attaches a program to an interface of this thread's network namespace. It needs no
    /// capability, only the descriptor.
    pub(super) fn create(program: impl AsFd, index: u32, flags: u32) -> io::Result<Self> {
        let mut attributes = [number_of(&program), index, ATTACH_TYPE_XDP, flags];
        Self::of(owned(call(LINK_CREATE, &mut attributes)?)?)
    }

    /// The link that is pinned at this path; `None` if there is none.
    pub(super) fn pinned(path: &Path) -> io::Result<Option<Self>> {
        let path = c_path(path)?;
        let mut attributes = PathAttributes {
            path: path.as_ptr() as u64,
            ..PathAttributes::default()
        };
        match call(OBJ_GET, &mut attributes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => Self::of(owned(result?)?).map(Some),
        }
    }

    /// The XDP link of this program on the interface with this index; `None` if the program was
    /// attached without a link. It needs `CAP_SYS_ADMIN`.
    pub(super) fn find(index: u32, program: u32) -> io::Result<Option<Self>> {
        let mut id = 0;
        for _ in 0..LINKS_MAX {
            let mut attributes = [id, 0, 0];
            match call(LINK_GET_NEXT_ID, &mut attributes) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                result => result?,
            };
            id = attributes[1];
            let Ok(descriptor) = call(LINK_GET_FD_BY_ID, &mut [id, 0, 0]) else {
                // It ended meanwhile.
                continue;
            };
            if let Ok(link) = Self::of(owned(descriptor)?)
                && (link.index, link.program) == (index, program)
            {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        let mut info = LinkInfo::default();
        let mut attributes = InfoAttributes {
            descriptor: number_of(&descriptor),
            length: size_of::<LinkInfo>() as u32,
            info: (&raw mut info) as u64,
        };
        call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
        if info.kind != LINK_TYPE_XDP {
            let message = "a BPF link, but not one of an XDP program";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self {
            descriptor,
            id: info.id,
            program: info.program,
            index: info.index,
        })
    }

    /// Replaces the program in the link, in one step.
    pub(super) fn update(&mut self, program: impl AsFd) -> io::Result<()> {
        let mut attributes = [number_of(&self.descriptor), number_of(&program), 0, 0];
        call(LINK_UPDATE, &mut attributes).map(drop)
    }

    /// Detaches the program at once. The link stays while it is pinned, without an interface.
    pub(super) fn detach(&self) -> io::Result<()> {
        call(LINK_DETACH, &mut [number_of(&self.descriptor)]).map(drop)
    }

    /// Pins the link: it stays when its descriptors are closed.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        let path = c_path(path)?;
        let mut attributes = PathAttributes {
            path: path.as_ptr() as u64,
            descriptor: number_of(&self.descriptor),
            ..PathAttributes::default()
        };
        call(OBJ_PIN, &mut attributes).map(drop)
    }
}

/// The front of `struct bpf_link_info`, as for XDP links.
#[derive(Default)]
#[repr(C, align(8))]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    index: u32,
}

#[derive(Default)]
#[repr(C, align(8))]
struct PathAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttributes {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// One call. The arguments are the front of the kernel's `union bpf_attr`; the kernel takes the
/// rest as zero.
fn call<A: ?Sized>(command: libc::c_long, attributes: &mut A) -> io::Result<RawFd> {
    // SAFETY: the kernel reads and writes no more than the given size. The callers are above, and
    // their arguments point to memory that lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes).cast::<libc::c_void>(),
            size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or 0.
    Ok(result as RawFd)
}

fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the kernel has just returned it for a command that creates a descriptor, and nothing
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number_of(descriptor: &impl AsFd) -> u32 {
    // An open descriptor is never negative.
    descriptor.as_fd().as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
