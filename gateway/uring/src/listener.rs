//! Listening sockets: one per ring and address, all of them with `SO_REUSEPORT`, so that the kernel
//! spreads connections over the rings and no two rings share a queue.

#![expect(unsafe_code, reason = "socket, setsockopt, bind and listen")]

use crate::address::RawAddress;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{fmt, io};

/// Octets that may lie in a socket without having been sent (`TCP_NOTSENT_LOWAT`). So sends to a
/// slow peer complete every few octets that it takes, and not only after megabytes. What is in
/// flight to a fast peer is not bounded by it.
pub(crate) const UNSENT_MAX: libc::c_int = 256 << 10;

/// Which of a ring's listening sockets, by their order in
/// [`Settings::listeners`](crate::Settings::listeners).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener(pub u16);

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, error } = self;
        write!(f, "cannot listen on {address}: ")?;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "another program does already (ss -ltnp 'sport = :{}' says which)",
                address.port()
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "a port below 1024 needs root or CAP_NET_BIND_SERVICE, or the port is another \
                 user's already"
            ),
            io::ErrorKind::AddrNotAvailable => write!(f, "this machine does not have that address"),
            _ => error.fmt(f),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A listening socket that accepted connections inherit `TCP_NODELAY` and a bound on what lies
/// unsent from. An IPv6 socket takes IPv6 only, so that `0.0.0.0` and `::` can be listened on side
/// by side.
///
/// # Errors
/// [`ListenError`], whose message says what to do.
pub fn listen(address: SocketAddr, backlog: i32) -> Result<OwnedFd, ListenError> {
    open(address, backlog).map_err(|error| ListenError { address, error })
}

fn open(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let domain = RawAddress::family(address);
    // SAFETY: takes no pointer.
    let socket = checked(unsafe { libc::socket(domain, kind, libc::IPPROTO_TCP) })?;
    // SAFETY: the descriptor was just made, and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    switch_on(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    switch_on(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    switch_on(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    set(
        &socket,
        libc::IPPROTO_TCP,
        libc::TCP_NOTSENT_LOWAT,
        UNSENT_MAX,
    )?;
    if address.is_ipv6() {
        switch_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    }
    let raw = RawAddress::new(address);
    let start = raw.bytes.as_ptr().cast();
    // SAFETY: the pointer and the length are those of a valid address, which the kernel reads
    // during the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), start, raw.length) })?;
    // SAFETY: takes no pointer.
    checked(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket)
}

fn switch_on(socket: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    set(socket, level, option, 1)
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the size are those of one int, which the kernel reads during the
    // call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    checked(result).map(drop)
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
