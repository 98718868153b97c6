//! What can be submitted to a ring.
//!
//! What the kernel does with each was found out by measuring, and by reading it:
//!
//! - An accept names its slot and brings the peer's address. Outstanding accepts are the only way
//!   in, so a full table leaves clients in the kernel's backlog. (A multishot accept brings no
//!   address and kills clients if there is no slot.)
//! - A connect is a chain of four: socket, `TCP_NODELAY`, `TCP_NOTSENT_LOWAT`, connect. The first
//!   three are silent unless they fail, and then silence the rest, so that the chain completes
//!   once, as one operation.
//! - How much a peer has not taken yet (`SIOCOUTQ`) is asked with a socket command, which the
//!   kernel answers while it submits. (`TCP_INFO` would tell more, and needs a descriptor that
//!   direct descriptors are not.)
//! - Shutting down is the one operation here that the kernel always gives to a thread of its own,
//!   which costs more than the rest of a session and finds its socket late: by then the slot could
//!   be another connection's. So both directions are ended by cancelling what is in flight and
//!   closing afterwards, with the same effect on the wire; only a half-close is a real shutdown,
//!   and a close waits for it.
//! - Closing a slot with a receive armed does not close the connection. The caller ends the receive
//!   first.

#![expect(unsafe_code, reason = "operations that point to memory")]

use crate::address::RawAddress;
use crate::buffers::{Buffers, GROUP};
use crate::completion::{Completion, OperationResult, ReceiveEnd};
use crate::listener::{Listener, UNSENT_MAX};
use crate::ring::Ring;
use crate::slots::Held;
use crate::token::{self, Conn, Operation, pack};
use io_uring::IoUring;
use io_uring::opcode::{
    Accept, AsyncCancel, AsyncCancel2, Close, Connect, RecvMulti, Send, SetSockOpt, Shutdown,
    Socket, UringCmd16,
};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// What `TCP_NODELAY` is set to; the kernel may read it after the chain was submitted.
static ON: libc::c_int = 1;
/// What `TCP_NOTSENT_LOWAT` is set to, in the same way.
static UNSENT: libc::c_int = UNSENT_MAX;
/// `SOCKET_URING_OP_SIOCOUTQ` of the kernel's `io_uring.h`.
const SOCKET_URING_OP_SIOCOUTQ: u32 = 1;

impl Ring {
    /// Takes the next connection of a listener into a free slot. Ends with
    /// [`OperationResult::Accepted`].
    pub fn accept(&mut self, listener: Listener, conn: Conn) {
        let Some(listener) = self.core.listeners.get(usize::from(listener.0)) else {
            let gone = io::Error::from_raw_os_error(libc::ECANCELED);
            return self.ready(conn, OperationResult::Accepted(Err(gone)));
        };
        let listener = Fd(listener.as_raw_fd());
        let place = match self.occupy(conn, RawAddress::ROOM) {
            Ok(place) => place,
            Err(error) => return self.ready(conn, OperationResult::Accepted(Err(error))),
        };
        let accept = Accept::new(listener, place.address, place.length)
            .file_index(Some(place.slot))
            .build()
            .user_data(pack(Operation::Accept, conn));
        self.submit_counted(&[accept]);
    }

    /// Cancels all outstanding accepts and closes the listening sockets, at once. Every accept
    /// still completes.
    pub fn stop_accepting(&mut self) {
        for at in 0..self.core.listeners.len() {
            let listener = Fd(self.core.listeners[at].as_raw_fd());
            let cancel = AsyncCancel2::new(CancelBuilder::fd(listener).all()).build();
            self.core.push(&[silent(cancel)]);
        }
        // The cancellations name descriptors, which mean something else once they are closed.
        self.core.submit_everything();
        self.core.listeners.clear();
    }

    /// Connects a free slot. Ends with [`OperationResult::Connected`].
    pub fn connect(&mut self, conn: Conn, to: SocketAddr) {
        let place = match self.occupy(conn, RawAddress::new(to)) {
            Ok(place) => place,
            Err(error) => return self.ready(conn, OperationResult::Connected(Err(error))),
        };
        let chain = connect_chain(conn, &place, RawAddress::family(to));
        self.submit_counted(&chain);
    }

    /// Receives until paused, starved or at the end of the stream: [`OperationResult::Received`]
    /// any number of times, then [`OperationResult::ReceiveEnded`]. At most one may be armed per
    /// connection.
    pub fn receive(&mut self, conn: Conn) {
        let Some(slot) = self.core.tables.slots.slot(conn) else {
            let error = io::Error::from_raw_os_error(libc::EBADF);
            return self.ready(
                conn,
                OperationResult::ReceiveEnded(ReceiveEnd::Failed(error)),
            );
        };
        debug_assert!(!slot.receiving, "a second receive on {conn:?}");
        slot.receiving = true;
        let receive = RecvMulti::new(Fixed(conn.slot), GROUP).build();
        self.submit_counted(&[receive.user_data(pack(Operation::Receive, conn))]);
    }

    /// Asks an armed receive to end; it ends with [`ReceiveEnd::Paused`] unless something else ends
    /// it first.
    pub fn pause(&mut self, conn: Conn) {
        if conn.slot < token::SLOTS_MAX {
            let cancel = AsyncCancel::new(pack(Operation::Receive, conn)).build();
            self.core.push(&[silent(cancel)]);
        }
    }

    /// Sends a buffer, which comes back with [`OperationResult::Sent`]. At most one may be in
    /// flight per connection; a second one fails with `EALREADY`.
    pub fn send(&mut self, conn: Conn, buffer: Vec<u8>) {
        let error = match self.core.tables.slots.slot(conn) {
            Some(slot) if matches!(slot.held, Held::Nothing) => {
                // The vector moves into the table, its heap memory stays where it is.
                let (start, length) = (buffer.as_ptr(), buffer.len());
                slot.held = Held::Buffer(buffer);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                // It waits for room, and ends with what the room was enough for. (To wait for room
                // for everything would hide how much a slow peer has taken.)
                let send = Send::new(Fixed(conn.slot), start, length)
                    .flags(libc::MSG_NOSIGNAL)
                    .build();
                return self.submit_counted(&[send.user_data(pack(Operation::Send, conn))]);
            }
            Some(_) => libc::EALREADY,
            None => libc::EBADF,
        };
        let result = Err(io::Error::from_raw_os_error(error));
        self.ready(conn, OperationResult::Sent { buffer, result });
    }

    /// Asks how much of what was sent the peer's TCP has not acknowledged. Ends with
    /// [`OperationResult::Unacknowledged`].
    pub fn unacknowledged(&mut self, conn: Conn) {
        if self.core.tables.slots.present(conn).is_none() {
            let error = io::Error::from_raw_os_error(libc::EBADF);
            return self.ready(conn, OperationResult::Unacknowledged(Err(error)));
        }
        let ask = UringCmd16::new(Fixed(conn.slot), SOCKET_URING_OP_SIOCOUTQ).build();
        self.submit_counted(&[ask.user_data(pack(Operation::Unacknowledged, conn))]);
    }

    /// Ends both directions, or only the sending one (which sends a FIN); has no completion of
    /// its own.
    ///
    /// With `both`, everything in flight on the connection ends: a receive with
    /// [`ReceiveEnd::EndOfStream`], a send with what was taken of it or `ECANCELED`, a connect with
    /// `ECANCELED`; the FIN is sent by the close.
    pub fn shutdown(&mut self, conn: Conn, both: bool) {
        let Some(slot) = self.core.tables.slots.present(conn) else {
            return;
        };
        if both {
            slot.shut = true;
            let cancel = AsyncCancel2::new(CancelBuilder::fd(Fixed(conn.slot)).all()).build();
            self.core.push(&[silent(cancel)]);
        } else if !slot.shutting {
            slot.shutting = true;
            let shutdown = Shutdown::new(Fixed(conn.slot), libc::SHUT_WR).build();
            self.submit_counted(&[shutdown.user_data(pack(Operation::Shutdown, conn))]);
        }
    }

    /// Gives a slot back, which may be empty. Only with no receive armed and no send in flight: the
    /// kernel would keep the connection open for them. Ends with [`OperationResult::Closed`].
    pub fn close(&mut self, conn: Conn) {
        match self.core.tables.slots.slot(conn) {
            Some(slot) if slot.shutting => {
                slot.closing = true;
                return;
            }
            Some(_) => {}
            None => return self.ready(conn, OperationResult::Closed),
        }
        let close = Close::new(Fixed(conn.slot)).build();
        self.submit_counted(&[close.user_data(pack(Operation::Close, conn))]);
    }

    /// Submits the closes that had to wait for a shutdown.
    pub(crate) fn close_deferred(&mut self) {
        while let Some(conn) = self.core.tables.deferred.pop() {
            self.close(conn);
        }
    }

    /// Begins a use of a slot that starts with an address.
    fn occupy(&mut self, conn: Conn, address: RawAddress) -> io::Result<Place> {
        let slots = &mut self.core.tables.slots;
        match slots.slot(conn) {
            Some(slot) if matches!(slot.held, Held::Nothing) => slot.begin(conn.generation),
            Some(_) => return Err(io::Error::from_raw_os_error(libc::EALREADY)),
            None => return Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
        let cell = slots.address(address);
        let place = Place {
            slot: DestinationSlot::try_from_slot_target(conn.slot)
                .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?,
            address: cell.address(),
            length: cell.length(),
            size: address.length,
        };
        if let Some(slot) = slots.slot(conn) {
            slot.held = Held::Address(cell);
        }
        Ok(place)
    }

    fn submit_counted(&mut self, entries: &[Entry]) {
        self.core.tables.in_flight += 1;
        self.core.push(entries);
    }

    /// An outcome that is known already; the next wait gives it.
    fn ready(&mut self, conn: Conn, outcome: OperationResult) {
        self.core.tables.ready.push(Completion { conn, outcome });
    }
}

/// Where an operation's socket and address are to be.
struct Place {
    slot: DestinationSlot,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
    /// Of the address, as it is now.
    size: libc::socklen_t,
}

/// Socket, `TCP_NODELAY`, `TCP_NOTSENT_LOWAT`, connect. One of them completes, as
/// [`Operation::Connect`]: the first that fails, or the last.
fn connect_chain(conn: Conn, place: &Place, domain: i32) -> [Entry; 4] {
    let user_data = pack(Operation::Connect, conn);
    let socket = Socket::new(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)
        .file_index(Some(place.slot))
        .build();
    let set = |option: libc::c_int, value: &'static libc::c_int| {
        SetSockOpt::new(
            Fixed(conn.slot),
            libc::IPPROTO_TCP as u32,
            option as u32,
            (&raw const *value).cast(),
            size_of_val(value) as u32,
        )
        .build()
    };
    let address = place.address.cast_const();
    let connect = Connect::new(Fixed(conn.slot), address, place.size).build();
    let link = Flags::IO_LINK | Flags::SKIP_SUCCESS;
    [
        socket.flags(link).user_data(user_data),
        set(libc::TCP_NODELAY, &ON).flags(link).user_data(user_data),
        set(libc::TCP_NOTSENT_LOWAT, &UNSENT)
            .flags(link)
            .user_data(user_data),
        connect.user_data(user_data),
    ]
}

/// An entry whose completion says nothing of use.
fn silent(entry: Entry) -> Entry {
    entry
        .user_data(pack(Operation::Cancel, Conn::NONE))
        .flags(Flags::SKIP_SUCCESS)
}

/// Queues entries, all or (if there is no room) none of them.
pub(crate) fn push(ring: &mut IoUring, entries: &[Entry]) -> bool {
    // SAFETY: the entries are those made in this crate. What they point to is a static, or memory
    // of the ring's tables, which keep it until the operation has completed and are leaked if it
    // never does.
    unsafe { ring.submission().push_multiple(entries) }.is_ok()
}

impl Buffers {
    /// Registers the buffers with a ring.
    pub(crate) fn register(&self, ring: &IoUring) -> io::Result<()> {
        let (start, count) = self.ring();
        let submitter = ring.submitter();
        // SAFETY: page-aligned memory with room for that many entries, which outlives the ring or
        // is leaked.
        unsafe { submitter.register_buf_ring_with_flags(start, count, GROUP, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PreparedRing, Settings};
    use io_uring::opcode::FixedFdInstall;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::FromRawFd;
    use std::time::Duration;

    const CONN: Conn = Conn {
        slot: 3,
        generation: 1,
    };

    fn ring() -> Ring {
        let prepared = PreparedRing::new(Settings::default()).unwrap();
        prepared.start().unwrap()
    }

    fn completions(ring: &mut Ring) -> Vec<Completion> {
        let mut completions = Vec::new();
        for _ in 0..3 {
            ring.wait(Duration::from_millis(20), &mut completions)
                .unwrap();
        }
        completions
    }

    #[test]
    fn next_hop_is_not_kept_waiting_for_half_full_segments() {
        let next_hop = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ring = ring();
        ring.connect(CONN, next_hop.local_addr().unwrap());
        assert_eq!(completions(&mut ring).len(), 1);

        let install = FixedFdInstall::new(Fixed(CONN.slot), 0).build();
        ring.core.push(&[install]);
        ring.core.submit_everything();
        let entry = ring.core.ring.completion().next().unwrap();
        // SAFETY: the descriptor was just made, for this test.
        let socket = unsafe { TcpStream::from_raw_fd(entry.result()) };
        assert!(socket.nodelay().unwrap());
    }

    /// The accounting of what is in flight rests on this.
    #[test]
    fn connect_whose_socket_cannot_be_made_completes_once() {
        const NO_SUCH_FAMILY: i32 = 99;
        let mut ring = ring();
        let to = "127.0.0.1:25".parse().unwrap();
        let place = ring.occupy(CONN, RawAddress::new(to)).unwrap();
        ring.submit_counted(&connect_chain(CONN, &place, NO_SUCH_FAMILY));
        match &completions(&mut ring)[..] {
            [
                Completion {
                    outcome: OperationResult::Connected(Err(error)),
                    ..
                },
            ] => assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT)),
            other => panic!("{other:?}"),
        }
        assert_eq!(ring.core.tables.in_flight, 0);
    }
}
